"""The states step: the LM states of every distinct caption, so that stage 2 trains without the language model.

Input: weights_lm, the stages so far, the caption shards, and the instruction shards (how captions are asked for) with the features of the media that their
conversations are about. Output: parts of states, the token rows as they stand, and states.json.
Captions are taken by length in parts of fixed batches, each part published on its own, so a killed run goes on to the same bytes. Workers of one thread each
make the parts side by side (under Ray; without it one after the other): short rows gain little from a second thread.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from infra.ray_session import map_tasks
from infra.step import StepContext, no_progress
from infra.storage import part_is_there, read_json, write_atomic, write_part
from mmcore.chat.asking import Asking, askings
from mmcore.chat.chat import independent
from mmcore.chat.places import parted, rest_of, shown
from mmcore.chat.special_tokens import MEDIA
from mmcore.config import ModelSpec
from mmcore.model.any_model import AnyModel, load_model
from mmcore.runtime.devices import device_for
from mmcore.training.drawn import FeatureSource, media_of
from mmcore.training.signals import INDEX, ROWS, Replies, caption_key, compute_exchanges, compute_states
from mmcore.types import Sample, Shown
from pipelines.shards.config import GROUP_MODALITY
from pipelines.training.config import StatesConfig
from pipelines.training.data import earlier_stages, feature_sources, fitting, shard_sets, true_captions
from pipelines.training.room import Room, letters

MAX_WORKERS = 4
"""Each holds the language model."""
Asked = tuple[str, str, int, Asking]
"""(modality, caption, number of the way among the caption's, the way)."""
Exchanges = tuple[tuple[str, str], ...]
"""(question, answer)s in words."""


def distinct_captions(ctx: StepContext[object], modalities: list[str], config: StatesConfig, room: Room | None = None) -> list[Asked]:
    """Every distinct caption whose modality can be emitted, in each of the ways it is asked for that there is room for; all splits.

    A caption is asked for in as many ways as it has samples and instructions that ask for it, at most config.requests: one that comes up often is seen in many
    wordings, one that is seen once costs one pass. Requests alone come first, then those at the end of a conversation, each the shortest first (batches
    without much padding).
    """
    found: Counter[tuple[str, str]] = Counter()
    for group, shards in shard_sets(ctx.inputs, ctx.stores).items():
        modality = GROUP_MODALITY.get(group)
        if modality in modalities:
            metas = [meta for meta in shards.metas(shards.keys()) if not config.sources or meta["source"] in config.sources]
            found.update((modality, text) for meta in metas for text in meta["texts"])
    written = _written(ctx, config.caption_turn) if config.requests > 1 else {}
    asked = []
    for (modality, caption), count in found.items():
        own = written.get((modality, caption), [])
        ways = askings(modality, caption, own, min(count + len(own), config.requests), config.restate)
        short = ways if room is None else [way for way in ways if room.takes(modality, caption, way)]
        asked += [(modality, caption, number, way) for number, way in enumerate(short)]
    return sorted(asked, key=lambda item: (item[0], not item[3].alone, letters(item[3]), item[1], item[2]))


def _written(ctx: StepContext[object], caption_turn: bool) -> dict[tuple[str, str], list[Asking]]:
    """(modality, caption) -> how the training instructions ask for it, in their order: records whose last answer gives the medium, and no other does."""
    found: dict[tuple[str, str], list[Asking]] = {}
    shards = shard_sets(ctx.inputs, ctx.stores)
    if "instruct" not in shards:
        return found
    captions = true_captions(shards) if caption_turn else {}
    instructions = shards["instruct"]
    for sample in fitting(instructions, sorted(instructions.keys(split="train"))):
        way = _asking(sample, captions)
        if way is not None:
            (given,) = shown(sample.conversations[-1][1])
            found.setdefault((given.modality, sample.texts[0]), []).append(way)
    return found


def _asking(sample: Sample, captions: Mapping[str, str]) -> Asking | None:
    """How a record asks for the caption of its last answer, which is the medium alone or behind its caption; None for one that asks for none, or for
    several media."""
    given = [medium for _, answer in sample.conversations for medium in shown(answer)]
    if len(sample.texts) != 1 or len(given) != 1:
        return None
    first, rest = parted(sample.conversations[-1][1])
    pieces: list[str | Shown] = [*first, *rest]
    said = "".join(piece for piece in pieces if isinstance(piece, str))
    if pieces[-1] != given[0] or said not in ("", sample.texts[0]):
        return None
    turns = list(sample.conversations)
    if independent([question for question, _ in turns]):
        turns = [(rest_of(question), answer) for question, answer in turns]
    caption = captions.get(sample.media_sha256) if sample.modality != "text" else None
    key = sample.key if sample.modality != "text" else ""
    return Asking(text=turns[-1][0], before=tuple(turns[:-1]), modality=sample.modality, key=key, caption=caption, system=sample.system, said=said)


def exchanges(ctx: StepContext[object]) -> list[tuple[str, str]]:
    """(question, answer) of every training instruction that is one exchange in words, in their order: what no signal token may follow."""
    shards = shard_sets(ctx.inputs, ctx.stores)
    if "instruct" not in shards:
        return []
    samples = fitting(shards["instruct"], sorted(shards["instruct"].keys(split="train")))
    pairs = [sample.conversations[0] for sample in samples if sample.modality == "text" and len(sample.conversations) == 1 and not sample.system]
    return [(question, answer) for question, answer in pairs if isinstance(question, str) and isinstance(answer, str)]


def _part(model: AnyModel, captions: list[Asked], batch: int, features: Mapping[str, FeatureSource], replies: Replies | None) -> bytes:
    states, lse = [], []
    for start in range(0, len(captions), batch):
        (modality, *_), rows = captions[start], captions[start : start + batch]
        ways = [way for *_, way in rows]
        media = media_of(features, [(way.modality, way.key) for way in ways])
        states_BPD, lse_BP = compute_states(model, modality, [text for _, text, *_ in rows], ways, media, replies)
        states.append(states_BPD)
        lse.append(lse_BP)
    return save({"states": torch.cat(states), "lse": torch.cat(lse)})


def plan_parts(captions: list[Asked], size: int) -> list[list[Asked]]:
    """Consecutive captions of one modality, at most `size` per part."""
    parts = []
    for modality in MEDIA:
        own = [item for item in captions if item[0] == modality]
        parts += [own[start : start + size] for start in range(0, len(own), size)]
    return parts


@lru_cache(maxsize=1)
def _model(spec: ModelSpec, weights: Path, stages: tuple[Path, ...], device: str, talk: Exchanges, batch: int) -> tuple[AnyModel, Replies | None]:
    """The model so far and the states of the exchanges in words, if there are any; a worker makes several parts with them."""
    model = load_model(spec, weights, stages, device).to(device)
    return model, compute_exchanges(model, talk, batch) if talk else None


def _make(parcel: tuple[StepContext[StatesConfig], str, list[Asked], Exchanges]) -> None:
    """Write one part, or the token rows and what the index says of the model, into the work directory."""
    ctx, name, captions, talk = parcel
    config = ctx.config
    torch.set_num_threads(ctx.resources.threads)
    stages = tuple(ctx.inputs[stage].path for stage in earlier_stages(ctx.inputs))
    lm, device = ctx.inputs["weights_lm"].path / "lm", device_for(ctx.resources.gpus)
    model, replies = _model(config.model, lm, stages, device, talk, config.batch)
    if name == ROWS:
        counts = {modality: model.lm.table.count(modality) for modality in MEDIA}
        write_part(ctx.work / INDEX, json.dumps({"vocabulary": model.lm.table.base, "signals": counts}).encode())
        rows = {row: getattr(model.lm, row).detach().cpu().contiguous() for row in ("new_head_rows", "new_input_rows")}
        write_part(ctx.work / name, save(rows))
        return
    features = feature_sources(ctx.inputs, ctx.stores, dict(config.model.encoders))
    write_part(ctx.work / name, _part(model, captions, config.batch, features, replies))


def run_states(ctx: StepContext[StatesConfig]) -> dict[str, Any]:
    """Entry of the step."""
    config = ctx.config
    emitted = [modality for modality in MEDIA if getattr(config.model.tokens, modality)]
    room = Room(ctx)
    talk = tuple(pair for pair in exchanges(ctx) if room.takes_exchange(*pair)) if config.requests > 1 else ()
    parts = {f"part-{number:05d}.safetensors": part for number, part in enumerate(plan_parts(distinct_captions(ctx, emitted, config, room), config.part))}
    there = {name for name in (*parts, ROWS, INDEX) if part_is_there(ctx.work / name)}
    wanted = [(name, captions) for name, captions in [*parts.items(), (ROWS, [])] if name not in there or (name == ROWS and INDEX not in there)]
    workers = 1 if ctx.resources.gpus else min(ctx.resources.workers, MAX_WORKERS)
    resources = replace(ctx.resources, threads=max(1, ctx.resources.threads // workers))
    to_worker = replace(ctx, resources=resources, progress=no_progress)
    total = sum(map(len, parts.values()))
    done = total - sum(len(captions) for _, captions in wanted)
    parcels = [(to_worker, name, captions, talk) for name, captions in wanted]
    made = map_tasks(_make, parcels, workers, resources.threads, resources.use_ray, resources.gpus)
    for (_, captions), _ in zip(wanted, made, strict=True):
        done += len(captions)
        ctx.progress(done, total, "captions")
    _model.cache_clear()  # without Ray it was loaded in this process
    for name in (*parts, ROWS):
        write_atomic(ctx.output / name, (ctx.work / name).read_bytes())
    index = [{"file": name, "keys": [caption_key(*asked[:3]) for asked in captions]} for name, captions in parts.items()]
    write_atomic(ctx.output / INDEX, json.dumps({**read_json(ctx.work / INDEX), "parts": index}, sort_keys=True, indent=1))
    return {"captions": len({asked[:2] for part in parts.values() for asked in part}), "states": total, "parts": len(parts)}
