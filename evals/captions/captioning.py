"""The eval_captioning step: what an exported model says of held-out media, scored against their captions and for objects that are not there.

Input: `export`, the shards. Output: samples.parquet (every caption), metrics.parquet, details.parquet (formula, tokenizer, library and references of every
number). A killed run continues after the last captioned batch.

Captions are the model's own, greedy, asked for as stage 1 taught. Scores: CIDEr, ROUGE-L, BLEU-1..4, and SPICE with SPIDEr (the mean of SPICE and CIDEr, Liu et
al. 2017, arXiv 1612.00370) where the config asks for them. Floor `shuffled`: the same captions against another medium's references. CHAIR: see chair;
easyvqa_chair on images whose questions tell what they show, stamps_chair on captioned images. Intervals draw whole media.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from evals.captions.caption_scores import BLEUS, Tokenized, bleu, cider, library, rouge_l, spice, spice_refusal, tokenized
from evals.captions.chair import chair_metrics
from evals.captions.objects import EASYVQA_WORDS, named, vocabulary_of
from evals.config import CaptioningEvalConfig
from evals.heldout import SHARDS, distinct_media
from evals.journal import Journal
from evals.left_out import check_left_out
from evals.records import attempt
from evals.statistics.intervals import derangement, mean_interval, paired_interval
from evals.statistics.jackknife import MIN_GROUPS, jackknife_interval
from evals.tables import CAPTIONED, CLUSTERED, DETAILS, JACKKNIFE, METRICS, detail, metric_row, set_digest, shown_values, write_table
from infra.fingerprint import fingerprint, to_plain
from infra.step import AnyloomError, StepContext, about
from mmcore.concepts.shapes import CONCEPTS, asked_concepts
from mmcore.inference.generator import Generator
from mmcore.runtime.devices import device_for
from mmcore.stores.left_out import LeftOut, summarize
from mmcore.stores.shards import ShardSet

REVISION = 1
"""Of what the scores mean; goes into the history's fingerprint."""
GENERATED, SHUFFLED = "generated", "generated, shuffled"


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One medium to caption."""

    modality: str
    source: str
    key: str
    sha256: str
    references: tuple[str, ...]


def run(ctx: StepContext[CaptioningEvalConfig]) -> Mapping[str, Any]:
    """Step entry: see the module docstring. Returns the scores with their intervals, and what was not scored and why."""
    config = ctx.config
    asked = items_of(ctx)
    captions = _captions(ctx, asked)
    items = [item for item, row in zip(asked, captions, strict=True) if "generated" in row]
    lost = [LeftOut(key=item.key, **row["left_out"]) for item, row in zip(asked, captions, strict=True) if "left_out" in row]
    check_left_out(lost, len(asked), config.max_lost, "media are not captioned")
    samples, not_scored = _samples(ctx, items, [row["generated"] for row in captions if "generated" in row])
    metrics, details = caption_metrics(config, samples, not_scored)
    found = _chair(config, samples)
    metrics, details = metrics + found, details + _chair_details(found, samples)
    write_table(ctx.output / "samples.parquet", samples, CAPTIONED)
    write_table(ctx.output / "metrics.parquet", metrics, METRICS)
    write_table(ctx.output / "details.parquet", details, DETAILS)
    counts = {source: sum(item.source == source for item in items) for source in dict.fromkeys(item.source for item in items)}
    identity = {
        "revision": REVISION,
        "library": library(),
        "tokenizer": config.tokenizer,
        "config": {name: value for name, value in to_plain(config).items() if name != "max_lost"},
        "media": _digest(samples),
    }
    return {
        "captions": counts,
        "tokenizer": config.tokenizer,
        "harness": library(),
        "history_fingerprint": fingerprint(identity),
        "not_scored": not_scored,
        "left_out": summarize(lost, len(asked), "media are not captioned"),
        **shown_values(metrics),
    }


# ---- media ----------------------------------------------------------------------------------------------------------


def items_of(ctx: StepContext[CaptioningEvalConfig]) -> list[Item]:
    """The media of every dataset, each once, a seeded draw of at most config.limit; by key."""

    config = ctx.config
    items: list[Item] = []
    for modality, dataset in config.datasets:
        media = distinct_media(ShardSet(ctx.inputs[SHARDS[modality]].path, ctx.stores), (dataset,))
        rows = [
            Item(modality=modality, source=dataset, key=key, sha256=sha256, references=tuple(texts))
            for key, sha256, texts in zip(media.keys, media.sha256, media.captions, strict=True)
            if texts
        ]
        items += _drawn(rows, config)
    if config.asked_source:
        shards = ShardSet(ctx.inputs["shards_instruct"].path, ctx.stores)
        rows = [
            Item(modality="image", source=config.asked_source, key=key, sha256=shards.media_sha(key), references=(CONCEPTS[number].caption,))
            for key, number in asked_concepts(shards, config.asked_source)
        ]
        items += _drawn(rows, config)
    return items


def _drawn(rows: list[Item], config: CaptioningEvalConfig) -> list[Item]:
    if not config.limit or config.limit >= len(rows):
        return rows
    picks = np.random.default_rng(config.seed).permutation(len(rows))[: config.limit]
    return [rows[i] for i in sorted(picks.tolist())]


def _captions(ctx: StepContext[CaptioningEvalConfig], items: Sequence[Item]) -> list[dict[str, Any]]:
    """`generated`, what the model says of each, in their order; or `left_out`, why its encoder cannot take it."""
    import torch

    torch.set_num_threads(max(1, ctx.resources.threads))
    config = ctx.config
    journal, generator = Journal(ctx.work / "captions.jsonl"), None
    shards: dict[str, ShardSet] = {}
    for batch in journal.missing(items, config.chunk):
        generator = generator or Generator.load(ctx.inputs["export"].path, device=device_for(ctx.resources.gpus))
        features, rows = [], list[dict[str, Any]]()
        for item in batch:
            name = "shards_instruct" if item.source == config.asked_source else SHARDS[item.modality]
            shards[name] = shards.get(name) or ShardSet(ctx.inputs[name].path, ctx.stores)
            with about(item.key):
                data = shards[name].media(item.key)
                found, refusal = attempt(partial(generator.encode, item.modality, data))
            if refusal is None:
                features.append((item.modality, found))
            rows.append({"left_out": {"reason": refusal.reason, "detail": refusal.detail}} if refusal else {})
        texts = iter(generator.captions(features))
        journal.add([row or {"generated": next(texts)} for row in rows])
        ctx.progress(len(journal.rows), len(items), "media captioned")
    return journal.rows


# ---- scores of captions ---------------------------------------------------------------------------------------------


def _samples(ctx: StepContext[CaptioningEvalConfig], items: Sequence[Item], said: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(rows of CAPTIONED, dataset or score -> why it is not scored)."""
    config = ctx.config
    not_scored = {} if config.spice else {"spice, spider": f"spice=false; {spice_refusal() or 'it could run here'}"}
    vocabularies = _vocabularies(ctx)
    samples: list[dict[str, Any]] = []
    for source in dict.fromkeys(item.source for item in items):
        rows = [i for i, item in enumerate(items) if item.source == source]
        try:
            order = derangement([(items[i].sha256, items[i].references[0]) for i in rows], config.seed)
        except ValueError as error:
            not_scored[source] = str(error)
            continue
        scores = _scores([said[i] for i in rows], [items[i].references for i in rows], order, config)
        vocabulary = vocabularies.get(source, ())
        for place, (i, other) in enumerate(zip(rows, order, strict=True)):
            item, words = items[i], named(said[i], vocabulary)
            present = named(" ".join(item.references), vocabulary)
            samples.append(
                {
                    "modality": item.modality,
                    "source": source,
                    "key": item.key,
                    "media_sha256": item.sha256,
                    "references": list(item.references),
                    "other_key": items[rows[other]].key,
                    "generated": said[i],
                    "named": words,
                    "hallucinated": [word for word in words if word not in present],
                    "present": present,
                    **{name: None if values is None else float(values[place]) for name, values in scores.items()},
                }
            )
    return samples, not_scored


def _scores(said: Sequence[str], references: Sequence[Sequence[str]], order: Sequence[int], config: CaptioningEvalConfig) -> dict[str, np.ndarray | None]:
    """Scores of the captions against their own and against other references."""
    own = tokenized(said, references, config.tokenizer)
    other = Tokenized(generated=own.generated, references=[own.references[place] for place in order])
    found: dict[str, np.ndarray | None] = {"cider": cider(own), "cider_of_other": cider(other), "rouge_l": rouge_l(own), "rouge_l_of_other": rouge_l(other)}
    return found | {"spice": spice(own) if config.spice else None}


def caption_metrics(
    config: CaptioningEvalConfig, samples: Sequence[Mapping[str, Any]], not_scored: dict[str, str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(rows of METRICS, their rows of DETAILS): a dataset's scores, floors and paired differences, subgroup: the dataset."""
    options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed}
    metrics, details = [], []
    for source in dict.fromkeys(sample["source"] for sample in samples):
        mine = [sample for sample in samples if sample["source"] == source]
        clusters = [sample["media_sha256"] for sample in mine]
        known = {"reference": source, "reference_sha256": _digest(mine), "n_reference": sum(len(sample["references"]) for sample in mine)}
        for metric in ("cider", "rouge_l"):
            own, other = ([sample[name] for sample in mine] for name in (metric, f"{metric}_of_other"))
            intervals = {
                (GENERATED, "score"): mean_interval(own, clusters, **options),
                (SHUFFLED, "floor"): mean_interval(other, clusters, **options),
                (f"{GENERATED} - shuffled", "difference"): paired_interval(own, other, clusters, **options),
            }
            rows = [metric_row(i, condition=name, metric=metric, subgroup=source, kind=kind) for (name, kind), i in intervals.items()]
            metrics += rows
            details += [detail(row, f"{metric}, {library()}, tokenizer {config.tokenizer}", CLUSTERED, **known) for row in rows]
        if config.spice:
            for metric, values in (("spice", [s["spice"] for s in mine]), ("spider", [(s["spice"] + s["cider"]) / 2 for s in mine])):
                row = metric_row(mean_interval(values, clusters, **options), condition=GENERATED, metric=metric, subgroup=source, kind="score")
                metrics.append(row)
                details.append(detail(row, f"{metric}, {library()}, tokenizer {config.tokenizer}", CLUSTERED, **known))
        rows = _bleu_rows(config, source, mine, not_scored)
        metrics += rows
        details += [detail(row, f"corpus {row['metric']}, {library()}, tokenizer {config.tokenizer}", JACKKNIFE, **known) for row in rows]
    return metrics, details


def _bleu_rows(config: CaptioningEvalConfig, source: str, mine: Sequence[Mapping[str, Any]], not_scored: dict[str, str]) -> list[dict[str, Any]]:
    """Corpus BLEU against own and other references; [] for too few media."""
    clusters = [sample["media_sha256"] for sample in mine]
    if len(set(clusters)) < MIN_GROUPS:
        not_scored[f"{source} bleu"] = f"{len(set(clusters))} media: at least {MIN_GROUPS} are needed"
        return []
    by_key = {sample["key"]: sample["references"] for sample in mine}
    rows = []
    for condition, kind, texts in (
        (GENERATED, "score", [sample["references"] for sample in mine]),
        (SHUFFLED, "floor", [by_key[sample["other_key"]] for sample in mine]),
    ):
        captions = tokenized([sample["generated"] for sample in mine], texts, config.tokenizer)
        for place, metric in enumerate(BLEUS):

            def score(keep: list[np.ndarray], captions: Tokenized = captions, place: int = place) -> float:
                return bleu(captions.where(keep[0]))[place]

            interval = jackknife_interval(score, [clusters], config.jackknife_groups, config.seed)
            rows.append(metric_row(interval, condition=condition, metric=metric, subgroup=source, kind=kind))
    return rows


def _digest(samples: Sequence[Mapping[str, Any]]) -> str:
    return set_digest("\t".join((sample["media_sha256"], *sample["references"])) for sample in samples)


# ---- objects --------------------------------------------------------------------------------------------------------


def _vocabularies(ctx: StepContext[CaptioningEvalConfig]) -> dict[str, tuple[str, ...]]:
    """Dataset of images -> its object words. Raises AnyloomError for captions without any."""

    config = ctx.config
    datasets = [dataset for modality, dataset in config.datasets if modality == "image"]
    found: dict[str, tuple[str, ...]] = {config.asked_source: EASYVQA_WORDS} if config.asked_source else {}
    if datasets:
        shards = ShardSet(ctx.inputs[SHARDS["image"]].path, ctx.stores)
        texts = [text for name in config.vocabulary for meta in shards.metas(sorted(shards.keys(source=name))) for text in meta["texts"]]
        words = vocabulary_of(texts)
        if not words:
            raise AnyloomError(f"{ctx.name}: the captions of {', '.join(config.vocabulary)} have no words: name other datasets in vocabulary")
        found |= dict.fromkeys(datasets, words)
    return found


def _chair(config: CaptioningEvalConfig, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """CHAIR of every dataset of images."""
    rows = []
    for source in dict.fromkeys(sample["source"] for sample in samples if sample["modality"] == "image"):
        mine = [sample for sample in samples if sample["source"] == source]
        present = {sample["key"]: sample["present"] for sample in mine}
        rows += chair_metrics(
            chair_task(source),
            [sample["named"] for sample in mine],
            [sample["present"] for sample in mine],
            [present[sample["other_key"]] for sample in mine],
            [sample["media_sha256"] for sample in mine],
        )
    return rows


def chair_task(source: str) -> str:
    """What CHAIR on a dataset is called: easyvqa_test -> easyvqa_chair."""
    return f"{source.split('_')[0]}_chair"


def _chair_details(metrics: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for metric in metrics:
        mine = [sample for sample in samples if sample["modality"] == "image" and chair_task(sample["source"]) == metric["subgroup"]]
        known = {"reference": mine[0]["source"], "reference_sha256": _digest(mine), "n_reference": len(mine)}
        rows.append(detail(metric, "CHAIR's formula on object words of evals.captions.objects; not the COCO benchmark", CLUSTERED, **known))
    return rows
