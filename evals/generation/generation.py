"""The eval_generation step: images, videos and audio clips that an exported model makes when it is asked to, kept with their prompts, and what they are worth.

Input: `export` with its decoders, the shards; where the recipe has them `picture_judge`, `speech_judge` and `weights_query`. Output: media/ (everything that
was made), index.tsv, samples.parquet (every request), metrics.parquet, details.parquet (extractor, weights, reference set and number behind a score). A killed
run continues after the last batch.

Suites: `held_out` (captions of held-out media) and `concepts` (24 of mmcore.concepts.shapes), in wordings that no training list has. How: `asked` (greedy; a
block counts when the model writes all of it by itself) and, where the config names it, `forced` (the block stands behind the request). A medium that no file
can hold, or no reader takes, is as none: a judge counts it as wrong, distances are of the others, and the result says how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evals.generation.config import ASKED, FORCED, GenerationEvalConfig
from evals.generation.made import drawn, unreadable
from evals.generation.prompts import Request, requests_of
from evals.generation.scores import Scored, scored
from evals.journal import Journal
from evals.records import attempt
from evals.tables import DETAILS, GENERATED, METRICS, set_digest, shown_values, write_table
from infra.fingerprint import fingerprint, to_plain
from infra.step import AnyloomError, StepContext
from infra.storage import sha256_file, write_atomic
from mmcore.inference.drawer import Drawer
from mmcore.inference.forced import forced_blocks
from mmcore.inference.generator import Generator
from mmcore.media.decode import probe
from mmcore.media.encode import write_media
from mmcore.runtime.devices import device_for
from mmcore.types import Medium, NotFinite, Question

if TYPE_CHECKING:
    from mmcore.inference.drawer import Drawer
    from mmcore.inference.generator import Generator
    from mmcore.types import SignalBlock

NOT_FINITE = "the medium has values that are not finite"
REVISION = 1
"""Of what the scores mean; goes into the history's fingerprint."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One medium to make."""

    request: Request
    how: str
    number: int
    """Of the request: names its file, and with the config's seed its noise."""

    @property
    def file(self) -> str:
        """Where the medium goes, without suffix."""
        return f"media/{self.how}-{self.request.suite}-{self.request.modality}-{self.number:04d}"


def run(ctx: StepContext[GenerationEvalConfig]) -> Mapping[str, Any]:
    """Step entry: see the module docstring. Returns the scores with their intervals, and what was not scored and why."""
    config = ctx.config
    unknown = sorted(set(config.how) - {ASKED, FORCED})
    if unknown:
        raise AnyloomError(f"{ctx.name}: how={unknown[0]} is unknown: use {ASKED}, {FORCED}")
    requests = requests_of(ctx)
    jobs = [Job(request=request, how=how, number=number) for how in config.how for number, request in enumerate(requests)]
    samples = [_sample(job, row, config) for job, row in zip(jobs, _made(ctx, jobs), strict=True)]
    for sample in samples:
        if sample["file"]:
            _publish(ctx, sample)
    found: Scored = scored(ctx, [job.request for job in jobs], samples)
    write_table(ctx.output / "samples.parquet", found.samples, GENERATED)
    write_table(ctx.output / "metrics.parquet", found.metrics, METRICS)
    write_table(ctx.output / "details.parquet", found.details, DETAILS)
    write_atomic(ctx.output / "index.tsv", index_tsv(found.samples))
    behind = set_digest(f"{row['extractor_sha256']} {row['reference_sha256']}" for row in found.details)
    identity = {"revision": REVISION, "library": library(), "config": to_plain(config), "prompts": [request.text for request in requests], "behind": behind}
    return {
        "requests": len(requests),
        "media": sum(bool(sample["file"]) for sample in samples),
        "harness": library(),
        "history_fingerprint": fingerprint(identity),
        "unreadable": unreadable((_made_as(sample) for sample in samples if _has_block(sample)), (_made_as(sample) for sample in samples if sample["file"])),
        "not_scored": found.not_scored,
        **shown_values(found.metrics),
    }


def _publish(ctx: StepContext[GenerationEvalConfig], sample: dict[str, Any]) -> None:
    """Put a made medium into the artifact. One that no reader takes is left out of it, and is no medium for any score."""
    data = (ctx.work / sample["file"]).read_bytes()
    refusal = attempt(partial(probe, data, sample["modality"]))[1]
    if refusal is None:
        write_atomic(ctx.output / sample["file"], data)
    else:
        sample |= {"file": "", "media_sha256": "", "broken": "; ".join(filter(None, (sample["broken"], f"the file cannot be read: {refusal}")))}


def _has_block(sample: Mapping[str, Any]) -> bool:
    """True where a medium was made, or should have been."""
    return bool(sample["emitted"]) or sample["how"] == FORCED


def _made_as(sample: Mapping[str, Any]) -> str:
    return f"{sample['suite']}, {sample['how']}, {sample['modality']}"


def library() -> str:
    """Name and version of what computes the distances."""
    return f"torchmetrics {version('torchmetrics')}"


def index_tsv(samples: Sequence[Mapping[str, Any]]) -> str:
    """A table for people: file, how, suite, what was asked and what was said in words."""
    columns = ("file", "how", "suite", "modality", "prompt", "caption", "text", "broken")
    rows = ["\t".join(" ".join(str(sample[name]).split()) for name in columns) for sample in samples]
    return "\n".join(["\t".join(columns), *rows]) + "\n"


# ---- making ---------------------------------------------------------------------------------------------------------


def _made(ctx: StepContext[GenerationEvalConfig], jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """text, broken, emitted, file, media_sha256 of every job, in order; the files are in ctx.work."""
    import torch

    torch.set_num_threads(max(1, ctx.resources.threads))
    config = ctx.config
    journal, tools = Journal(ctx.work / "made.jsonl"), None
    for batch in journal.missing(jobs, config.chunk):
        if tools is None:
            path, device = ctx.inputs["export"].path, device_for(ctx.resources.gpus)
            tools = Generator.load(path, device=device), Drawer(path, device)
        rows = _replies(tools[0], batch, config)
        for place, medium in _drawn(tools[1], batch, [row.pop("block") for row in rows], config.seed):
            file = _written(medium, ctx.work / batch[place].file)
            if file is None:
                rows[place]["broken"] = "; ".join(filter(None, (rows[place]["broken"], NOT_FINITE)))
            else:
                rows[place] |= {"file": file.relative_to(ctx.work).as_posix(), "media_sha256": sha256_file(file)}
        journal.add(rows)
        ctx.progress(len(journal.rows), len(jobs), "requests answered and drawn")
    return journal.rows


def _replies(generator: Generator, batch: Sequence[Job], config: GenerationEvalConfig) -> list[dict[str, Any]]:
    """What the model says to each request, with the first whole block of the modality under `block` (None without)."""

    rows: list[dict[str, Any]] = [{"text": "", "broken": "", "emitted": 0.0, "file": "", "media_sha256": "", "block": None} for _ in batch]
    asked = [place for place, job in enumerate(batch) if job.how == ASKED]
    items = [Question(text=batch[place].request.text) for place in asked]
    answers = generator.answer(items, max_new_tokens=config.max_new_tokens, complete_blocks=False) if items else []
    for place, answer in zip(asked, answers, strict=True):
        block = next((block for block in answer.blocks if block.modality == batch[place].request.modality), None)
        rows[place] |= {"text": answer.text, "broken": "; ".join(answer.broken), "emitted": float(block is not None), "block": block}
    for modality, places in _by_modality(batch, [place for place, job in enumerate(batch) if job.how == FORCED]):
        blocks = forced_blocks(generator.model, modality, [batch[place].request.text for place in places])
        for place, block in zip(places, blocks, strict=True):
            rows[place]["block"] = block
    return rows


def _drawn(drawer: Drawer, batch: Sequence[Job], blocks: Sequence[SignalBlock | None], seed: int) -> Iterator[tuple[int, Medium | None]]:
    """(place in the batch, Medium) of every block; None for one whose values are not finite."""

    def media_of(places: list[int]) -> list[Medium]:
        return drawer.draw([block for place in places if (block := blocks[place])], [seed + batch[place].number for place in places])

    for _, places in _by_modality(batch, [place for place, block in enumerate(blocks) if block is not None]):
        yield from zip(places, drawn(media_of, places), strict=True)


def _written(medium: Medium | None, path: Path) -> Path | None:
    """Where the file of a medium is; None for one that no file can hold."""
    try:
        return None if medium is None else write_media(medium, path)
    except NotFinite:
        return None


def _by_modality(batch: Sequence[Job], places: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    for modality in sorted({batch[place].request.modality for place in places}):
        yield modality, [place for place in places if batch[place].request.modality == modality]


def _sample(job: Job, row: Mapping[str, Any], config: GenerationEvalConfig) -> dict[str, Any]:
    """A row of GENERATED before it is scored."""
    request = job.request
    return {
        "suite": request.suite,
        "how": job.how,
        "modality": request.modality,
        "prompt": request.text,
        "caption": request.caption,
        "cluster": request.caption,
        "seed": config.seed + job.number,
        "shown": request.shown,
        "seen": "",
        **dict.fromkeys(("right", "right_of_other", "clipscore", "clipscore_of_other")),
        **row,
    }
