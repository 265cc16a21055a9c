"""Search: a sentence -> the nearest media of the embedding store.

Owns what is compared: in TowerSpace the query through the text encoder and the text tower against every stored medium through its tower; in
SharedSpace the query through the text side of the media's own model against their pooled vectors. Input: artifacts of one recipe. Output: hits,
nearest first.

Shape letters: M media, N feature tokens, E encoder width, W width of the space.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from evals.captions.retrieval import mean_vectors, tower_vectors
from evals.pages.gallery import Shown
from infra.step import AnyloomError, Artifact
from mmcore.encoder_config import EncoderConfig, pooled
from mmcore.encoders import load_encoder
from mmcore.stores.embeddings import EmbeddingSet
from mmcore.stores.shards import ShardSet
from mmcore.two_tower.model import load_two_tower
from pipelines.embed.space import span_address

BATCH = 256
"""Media per call of a tower."""


class SearchSpace(Protocol):
    """A space that sentences and stored media share."""

    name: str
    modalities: tuple[str, ...]

    def query(self, text: str) -> np.ndarray:
        """Unit vector [W] of a sentence."""
        ...

    def media(self, modality: str, source: EmbeddingSet, keys: Sequence[str]) -> np.ndarray:
        """Unit vectors [M, W] of stored media."""
        ...


def _encoded(spec: EncoderConfig, weights: Path, text: str) -> np.ndarray:
    """Features [N, E] float32 of a text, rounded as the store rounds them. Raises AnyloomError when the weights do not fit."""

    try:
        return load_encoder(spec, weights).encode([text.encode()])[0].astype(np.float32)
    except ValueError as error:
        raise AnyloomError(f"search: {error}") from error


class TowerSpace:
    """The space of a two_tower artifact."""

    name = "the two towers' space"

    def __init__(self, text: EncoderConfig, weights: Path, towers: Path):
        """text, weights: the captions' encoder; towers: the two_tower artifact. Raises AnyloomError when it cannot be loaded."""

        try:
            self._model = load_two_tower(towers)
        except ValueError as error:
            raise AnyloomError(f"search: {error}") from error
        self._text, self._weights = text, weights
        self.modalities = tuple(modality for modality, _ in self._model.spec.encoders)

    def query(self, text: str) -> np.ndarray:
        """See SearchSpace."""
        features_NE = _encoded(self._text, self._weights, text)
        vector_W: np.ndarray = self._model.vectors("text", features_NE[None], np.array([len(features_NE)]))[0]
        return vector_W

    def media(self, modality: str, source: EmbeddingSet, keys: Sequence[str]) -> np.ndarray:
        """See SearchSpace."""

        return tower_vectors(self._model, modality, source, keys, BATCH)


class SharedSpace:
    """The space of one model with a text side: ImageBind, CLIP, SigLIP, CLAP. Media count that the same model encoded into one pooled vector each."""

    def __init__(self, text: EncoderConfig, weights: Path, media: Mapping[str, EncoderConfig]):
        """text, weights: the sentences' encoder; media: modality -> encoder of the recipe. Raises AnyloomError when none of them shares the space."""
        self._text, self._weights, self.name = text, weights, f"the space of {text.arch}"
        self.modalities = tuple(modality for modality, spec in media.items() if _model(spec) == _model(text) and pooled(spec))
        if not self.modalities:
            raise AnyloomError(f"search: no media encoder of the recipe stores pooled vectors of {text.arch}, whose text side query is")

    def query(self, text: str) -> np.ndarray:
        """See SearchSpace."""
        vector_E = _encoded(self._text, self._weights, text).mean(0)
        return vector_E / max(float(np.linalg.norm(vector_E)), 1e-12)

    def media(self, modality: str, source: EmbeddingSet, keys: Sequence[str]) -> np.ndarray:
        """See SearchSpace."""

        if source.width != self._text.width:
            raise AnyloomError(f"search: {modality} vectors have width {source.width}, the query's {self._text.width}: they are of different models")
        return mean_vectors(source, keys, BATCH)


def _model(spec: EncoderConfig) -> tuple[str, str]:
    """(family, architecture) of an encoder: two encoders of one model have the same."""
    return spec.kind.rpartition("_")[0], spec.arch


def nearest_media(query: str, top: int, space: SearchSpace, artifacts: Mapping[str, Artifact], stores: Path) -> list[Shown]:
    """The `top` media nearest to the query by cosine, over all modalities; media with the same bytes and span count once, under their lowest key.

    artifacts: every embed_<modality> and shards_*, by step name. Equal scores stand in the order of their keys.
    """

    query_W = space.query(query)
    where: dict[str, tuple[ShardSet, tuple[str, float | None, float | None]]] = {}
    for name in sorted(name for name in artifacts if name.startswith("shards_")):
        shards = ShardSet(artifacts[name].path, stores)
        columns = (shards.index.column(column).to_pylist() for column in ("key", "media_sha256", "start_s", "end_s"))
        where |= {key: (shards, (sha256, start_s, end_s)) for key, sha256, start_s, end_s in zip(*columns, strict=True) if sha256}
    found: list[tuple[float, str, str]] = []
    for modality in space.modalities:
        source = EmbeddingSet(artifacts[f"embed_{modality}"].path, stores)
        first: dict[str, str] = {}
        for key in source.keys():
            first.setdefault(span_address(*where[key][1]), key)
        keys = list(first.values())
        if keys:
            scores = space.media(modality, source, keys) @ query_W
            found += [(-float(score), key, modality) for score, key in zip(scores, keys, strict=True)]
    hits = []
    for minus, key, modality in sorted(found)[:top]:
        shards, (_, start_s, end_s) = where[key]
        captions = shards.meta(key)["texts"]
        hits.append(
            Shown(
                key=key,
                modality=modality,
                caption=captions[0] if captions else "",
                score=-minus,
                data=shards.media(key),
                start_s=start_s or 0.0,
                end_s=end_s,
            )
        )
    return hits
