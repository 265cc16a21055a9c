"""The identity-bearing settings of language model, projectors, tokens and stages; those of the encoders are in mmcore.encoder_config.

Owns plain frozen dataclasses only: importing this module must not import torch, so that planning stays instant.
Shape letters: B batch, T text tokens, N feature tokens, K projected tokens, S signal tokens, D LM width, E encoder width,
C conditioning width, Q decoder queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmcore.encoder_config import EncoderConfig, encoder_from_json

Modality = str  # one of MODALITIES

MODALITIES = ("text", "image", "video", "audio")


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecialTokens:
    """Signal-token counts per modality (0: the model cannot emit that modality). The defaults are NExT-GPT's."""

    image: int = 4
    video: int = 24
    audio: int = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class InputProjectorSpec:
    """One input projector: features_BNE -> embeds_BKD."""

    kind: str = "linear"
    """Registry name in mmcore.input_projectors: `linear`, `mlp` or `group`."""
    init_std: float = 0.136
    """Standard deviation of the projected tokens at step 0: that of the LM's own embeddings (0.136 for SmolLM2-135M)."""
    width: int = 512
    """group: inner width."""
    heads: int = 8
    """group: attention heads."""
    depths: tuple[int, ...] = (6, 3, 3)
    """group: transformer layers of each stage."""
    groups: tuple[int, ...] = (64, 8)
    """group: groups that each stage but the last forms; the last number is K."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputProjectorSpec:
    """One output projector: signal states_BSD -> conditioning_BQC."""

    kind: str = "transformer"
    """Registry name in mmcore.projectors.outputs: `transformer`, `nextgpt`, `nextgpt_legacy` or `linear` (which reads queries and out only)."""
    width: int = 256
    layers: int = 2
    """Encoder layers, and as many decoder layers."""
    heads: int = 4
    ffn: int = 1024
    queries: int = 16
    """Q, tokens of the decoder's conditioning."""
    out: int = 384
    """C, width of the decoder's conditioning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSpec:
    """LoRA on every linear layer of the LM (peft)."""

    mode: str = "shared"
    """`shared`: one adapter takes every token; `per_modality`: one for text and one per input modality, routed by the media of each sample (text always)."""
    rank: int = 16
    """R of each adapter."""
    alpha: int = 32
    """The adapter's output is scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of an adapter's inputs that is left out in training."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Layers, by the last part of their names. Empty: all attention and feed-forward layers of the LM's family (mmcore.lm.families)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """The whole model: which parts, of what shape."""

    dtype: str = "bfloat16"
    """Type of the frozen LM; trainable tensors are float32."""
    quantize: str = ""
    """Frozen linear layers of the LM in `4bit` or `8bit` through bitsandbytes (CUDA only); "": in dtype."""
    chat: str = "chatml"
    """Chat template (mmcore.chat.templates)."""
    encoders: tuple[tuple[str, EncoderConfig], ...]
    """(modality, spec) of image, video, audio."""
    input_projector: InputProjectorSpec
    output_projector: OutputProjectorSpec
    """Of every modality that `output_projectors` does not name."""
    output_projectors: tuple[tuple[str, OutputProjectorSpec], ...] = ()
    """(modality, spec) of the modalities whose decoder wants another conditioning."""
    tokens: SpecialTokens = SpecialTokens()
    lora: LoraSpec = LoraSpec()
    seed: int = 0
    """Initial values of projectors, new token rows and LoRA."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """What every training stage reads. Batch sizes are global: the world size changes nothing but rounding."""

    stage: str
    """Names the StageSpec (what trains) in mmcore.training.stages: `stage1`, `stage2`, `stage3` or `two_tower`."""
    steps: int
    """Optimizer steps."""
    batch: int
    """Media groups (samples) per optimizer step, over all workers."""
    lr: float
    """Peak learning rate."""
    warmup_steps: int = 20
    schedule: str = "linear"
    """Decay after the warm-up, from the peak to final_lr of it: `linear` or `cosine`."""
    final_lr: float = 0.1
    """Share of the peak that the last step has."""
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    """Global gradient norm."""
    seed: int = 0
    checkpoint_every: int = 50
    """Optimizer steps between checkpoints."""
    mixture: tuple[tuple[str, float], ...] = ()
    """(dataset, weight): expected share of the samples of a step drawn from each dataset. Empty in a recipe: every training list of the stage's kind,
    captions or instructions, by the lists' weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowsStage(StageConfig):
    """A stage on packed token rows and the features of their media: captions and instructions through the language model."""

    questions: int = 4
    """Questions drawn per medium; they share one prefix."""
    dialogues: tuple[str, ...] = ()
    """Datasets whose records are conversations: their turns follow each other, all of them. The turns of any other are independent questions."""
    caption_turn: bool = False
    """Helped recipe: a caption turn stands before the questions (true caption in training, self-written at test time)."""
    plain_share: float = 0.0
    """With caption_turn: share of the media that are asked without it, so that the model also knows the plain prompt."""
    balance_answers: bool = False
    """Helped recipe: a question's loss is weighted 0.5 / P(answer | question text) for yes/no answers."""
    too_long: str = "cut"
    """What becomes of a record that is longer than the language model's context: `cut`, a conversation ends after the last answer that fits, questions and
    captions that do not fit are left out, and a record of which nothing fits; `leave_out`, the whole record is left out."""
    max_lost: float = 0.5
    """Share of the records that may be left out; a stage that would lose more fails before it begins, with the reasons."""
    train_projectors: bool = True
    """False freezes the input projectors of a stage that trains LoRA."""
    projector_lr: float = 0.0
    """Peak learning rate of the input projectors of a stage that trains LoRA; 0: lr."""
    generation_loss: float = 0.0
    """Weight of the generation losses of a caption's own signal block, through the output projectors that an earlier stage trained (align_loss and
    denoise_loss weigh them against each other); 0: none, and captions are rows without a block. Only for a stage that trains input projectors alone."""
    align_loss: float = 1.0
    """With generation_loss: weight of the alignment with the decoder's text-encoder states."""
    denoise_loss: float = 0.0
    """With generation_loss: weight of the frozen decoder's denoising error of the captioned media; 0 opens no decoder."""
    min_snr_gamma: float = 0.0
    """With denoise_loss: its Min-SNR weights are cut at this signal-to-noise ratio (the paper uses 5); 0 weighs every timestep alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StatesStage(StageConfig):
    """A stage on cached language-model states of captions that ask for a medium: the output projectors and the signal tokens."""

    requests: int = 1
    """Maximum request wordings per caption, capped by how often the data asks for it. Above 1, wordings are also taken from the instruction lists."""
    max_lost: float = 0.5
    """Share of the captioned media that may be left out because no caption fits the language model's context, or there are no targets or latents; a stage
    that would lose more fails."""
    token_loss: float = 1.0
    """Weight of the cross-entropy on signal tokens."""
    align_loss: float = 1.0
    """Weight of the alignment with the decoder's text-encoder states."""
    denoise_loss: float = 0.0
    """Weight of the frozen decoder's denoising error of the captioned media under the projector's conditioning; 0 opens no decoder."""
    min_snr_gamma: float = 0.0
    """Min-SNR weights of the denoising error are cut at this signal-to-noise ratio (the paper uses 5); 0 weighs every timestep alike."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairsStage(StageConfig):
    """A stage on pairs of a medium and its captions: two towers."""


def output_spec(spec: ModelSpec, modality: Modality) -> OutputProjectorSpec:
    """The output projector of a modality."""
    return dict(spec.output_projectors).get(modality, spec.output_projector)


LORA_MODES = ("shared", "per_modality")

QUANTIZE = ("", "4bit", "8bit")

SCHEDULES = ("linear", "cosine")


TOO_LONG = ("cut", "leave_out")


def check_stage(config: StageConfig) -> None:
    """Raises ValueError for a schedule, a way with long records or a share that there is none of."""
    if config.schedule not in SCHEDULES:
        raise ValueError(f"{config.stage}.schedule {config.schedule!r} is unknown: use {' or '.join(SCHEDULES)}")
    if isinstance(config, RowsStage) and config.too_long not in TOO_LONG:
        raise ValueError(f"{config.stage}.too_long {config.too_long!r} is unknown: use {' or '.join(TOO_LONG)}")
    if isinstance(config, RowsStage | StatesStage) and not 0 <= config.max_lost <= 1:
        raise ValueError(f"{config.stage}.max_lost is {config.max_lost}: it is a share, from 0 to 1")


def check_model(spec: ModelSpec) -> None:
    """Raises ValueError for a LoRA mode, quantisation or number of tokens that no model has."""
    if spec.lora.mode not in LORA_MODES:
        raise ValueError(f"lora.mode {spec.lora.mode!r} is unknown: use {' or '.join(LORA_MODES)}")
    if spec.quantize not in QUANTIZE:
        raise ValueError(f"quantize {spec.quantize!r} is unknown: use 4bit, 8bit or nothing")
    if spec.lora.rank < 1:
        raise ValueError(f"lora.rank is {spec.lora.rank}: it must be at least 1")
    if not 0.0 <= spec.lora.dropout < 1.0:
        raise ValueError(f"lora.dropout is {spec.lora.dropout}: it must be at least 0 and below 1")
    for modality in MODALITIES[1:]:
        count = int(getattr(spec.tokens, modality))
        if count < 0:
            raise ValueError(f"tokens.{modality} is {count}: use 0 for a modality that the model does not emit")


def model_spec_from_json(values: Mapping[str, Any]) -> ModelSpec:
    """The ModelSpec that `infra.fingerprint.to_plain` turned into JSON. Raises ValueError naming what does not fit."""
    try:
        parts = dict(values)
        parts["encoders"] = tuple((modality, encoder_from_json(spec)) for modality, spec in parts["encoders"])
        sizes: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in parts["input_projector"].items()}
        parts["input_projector"] = InputProjectorSpec(**sizes)
        parts["output_projector"] = OutputProjectorSpec(**parts["output_projector"])
        parts["output_projectors"] = tuple((modality, OutputProjectorSpec(**spec)) for modality, spec in parts.get("output_projectors", ()))
        parts["tokens"] = SpecialTokens(**parts["tokens"])
        parts["lora"] = LoraSpec(**{**parts["lora"], "targets": tuple(parts["lora"]["targets"])})
        return ModelSpec(**parts)
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is not a model description of this version: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """One fit of one small network: AdamW, linear warm-up, cosine decay to 0."""

    steps: int
    """Optimizer steps."""
    batch: int
    """Images per step."""
    lr: float
    """Peak of the learning rate."""
    warmup_steps: int
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    clip: float = 1.0
    """Global gradient norm; 0 clips nothing."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is kept in place of the last ones; 0 keeps the last ones."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    seed: int = 0
    """Draws the initial weights, the order of the images and the noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerShape:
    """Every tower: standardised tokens -> pooling -> (hidden layer) -> unit vector."""

    width: int = 256
    """W, channels of the shared space."""
    hidden: int = 0
    """Channels of the hidden layer (GELU); 0: one linear map."""
    pooling: str = "attention"
    """media: `mean` over the stored tokens, or `attention` (one learned query, which starts as the mean). A text is one vector already."""
    temperature: float = 0.07
    """Initial temperature: cosines are divided by it (learnable; its inverse stays within 1..100)."""
    across: bool = False
    """True: captions of other modalities are negatives too; False: only those of the medium's own."""
    seed: int = 0
    """Initial values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TwoTowerSpec:
    """Which frozen encoders the towers stand on, and their shape."""

    encoders: tuple[tuple[str, EncoderConfig], ...]
    """(modality, spec) of the media."""
    text: EncoderConfig
    shape: TowerShape = TowerShape()


def two_tower_spec_from_json(values: Mapping[str, Any]) -> TwoTowerSpec:
    """The TwoTowerSpec that `infra.fingerprint.to_plain` turned into JSON. Raises ValueError naming what does not fit."""
    try:
        return TwoTowerSpec(
            encoders=tuple((modality, encoder_from_json(spec)) for modality, spec in values["encoders"]),
            text=encoder_from_json(values["text"]),
            shape=TowerShape(**values["shape"]),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"this is not a two-tower description of this version: {error}") from error
