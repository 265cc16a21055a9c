"""Sizes without tensors: exact parameter counts of everything that trains, and an estimate of a training stage's memory.

Owns the arithmetic; importing it loads no library, so that a table of 7-billion-parameter recipes is instant. test_full_size.py holds every
count against the real modules on meta tensors. Input: a ModelSpec, a KnownLm, a StageConfig.

Shape letters: E encoder width, D LM width, W inner width, S signal tokens, Q and C tokens and width of the conditioning, V vocabulary, T tokens of a row.
"""

from __future__ import annotations

from mmcore.config import InputProjectorSpec, ModelSpec, OutputProjectorSpec, RowsStage, StageConfig, StatesStage, TwoTowerSpec, output_spec
from mmcore.encoder_config import EncoderConfig, GridConfig, ImageBindVideo, SampledVideo, TiledImage, TokensAudio, pooled
from mmcore.lm.catalogue import KnownLm
from mmcore.projectors.inputs import num_projected

MEDIA = ("image", "video", "audio")
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
QUANTISED = {"4bit": 0.52, "8bit": 1.0}
"""Bytes of a quantised weight; 4bit: NF4 with doubly quantised scales, 4.127 bits (Dettmers et al. 2023, arXiv 2305.14314, section 3)."""
TRAINED_BYTES = 16
"""Of a trained parameter: float32 value, gradient and AdamW's two moments."""
ROWS = 16
"""Rows of one forward pass (mmcore.training.rows.MICROBATCH), unless the batch is smaller."""
TEXT_TOKENS = {"stage1": 64, "stage3": 512}
"""Text tokens assumed in a row beside its media: a caption with its request, a conversation."""
SIGNAL_ROWS = 64
"""Captions of one forward pass of stage 2 (mmcore.training.states.MICROBATCH)."""
VIDEO_MOMENTS = 5
"""Clips that ImageBind takes from a video when it stores tokens."""


def linear(into: int, out: int) -> int:
    """Parameters of a Linear with bias."""
    return into * out + out


def _mlp(into: int, hidden: int, out: int) -> int:
    return linear(into, hidden) + linear(hidden, out)


def input_projector(spec: InputProjectorSpec, in_width: int, out_width: int) -> int:
    """Parameters of one input projector E -> D. Raises KeyError for an unknown kind."""
    return {"linear": _linear_input, "mlp": _mlp_input, "group": _group_input}[spec.kind](spec, in_width, out_width)


def _linear_input(spec: InputProjectorSpec, in_width: int, out_width: int) -> int:
    return linear(in_width, out_width)


def _mlp_input(spec: InputProjectorSpec, in_width: int, out_width: int) -> int:
    return _mlp(in_width, out_width, out_width)


def _group_input(spec: InputProjectorSpec, in_width: int, out_width: int) -> int:
    """mmcore.projectors.group, layer by layer; a layer's queries, keys and values have no bias."""
    width = spec.width
    layer = 3 * width * width + linear(width, width) + _mlp(width, 4 * width, width) + 4 * width
    total = linear(in_width, width) + sum(spec.depths) * layer + 2 * width + linear(width, out_width)
    before = 0
    for groups in spec.groups:
        total += groups * width + _mlp(groups, width // 2, groups) + 8 * linear(width, width) + 2 * _mlp(width, 4 * width, width) + 12 * width
        total += 2 * width + _mlp(before, width // 2, groups) if before else 0
        before = groups
    return total


def output_projector(spec: OutputProjectorSpec, in_width: int, num_signals: int) -> int:
    """Parameters of one output projector D -> Q x C. Raises KeyError for an unknown kind."""
    width = spec.width
    if spec.kind == "linear":
        return linear(in_width, spec.out) + (spec.queries * num_signals if spec.queries != num_signals else 0)
    attention, hidden = 4 * linear(width, width), _mlp(width, spec.ffn, width)
    encoder, decoder = attention + hidden + 4 * width, 2 * attention + hidden + 6 * width
    ends = {"transformer": 2 * in_width + 2 * width, "nextgpt": 4 * width, "nextgpt_legacy": 4 * width}[spec.kind]  # norms before and after
    return linear(in_width, width) + spec.layers * (encoder + decoder) + ends + spec.queries * width + linear(width, spec.out)


def lora(spec: ModelSpec, lm: KnownLm) -> int:
    """Parameters of all LoRA adapters: one, or one for text and one for each medium that is read. Raises KeyError for a layer that the LM lacks."""
    shapes = lm.layer_shapes()
    targets = spec.lora.targets or tuple(shapes)
    adapters = 1 if spec.lora.mode == "shared" else 1 + len(spec.encoders)
    return adapters * lm.layers * sum(spec.lora.rank * sum(shapes[target]) for target in targets)


def trained(spec: ModelSpec, lm: KnownLm, stage: StageConfig) -> dict[str, int]:
    """What a stage trains (see mmcore.training.stages) -> parameters; parts without any are left out."""
    signals = sum(int(getattr(spec.tokens, modality)) for modality in MEDIA)
    projectors = sum(input_projector(spec.input_projector, encoder.width, lm.width) for _, encoder in spec.encoders)
    writers = {modality: int(getattr(spec.tokens, modality)) for modality in MEDIA if getattr(spec.tokens, modality)}
    if stage.stage == "stage1":
        parts = {"input projectors": projectors}
    elif isinstance(stage, StatesStage):
        made = sum(output_projector(output_spec(spec, modality), lm.width, count) for modality, count in writers.items())
        parts = {"output projectors": made, "new head rows": signals * lm.width}
    else:
        parts = {
            "LoRA": lora(spec, lm),
            "new token rows": 2 * signals * lm.width,
            "input projectors": projectors if isinstance(stage, RowsStage) and stage.train_projectors else 0,
        }
    return {name: count for name, count in parts.items() if count}


def two_tower(spec: TwoTowerSpec) -> int:
    """Parameters of all towers and of the temperature."""
    shape = spec.shape
    total = 1
    for modality, encoder in (*spec.encoders, ("text", spec.text)):
        total += linear(encoder.width, shape.hidden or shape.width) + (linear(shape.hidden, shape.width) if shape.hidden else 0)
        total += encoder.width if modality != "text" and shape.pooling == "attention" else 0
    return total


def frozen_bytes(spec: ModelSpec, lm: KnownLm) -> float:
    """Bytes of the frozen LM: linear layers in dtype or quantised, everything else in dtype."""
    inside = lm.layers * sum(into * out for into, out in lm.layer_shapes().values())
    width = BYTES[spec.dtype]
    return inside * QUANTISED.get(spec.quantize, width) + (lm.parameters - inside) * width


def num_features(encoder: EncoderConfig) -> int:
    """N of one item."""
    if isinstance(encoder, TokensAudio):
        return encoder.tokens or 1
    if pooled(encoder) or not isinstance(encoder, GridConfig):
        return 1
    seen = 1
    if isinstance(encoder, ImageBindVideo):
        seen = VIDEO_MOMENTS
    elif isinstance(encoder, SampledVideo):
        seen = encoder.frames
    elif isinstance(encoder, TiledImage):
        seen = 1 + encoder.tiles
    return encoder.grid * encoder.grid * seen


def activation_bytes(spec: ModelSpec, lm: KnownLm, stage: StageConfig) -> float:
    """Bytes that one forward pass keeps for its backward pass.

    Stages 1 and 3: `layers * T * rows * D * (34 + 5 * heads * T / D)` at two bytes a value (Korthikanti et al. 2022, arXiv 2205.05198, equation 2: no
    recomputation, attention scores kept), and float32 logits, their softmax and their gradient at the supervised positions, taken as half of the text.
    T is the projected tokens of the longest medium and TEXT_TOKENS of the stage. Stage 2 runs the output projectors only, on SIGNAL_ROWS captions.
    """
    scale = BYTES[spec.dtype] / 2
    if isinstance(stage, StatesStage):
        sizes = [(output_spec(spec, m), int(getattr(spec.tokens, m))) for m in MEDIA if getattr(spec.tokens, m)]
        return max(2.0 * SIGNAL_ROWS * (signals + out.queries) * out.width * (34 * out.layers + 2) for out, signals in sizes)
    rows, text = min(ROWS, stage.batch), TEXT_TOKENS[stage.stage]
    tokens = text + max(num_projected(spec.input_projector, num_features(encoder)) for _, encoder in spec.encoders)
    layers = lm.layers * tokens * rows * lm.width * (34 + 5 * lm.heads * tokens / lm.width) * scale
    return layers + 3 * 4 * rows * text / 2 * lm.vocabulary


def denoises(stage: StageConfig) -> bool:
    """Whether a stage has a denoising loss."""
    return (isinstance(stage, StatesStage) or (isinstance(stage, RowsStage) and stage.generation_loss > 0)) and stage.denoise_loss > 0


def stage_bytes(spec: ModelSpec, lm: KnownLm, stage: StageConfig, denoisers: int = 0) -> float:
    """Estimated bytes on one GPU that holds the whole model: frozen LM (none in stage 2, whose states are cached), what trains at TRAINED_BYTES each,
    what earlier stages trained and this one holds still as float32, and activations. Encoders and decoders are not there: their outputs are stored; but a
    denoising loss holds its decoders' denoisers, of so many parameters, in float32 (their activations, which depend on the latents' size, are not counted)."""
    training = sum(trained(spec, lm, stage).values())
    frozen = denoisers * BYTES["float32"] if denoises(stage) else 0.0
    if isinstance(stage, StatesStage):
        return frozen + training * TRAINED_BYTES + activation_bytes(spec, lm, stage)
    held = sum(input_projector(spec.input_projector, encoder.width, lm.width) for _, encoder in spec.encoders) + lora(spec, lm)
    still = held - sum(count for name, count in trained(spec, lm, stage).items() if name in ("LoRA", "input projectors"))
    return frozen + frozen_bytes(spec, lm) + training * TRAINED_BYTES + still * 4 + activation_bytes(spec, lm, stage)
