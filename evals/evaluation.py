"""The table of evaluations: one row each, with its step, what it needs and its section of the page.

The DAG plans a step for every row that a recipe has, the history takes what these steps say, the page shows their sections in the order of the rows. A new
evaluation is one file with its run function and its config, and one row here. Whether a recipe has an evaluation is asked of its row: the config is a
function of what the recipe says (None: not wanted, or nothing to ask), and every input must be there. Importing this module loads no model library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evals.config import AlignmentEvalConfig, CaptionEvalConfig, DriftEvalConfig, MediaQuestionsEvalConfig
from evals.suites.catalogue import SUITES, SuiteTask, suite_task
from infra.step import Step
from mmcore.config import ModelSpec
from mmcore.encoder_config import EncoderConfig

TRAINED, VOICE = "trained", "voice"
"""Decoders of a world of 24 concepts: the small one of images that is trained here, and the demo's speaking voice."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a recipe says to its evaluations."""

    model: ModelSpec | None
    """None: no language model is trained."""
    settings: Mapping[str, Any]
    """Row's field of the recipe (evaluation, eval_drawing, suite, ...) -> its config."""
    stages: tuple[tuple[str, str], ...] = ()
    """(name of the step, stage) in training order."""
    decoders: Mapping[str, str] = field(default_factory=dict)
    """Modality -> name of its decoder."""
    captions: Mapping[str, Mapping[str, tuple[str, ...]]] = field(default_factory=dict)
    """Split -> modality -> datasets of captions."""
    questions: tuple[tuple[str, str], ...] = ()
    """(modality, dataset) of held-out questions about videos and audio clips."""
    concepts: tuple[tuple[str, str], ...] = ()
    """(modality, dataset with real media) of the concepts that a decoder's whole world consists of."""
    stand_ins: bool = False
    """There are the images that stand-ins of benchmarks are made of."""
    suites: tuple[str, ...] = ()
    """Suites that the recipe names, and those that are prepared."""
    prepared: Mapping[str, Path] = field(default_factory=dict)
    """Suite -> record of its official data."""
    query: EncoderConfig | None = None
    """Encoder of sentences into the space of the media encoders."""
    generation: bool = False
    """Media, captions and absent objects are judged too."""
    restate: bool = False
    """Answers say the caption before they give the medium."""

    def heldout(self, modality: str) -> str:
        """The held-out dataset of captions of a modality; "" where there is none."""
        return next(iter(self.captions.get("heldout", {}).get(modality, ())), "")

    @property
    def heldout_read(self) -> tuple[tuple[str, str], ...]:
        """(modality, held-out dataset of captions) of what the model reads."""
        read = [modality for modality, _ in self.model.encoders] if self.model else []
        return tuple((modality, self.heldout(modality)) for modality in read if self.heldout(modality))


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """One row."""

    step: str
    run: str
    """`package.module:function` of the step."""
    config: Callable[[Facts], Any | None]
    """The step's config; None where the recipe has no such evaluation."""
    inputs: tuple[str, ...] = ()
    """What must be there, by input name; `name=step` where the input is called otherwise than the step. Without one of them there is no evaluation."""
    takes: Callable[[Facts], tuple[str, ...]] = lambda facts: ()
    """The same for inputs that depend on the recipe."""
    also: tuple[str, ...] = ()
    """Inputs that are read where there are some; a trailing * matches by prefix."""
    sources: Callable[[Facts], Mapping[str, Path]] = lambda facts: {}
    """Files of the user's."""
    section: str = ""
    """`package.module:function` of its section of the run's page; "" has none. Rows with one section are shown together."""
    revision: int = 2
    """Of what it computes; 2: intervals that hold for few clusters."""
    threads: int = 1
    gpus: int = 1
    background: bool = True

    def plan(self, facts: Facts, have: Mapping[str, Step]) -> Step | None:
        """The step of this row; None where the recipe has no such evaluation. have: steps by the names that the rows use."""
        config = self.config(facts)
        if config is None:
            return None
        wanted = dict(_named(entry) for entry in (*self.inputs, *self.takes(facts)))
        if not all(step in have for step in wanted.values()):
            return None
        inputs = {name: have[step] for name, step in wanted.items()}
        for entry in self.also:
            inputs |= {name: step for name, step in have.items() if name == entry or (entry.endswith("*") and name.startswith(entry[:-1]))}
        return Step(
            name=self.step,
            run=self.run,
            config=config,
            inputs=inputs,
            sources=self.sources(facts),
            revision=self.revision,
            threads=self.threads,
            gpus=self.gpus,
            background=self.background,
        )


def _named(entry: str) -> tuple[str, str]:
    name, _, step = entry.partition("=")
    return name, step or name


def _captions(facts: Facts) -> CaptionEvalConfig | None:
    return CaptionEvalConfig(model=facts.model, datasets=facts.heldout_read) if facts.model and facts.heldout_read else None


def _alignment(facts: Facts) -> AlignmentEvalConfig | None:
    """Of the last stage on states: captions of held-out images."""
    if facts.model is None or not facts.heldout("image") or not _aligned(facts):
        return None
    train, heldout = (facts.captions.get(split, {}).get("image", ()) for split in ("train", "heldout"))
    return AlignmentEvalConfig(model=facts.model, restate=facts.restate, train_datasets=train, heldout_datasets=heldout)


def _aligned(facts: Facts) -> list[str]:
    return [name for name, stage in facts.stages if stage == "stage2"]


def _moved(facts: Facts) -> tuple[list[str], str]:
    """(names of the stages up to the last stage 3, the last stage 2 among them; "" where none comes before it)."""
    names = [name for name, _ in facts.stages]
    last = max((place for place, (_, stage) in enumerate(facts.stages) if stage == "stage3"), default=-1)
    before = [name for name in _aligned(facts) if names.index(name) < last]
    return names[: last + 1], before[-1] if before else ""


def _drift(facts: Facts) -> DriftEvalConfig | None:
    """Where a stage 3 follows a stage 2."""
    alignment, (stages, before) = _alignment(facts), _moved(facts)
    return DriftEvalConfig(alignment=alignment, stages=tuple(stages)) if alignment and before else None


def _aligned_inputs(facts: Facts) -> tuple[str, ...]:
    last = _aligned(facts)[-1]
    return (f"states=states of {last}", f"stage2={last}")


def _drift_inputs(facts: Facts) -> tuple[str, ...]:
    stages, before = _moved(facts)
    return (f"states=states of {before}", f"aligned={before}", *stages)


def _task(task: SuiteTask) -> Evaluation:
    """The row of one lmms-eval task, of every suite that has it."""
    suites = [name for name, tasks in SUITES.items() if task.lmms_task in tasks]

    def config(facts: Facts) -> Any | None:
        wanted = any(suite in facts.suites for suite in suites) and (facts.stand_ins or not task.stand_in)
        return replace(facts.settings["suite"], lmms_task=task.lmms_task) if wanted and "suite" in facts.settings else None

    def sources(facts: Facts) -> dict[str, Path]:
        return {} if task.stand_in else {"suite": next(facts.prepared[suite] for suite in suites if suite in facts.prepared)}

    return Evaluation(
        step=f"eval_{task.lmms_task}",
        run="evals.suites.run:run",
        config=config,
        inputs=("export=export_early", "shards_cc3m") if task.stand_in else ("export=export_early",),
        also=("embed_image",) if task.stand_in else (),  # stand-ins read held-out images, whose features are stored already
        sources=sources,
        section="evals.pages.run.suites:suites_section",
        revision=3,  # MM-Vet's answers are scored from 0 to 1; intervals of few clusters
    )


def _generation(facts: Facts) -> Any | None:
    """Held-out captions asked for, and the concepts of a decoder whose world they are."""
    if not facts.generation or not facts.decoders:
        return None
    return replace(
        facts.settings["eval_generation"],
        datasets=tuple((m, facts.heldout(m)) for m, name in facts.decoders.items() if name != VOICE and facts.heldout(m)),
        concepts=facts.concepts,
        query=facts.query,
    )


def _media_questions(facts: Facts) -> MediaQuestionsEvalConfig | None:
    if not facts.questions:
        return None
    config = MediaQuestionsEvalConfig(datasets=facts.questions)
    return replace(config, max_lost=facts.settings["evaluation"].max_lost) if "evaluation" in facts.settings else config


def _captioning(facts: Facts) -> Any | None:
    return replace(facts.settings["eval_captioning"], datasets=facts.heldout_read) if facts.generation and facts.heldout_read else None


CAPTIONED = ("shards_cc3m", "shards_webvid", "shards_audiocaps")
ALL_SHARDS = (*CAPTIONED, "shards_instruct")

EVALUATIONS: tuple[Evaluation, ...] = (
    Evaluation(
        step="eval_vqa",
        run="evals.questions.vqa:run_vqa",
        config=lambda facts: facts.settings.get("evaluation"),
        inputs=("export=export_early", "shards_instruct"),
        section="evals.pages.run.questions:questions_section",
        background=False,
    ),
    Evaluation(
        step="eval_media_questions",
        run="evals.questions.media_questions:run",
        config=_media_questions,
        inputs=("export=export_early", "shards_instruct"),
        section="evals.pages.run.media_questions:media_questions_section",
    ),
    *(_task(suite_task(name)) for name in dict.fromkeys(task for tasks in SUITES.values() for task in tasks)),
    Evaluation(
        step="eval_captions",
        run="evals.captions.captions:run",
        config=_captions,
        inputs=("weights_lm", "stage1"),
        also=("weights_image", "weights_audio", "embed_image", "embed_video", "embed_audio", *CAPTIONED),
        section="evals.pages.run.captions:captions_section",
    ),
    Evaluation(
        step="eval_alignment",
        run="evals.captions.alignment:run_alignment",
        config=_alignment,
        inputs=("targets", "shards_cc3m"),
        takes=_aligned_inputs,
        section="evals.pages.run.captions:alignment_section",
        gpus=0,
    ),
    Evaluation(
        step="eval_drift",
        run="evals.captions.drift:run",
        config=_drift,
        inputs=("weights_lm", "targets", "shards_cc3m"),
        takes=_drift_inputs,
        section="evals.pages.run.drift:drift_section",
        gpus=0,
    ),
    Evaluation(
        step="eval_pictures",
        run="evals.generation.pictures:run",
        config=lambda facts: facts.settings.get("eval_pictures"),
        inputs=("image_decoder", "picture_judge", "shards_cc3m", "shards_instruct"),
        section="evals.pages.run.images:images_section",
        gpus=0,
    ),
    Evaluation(
        step="eval_drawing",
        run="evals.generation.drawing:run",
        config=lambda facts: facts.settings.get("eval_drawing") if facts.decoders.get("image") == TRAINED else None,
        inputs=("export", "picture_judge", "shards_cc3m", "shards_instruct"),
        section="evals.pages.run.images:drawing_section",
        revision=3,
    ),
    Evaluation(
        step="eval_speaking",
        run="evals.generation.speaking:run",
        config=lambda facts: facts.settings.get("eval_speaking") if facts.decoders.get("audio") == VOICE else None,
        inputs=("export=export_early", "voice=weights_decoder_audio", "speech_judge", "shards_instruct"),
        section="evals.pages.run.speaking:speaking_section",
        revision=3,
    ),
    Evaluation(
        step="eval_generation",
        run="evals.generation.generation:run",
        config=_generation,
        inputs=("export",),
        also=(*ALL_SHARDS, "picture_judge", "speech_judge", "weights_query"),
        section="evals.pages.run.generation:media_section",
    ),
    Evaluation(
        step="eval_captioning",
        run="evals.captions.captioning:run",
        config=_captioning,
        inputs=("export=export_early",),
        also=ALL_SHARDS,
        section="evals.pages.run.generation:captions_section",
    ),
    Evaluation(
        step="eval_objects_as_pope",
        run="evals.questions.objects_as_pope:run",
        config=lambda facts: facts.settings.get("eval_objects_as_pope") if facts.generation else None,
        inputs=("export=export_early", "shards_cc3m", "shards_instruct"),
        section="evals.pages.run.generation:pope_section",
        revision=3,  # yes and no are read as by the scorer anyloom-4, which the fingerprint names
    ),
    Evaluation(
        step="eval_retrieval",
        run="evals.captions.retrieval:run",
        config=lambda facts: facts.settings.get("two_tower"),
        inputs=("two_tower", "embed_text"),
        also=("embed_image", "embed_video", "embed_audio", *CAPTIONED),
        threads=0,
        gpus=0,
        background=False,
    ),
)
