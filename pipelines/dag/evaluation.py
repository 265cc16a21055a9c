"""Evaluation: the rows of evals.evaluation that a recipe has, the history they go to, and the report.

Input: a Recipe and every other part of the DAG. Output: the steps eval_*, history, report. What a row needs is asked of the row; this module only says what
the recipe has. Raises AnyloomError for a suite of official data that is not prepared.
"""

from __future__ import annotations

from collections.abc import Mapping

from evals.config import HELDOUT, TEST, HistoryConfig, ReportConfig
from evals.evaluation import EVALUATIONS, Facts
from evals.suites.catalogue import suite_tasks
from infra.step import AnyloomError, Step
from mmcore.config import MODALITIES
from pipelines.dag.parts import Data, Decoders, Evaluation, Features, Given, Training, Weights, steps_of
from pipelines.demo.config import CONCEPTS, QUESTIONS
from pipelines.recipes.recipe import Recipe, asked_about, model_spec
from pipelines.shards.config import GROUP_MODALITY, SPLITS


def plan_evaluation(recipe: Recipe, given: Given, data: Data, weights: Weights, decoders: Decoders, features: Features, training: Training) -> Evaluation:
    """eval_*; with an exported model and something to score also history and report."""
    _check_suites(recipe, given)
    have = steps_of(data, weights, decoders, features, training) | {f"states of {name}": step for name, step in training.states.items()}
    if training.export is not None:
        have["export_early"] = training.export_early or training.export
    if recipe.query is not None and recipe.query_weights:
        have["weights_query"] = have[recipe.query_weights]
    facts = facts_of(recipe, given)
    evaluations: dict[str, Step] = {}
    for row in EVALUATIONS:
        step = row.plan(facts, have)
        if step is not None:
            evaluations[step.name] = step
    if training.export is None or not evaluations:
        return Evaluation(evaluations=evaluations, history=None, report=None)
    history = _history(recipe, evaluations, training.export, training.stages)
    report = _report(recipe, given, data, evaluations, training.export, training.stages, history)
    return Evaluation(evaluations=evaluations, history=history, report=report)


def facts_of(recipe: Recipe, given: Given) -> Facts:
    """What the recipe says to its evaluations. Only what its model can do is asked for."""
    names = {dataset.name for dataset in recipe.datasets}
    settings = {"suite": recipe.suite, "eval_generation": recipe.eval_generation}
    settings |= {"evaluation": recipe.evaluation} if TEST in names else {}
    settings |= {"eval_captioning": recipe.eval_captioning, "eval_objects_as_pope": recipe.eval_objects_as_pope}
    if recipe.two_tower is not None:
        return Facts(model=None, settings={"two_tower": recipe.two_tower.evaluation})
    if recipe.image_decoder is not None:
        settings |= {"eval_pictures": recipe.eval_pictures}
    captions = {
        split: {
            modality: tuple(d.name for d in recipe.datasets if d.split == split and GROUP_MODALITY.get(d.format) == modality) for modality in MODALITIES[1:]
        }
        for split in SPLITS
    }
    return Facts(
        model=model_spec(recipe),
        settings=settings | {"eval_drawing": recipe.eval_drawing, "eval_speaking": recipe.eval_speaking},
        stages=tuple((name, config.stage) for name, config in recipe.entries.items()),
        decoders=dict(recipe.decoders),
        captions=captions,
        questions=tuple((modality, heldout) for modality, (_, heldout) in QUESTIONS.items() if heldout in asked_about(recipe, modality)),
        concepts=tuple((modality, CONCEPTS[name]) for modality, name in recipe.decoders if name in CONCEPTS),
        stand_ins=HELDOUT in names,
        suites=tuple(dict.fromkeys((*recipe.suites, *given.prepared))),
        prepared=given.prepared,
        query=recipe.query,
        generation=recipe.generation,
        restate=recipe.restate,
    )


def _check_suites(recipe: Recipe, given: Given) -> None:
    """Raises AnyloomError for a suite that does not exist, or is official data and not prepared."""
    for suite in recipe.suites:
        if suite not in given.prepared and not all(task.stand_in for task in suite_tasks(suite)):
            how = f"anyloom eval prepare {suite} --data DIR, then --suite {suite}=DIR/{suite}.json"
            raise AnyloomError(f"suite {suite} is official data: prepare it and give its record ({how})")


def _history(recipe: Recipe, evaluations: Mapping[str, Step], export: Step, stages: Mapping[str, Step]) -> Step:
    seeds = tuple((name, config.seed) for name, config in recipe.entries.items())
    inputs = {**evaluations, "export": export, **stages}
    return Step(name="history", run="evals.history.database:run", config=HistoryConfig(recipe=recipe.name, seeds=seeds), inputs=inputs, isolate=False)


def _report(recipe: Recipe, given: Given, data: Data, evaluations: Mapping[str, Step], export: Step, stages: Mapping[str, Step], history: Step) -> Step:
    config = ReportConfig(recipe=recipe.name, questions_are=f"your own (--list {TEST})" if TEST in given.lists else recipe.questions_are)
    inputs = {"overlap": data.overlap, "export": export, "history": history, **stages, **evaluations}
    return Step(name="report", run="evals.pages.run.report:run", config=config, inputs=inputs, isolate=False, revision=2)
