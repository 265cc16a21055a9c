"""From artifacts to training data: which samples a stage's mixture means, and where their features are.

Owns the reading of shard generations, embeddings, targets and earlier stages for the training steps. A dataset that is not a training
split is refused. Flagged duplicates are left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from infra.step import AnyloomError, Artifact
from infra.storage import read_json
from mmcore.chat.places import Misfit
from mmcore.chat.records import talk_of
from mmcore.chat.special_tokens import MEDIA
from mmcore.config import RowsStage, StatesStage
from mmcore.decoders import load_decoder
from mmcore.encoder_config import EncoderConfig
from mmcore.stores.embeddings import EmbeddingSet
from mmcore.stores.latents import LatentSet
from mmcore.stores.left_out import LEFT_OUT, LeftOut
from mmcore.stores.shards import ShardSet
from mmcore.training.fitting import SEVERAL_MEDIA
from mmcore.training.generation_loss import GenerationLoss
from mmcore.types import Sample
from pipelines.embed.config import LATENTS, TARGETS
from pipelines.shards.config import GROUP_MODALITY

STAGE_RECORD = "stage.json"


def earlier_stages(inputs: Mapping[str, Artifact]) -> list[str]:
    """Names of the inputs that are stages, in the order they were trained in."""
    names = [name for name in inputs if name.startswith("stage")]
    after = {name: list(read_json(inputs[name].path / STAGE_RECORD)["after"]) for name in names}
    return sorted(names, key=lambda name: (len(after[name]), name))


def shard_sets(inputs: Mapping[str, Artifact], stores: Path) -> dict[str, ShardSet]:
    """group -> its shards, for every `shards_<group>` input."""
    return {name.removeprefix("shards_"): ShardSet(artifact.path, stores) for name, artifact in sorted(inputs.items()) if name.startswith("shards_")}


def to_sample(meta: Mapping[str, Any], media_sha256: str) -> Sample:
    """A sample from its key.json. Raises Misfit for one that a row cannot hold."""
    inputs = [medium["modality"] for medium in meta["media"] if medium["role"] == "input"]
    if len(inputs) > 1:
        raise Misfit(SEVERAL_MEDIA, f"{len(inputs)} input media, a training row takes one: split the record")
    turns = meta["conversations"]
    turns = json.loads(turns) if isinstance(turns, str) else turns
    outputs = Counter(medium["modality"] for medium in meta["media"] if medium["role"] == "output")
    talk = talk_of([(turn["from"], turn["value"]) for turn in turns], Counter(inputs), outputs)
    return Sample(
        key=meta["key"],
        source=meta["source"],
        modality=meta["modality"],
        texts=tuple(meta["texts"]),
        conversations=talk.exchanges,
        system=talk.system,
        media_sha256=media_sha256,
    )


def fitting(shards: ShardSet, keys: Sequence[str]) -> Iterator[Sample]:
    """The samples of these keys, in their order, but for those that a row cannot hold."""
    for meta in shards.metas(keys):
        try:
            yield to_sample(meta, shards.media_sha(meta["key"]))
        except Misfit:  # the stage that draws its dataset says so
            continue


def dataset_samples(shards: Mapping[str, ShardSet], names: Iterable[str], lost: list[LeftOut] | None = None) -> tuple[dict[str, list[Sample]], dict[str, str]]:
    """(dataset -> its samples, dataset -> its group) of training datasets, in stored order; duplicates are left out, and samples that a row cannot hold, which
    are added to `lost`.

    Raises AnyloomError for a dataset that is nowhere, or whose split is not train.
    """
    samples: dict[str, list[Sample]] = {}
    groups: dict[str, str] = {}
    lost = [] if lost is None else lost
    for name in names:
        for group, shard_set in shards.items():
            keys = shard_set.keys(source=name)
            if not keys:
                continue
            metas = shard_set.metas(keys)
            found = []
            for meta in metas:
                try:
                    found.append(to_sample(meta, shard_set.media_sha(meta["key"])))
                except Misfit as misfit:
                    lost.append(LeftOut(key=meta["key"], source=name, status=LEFT_OUT, reason=misfit.reason, detail=misfit.detail))
            splits = sorted({str(meta["split"]) for meta in metas})
            if splits != ["train"]:
                raise AnyloomError(f"the mixture names {name}, whose split is {', '.join(splits)}: only train splits may be trained on")
            samples[name], groups[name] = found, group
        if name not in samples:
            where = ", ".join(f"shards_{group}" for group in sorted(shards)) or "none"
            raise AnyloomError(
                f"the mixture names {name}, of which this step's shards ({where}) hold nothing; if all its rows were left out, the ledger.parquet of those "
                "shards says why"
            )
    return samples, groups


def true_captions(shards: Mapping[str, ShardSet]) -> dict[str, str]:
    """media sha256 -> its first caption, over the training splits of the caption groups; the lowest key wins."""
    found: dict[str, str] = {}
    for group in GROUP_MODALITY:
        if group in shards:
            shard_set = shards[group]
            keys = shard_set.keys(split="train")
            for meta in shard_set.metas(keys):
                sha = shard_set.media_sha(meta["key"])
                if sha and meta["texts"]:
                    found.setdefault(sha, meta["texts"][0])
    return found


def feature_weights(inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """modality -> digest of the encoder weights behind its features, for every `embed_<modality>` input."""
    return {m: str(read_json(inputs[f"embed_{m}"].path / "generation.json")["space"]["weights"]) for m in MEDIA if f"embed_{m}" in inputs}


def feature_sources(inputs: Mapping[str, Artifact], stores: Path, encoders: Mapping[str, EncoderConfig]) -> dict[str, Any]:
    """modality -> EmbeddingSet, for every `embed_<modality>` input.

    Raises ValueError when another encoder than the model's made one of them, AnyloomError when the same encoder did with other weights than an earlier
    stage read.
    """

    found = {m: EmbeddingSet(inputs[f"embed_{m}"].path, stores, encoders.get(m)) for m in MEDIA if f"embed_{m}" in inputs}
    for name in earlier_stages(inputs):
        read = read_json(inputs[name].path / STAGE_RECORD).get("features", {})
        for modality, rows in found.items():
            weights = rows.space["weights"]
            if read.get(modality, weights) != weights:
                remedy = f"run embed_{modality} again with the weights of {name}, or {name} with these features"
                raise AnyloomError(f"embed_{modality} was made with other encoder weights than the features that {name} read: {remedy}")
    return found


def target_sources(inputs: Mapping[str, Artifact], stores: Path) -> dict[str, Any]:
    """modality -> caption targets, for every input that holds some."""

    return {modality: EmbeddingSet(inputs[name].path, stores) for modality, name in TARGETS.items() if name in inputs}


def generation_losses(inputs: Mapping[str, Artifact], stores: Path, config: RowsStage | StatesStage, device: str = "cpu") -> dict[str, Any]:
    """modality -> GenerationLoss, for every `decoder_<modality>` input with its latents.

    Raises AnyloomError when the latents were made by another autoencoder than the decoder's, ValueError when they do not fit the decoder.
    """

    found = {}
    for modality, name in LATENTS.items():
        if f"decoder_{modality}" not in inputs or name not in inputs:
            continue
        artifact, rows = inputs[f"decoder_{modality}"], EmbeddingSet(inputs[name].path, stores)
        if rows.space["weights"] != artifact.digest:
            raise AnyloomError(f"{name} was made by another autoencoder than that of {artifact.name}: run {name} again from this decoder")
        decoder = load_decoder(artifact.path / "pipeline", device)
        found[modality] = GenerationLoss(decoder, LatentSet(rows, decoder.contract, rows.spec), config)
    return found
