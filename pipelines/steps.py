"""The whole DAG on one page: from a Recipe to its Steps.

    assets -> lists -> manifest_* -> shards_* -> embed_*, targets -> stage1..3 (states before stage2) -> export -> eval_* -> history -> report

A stage that the recipe names twice has two steps, the second called stage2_2 (with states_2).

A recipe with a picture decoder has image_decoder beside the stages (from weights_text and shards_cc3m), picture_judge, eval_pictures and export_early, the
export without it, so that all but its pictures is evaluated while it is still being trained; one with decoders of its own has weights_decoder_*, whose text
encoders give the targets and whose autoencoders the latents (pipelines.steps_decoders); one with a voice also speech_judge and eval_speaking. A recipe with
two towers goes from embed_* on to embed_text -> two_tower -> eval_retrieval; one of the user's own lists and weights (pipelines.own_files) ends at export.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from evals.config import CaptionEvalConfig, HistoryConfig, ReportConfig
from infra.plan import topological
from infra.step import ALL_BUT_ONE, ALL_GPUS, AnyloomError, Step
from mmcore.config import MODALITIES, EncoderSpec, ModelSpec, check_encoder, check_model, check_stage, output_spec
from mmcore.data.chat_templates import chat_template
from mmcore.two_tower_config import TwoTowerSpec
from pipelines.data_config import EmbedConfig, ShardsConfig, TargetsConfig
from pipelines.licences import Part, exported_parts, permitted
from pipelines.manifest_config import DATASET_TEMPLATES, DatasetSpec, ManifestConfig, OverlapConfig
from pipelines.own_files import OWN, planned
from pipelines.recipe import Recipe, Retrieval, stage_config, stage_steps
from pipelines.sources.configs import QUESTIONS, AssetsConfig, SmolListsConfig, TinyListsConfig
from pipelines.steps_decoders import (
    TRAINED,
    VOICE,
    SignalInputs,
    caption_generation_inputs,
    caption_targets,
    decoder_weights,
    latents,
    signal_inputs,
    states,
    takes_files,
    trained_image_decoder,
    untrained,
)
from pipelines.steps_evaluation import asked_about, drawing, generation, media_questions, signal_evaluation, speaking, states_of, suites, suites_apart, together
from pipelines.train_config import ExportConfig, TrainConfig
from pipelines.weights_config import ImageBindConfig, ImportConfig, LmConfig, WeightsConfig
from pipelines.weights_files import given_files, given_lm

OWN_WEIGHTS = ("imagebind", "image", "audio", "text", "lm")
"""What --weights takes: ImageBind's released file, or a part of the recipe's weights."""
GROUPS = ("cc3m", "webvid", "audiocaps", "instruct")
GROUP_OF = {"image": "cc3m", "video": "webvid", "audio": "audiocaps"}
"""Modality -> the group of its captions; pictures, and in the user's own lists clips and sounds too, are also in instructions."""
IMAGEBIND_TRUNKS = {"image": ("vision",), "audio": ("audio",), "text": ("text",)}
"""Part of the recipe's weights -> the trunks it keeps; clips share the pictures' trunk."""
SUFFIX = {"cc3m": "tsv", "webvid": "csv", "audiocaps": "csv", "instruct": "json"}


def model_spec(recipe: Recipe) -> ModelSpec:
    """The model a recipe trains. Raises AnyloomError for one that cannot be built."""
    spec = ModelSpec(
        dtype=recipe.lm_dtype,
        quantize=recipe.quantize,
        chat=recipe.chat,
        encoders=_encoders(recipe),
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


def _encoders(recipe: Recipe) -> tuple[tuple[str, EncoderSpec], ...]:
    """(modality, encoder) of the media that the recipe's model reads."""
    return tuple((modality, getattr(recipe, modality)) for modality in MODALITIES[1:] if getattr(recipe, modality) is not None)


def build(recipe: Recipe, own_lists: Mapping[str, Path] | None = None, own_weights: Mapping[str, Path] | None = None) -> dict[str, Step]:
    """Every step of the recipe by name, inputs first.

    own_lists: dataset name -> a list file that takes the place of the recipe's; it counts by its bytes, and its relative media paths start at
    its own directory; or suite -> the record of prepared data. own_weights: `imagebind` -> the released file, `lm` -> a transformers directory, another
    part (image, audio, text) -> what its encoder's kind opens, or `decoder_<modality>` -> the diffusers directory of a published decoder of the recipe.
    Raises AnyloomError for a name the recipe does not have, weights that are not what they should be, or files that the recipe cannot do without.
    """
    (own_lists, prepared), own_weights = suites_apart(own_lists or {}), dict(own_weights or {})
    takes = (*OWN_WEIGHTS, *takes_files(recipe), *(("query",) if recipe.query is not None else ()))
    for name in sorted(set(own_weights) - set(takes)):
        raise AnyloomError(f"--weights {name}: no such model; files are taken for: {', '.join(takes)}")
    unknown = set(own_lists) - {d.name for d in recipe.datasets}
    if unknown:
        raise AnyloomError(f"--list {sorted(unknown)[0]}: no such dataset; the recipe has: {', '.join(d.name for d in recipe.datasets)}")
    recipe = planned(recipe, own_lists, own_weights)
    steps: dict[str, Step] = {}
    lists = _add_sources(recipe, steps, own_weights)
    shards = _add_shards(recipe, steps, lists, own_lists)
    pictures = {f"shards_{group}": shards[group] for group in ("cc3m", "instruct") if group in shards}
    captions = {f"shards_{group}": shards[group] for group in ("cc3m", "webvid", "audiocaps") if group in shards}
    steps["overlap"] = overlap = Step(name="overlap", run="pipelines.overlap:run", config=OverlapConfig(max_bits=recipe.near_duplicate_bits), inputs=pictures)
    if "weights_text" in steps and "cc3m" in shards:
        inputs = {"weights": steps["weights_text"], "shards_cc3m": shards["cc3m"]}
        steps["targets"] = Step(name="targets", run="pipelines.embed:run_targets", config=_targets(recipe), inputs=inputs)
    image_decoder = trained_image_decoder(recipe, steps, shards)
    own = decoder_weights(recipe, model_spec(recipe), own_weights, steps.get("assets"))
    steps |= {step.name: step for step in own.values()}
    steps |= caption_targets(recipe, model_spec(recipe), own, captions)
    decoders = own | {modality: image_decoder["image_decoder"] for modality, name in recipe.decoders if name == TRAINED}
    embeddings = {}
    for modality, _ in _encoders(recipe):
        asked = ("instruct",) if modality == "image" or lists is None or asked_about(recipe, modality) else ()
        seen = {f"shards_{group}": shards[group] for group in (GROUP_OF[modality], *asked) if group in shards}
        if seen:
            inputs = {"weights": steps["weights_audio" if modality == "audio" else "weights_image"], **seen}
            embeddings[f"embed_{modality}"] = _add_embed(recipe, steps, modality, inputs)
    if recipe.query is not None:
        _add_query(recipe, recipe.query, steps, own_weights)
    steps |= latents(recipe, decoders, captions, own_weights)
    if recipe.video_audio:
        tracks = {"weights": steps["weights_audio"], "shards_webvid": shards["webvid"]}
        _add_embed(recipe, steps, "audio", tracks, name="embed_video_audio", run="pipelines.embed_tracks:run")
    if recipe.two_tower is not None:
        return _two_tower(recipe, recipe.two_tower, steps, embeddings, captions)
    signals = signal_inputs(recipe, steps, decoders, captions) if "stage2" in recipe.stages else None
    generated = caption_generation_inputs(recipe, steps, decoders) if "stage1" in recipe.stages else {}
    trained = _add_stages(recipe, steps, embeddings, captions, shards.get("instruct"), signals, generated)
    steps |= image_decoder
    weights = {name: steps[name] for name in ("weights_lm", "weights_image", "weights_audio") if name in steps}
    steps["export"] = _export("export", recipe, weights, trained, decoders)
    if lists is not None and "targets" in steps:  # what is evaluated so far is known of the lists that are made here
        if image_decoder:
            steps["export_early"] = _export("export_early", replace(recipe, decoders=untrained(recipe)), weights, trained, own)
        _add_evaluation(recipe, steps, lists, overlap, steps["export"], embeddings, captions, steps["targets"], trained, prepared)
    return steps


def _export(name: str, recipe: Recipe, weights: dict[str, Step], trained: dict[str, Step], decoders: Mapping[str, Step]) -> Step:
    """The recipe's model as one directory. trained: what trained it, in order; decoders: modality -> step."""
    parts = exported_parts(recipe)
    use = permitted(Part(*terms) for _, *terms in parts)
    settings: dict[str, Any] = {"caption_turn": recipe.stage3.caption_turn, "sampling": _sampling(recipe)}
    config = ExportConfig(model=model_spec(recipe), stages=tuple(trained), licences=parts, commercial_use=use, **settings)
    return Step(name=name, run="pipelines.export:run", config=config, inputs=weights | {f"decoder_{m}": step for m, step in decoders.items()} | trained)


def _sampling(recipe: Recipe) -> tuple[tuple[str, int, float], ...]:
    """The small decoder is used as it is judged."""
    judged = recipe.eval_pictures
    return tuple((modality, judged.steps, judged.guidance) for modality, name in recipe.decoders if name == TRAINED)


def _add_shards(recipe: Recipe, steps: dict[str, Step], lists: Step | None, own_lists: Mapping[str, Path]) -> dict[str, Step]:
    """manifest_* and shards_*. Returns the shards by group; without lists of the recipe's own making only those of groups that have datasets."""
    shards = {}
    made = {} if lists is None else {"lists": lists}
    for group in GROUPS if lists is not None else sorted({d.group for d in recipe.datasets}, key=GROUPS.index):
        own = {d.name: own_lists[d.name] for d in recipe.datasets if d.group == group and d.name in own_lists}
        name = f"manifest_{group}"
        steps[name] = Step(name=name, run="pipelines.manifest:run", config=_manifest_config(recipe, group), inputs=made, sources=own)
        shards[group] = steps[f"shards_{group}"] = Step(
            name=f"shards_{group}",
            run="pipelines.shards:run",
            config=ShardsConfig(samples_per_shard=recipe.samples_per_shard),
            inputs={"manifest": steps[name], **made},
            sources=own,
            threads=0,
            spread=True,
            isolate=False,
        )
    return shards


def _add_embed(recipe: Recipe, steps: dict[str, Step], modality: str, inputs: dict[str, Step], name: str = "", run: str = "pipelines.embed:run") -> Step:
    """embed_<modality>, or another name, with the encoder of the modality."""
    spec: EncoderSpec = getattr(recipe, modality)
    name = name or f"embed_{modality}"
    try:
        check_encoder(spec)
    except ValueError as error:
        raise AnyloomError(f"{recipe.name}, encoder of {modality}: {error}") from error
    steps[name] = Step(name=name, run=run, config=EmbedConfig(spec=spec), inputs=inputs, threads=0, gpus=ALL_GPUS, spread=True, isolate=False)
    return steps[name]


def _add_sources(recipe: Recipe, steps: dict[str, Step], own_weights: Mapping[str, Path]) -> Step | None:
    """assets, weights_*, lists. Returns lists; None when every list is the user's."""
    inputs: dict[str, Step] = {}
    if recipe.weights.kind == "pretrained":
        steps["assets"] = Step(name="assets", run="pipelines.sources.assets:run", config=AssetsConfig())
        inputs = {"assets": steps["assets"]}
    own = recipe.weights.kind == OWN
    for part in ("lm", "image", *(["audio"] if recipe.audio is not None else []), *([] if own else ["text"])):
        steps[f"weights_{part}"] = _weights(recipe, part, inputs, own_weights)
    if recipe.lists == OWN:
        return None
    asked = any(asked_about(recipe, modality) for modality in QUESTIONS)
    smol = SmolListsConfig(heldout=recipe.heldout, clips=recipe.clips, pictures=recipe.easyvqa_pictures, media_questions=asked, restate=recipe.restate)
    config = smol if recipe.lists == "smol" else TinyListsConfig(media_questions=asked)
    steps["lists"] = Step(name="lists", run=f"pipelines.sources.{recipe.lists}:run", config=config, inputs=inputs if recipe.lists == "smol" else {})
    return steps["lists"]


def _weights(recipe: Recipe, part: str, inputs: dict[str, Step], own_weights: Mapping[str, Path]) -> Step:
    """weights_<part>: files of the user's own, ImageBind's trunks, or what the recipe names."""
    name, arch = f"weights_{part}", getattr(recipe.weights, part)
    if part == "lm" and part in own_weights:
        lm = LmConfig(arch=arch, chat=recipe.chat, targets=recipe.lora.targets)
        return Step(name=name, run="pipelines.weights_lm:run", config=lm, sources=given_lm(own_weights[part]))
    if part in own_weights:
        wanted = {"image": (recipe.image, recipe.video), "audio": (recipe.audio,), "text": (_targets(recipe).spec,)}[part]
        specs = tuple(spec for spec in wanted if spec is not None)
        config = ImportConfig(arch=specs[0].arch, specs=specs)
        return Step(name=name, run="pipelines.weights_import:run", config=config, sources=given_files(part, specs, own_weights[part]))
    if part in IMAGEBIND_TRUNKS and arch.startswith("imagebind"):
        return Step(
            name=name,
            run="pipelines.weights:run_imagebind",
            config=ImageBindConfig(kind="pretrained" if recipe.weights.kind == OWN else recipe.weights.kind, arch=arch, trunks=IMAGEBIND_TRUNKS[part]),
            sources={"imagebind": own_weights["imagebind"]} if "imagebind" in own_weights else {},
        )
    return Step(name=name, run=f"pipelines.weights:run_{part}", inputs=inputs, config=WeightsConfig(kind=recipe.weights.kind, arch=arch))


def _targets(recipe: Recipe) -> TargetsConfig:
    image = output_spec(model_spec(recipe), "image")
    return TargetsConfig(width=image.out, tokens=image.queries)


def _manifest_config(recipe: Recipe, group: str) -> ManifestConfig:
    return ManifestConfig(
        datasets=tuple(
            DatasetSpec(
                name=d.name,
                format=group,
                path=f"{group}/{d.name}.{SUFFIX[group]}",
                split=d.split,
                licence=d.licence,
                media_template=DATASET_TEMPLATES.get(d.name, ""),
            )
            for d in recipe.datasets
            if d.group == group
        )
    )


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
            read = {**inputs, **signals.captions, **({"shards_instruct": instruct, **embeddings} if recipe.requests > 1 and instruct is not None else {})}
            steps[states_of(name)] = states(recipe, spec, states_of(name), name, read)
            inputs |= {"states": steps[states_of(name)], **signals.targets, **signals.captions, **signals.denoised}
        else:
            asks = stage == "stage3" or any(dataset in asked for dataset, _ in getattr(recipe, stage).mixture)
            inputs |= embeddings | captions | ({"shards_instruct": instruct} if asks and instruct is not None else {})
            inputs |= generated if stage == "stage1" else {}
        steps[name] = Step(
            name=name,
            run="pipelines.train:run",
            config=TrainConfig(model=spec, stage=stage_config(recipe, name)),
            revision=2,  # losses by modality as well, and the weights behind the features
            inputs=inputs,
            threads=ALL_BUT_ONE if recipe.image_decoder is not None and name != order[-1][0] else 0,  # the decoder is trained beside all but the last
            gpus=ALL_GPUS,
            isolate=False,
        )
        trained[name] = steps[name]
    return trained


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
        "eval_vqa": Step(name="eval_vqa", run="evals.run:run_vqa", config=recipe.evaluation, inputs=asked, gpus=1),
        "eval_captions": Step(
            name="eval_captions",
            run="evals.captions:run",
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
        run="evals.history:run",
        config=HistoryConfig(recipe=recipe.name, seeds=tuple((name, getattr(recipe, stage).seed) for name, stage in stage_steps(recipe.stages))),
        inputs=evals | {"export": export} | trained,
        isolate=False,
    )
    report = Step(
        name="report",
        run="evals.report:run",
        config=ReportConfig(recipe=recipe.name, questions_are=recipe.questions_are),
        isolate=False,
        inputs={"lists": lists, "overlap": overlap, "export": export, "history": history, **trained, **evals},
    )
    steps |= evals | {"history": history, "report": report}


def _add_query(recipe: Recipe, query: EncoderSpec, steps: dict[str, Step], own_weights: Mapping[str, Path]) -> None:
    """weights_query, unless a step of the recipe holds the query encoder's weights already. Raises AnyloomError when that step does not exist."""
    if recipe.query_weights:
        if recipe.query_weights not in steps:
            raise AnyloomError(f"{recipe.name}: query_weights {recipe.query_weights}: no such step; use weights_image, weights_audio or weights_text")
        return
    if "query" in own_weights:
        sources = given_files("query", (query,), own_weights["query"])
        config = ImportConfig(arch=query.arch, specs=(query,))
        steps["weights_query"] = Step(name="weights_query", run="pipelines.weights_import:run", config=config, sources=sources)
        return
    if query.kind != "imagebind_text":
        raise AnyloomError(f"{recipe.name}: query {query.kind}: give its files with --weights query=DIR, or name the step that holds them in query_weights")
    steps["weights_query"] = Step(
        name="weights_query",
        run="pipelines.weights:run_imagebind",
        config=ImageBindConfig(kind=recipe.weights.kind, arch=query.arch, trunks=("text",)),
        sources={"imagebind": own_weights["imagebind"]} if "imagebind" in own_weights else {},
    )


def _two_tower(recipe: Recipe, towers: Retrieval, steps: dict[str, Step], embeddings: dict[str, Step], captions: dict[str, Step]) -> dict[str, Step]:
    """embed_text, two_tower, eval_retrieval. Returns them and every step of the data behind them."""
    text = Step(
        name="embed_text",
        run="pipelines.embed_text:run",
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
        name="two_tower", run="pipelines.train:run", config=TrainConfig(model=spec, stage=towers.stage), inputs=inputs, threads=0, gpus=ALL_GPUS, isolate=False
    )
    evaluation = Step(name="eval_retrieval", run="evals.retrieval:run", config=towers.evaluation, inputs={"two_tower": trained, **inputs}, threads=0)
    return {step.name: step for step in topological([steps["overlap"], steps["targets"], evaluation])}
