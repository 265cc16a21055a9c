"""Training: carried out of pipelines/dag/build.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.plan import topological
from infra.step import ALL_BUT_ONE, ALL_GPUS, AnyloomError, Step
from mmcore.config import MODALITIES, TwoTowerSpec, check_stage
from pipelines.dag.decoders import TRAINED, SignalInputs, states
from pipelines.dag.licences import Part, exported_parts, permitted
from pipelines.embed.config import EmbedConfig
from pipelines.recipes.recipe import Recipe, Retrieval, model_spec, stage_config, stage_steps, states_of
from pipelines.training.config import ExportConfig, TrainConfig


def _export(name: str, recipe: Recipe, weights: dict[str, Step], trained: dict[str, Step], decoders: Mapping[str, Step]) -> Step:
    """The recipe's model as one directory. trained: what trained it, in order; decoders: modality -> step."""
    parts = exported_parts(recipe)
    use = permitted(Part(*terms) for _, *terms in parts)
    settings: dict[str, Any] = {"caption_turn": recipe.stage3.caption_turn, "sampling": _sampling(recipe)}
    config = ExportConfig(model=model_spec(recipe), stages=tuple(trained), licences=parts, commercial_use=use, **settings)
    return Step(
        name=name, run="pipelines.training.export:run", config=config, inputs=weights | {f"decoder_{m}": step for m, step in decoders.items()} | trained
    )


def _sampling(recipe: Recipe) -> tuple[tuple[str, int, float], ...]:
    """The small decoder is used as it is judged."""
    judged = recipe.eval_pictures
    return tuple((modality, judged.steps, judged.guidance) for modality, name in recipe.decoders if name == TRAINED)


def _add_stages(
    recipe: Recipe,
    steps: dict[str, Step],
    embeddings: dict[str, Step],
    captions: dict[str, Step],
    instruct: Step | None,
    signals: SignalInputs | None,
    generated: dict[str, Step],
) -> dict[str, Step]:
    """The training stages in the recipe's order; each reads those before it, stage 1 also `generated` for its generation losses.

    Returns them by the names of their steps. Raises AnyloomError for a stage that cannot be trained.
    """
    spec = model_spec(recipe)
    asked = {d.name for d in recipe.datasets if d.group == "instruct"}
    trained: dict[str, Step] = {}
    order = stage_steps(recipe.stages)
    for name, stage in order:
        try:
            check_stage(stage_config(recipe, name))
        except ValueError as error:
            raise AnyloomError(f"recipe {recipe.name}: {error}") from error
        inputs = {"weights_lm": steps["weights_lm"], **trained}
        if stage == "stage2":
            assert signals is not None  # build makes them where there is such a stage
            read = {**inputs, **signals.captions, **({"shards_instruct": instruct, **embeddings} if recipe.requests > 1 and instruct is not None else {})}
            steps[states_of(name)] = states(recipe, spec, states_of(name), name, read)
            inputs |= {"states": steps[states_of(name)], **signals.targets, **signals.captions, **signals.denoised}
        else:
            asks = stage == "stage3" or any(dataset in asked for dataset, _ in getattr(recipe, stage).mixture)
            inputs |= embeddings | captions | ({"shards_instruct": instruct} if asks and instruct is not None else {})
            inputs |= generated if stage == "stage1" else {}
        steps[name] = Step(
            name=name,
            run="pipelines.training.train:run",
            config=TrainConfig(model=spec, stage=stage_config(recipe, name)),
            revision=2,  # losses by modality as well, and the weights behind the features
            inputs=inputs,
            threads=ALL_BUT_ONE if recipe.image_decoder is not None and name != order[-1][0] else 0,  # the decoder is trained beside all but the last
            gpus=ALL_GPUS,
            isolate=False,
        )
        trained[name] = steps[name]
    return trained


def _two_tower(recipe: Recipe, towers: Retrieval, steps: dict[str, Step], embeddings: dict[str, Step], captions: dict[str, Step]) -> dict[str, Step]:
    """embed_text, two_tower, eval_retrieval. Returns them and every step of the data behind them."""
    text = Step(
        name="embed_text",
        run="pipelines.embed.texts:run",
        config=EmbedConfig(spec=towers.text),
        inputs={"weights": steps["weights_text"], **captions},
        threads=0,
        spread=True,
        isolate=False,
    )
    inputs = {**embeddings, "embed_text": text, **captions}
    encoders = tuple((modality, getattr(recipe, modality)) for modality in MODALITIES[1:])
    spec = TwoTowerSpec(encoders=encoders, text=towers.text, shape=towers.shape)
    trained = Step(
        name="two_tower",
        run="pipelines.training.train:run",
        config=TrainConfig(model=spec, stage=towers.stage),
        inputs=inputs,
        threads=0,
        gpus=ALL_GPUS,
        isolate=False,
    )
    evaluation = Step(name="eval_retrieval", run="evals.captions.retrieval:run", config=towers.evaluation, inputs={"two_tower": trained, **inputs}, threads=0)
    return {step.name: step for step in topological([steps["overlap"], steps["targets"], evaluation])}
