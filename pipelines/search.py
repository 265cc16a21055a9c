"""Search: a sentence -> the nearest media of the embedding store.

Owns what is compared: the query through the text encoder and the text tower, against every stored medium through its tower. Input: artifacts of one
recipe. Output: hits, nearest first. Refuses to know which artifacts a recipe has, and how hits are shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evals.gallery import Shown
from infra.step import AnyloomError, Artifact
from mmcore.config import EncoderSpec

BATCH = 256
"""Media per call of a tower."""


def nearest_media(query: str, top: int, text: EncoderSpec, artifacts: Mapping[str, Artifact], stores: Path) -> list[Shown]:
    """The `top` media nearest to the query, over all modalities; media with the same bytes and span count once, under their lowest key.

    artifacts: two_tower, weights_text, every embed_<modality> and shards_*, by step name. Equal scores stand in the order of their keys.
    """
    import numpy as np

    from evals.retrieval import tower_vectors
    from mmcore.data.embeddings import EmbeddingSet
    from mmcore.data.shards import ShardSet
    from mmcore.encoders import load_encoder
    from mmcore.two_tower import load_two_tower
    from pipelines.embed import span_address

    try:
        model = load_two_tower(artifacts["two_tower"].path)
        features_NE = load_encoder(text, artifacts["weights_text"].path).encode([query.encode()])[0]
    except ValueError as error:
        raise AnyloomError(f"search: {error}") from error
    query_W = model.vectors("text", features_NE[None].astype(np.float32), np.array([len(features_NE)]))[0]
    where: dict[str, tuple[ShardSet, tuple[str, float | None, float | None]]] = {}
    for name in sorted(name for name in artifacts if name.startswith("shards_")):
        shards = ShardSet(artifacts[name].path, stores)
        columns = (shards.index.column(column).to_pylist() for column in ("key", "media_sha256", "start_s", "end_s"))
        where |= {key: (shards, (sha256, start_s, end_s)) for key, sha256, start_s, end_s in zip(*columns, strict=True) if sha256}
    found: list[tuple[float, str, str]] = []
    for modality, _ in model.spec.encoders:
        source = EmbeddingSet(artifacts[f"embed_{modality}"].path, stores)
        first: dict[str, str] = {}
        for key in source.keys():
            first.setdefault(span_address(*where[key][1]), key)
        keys = list(first.values())
        if keys:
            scores = tower_vectors(model, modality, source, keys, BATCH) @ query_W
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
