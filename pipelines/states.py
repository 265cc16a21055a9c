"""The states step: the LM states of every distinct caption, so that stage 2 trains without the language model.

Input: weights_lm, the stages so far, the caption shards, and the instruction shards (how captions are asked for). Output: parts of states, the token rows as
they stand, and states.json.
Captions are taken by length in parts of fixed batches, each part published on its own, so a killed run goes on to the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from infra.step import StepContext
from infra.storage import write_atomic
from mmcore.data.chat import REQUESTS
from mmcore.devices import device_for
from mmcore.model import AnyModel, load_model
from mmcore.signals import INDEX, ROWS, caption_key, compute_states, request
from mmcore.special_tokens import MEDIA
from pipelines.data_config import GROUP_MODALITY
from pipelines.train_config import StatesConfig
from pipelines.train_data import earlier_stages, shard_sets, to_sample

PLACEHOLDERS = {f"<{modality}>": modality for modality in MEDIA}
Asked = tuple[str, str, int, str]
"""(modality, caption, number of the request among the caption's, the request)."""


def distinct_captions(ctx: StepContext, modalities: list[str], requests: int, sources: tuple[str, ...] = ()) -> list[Asked]:
    """Every distinct caption whose modality can be emitted, in each of its requests, shortest first (batches without much padding); all splits.

    A caption is asked for in as many ways as it has samples and instructions that ask for it, at most `requests`: one that comes up often is seen in many
    wordings, one that is seen once costs one pass. The ways: the plainest wording, those of the instructions, then the other wordings. sources: datasets that
    are read; empty: all.
    """
    found: Counter[tuple[str, str]] = Counter()
    for group, shards in shard_sets(ctx.inputs, ctx.stores).items():
        modality = GROUP_MODALITY.get(group)
        if modality in modalities:
            metas = [meta for meta in shards.metas(shards.keys()) if not sources or meta["source"] in sources]
            found.update((modality, text) for meta in metas for text in meta["texts"])
    written = _written(ctx) if requests > 1 else {}
    asked = []
    for (modality, caption), count in found.items():
        wordings = [request(modality, caption, variant) for variant in range(len(REQUESTS[modality]))]
        own = written.get((modality, caption), [])
        ways = list(dict.fromkeys([wordings[0], *own, *wordings]))
        asked += [(modality, caption, number, way) for number, way in enumerate(ways[: min(count + len(own), requests)])]
    return sorted(asked, key=lambda item: (item[0], len(item[1]), item[1], item[2]))


def _written(ctx: StepContext) -> dict[tuple[str, str], list[str]]:
    """(modality, caption) -> how the training instructions ask for it, in their order: records of one question whose whole answer is the medium."""
    found: dict[tuple[str, str], list[str]] = {}
    instructions = shard_sets(ctx.inputs, ctx.stores).get("instruct")
    if instructions is None:
        return found
    for meta in instructions.metas(sorted(instructions.keys(split="train"))):
        sample = to_sample(meta, "")
        if len(sample.conversations) == 1 and len(sample.texts) == 1:
            asked, answer = sample.conversations[0]
            if answer.strip() in PLACEHOLDERS and not any(placeholder in asked for placeholder in PLACEHOLDERS):
                found.setdefault((PLACEHOLDERS[answer.strip()], sample.texts[0]), []).append(asked)
    return found


def _part(model: AnyModel, captions: list[Asked], batch: int) -> bytes:
    states, lse = [], []
    for start in range(0, len(captions), batch):
        (modality, *_), rows = captions[start], captions[start : start + batch]
        states_BPD, lse_BP = compute_states(model, modality, [text for _, text, *_ in rows], [asking for *_, asking in rows])
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


def run_states(ctx: StepContext) -> dict[str, Any]:
    """Entry of the step."""
    config: StatesConfig = ctx.config
    torch.set_num_threads(ctx.resources.threads)
    stages = tuple(ctx.inputs[name].path for name in earlier_stages(ctx.inputs))
    model = load_model(config.model, ctx.inputs["weights_lm"].path / "lm", stages).to(device_for(ctx.resources.gpus))
    emitted = [modality for modality in MEDIA if model.lm.table.count(modality)]
    parts = plan_parts(distinct_captions(ctx, emitted, config.requests, config.sources), config.part)
    total, done, index = sum(map(len, parts)), 0, []
    for number, captions in enumerate(parts):
        name = f"part-{number:05d}.safetensors"
        if not (ctx.work / name).exists():
            write_atomic(ctx.work / name, _part(model, captions, config.batch))
        write_atomic(ctx.output / name, (ctx.work / name).read_bytes())
        index.append({"file": name, "keys": [caption_key(*asked[:3]) for asked in captions]})
        done += len(captions)
        ctx.progress(done, total, "captions")
    _write_index(ctx.output, model, index)
    return {"captions": len({asked[:2] for part in parts for asked in part}), "states": total, "parts": len(parts)}


def _write_index(output: Path, model: AnyModel, parts: list[dict[str, Any]]) -> None:
    counts = {modality: model.lm.table.count(modality) for modality in MEDIA}
    write_atomic(output / ROWS, save({name: getattr(model.lm, name).detach().contiguous() for name in ("new_head_rows", "new_input_rows")}))
    write_atomic(output / INDEX, json.dumps({"vocabulary": model.lm.table.base, "signals": counts, "parts": parts}, sort_keys=True, indent=1))
