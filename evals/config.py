"""Configs of the evaluation steps: what is asked, of how many, with which randomness.

Owns plain frozen dataclasses (torch-free: importing this module keeps planning instant). Every field is identity.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmcore.config import ModelSpec

CONDITIONS = ("helped", "plain_prompt", "blank", "shuffled")
"""What the model is given: helped (right image, self-written caption turn first), plain_prompt (right image, question
alone), blank (a white image), shuffled (another image of the test). Blank and shuffled are asked the way the export is
used: with the caption turn when it has one."""

TEST, TRAIN = "easyvqa_test", "easyvqa_train"
"""Datasets of questions about images: those that are asked, and those whose answers the blind floor knows."""

HELDOUT = "stamps_heldout"
"""Dataset of captioned images that stand-ins of benchmarks are made of."""

LICENCES: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig:
    """Question answering through lmms-eval (eval_vqa)."""

    lmms_task: str = "easyvqa_as_vqav2"
    """Name of the lmms-eval task; data in the shape of a benchmark keeps `<data>_as_<benchmark>`."""
    num_questions: int = 0
    """Whole images are drawn until there are at least this many questions; 0 asks all of them, and so does a number that the list does not have."""
    seed: int = 0
    """Draws the questions and the shuffled images."""
    conditions: tuple[str, ...] = CONDITIONS
    """Subset of CONDITIONS; `helped` means plain_prompt when the export has no caption turn."""
    chunk: int = 256
    """Questions answered and persisted together; part of the identity because batches fix the rounding."""
    bootstrap_draws: int = 2000
    """Resamples of the intervals of scores without bounds; shares need none."""
    bootstrap_seed: int = 0
    max_lost: float = 0.5
    """Share of the test list's records that may be left out; a step that lost more fails, with the reasons."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteConfig:
    """One task of a suite through lmms-eval (eval_<lmms_task>)."""

    lmms_task: str = ""
    """Name of the task in evals.suites.catalogue; the recipe's value is filled in task by task."""
    num_questions: int = 0
    """Whole images and whole groups of rotations are drawn until there are at least this many questions; 0 asks all of them, and so does a number that a
    task does not have."""
    seed: int = 0
    """Draws the questions, the stand-ins' options and words, and the shuffled images."""
    conditions: tuple[str, ...] = ("helped", "plain_prompt", "blank")
    """Subset of CONDITIONS; `helped` means plain_prompt when the export has no caption turn."""
    chunk: int = 192
    """Questions answered and persisted together; part of the identity because batches fix the rounding."""
    judge: str = ""
    """Language model that scores the tasks which need one, at the endpoint of the settings; "": these tasks are skipped, never scored."""
    scorer: str = "anyloom-4"
    """Version of our own reading of answers (evals.suites.reading)."""
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionEvalConfig:
    """Held-out captions with their own and with another sample's media (eval_captions)."""

    model: ModelSpec
    """Spec the stage tensors belong to."""
    datasets: tuple[tuple[str, str], ...] = (("image", "stamps_heldout"), ("video", "clips_heldout"), ("audio", "sounds_heldout"))
    """(modality, dataset)."""
    limit: int = 0
    """Captions per dataset, drawn with the seed; 0 takes all."""
    batch: int = 16
    """Captions per forward pass; part of the identity because it fixes the rounding."""
    seed: int = 0
    """Draws the sample and the wrong media."""
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignmentEvalConfig:
    """Stage 2: predicted conditioning against the text encoder's states of held-out captions (eval_alignment)."""

    model: ModelSpec
    """Spec the stage tensors belong to."""
    modality: str = "image"
    """Which output projector."""
    restate: bool = False
    """Answers say the caption before they give the medium, as the recipe's do."""
    train_datasets: tuple[str, ...] = ("stamps_train", "easyvqa_captions")
    """Datasets the mean predictor is fitted on; their captions are never counted as held out."""
    heldout_datasets: tuple[str, ...] = ("stamps_heldout",)
    """Datasets whose captions are scored."""
    batch: int = 32
    """Captions per forward pass; part of the identity because it fixes the rounding."""
    seed: int = 0
    """Draws the wrong captions."""
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftEvalConfig:
    """What stage 3 does to the alignment and the signal tokens of the stage 2 before it (eval_drift)."""

    alignment: AlignmentEvalConfig
    """Which captions, and how they are scored."""
    stages: tuple[str, ...]
    """Names of the inputs that are stages, in training order, up to the stage 3 that is looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaQuestionsEvalConfig:
    """Held-out questions about videos and audio clips (eval_media_questions)."""

    datasets: tuple[tuple[str, str], ...]
    """(modality, dataset of the held-out side); the training side is named alike, with `train` in place of `heldout`."""
    conditions: tuple[str, ...] = CONDITIONS
    """Subset of CONDITIONS; `helped` is left out when the export has no caption turn. Blank: a white video, or silence."""
    max_new_tokens: int = 16
    """Longest answer."""
    chunk: int = 192
    """Questions answered together; part of the identity because batches fix the rounding."""
    seed: int = 0
    """Draws the shuffled media."""
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0
    max_lost: float = 0.5
    """Share of a held-out dataset's records that may be left out; a step that lost more fails, with the reasons."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalEvalConfig:
    """Held-out retrieval between media and captions, and neighbours among the encoders' own features (eval_retrieval)."""

    datasets: tuple[tuple[str, str], ...] = (("image", "stamps_heldout"), ("video", "clips_heldout"), ("audio", "sounds_heldout"))
    """(modality, held-out dataset): its distinct media and captions are the candidates."""
    ks: tuple[int, ...] = (1, 5, 10)
    """Recall at these ranks."""
    neighbours: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("image", ("stamps_train", "stamps_heldout")),
        ("video", ("clips_train", "clips_heldout")),
        ("audio", ("sounds_train", "sounds_heldout")),
    )
    """(modality, datasets whose media are each other's neighbours)."""
    num_neighbours: int = 5
    category_folder: int = 2
    """Part of a medium's path in its list that names its category, from 0; parts end at `/` or `__`. A part that is the file itself is none."""
    batch: int = 256
    """Media or captions per call of a tower; part of the identity because it fixes the rounding."""
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryConfig:
    """What a run is called in the history."""

    recipe: str
    """Name of the recipe."""
    seeds: tuple[tuple[str, int], ...] = ()
    """(what, seed), e.g. ("stage3", 0)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportConfig:
    """What the report says and shows."""

    recipe: str
    """Name of the recipe."""
    title: str = "Anyloom run report"
    seed: int = 0
    """Draws the samples that are shown, failures included."""
    num_samples: int = 12
    """Samples shown."""
    questions_are: str = "easy-vqa"
    """What the evaluation's questions really are; said beside the headline."""
    licences: tuple[tuple[str, str], ...] = LICENCES
    """(part, licence and what it allows); those found in the export are added."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptioningEvalConfig:
    """Captions of held-out media, and the objects in them (eval_captioning)."""

    datasets: tuple[tuple[str, str], ...] = (("image", "stamps_heldout"), ("video", "clips_heldout"), ("audio", "sounds_heldout"))
    """(modality, held-out dataset): every distinct medium, with all its captions as references."""
    asked_source: str = "easyvqa_test"
    """Dataset of images whose questions tell what they show; "" leaves it out."""
    vocabulary: tuple[str, ...] = ("stamps_train", "stamps_heldout")
    """Datasets of captions whose head words are the object words of stamps_chair."""
    limit: int = 48
    """Media of each dataset, drawn with the seed; 0 takes all."""
    tokenizer: str = "words-1"
    """`words-1`: our own (lower case, runs of letters and digits, inner apostrophes), the same everywhere; `ptb`: the PTB tokenizer of pycocoevalcap (Java),
    whose scores compare with published ones."""
    spice: bool = False
    """Also SPICE and SPIDEr: needs Java and the Stanford CoreNLP 3.6.0 models beside pycocoevalcap, which come as a download of their own."""
    chunk: int = 24
    """Media captioned and persisted together; part of the identity because batches fix the rounding."""
    jackknife_groups: int = 20
    """Groups that intervals of corpus scores leave out in turn."""
    seed: int = 0
    """Draws the media and the captions of other media."""
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0
    max_lost: float = 0.5
    """Share of the media that may be left out; a step that lost more fails, with the reasons."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PopeEvalConfig:
    """Yes/no questions about objects that are, or are not, in an image (eval_objects_as_pope)."""

    asked_source: str = "easyvqa_test"
    """Dataset of images whose questions tell what they show (easyvqa_as_pope); "" leaves it out."""
    captioned_source: str = "stamps_heldout"
    """Dataset of images whose captions name one object (stamps_as_pope); "" leaves it out."""
    pictures: int = 32
    """Images of each dataset, drawn with the seed; 0 takes all."""
    max_new_tokens: int = 4
    """Longest answer."""
    chunk: int = 192
    """Questions answered and persisted together; part of the identity because batches fix the rounding."""
    seed: int = 0
    """Draws the images and the random negatives."""
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0
    max_lost: float = 0.5
    """Share of the media that may be left out; a step that lost more fails, with the reasons."""
