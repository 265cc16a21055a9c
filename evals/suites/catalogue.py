"""Suite catalogue: which lmms-eval tasks a suite has, where their official data comes from and how they are read.

Owns a literal list of SuiteTask. Importing it loads no library. Names: the plain name of a benchmark is for its official data only; other data in its shape
keeps `<data>_as_<benchmark>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from infra.step import AnyloomError


@dataclass(frozen=True, kw_only=True, slots=True)
class SuiteTask:
    """One lmms-eval task on official data, or on other data in its shape."""

    lmms_task: str
    packaged: tuple[str, str]
    """(folder, file) of the packaged task whose prompt, scorer and metric it keeps."""
    split: str
    """Of the data; the packaged task's test_split."""
    reading: str
    """How our own score reads an answer (evals.suites.reading): vqa, choice, yes_no, exact; "" where there is none of our own."""
    headline: str = "exact_match"
    """The harness's metric that is told first."""
    per_answer: bool = True
    """The headline is a mean over answers (or groups of rotations), so that every one of them has a score."""
    key: tuple[str, ...] = ()
    """Columns that together name a question, where its own id does not: POPE numbers the questions of each category anew."""
    columns: tuple[str, ...] = ()
    """Columns that the official data must have; what the packaged functions read."""
    hub: str = ""
    """Official data set on the hub; "" for a stand-in."""
    hub_config: str = ""
    images: tuple[str, str, str] | None = None
    """(config, split, key column) of images that the hub keeps apart from the questions, whose `id` is the key (GQA)."""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the task file in place of the packaged ones; None removes one."""
    drop_metrics: tuple[str, ...] = ()
    """Metrics of the packaged task that write submissions or have no samples here."""
    rotations: bool = False
    """Rows are circular rotations of one question, which must stay together: MMBench's index + k * 1e6."""
    needs: tuple[str, ...] = ()
    """Programs that the packaged scorer starts."""
    judge: bool = False
    """Scored by a language model over an OpenAI-compatible endpoint."""
    bare: bool = False
    """The anyloom model gets the question alone, as in its training."""
    unit: float = 1.0
    """What the packaged scorer gives a right answer by itself."""
    annotator_ids: bool = False
    """The packaged scorer tells the annotators of `answers` apart by their answer_id."""

    @property
    def stand_in(self) -> bool:
        """True for data that only has the benchmark's shape."""
        return not self.hub

    @property
    def suite(self) -> str:
        """The first suite that has it; "" for one that stands alone."""
        return next((name for name, tasks in SUITES.items() if self.lmms_task in tasks), "")


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleScore:
    """A metric that is the mean of its samples' scores."""

    metric: str
    scale: float = 1.0
    """Its value where every sample has the score 1."""
    grouped: bool = False
    """The rotations of a question count once, with the lowest of their scores: all of them must be right."""


NOT_OF_THE_MODEL = ("pope_yes_ratio",)
"""Metrics of packaged tasks that say nothing about the model: this one counts the right answers that are yes, whatever the model says."""
MCQ = ("index", "question", "hint", "answer", "A", "B", "C", "D", "category", "image", "source", "L2-category", "split")
VQA = ("question_type", "multiple_choice_answer", "answers", "image_id", "answer_type", "question_id", "question", "image")
TEXT_VQA = ("image_id", "question_id", "question", "image", "answers", "ocr_tokens")
_TEXT_VQA_KWARGS = {"until": ["ASSISTANT:"], "max_new_tokens": 32}
"""The packaged file sets no limit."""

TASKS = (
    SuiteTask(
        lmms_task="vqav2_val",
        packaged=("vqav2", "vqav2_val.yaml"),
        hub="lmms-lab-encoder/VQAv2",
        split="validation",
        columns=VQA,
        reading="vqa",
        annotator_ids=True,
    ),
    SuiteTask(
        lmms_task="textvqa_val",
        packaged=("textvqa", "textvqa_val.yaml"),
        hub="lmms-lab-encoder/textvqa",
        split="validation",
        columns=TEXT_VQA,
        reading="vqa",
        overrides={"generation_kwargs": _TEXT_VQA_KWARGS},
        drop_metrics=("submission",),
    ),
    SuiteTask(
        lmms_task="mmbench_en_dev_static",
        packaged=("mmbench", "mmbench_en_dev_static.yaml"),
        hub="lmms-lab-encoder/MMBench",
        hub_config="en",
        headline="gpt_eval_score",
        split="dev",
        columns=MCQ,
        reading="choice",
        rotations=True,
        drop_metrics=("submission",),
    ),
    SuiteTask(
        lmms_task="gqa",
        packaged=("gqa", "gqa.yaml"),
        hub="lmms-lab-encoder/GQA",
        hub_config="testdev_balanced_instructions",
        split="testdev",
        images=("testdev_balanced_images", "testdev", "imageId"),
        columns=("id", "imageId", "question", "answer", "image"),
        reading="exact",
        overrides={"process_docs": None},
    ),
    SuiteTask(
        lmms_task="mmmu_val",
        packaged=("mmmu", "mmmu_val.yaml"),
        hub="lmms-lab-encoder/MMMU",
        headline="mmmu_acc",
        split="validation",
        columns=("id", "question", "options", "answer", "question_type", "image_1"),
        reading="choice",
    ),
    SuiteTask(
        lmms_task="seedbench",
        packaged=("seedbench", "seedbench.yaml"),
        hub="lmms-lab-encoder/SEED-Bench",
        headline="seed_all",
        split="test",
        columns=("answer", "choice_a", "choice_b", "choice_c", "choice_d", "data_type", "question", "question_id", "image"),
        reading="choice",
        overrides={"generation_kwargs": {"until": ["ASSISTANT:"], "max_new_tokens": 32}},
        drop_metrics=("seed_video",),
    ),
    SuiteTask(
        lmms_task="coco2017_cap_val",
        packaged=("coco_cap", "coco2017_cap_val.yaml"),
        hub="lmms-lab-encoder/COCO-Caption2017",
        headline="coco_CIDEr",
        per_answer=False,
        split="val",
        columns=("question_id", "image", "id", "answer"),
        reading="",
        needs=("java",),
    ),
    SuiteTask(
        lmms_task="pope",
        packaged=("pope", "pope.yaml"),
        hub="lmms-lab-encoder/POPE",
        headline="pope_accuracy",
        split="test",
        columns=("question_id", "question", "answer", "image", "category"),
        key=("category", "question_id"),
        reading="yes_no",
        drop_metrics=NOT_OF_THE_MODEL,
    ),
    SuiteTask(
        lmms_task="mmvet",
        packaged=("mmvet", "mmvet.yaml"),
        hub="lmms-lab-encoder/MMVet",
        headline="gpt_eval_score",
        split="test",
        columns=("question_id", "question", "answer", "capability", "image"),
        reading="",
        judge=True,
        unit=100.0,
    ),
    SuiteTask(
        lmms_task="llava_in_the_wild",
        packaged=("llava-in-the-wild", "llava-in-the-wild.yaml"),
        hub="lmms-lab-encoder/llava-bench-in-the-wild",
        headline="gpt_eval_llava_all",
        per_answer=False,
        split="train",
        columns=("question_id", "question", "gpt_answer", "category", "caption", "image"),
        reading="",
        judge=True,
        overrides={"generation_kwargs": {"until": ["ASSISTANT:"], "max_new_tokens": 1024, "do_sample": False}},
    ),
    SuiteTask(
        lmms_task="easyvqa_as_vqav2",
        packaged=("vqav2", "vqav2_val.yaml"),
        split="validation",
        columns=VQA,
        reading="vqa",
        bare=True,
        annotator_ids=True,
    ),
    SuiteTask(
        lmms_task="stamps_as_mmbench",
        packaged=("mmbench", "mmbench_en_dev_static.yaml"),
        headline="gpt_eval_score",
        split="dev",
        columns=MCQ,
        reading="choice",
        rotations=True,
        overrides={"generation_kwargs": {"until": ["ASSISTANT:"], "max_new_tokens": 16, "do_sample": False}},
        drop_metrics=("submission",),
    ),
    SuiteTask(
        lmms_task="words_as_textvqa",
        packaged=("textvqa", "textvqa_val.yaml"),
        split="validation",
        columns=TEXT_VQA,
        reading="vqa",
        overrides={"generation_kwargs": {"until": ["ASSISTANT:"], "max_new_tokens": 16}},
        drop_metrics=("submission",),
        bare=True,
    ),
)

SUITES: Mapping[str, tuple[str, ...]] = {
    "core": ("vqav2_val", "textvqa_val", "mmbench_en_dev_static"),
    "full": (
        "vqav2_val",
        "textvqa_val",
        "mmbench_en_dev_static",
        "gqa",
        "mmmu_val",
        "seedbench",
        "coco2017_cap_val",
        "pope",
        "mmvet",
        "llava_in_the_wild",
    ),
    "stand_in": ("stamps_as_mmbench", "words_as_textvqa"),
}
"""Suite -> its tasks. stand_in is made of the demo's own data, beside easyvqa_as_vqav2, which is the step eval_vqa."""


OUT_OF_100 = ("gpt_eval_", "harness_vanilla")
"""How the names of the harness's metrics begin that run from 0 to 100."""
BESIDE = {"objects_as_pope": "accuracy"}
"""Evaluations outside the suites whose samples' mean is another metric than exact_match."""


def full_marks(metric: str) -> float:
    """The value of a metric where everything is right: 100.0 or 1.0. Also 1.0 for one without such a value."""
    return 100.0 if metric.startswith(OUT_OF_100) else 1.0


def sample_scores(lmms_task: str) -> tuple[SampleScore, ...]:
    """The metrics of a task that are means of its samples' scores; of a task that is in no suite: exact_match."""
    task = next((task for task in TASKS if task.lmms_task == lmms_task), None)
    if task is None:
        return (SampleScore(metric=BESIDE.get(lmms_task, "exact_match")),)
    if not task.per_answer:
        return ()
    score = SampleScore(metric=task.headline, scale=full_marks(task.headline), grouped=task.rotations)
    return (score, SampleScore(metric="harness_vanilla", scale=full_marks("harness_vanilla"))) if task.rotations else (score,)


def suite_task(lmms_task: str) -> SuiteTask:
    """The task of that name. Raises AnyloomError listing the names."""
    for task in TASKS:
        if task.lmms_task == lmms_task:
            return task
    raise AnyloomError(f"there is no lmms_task called {lmms_task}; there are: {', '.join(sorted(task.lmms_task for task in TASKS))}")


def suite_tasks(suite: str) -> list[SuiteTask]:
    """The tasks of a suite. Raises AnyloomError listing the suites."""
    if suite not in SUITES:
        raise AnyloomError(f"there is no suite called {suite}; there are: {', '.join(SUITES)}")
    return [suite_task(name) for name in SUITES[suite]]
