"""Stored types: what they keep, what they cost, and how fast paths equal slow ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.entries import commit_entry
from infra.step import AnyloomError, Artifact
from mmcore.encoder_config import EncoderConfig, TimmImage
from mmcore.stores.embeddings import PART_SCHEMA, ROWS_SCHEMA, EmbeddingSet, space_fields
from mmcore.stores.features import DTYPES, STORED, computed_dtype, pack, relative_error, unpack
from pipelines.training.data import STAGE_RECORD, feature_sources, feature_weights

LIMITS = {"float16": 2**-11, "bfloat16": 2**-8, "float32": 0.0, "int8": 0.01}
"""Norm-relative error that each type may cost on normal values."""


def normal(rows: int = 40, width: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, (rows, width)).astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
def test_types_keep_what_they_promise(dtype):
    exact = normal()
    exact[7] = 0
    files = pack(exact.astype(computed_dtype(dtype)), dtype)
    error = relative_error(exact, files)
    assert error <= LIMITS[dtype] and (error > 0) == (dtype != "float32")
    assert files["features.npy"].dtype == STORED[dtype]
    back = unpack(files["features.npy"], files.get("scales.npy"))
    assert not back[7].any() and back.dtype == computed_dtype(dtype)


def test_int8_rounds_each_row_by_its_own_scale():
    values = np.array([[127.0, -63.4, 0.0], [0.001, 0.0005, -0.001]], np.float32)
    files = pack(values, "int8")
    assert files["features.npy"].tolist() == [[127, -63, 0], [127, 64, -127]] or files["features.npy"].tolist() == [[127, -63, 0], [127, 63, -127]]
    assert np.abs(unpack(files["features.npy"], files["scales.npy"]) - values).max() <= 0.5 * files["scales.npy"].max()


def test_bfloat16_rounds_to_nearest_even_like_torch():
    torch = pytest.importorskip("torch")
    values = np.concatenate([normal().ravel(), np.array([1.00390625, 1.01171875, -0.0, 1e-40, 3e38], np.float32)])[None]
    ours = unpack(pack(values, "bfloat16")["features.npy"])
    assert np.array_equal(ours, torch.from_numpy(values).bfloat16().float().numpy())


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match=r"2 features are not finite \(float16 ends at 65504"):
        pack(np.array([[1.0, 1e6, -1e6]], np.float32).astype(np.float16), "float16")
    with pytest.raises(ValueError, match="cannot be stored as 'float8': choose one of float16, bfloat16, float32, int8"):
        computed_dtype("float8")


def store(root: Path, spec: EncoderConfig, lengths: list[list[int]], in_columns: int | None = None) -> EmbeddingSet:
    """An artifact over parts whose items have these lengths; sample i's values are i. in_columns: the part whose file is laid out column after column."""
    rng, rows, entries, number = np.random.default_rng(1), [], [], 0
    for p, part in enumerate(lengths):
        staging, total = root / "staging", sum(part)
        staging.mkdir(parents=True)
        features = rng.normal(size=(total, spec.width)).astype(np.float32)
        for name, array in pack(features.astype(computed_dtype(spec.dtype)), spec.dtype).items():
            np.save(staging / name, np.asfortranarray(array) if p == in_columns else array)
        offsets = np.cumsum([0, *part[:-1]])
        names = [f"k{number + i:03d}" for i in range(len(part))]
        pq.write_table(pa.table({"media_sha256": names, "offset": offsets, "length": part}, schema=PART_SCHEMA), staging / "rows.parquet")
        digest = commit_entry(root / "stores" / "embeddings" / "s" / "parts" / f"p{p}", staging, {})
        entries.append({"path": f"embeddings/s/parts/p{p}", "digest": digest})
        rows += [{"key": k, "media_sha256": k, "part": f"p{p}", "offset": int(o), "length": n} for k, o, n in zip(names, offsets, part, strict=True)]
        number += len(part)
    (root / "artifact").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, ROWS_SCHEMA), root / "artifact" / "rows.parquet")
    generation = {"space": {"spec": space_fields(spec), "weights": "w"}, "modality": "image", "entries": entries}
    (root / "artifact" / "generation.json").write_text(json.dumps(generation))
    return EmbeddingSet(root / "artifact", root / "stores")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[[4] * 9, [4] * 5], [[4, 1, 7], [2, 9]], [[1] * 30, [1] * 2, [1]]])
def test_gather_equals_getting_one_by_one(tmp_path, dtype, lengths):
    spec = TimmImage(arch="a", width=16, grid=2, dtype=dtype)
    stored = store(tmp_path, spec, lengths)
    keys = [stored.keys()[i] for i in np.random.default_rng(2).integers(0, len(stored), 25)]
    features, lengths_B = stored.gather(keys)
    assert features.dtype == np.float32 and features.shape == (25, lengths_B.max(), 16)
    for row, length, key in zip(features, lengths_B, keys, strict=True):
        assert length == stored.length(key) and np.array_equal(row[:length], stored.get(key).astype(np.float32)) and not row[length:].any()
    same, _ = stored.gather(keys, stored.dtype)
    assert same.dtype == stored.dtype and np.array_equal(same.astype(np.float32), features)
    assert stored.gather([])[0].shape == (0, 0, 16)


def test_items_of_one_length_that_do_not_lie_in_line_are_read_all_the_same(tmp_path):
    store(tmp_path, TimmImage(arch="a", width=16, grid=1), [[1, 4, 4, 4], [4]])
    rows = tmp_path / "artifact" / "rows.parquet"
    pq.write_table(pq.read_table(rows).slice(1), rows)
    stored = EmbeddingSet(tmp_path / "artifact", tmp_path / "stores")
    features, lengths_B = stored.gather(["k003", "k004", "k001"])
    assert lengths_B.tolist() == [4, 4, 4]
    assert [np.array_equal(row, stored.get(key)) for row, key in zip(features, ("k003", "k004", "k001"), strict=True)] == [True] * 3


def test_parts_in_column_order_are_read_all_the_same(tmp_path):
    rows, columns = (store(tmp_path / str(part), TimmImage(arch="a", width=16, grid=1), [[4, 4], [4]], part) for part in (None, 1))
    files = [(tmp_path / folder / "stores" / "embeddings" / "s" / "parts" / "p1" / "features.npy").read_bytes() for folder in ("None", "1")]
    assert files[0] != files[1]
    before, again = rows.gather(rows.keys())[0], columns.gather(columns.keys())[0]
    assert np.array_equal(before, again)


def test_what_was_got_is_the_callers_own(tmp_path):
    stored = store(tmp_path, TimmImage(arch="a", width=16, grid=1), [[2, 2]])
    before = stored.get("k001").copy()
    stored.get("k001")[:] = 0
    assert np.array_equal(stored.get("k001"), before)


def test_another_encoders_features_are_refused_by_field(tmp_path):
    spec = TimmImage(arch="a", width=16, image_size=192, grid=1)
    store(tmp_path, spec, [[1]])
    again = TimmImage(arch="a", width=16, image_size=192, batch=3, part_rows=7, grid=1)
    assert EmbeddingSet(tmp_path / "artifact", tmp_path / "stores", again).spec.image_size == 192
    other = TimmImage(arch="b", width=16, image_size=224, grid=1)
    with pytest.raises(ValueError, match=r"another encoder: arch is 'a' there and 'b' here; image_size is 192 there and 224 here"):
        EmbeddingSet(tmp_path / "artifact", tmp_path / "stores", other)


def test_features_of_other_weights_than_an_earlier_stage_read_are_refused(tmp_path):
    spec = TimmImage(arch="a", width=16, grid=1)
    store(tmp_path, spec, [[1]])
    (tmp_path / "stage1").mkdir()
    paths = {"embed_image": tmp_path / "artifact", "stage1": tmp_path / "stage1"}
    inputs = {name: Artifact(name=name, path=path, fingerprint="", digest="", result={}) for name, path in paths.items()}
    assert feature_weights(inputs) == {"image": "w"}
    for record in ({}, {"features": {}}, {"features": {"image": "w", "audio": "v"}}):
        (tmp_path / "stage1" / STAGE_RECORD).write_text(json.dumps({"after": []} | record))
        assert feature_sources(inputs, tmp_path / "stores", {"image": spec})["image"].keys() == ["k000"]
    (tmp_path / "stage1" / STAGE_RECORD).write_text(json.dumps({"after": [], "features": {"image": "v"}}))
    with pytest.raises(AnyloomError, match="embed_image was made with other encoder weights than the features that stage1 read: run embed_image again"):
        feature_sources(inputs, tmp_path / "stores", {"image": spec})
