"""Recipe: the named set of every decision that changes numbers. Reading one shows the whole experiment.

A recipe is a function returning a complete Recipe; variants go through dataclasses.replace or `--set key=value` (pipelines.recipes.overrides).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
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
from infra.secrets import shown_template
from infra.step import AnyloomError
from mmcore.chat.templates import chat_template
from mmcore.concepts.config import ImageDecoderConfig
from mmcore.config import (
    MODALITIES,
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
from mmcore.encoder_config import EncoderConfig
from pipelines.demo.config import QUESTIONS
from pipelines.embed.config import TargetsConfig
from pipelines.shards.config import GROUP_MODALITY

OWN = "own"
"""Lists and weights that are the user's files."""
LIST_OPTIONS = ("media_template", "span_s", "media_roots", "split", "heldout", "licence", "weight")
"""What `--set datasets.<name>.<option>=` changes of a dataset."""
Stage = TypeVar("Stage", bound=StageConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """One source list."""

    name: str
    """Also the `source` in keys, shards and reports."""
    format: str
    """Of the list: cc3m, webvid, audiocaps or instruct."""
    list: str = ""
    """Path of the list file, relative to the recipe's file; "": given with --list or --data, or made by the recipe's own lists."""
    split: str = "train"
    """train, heldout or test."""
    heldout: float = 0.0
    """Share of a training list's media that are kept out of training, as the dataset `<name>_heldout`: by a hash of the medium, whatever the list's order."""
    part: str = ""
    """Which of the two halves this is, `train` or `heldout`; set by `heldout`."""
    licence: str = "unknown: see publisher"
    """Of the media."""
    weight: float = 1.0
    """In stages that name no mixture, and for a list that --data adds to a recipe."""
    media_template: str = field(default="", repr=False)
    """Where a record's file lies, with the list's columns in braces, e.g. `{youtube_id}_{start_time}.wav`; "": as its format says (see ReadOptions)."""
    span_s: float = 0.0
    """audiocaps: seconds that are taken from start_time of whole soundtracks; 0: the files are cut already."""
    media_roots: tuple[str, ...] = ()
    """Further directories, absolute or relative to the list's, that the list's media may lie in."""

    def identity_fields(self) -> dict[str, Any]:
        """What is said of the dataset: every field that is set, a template without its credentials."""
        named = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)} | {"media_template": shown_template(self.media_template)}
        kept = ("name", "format", "split", "licence")
        return {one.name: named[one.name] for one in dataclasses.fields(self) if one.name in kept or named[one.name] != one.default}


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

    text: EncoderConfig
    """Encoder of the captions, one vector each."""
    shape: TowerShape = TowerShape()
    stage: PairsStage
    """Training; the stage is called `two_tower`."""
    evaluation: RetrievalEvalConfig = RetrievalEvalConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides the numbers of a run, from source lists to scores."""

    name: str
    file: str = ""
    """The user's file that the recipe is from; it counts by its bytes, and the export keeps a copy."""
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
    max_lost: float = 0.5
    """Share of a group's rows that may be unusable (no medium, no text, a record that does not fit); more of them stop the run, with the reasons."""
    near_duplicate_bits: int = 2
    """Images whose 64-bit difference hashes are at most this many bits apart count as near-duplicates."""
    image: EncoderConfig
    video: EncoderConfig | None
    """None: the model reads no videos."""
    audio: EncoderConfig | None
    """None: the model reads no audio clips."""
    video_audio: bool = False
    """Also encode the audio of the videos, with the audio encoder (step embed_video_audio). Nothing is trained on it yet."""
    latents: EncoderConfig | None = None
    """Also keep an image decoder's latents of the captioned images (kind vae_image, step embed_latents), for denoising losses; by the autoencoder of the
    recipe's decoder where it has one. None: not kept."""
    latents_video: EncoderConfig | None = None
    """The same for videos (kind vae_video), by the video decoder's autoencoder."""
    latents_audio: EncoderConfig | None = None
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
    query: EncoderConfig | None = None
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


def encoders(recipe: Recipe) -> tuple[tuple[str, EncoderConfig], ...]:
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
    groups = {dataset.name: dataset.format for dataset in recipe.datasets}
    named = (name for config in recipe.entries_of(StatesStage).values() for name, _ in config.mixture)
    return tuple(dict.fromkeys(name for name in named if GROUP_MODALITY.get(groups.get(name, "")) == "audio"))
