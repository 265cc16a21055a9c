"""Recipe: the named set of every decision that changes numbers. Reading one shows the whole experiment.

A recipe is a function returning a complete Recipe; variants go through dataclasses.replace or `--set key=value`. Owns the dataclass and the
overrides.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from evals.config import (
    CaptioningEvalConfig,
    EvalConfig,
    PopeEvalConfig,
    RetrievalEvalConfig,
    SuiteConfig,
)
from evals.evaluation import VOICE
from evals.generation.config import DrawingEvalConfig, GenerationEvalConfig, JudgeConfig, PicturesEvalConfig, SpeakingEvalConfig
from infra.step import AnyloomError
from mmcore.chat.templates import chat_template
from mmcore.concepts.config import ImageDecoderConfig
from mmcore.config import (
    MODALITIES,
    EncoderSpec,
    InputProjectorSpec,
    LoraSpec,
    ModelSpec,
    OutputProjectorSpec,
    PairsStage,
    RowsStage,
    SpecialTokens,
    StageConfig,
    StatesStage,
    TowerShape,
    check_model,
    output_spec,
)
from pipelines.demo.config import QUESTIONS
from pipelines.embed.config import TargetsConfig
from pipelines.shards.config import GROUP_MODALITY

OWN = "own"
"""Lists and weights that are the user's files."""
Stage = TypeVar("Stage", bound=StageConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """One source list."""

    name: str
    """Also the `source` in keys, shards and reports."""
    group: str
    """Format of the list: cc3m, webvid, audiocaps or instruct."""
    split: str
    """train, heldout or test."""
    licence: str
    """Of the media."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Names of the frozen parts. kind: `pretrained` (from the demo's packages), `random` (toy size, from a seed, without any download) or `own` (files of
    the user's, given with --weights; the names only say which)."""

    kind: str = "pretrained"
    lm: str = "SmolLM2-135M-Instruct"
    image: str = "tf_efficientnet_lite0"
    audio: str = "whisper-tiny.en"
    text: str = "all-MiniLM-L6-v2"


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """Two towers on the stored features, in place of the language model and its stages."""

    text: EncoderSpec
    """Encoder of the captions, one vector each."""
    shape: TowerShape = TowerShape()
    stage: PairsStage
    """Training; the stage is called `two_tower`."""
    evaluation: RetrievalEvalConfig = RetrievalEvalConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides the numbers of a run, from source lists to scores."""

    name: str
    lists: str
    """`smol`: lists written from the demo's packages; `tiny`: generated; `own`: every list is a file of the user's, given with --list."""
    questions_are: str = "easy-vqa"
    """What the evaluation's questions really are; the report says so beside the score."""
    weights: Weights = Weights()
    datasets: tuple[Dataset, ...]
    heldout: float = 0.2
    """smol lists: share of the groups of stamps (images, videos, audio clips) kept out of training."""
    clips: int = 400
    """smol lists: videos rendered from stamps."""
    easyvqa_pictures: int = 4000
    """smol lists: easy-VQA training images that are taken, with all their questions (of 4,000)."""
    samples_per_shard: int = 500
    near_duplicate_bits: int = 2
    """Images whose 64-bit difference hashes are at most this many bits apart count as near-duplicates."""
    image: EncoderSpec
    video: EncoderSpec | None
    """None: the model reads no videos."""
    audio: EncoderSpec | None
    """None: the model reads no audio clips."""
    video_audio: bool = False
    """Also encode the audio of the videos, with the audio encoder (step embed_video_audio). Nothing is trained on it yet."""
    latents: EncoderSpec | None = None
    """Also keep an image decoder's latents of the captioned images (kind vae_image, step embed_latents), for denoising losses; by the autoencoder of the
    recipe's decoder where it has one. None: not kept."""
    latents_video: EncoderSpec | None = None
    """The same for videos (kind vae_video), by the video decoder's autoencoder."""
    latents_audio: EncoderSpec | None = None
    """The same for audio clips (kind vae_audio), by the audio decoder's autoencoder."""
    lm_dtype: str = "bfloat16"
    quantize: str = ""
    """Frozen linear layers of the LM in `4bit` or `8bit` (bitsandbytes, CUDA only); "": in lm_dtype."""
    chat: str = "chatml"
    """Chat template of the LM: chatml, vicuna_v1, llama3 or plain."""
    input_projector: InputProjectorSpec = InputProjectorSpec()
    output_projector: OutputProjectorSpec = OutputProjectorSpec()
    """Of every modality that `output_projectors` does not name."""
    output_projectors: tuple[tuple[str, OutputProjectorSpec], ...] = ()
    """(modality, spec) of the modalities whose decoder wants another conditioning."""
    tokens: SpecialTokens = SpecialTokens()
    lora: LoraSpec = LoraSpec()
    stages: tuple[StageConfig, ...]
    """The training stages in order; each reads those before it. A stage that comes again goes on from where it was: its second entry and its step are called
    `stage2_2` (see `entries`)."""
    evaluation: EvalConfig = EvalConfig()
    suites: tuple[str, ...] = ()
    """Suites of lmms-eval tasks that are run besides (evals.suites.catalogue); one that is prepared from official data is given with --list <suite>=FILE."""
    suite: SuiteConfig = SuiteConfig()
    """How the tasks of all suites are asked; used with suites, or with prepared ones, only."""
    query: EncoderSpec | None = None
    """Encoder of sentences into the space that media encoders of the same model share; search compares with their pooled vectors. None: no such space."""
    query_weights: str = ""
    """Step that holds the weights of `query`; "" makes one of its own, `weights_query`, with ImageBind's text trunk."""
    restate: bool = False
    """smol lists: the answer to a request says what is asked for before it gives it ("a red circle" and then the image). Its words stand between the
    request, however worded, and the signal tokens, whose states then depend on little else."""
    decoders: tuple[tuple[str, str], ...] = ()
    """(modality, decoder) of what turns signal blocks into media; `trained`: the one of image_decoder; `voice`: the speaking voice of the demo's assets; a
    published name of mmcore.decoders.catalogue (give its directory with --weights decoder_<modality>=DIR); or, in a recipe of kind random, a toy of
    pipelines.toys.decoders. All but the first also give stage 2 its caption targets. A modality without a decoder gives its conditioning only."""
    image_decoder: ImageDecoderConfig | None = None
    """Not None: a small image decoder is trained on the recipe's own images (step image_decoder) and judged (eval_pictures)."""
    picture_judge: JudgeConfig = JudgeConfig()
    """Classifier of the decoder's images; used with image_decoder only."""
    eval_pictures: PicturesEvalConfig = PicturesEvalConfig()
    """Draws that are judged; used with image_decoder only."""
    eval_drawing: DrawingEvalConfig = DrawingEvalConfig()
    """Requests to the whole model; used with image_decoder among the decoders only."""
    eval_speaking: SpeakingEvalConfig = SpeakingEvalConfig()
    """Requests for audio clips; used with the voice among the decoders only."""
    generation: bool = False
    """Also judge media that are asked for by held-out captions, the model's own captions, and what it says of things that are not there (eval_generation,
    eval_captioning, eval_objects_as_pope)."""
    eval_generation: GenerationEvalConfig = GenerationEvalConfig()
    """Media that are asked for; used with decoders only. Datasets, concepts and query are filled in from the recipe."""
    eval_captioning: CaptioningEvalConfig = CaptioningEvalConfig()
    """Captions of held-out media, and the objects in them."""
    eval_objects_as_pope: PopeEvalConfig = PopeEvalConfig()
    """Yes/no questions about objects that are, or are not, in an image."""
    two_tower: Retrieval | None = None
    """Not None: the recipe is the data steps, then embed_text -> two_tower -> eval_retrieval; no stage is trained."""

    @property
    def entries(self) -> dict[str, StageConfig]:
        """Name of a stage's step -> its settings, in training order: the second stage2 is called `stage2_2`."""
        found: dict[str, StageConfig] = {}
        for config in self.stages:
            before = sum(other.stage == config.stage for other in found.values())
            found[f"{config.stage}_{before + 1}" if before else config.stage] = config
        return found

    def entries_of(self, kind: type[Stage]) -> dict[str, Stage]:
        """The entries of one kind of batch."""
        return {name: config for name, config in self.entries.items() if isinstance(config, kind)}

    @property
    def caption_turn(self) -> bool:
        """Whether the model learns to answer behind a caption turn (the helped recipe)."""
        return any(config.caption_turn for config in self.entries_of(RowsStage).values())


def with_stage(recipe: Recipe, name: str, config: StageConfig) -> Recipe:
    """`recipe` with the settings of one stage replaced. name: of its entry. Raises KeyError for an entry there is none of."""
    place = list(recipe.entries).index(name)
    return dataclasses.replace(recipe, stages=(*recipe.stages[:place], config, *recipe.stages[place + 1 :]))


def change_stage(recipe: Recipe, name: str, **changes: Any) -> Recipe:
    """`recipe` with some settings of one stage changed. name: of its entry."""
    return with_stage(recipe, name, dataclasses.replace(recipe.entries[name], **changes))


def with_overrides(recipe: Recipe, overrides: Mapping[str, Any]) -> Recipe:
    """`recipe` with dotted keys replaced: {"stage3.lr": 1e-4}; a stage whole: {"stage3": {"steps": 100, ...}}; the order of the stages, by the names of their
    entries: {"stages": ["stage1", "stage3"]}, which comes first.

    Raises AnyloomError for an unknown key (naming the closest ones), a value of the wrong type, an unknown stage and one with no steps, batch or rate.
    """
    for key, value in sorted(overrides.items(), key=lambda item: item[0] != "stages"):
        first, _, rest = key.partition(".")
        if key == "stages":
            recipe = dataclasses.replace(recipe, stages=_ordered(recipe, value))
        elif first in recipe.entries:
            old = recipe.entries[first]
            recipe = with_stage(recipe, first, _replace(old, rest.split("."), value, key, recipe) if rest else _whole_stage(old, value, key))
        else:
            recipe = _replace(recipe, key.split("."), value, key, recipe)
    if overrides:
        _check_stages(recipe)
    return recipe


def _ordered(recipe: Recipe, names: Any) -> tuple[StageConfig, ...]:
    """The entries called `names`, in this order; one that is named again is trained again with the same settings."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AnyloomError(f'--set stages={names}: expected the names of stages in training order, like ["stage1", "stage2"]')
    unknown = [name for name in names if name not in recipe.entries]
    if unknown:
        raise AnyloomError(f"--set stages: there is no {unknown[0]}; the recipe's stages are {', '.join(recipe.entries)}")
    return tuple(recipe.entries[name] for name in names)


def _whole_stage(old: StageConfig, value: Any, key: str) -> StageConfig:
    """A stage with the settings of `value` and the defaults of its kind for all others."""
    if not isinstance(value, Mapping):
        raise AnyloomError(f"--set {key}: give a value of the stage ({key}.lr=1e-4) or the whole stage as a JSON object")
    fields = {field.name: field for field in dataclasses.fields(old)}
    unknown = sorted(set(value) - set(fields) | {"stage"} & set(value))
    if unknown:
        raise AnyloomError(f"--set {key}: {unknown[0]} is no setting of it; it has {', '.join(name for name in fields if name != 'stage')}")
    lacking = [name for name in ("steps", "batch", "lr", "mixture") if name not in value]
    if lacking:
        raise AnyloomError(f"--set {key}: the whole stage needs {', '.join(lacking)}")
    given = {name: _coerce(getattr(old, name), item, f"{key}.{name}") for name, item in value.items()}
    return type(old)(stage=old.stage, **given)


def _check_stages(recipe: Recipe) -> None:
    """Raise AnyloomError for a stage that cannot be trained as it says."""
    for entry, config in recipe.entries.items():
        for name in ("steps", "batch", "lr", "checkpoint_every"):
            if not getattr(config, name) > 0:
                raise AnyloomError(f"--set {entry}.{name}: {getattr(config, name)} is not above 0")


def keys(config: Any, prefix: str = "") -> Iterator[str]:
    """Every dotted key that --set accepts."""
    if isinstance(config, Recipe):
        for name, stage in config.entries.items():
            yield from keys(stage, f"{name}.")
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from keys(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


def _replace(config: Any, parts: list[str], value: Any, key: str, whole: Recipe) -> Any:
    names = {field.name for field in dataclasses.fields(config)}
    if parts[0] not in names or (len(parts) > 1) != dataclasses.is_dataclass(getattr(config, parts[0])):
        known = list(keys(whole))
        close = difflib.get_close_matches(key, known, n=3, cutoff=0.5) or known[:6]
        raise AnyloomError(f"--set {key}: no such key; close ones: {', '.join(close)} (all: anyloom recipes {whole.name})")
    if key == "name":
        raise AnyloomError("--set name: a recipe's name is fixed; choose one with --recipe")
    old = getattr(config, parts[0])
    new = _replace(old, parts[1:], value, key, whole) if len(parts) > 1 else _coerce(old, value, key)
    return dataclasses.replace(config, **{parts[0]: new})


def _coerce(old: Any, value: Any, key: str) -> Any:
    """`value` in the type of `old`. Raises AnyloomError saying what is expected."""
    if isinstance(old, bool) or isinstance(value, bool):
        fits = isinstance(old, bool) and isinstance(value, bool)
    elif isinstance(old, float):
        fits = isinstance(value, (int, float))
        value = float(value) if fits else value
    elif isinstance(old, tuple):
        fits = isinstance(value, list)
        value = _tuples(value) if fits else value
    else:
        fits = isinstance(value, type(old))
    if not fits:
        raise AnyloomError(f"--set {key}={value}: expected {type(old).__name__} like {old!r}")
    return value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def model_spec(recipe: Recipe) -> ModelSpec:
    """The model a recipe trains. Raises AnyloomError for one that cannot be built."""
    spec = ModelSpec(
        dtype=recipe.lm_dtype,
        quantize=recipe.quantize,
        chat=recipe.chat,
        encoders=encoders(recipe),
        input_projector=recipe.input_projector,
        output_projector=recipe.output_projector,
        output_projectors=recipe.output_projectors,
        tokens=recipe.tokens,
        lora=recipe.lora,
    )
    try:
        check_model(spec)
        chat_template(spec.chat)
    except ValueError as error:
        raise AnyloomError(f"recipe {recipe.name}: {error}") from error
    return spec


def encoders(recipe: Recipe) -> tuple[tuple[str, EncoderSpec], ...]:
    """(modality, encoder) of the media that the recipe's model reads."""
    return tuple((modality, getattr(recipe, modality)) for modality in MODALITIES[1:] if getattr(recipe, modality) is not None)


def asked_about(recipe: Recipe, modality: str) -> list[str]:
    """Datasets of the recipe with questions about videos or audio clips."""
    return [dataset.name for dataset in recipe.datasets if dataset.name in QUESTIONS.get(modality, ())]


def states_of(stage2: str) -> str:
    """The step with the states that a step of stage 2 trains on: stage2_2 has states_2."""
    return stage2.replace("stage2", "states")


def caption_targets(recipe: Recipe) -> TargetsConfig:
    """How captions of images become the token states that conditioning is aligned with, without a decoder that says otherwise."""
    image = output_spec(model_spec(recipe), "image")
    return TargetsConfig(width=image.out, tokens=image.queries)


def spoken_datasets(recipe: Recipe) -> tuple[str, ...]:
    """The datasets of audio clips that the model is to say: those whose captions a voice can say. Empty for a recipe without a voice."""
    if dict(recipe.decoders).get("audio") != VOICE:
        return ()
    groups = {dataset.name: dataset.group for dataset in recipe.datasets}
    named = (name for config in recipe.entries_of(StatesStage).values() for name, _ in config.mixture)
    return tuple(dict.fromkeys(name for name in named if GROUP_MODALITY.get(groups.get(name, "")) == "audio"))
