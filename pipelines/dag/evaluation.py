"""The part of the DAG that judges stage 2, speech, what is generated and the questions about clips and sounds: which of these evaluations a recipe has.

Input: a recipe, its steps so far and the trained stages by the names of their steps; output: steps by name. Importing this module loads no model
library and runs nothing. pipelines.dag.build puts them into the DAG.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evals.config import AlignmentEvalConfig, CaptionEvalConfig, DriftEvalConfig, HistoryConfig, MediaQuestionsEvalConfig, ReportConfig
from evals.suites.catalogue import SUITES, suite_tasks
from infra.step import AnyloomError, Step
from mmcore.config import ModelSpec
from pipelines.dag.decoders import TRAINED, VOICE
from pipelines.demo.config import QUESTIONS
from pipelines.recipes.recipe import Recipe, asked_about, model_spec, stage_steps, states_of
from pipelines.weights.config import WeightsConfig


def _add_evaluation(
    recipe: Recipe,
    steps: dict[str, Step],
    lists: Step,
    overlap: Step,
    export: Step,
    embeddings: dict[str, Step],
    captions: dict[str, Step],
    targets: Step,
    trained: dict[str, Step],
    prepared: Mapping[str, Path],
) -> None:
    """eval_*, history, report. prepared: suites of official data."""
    spec = model_spec(recipe)
    weights = {name: steps[name] for name in ("weights_lm", "weights_image", "weights_audio") if name in steps}
    asked = {"export": steps.get("export_early", export), "lists": lists}
    first = {
        "eval_vqa": Step(name="eval_vqa", run="evals.questions.vqa:run_vqa", config=recipe.evaluation, inputs=asked, gpus=1),
        "eval_captions": Step(
            name="eval_captions",
            run="evals.captions.captions:run",
            config=CaptionEvalConfig(model=spec),
            gpus=1,
            background=True,
            inputs=weights | {"stage1": trained["stage1"]} | embeddings | captions,
        ),
    }
    parts = [first, signal_evaluation(recipe, spec, steps, trained, {"targets": targets, "shards_cc3m": captions["shards_cc3m"]})]
    parts += [media_questions(recipe, asked), suites(recipe, prepared, asked, embeddings)]
    if recipe.image_decoder is not None:
        parts.append({"eval_pictures": steps["eval_pictures"]})
    if ("image", "trained") in recipe.decoders:
        parts.append({"eval_drawing": drawing(recipe, steps, export)})
    if ("audio", VOICE) in recipe.decoders:
        parts.append({"eval_speaking": speaking(recipe, steps, asked["export"])})
    if recipe.generation:
        parts.append(generation(recipe, spec, steps, export, asked["export"], captions | {"shards_instruct": steps["shards_instruct"]}))
    evals = together(*parts)
    history = Step(
        name="history",
        run="evals.history.database:run",
        config=HistoryConfig(recipe=recipe.name, seeds=tuple((name, getattr(recipe, stage).seed) for name, stage in stage_steps(recipe.stages))),
        inputs=evals | {"export": export} | trained,
        isolate=False,
    )
    report = Step(
        name="report",
        run="evals.pages.run.report:run",
        config=ReportConfig(recipe=recipe.name, questions_are=recipe.questions_are),
        isolate=False,
        inputs={"lists": lists, "overlap": overlap, "export": export, "history": history, **trained, **evals},
    )
    steps |= evals | {"history": history, "report": report}


def together(*parts: Mapping[str, Step]) -> dict[str, Step]:
    """All the steps by name. Raises AnyloomError when two parts have one name for different steps: the second would take the first one's place."""
    found: dict[str, Step] = {}
    for part in parts:
        for name, step in part.items():
            if found.setdefault(name, step) is not step:
                raise AnyloomError(f"two evaluations are called {name} ({found[name].run} and {step.run}): leave one of them out of the recipe")
    return found


def media_questions(recipe: Recipe, inputs: dict[str, Step]) -> dict[str, Step]:
    """eval_media_questions on the held-out questions that the recipe names; nothing without them. inputs: the export and the lists."""
    about = tuple((modality, heldout) for modality, (_, heldout) in QUESTIONS.items() if heldout in asked_about(recipe, modality))
    if not about:
        return {}
    config = MediaQuestionsEvalConfig(datasets=about)
    return {
        "eval_media_questions": Step(
            name="eval_media_questions", run="evals.questions.media_questions:run", config=config, inputs=inputs, gpus=1, background=True
        )
    }


def suites_apart(own_lists: Mapping[str, Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """The files that the user gives with --list: (the lists, the records of prepared suites of official data)."""
    prepared = {name: path for name, path in own_lists.items() if name in SUITES}
    return {name: path for name, path in own_lists.items() if name not in prepared}, prepared


def suites(recipe: Recipe, prepared: Mapping[str, Path], inputs: dict[str, Step], embeddings: Mapping[str, Step]) -> dict[str, Step]:
    """eval_<task> of every task of the recipe's suites and of the prepared ones. inputs: the export and the lists.

    Stand-ins read held-out pictures, whose features are stored already. Raises AnyloomError for a suite of official data that is not prepared.
    """
    found: dict[str, Step] = {}
    common: dict[str, Any] = {"run": "evals.suites.run:run", "revision": 2, "gpus": 1, "background": True}  # 2: MM-Vet's answers are scored from 0 to 1
    for suite in dict.fromkeys((*recipe.suites, *prepared)):
        for task in suite_tasks(suite):
            name, config = f"eval_{task.lmms_task}", replace(recipe.suite, lmms_task=task.lmms_task)
            if task.stand_in:
                needs = inputs | {step: embeddings[step] for step in ("embed_image",) if step in embeddings}
                found[name] = Step(name=name, config=config, inputs=needs, **common)
                continue
            if suite not in prepared:
                how = f"anyloom eval prepare {suite} --data DIR, then --list {suite}=DIR/{suite}.json"
                raise AnyloomError(f"suite {suite} is official data: prepare it and give its record ({how})")
            needs, data = {"export": inputs["export"]}, {"suite": prepared[suite]}
            found[name] = Step(name=name, config=config, inputs=needs, sources=data, **common)
    return found


def signal_evaluation(recipe: Recipe, spec: ModelSpec, steps: Mapping[str, Step], trained: Mapping[str, Step], data: dict[str, Step]) -> dict[str, Step]:
    """eval_alignment of the last stage 2, and eval_drift where a stage 3 follows a stage 2. data: the captions and their targets."""
    config, order = AlignmentEvalConfig(model=spec, restate=recipe.restate), stage_steps(recipe.stages)
    names, aligned = [name for name, _ in order], [name for name, stage in order if stage == "stage2"]
    if not aligned:
        return {}
    last = {"states": steps[states_of(aligned[-1])], "stage2": trained[aligned[-1]]}
    found = {"eval_alignment": Step(name="eval_alignment", run="evals.captions.alignment:run_alignment", config=config, background=True, inputs=last | data)}
    moved = max((place for place, (_, stage) in enumerate(order) if stage == "stage3"), default=-1)
    before = [name for name in aligned if names.index(name) < moved]
    if before:
        inputs = {"weights_lm": steps["weights_lm"], "states": steps[states_of(before[-1])], "aligned": trained[before[-1]]}
        found["eval_drift"] = Step(
            name="eval_drift",
            run="evals.captions.drift:run",
            config=DriftEvalConfig(alignment=config, stages=tuple(names[: moved + 1])),
            background=True,
            inputs=inputs | {name: trained[name] for name in names[: moved + 1]} | data,
        )
    return found


def drawing(recipe: Recipe, steps: Mapping[str, Step], export: Step) -> Step:
    """eval_drawing."""
    inputs = {"export": export} | {name: steps[name] for name in ("picture_judge", "shards_cc3m", "shards_instruct")}
    return Step(name="eval_drawing", run="evals.generation.drawing:run", config=recipe.eval_drawing, inputs=inputs, revision=2, gpus=1, background=True)


def speaking(recipe: Recipe, steps: dict[str, Step], export: Step) -> Step:
    """speech_judge (added to the steps), eval_speaking."""
    judge = WeightsConfig(kind=recipe.weights.kind, arch="whisper-tiny.en")
    steps["speech_judge"] = Step(
        name="speech_judge", run="pipelines.weights.speech_judge:run", config=judge, inputs={"assets": steps["assets"]}, background=True
    )
    inputs = {"export": export, "voice": steps["weights_decoder_audio"], "speech_judge": steps["speech_judge"], "shards_instruct": steps["shards_instruct"]}
    return Step(name="eval_speaking", run="evals.generation.speaking:run", config=recipe.eval_speaking, inputs=inputs, revision=2, gpus=1, background=True)


HELD_OUT = {"image": "stamps_heldout", "video": "clips_heldout", "audio": "sounds_heldout"}
"""Modality -> held-out dataset of captions and media."""

CONCEPTS = {TRAINED: "easyvqa_test", VOICE: "spoken_train"}
"""Decoder whose world are the 24 concepts -> the dataset with real media of them. Of the voice there are only those that it learned from."""


def generation(recipe: Recipe, spec: ModelSpec, steps: Mapping[str, Step], export: Step, early: Step, shards: Mapping[str, Step]) -> dict[str, Step]:
    """eval_captioning, eval_objects_as_pope, and eval_generation where the model has decoders.

    export: with all of them; early: with or without; shards: of all groups.
    """
    read = dict(spec.encoders)
    captioning = replace(recipe.eval_captioning, datasets=tuple((m, dataset) for m, dataset in recipe.eval_captioning.datasets if m in read))
    pictures = {"export": early} | {name: shards[name] for name in ("shards_cc3m", "shards_instruct")}
    found = {
        "eval_captioning": Step(
            name="eval_captioning", run="evals.captions.captioning:run", config=captioning, inputs={"export": early, **shards}, gpus=1, background=True
        ),
        "eval_objects_as_pope": Step(
            name="eval_objects_as_pope", run="evals.questions.objects_as_pope:run", config=recipe.eval_objects_as_pope, inputs=pictures, gpus=1, background=True
        ),
    }
    if not recipe.decoders:
        return found
    config = replace(
        recipe.eval_generation,
        datasets=tuple((modality, HELD_OUT[modality]) for modality, name in recipe.decoders if name != VOICE),
        concepts=tuple((modality, CONCEPTS[name]) for modality, name in recipe.decoders if name in CONCEPTS),
        query=recipe.query,
    )
    inputs = {"export": export, **shards} | {name: steps[name] for name in ("picture_judge", "speech_judge") if name in steps}
    if recipe.query is not None:
        inputs["weights_query"] = steps[recipe.query_weights or "weights_query"]
    found["eval_generation"] = Step(name="eval_generation", run="evals.generation.generation:run", config=config, inputs=inputs, gpus=1, background=True)
    return found
