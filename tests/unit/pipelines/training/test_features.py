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
from mmcore.stores.features import DTYPES, FORMATS, STORED, computed_dtype, pack, relative_error, unpack, worst_channel_error
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
    back = unpacked(files)
    assert not back[7].any() and back.dtype == computed_dtype(dtype)


def unpacked(files):
    return unpack(files["features.npy"], files.get("scales.npy"), files.get("channels.npy"))


def test_int8_rounds_each_row_by_its_own_scale():
    values = normal(6, 64) * np.array([[1], [1e-3], [1], [1e3], [0], [1e-6]], np.float32)
    back = unpacked(pack(values, "int8"))
    for row, again in zip(values, back, strict=True):
        assert np.linalg.norm(again - row) <= 0.02 * np.linalg.norm(row)


@pytest.mark.parametrize("times", [10.0, 100.0, 1e4])
@pytest.mark.parametrize("large", [[3], [3, 17, 40]])
def test_large_channels_of_int8_cost_the_others_nothing_and_the_worst_channel_is_told(times, large):
    values = normal(200)
    before = worst_channel_error(values, pack(values, "int8"))
    values[:, large] *= times
    files = pack(values, "int8")
    lost = unpacked(files) - values
    by_channel = np.linalg.norm(lost, axis=0) / np.linalg.norm(values, axis=0)
    assert by_channel.max() < 1.2 * before < 0.02
    assert worst_channel_error(values, files) == pytest.approx(by_channel.max(), rel=1e-3)
    rows_only = np.abs(values).max(1) / 127
    old = {"features.npy": np.rint(values / rows_only[:, None]).astype(np.int8), "scales.npy": rows_only}
    if times >= 100:
        assert worst_channel_error(values, old) > 0.2 > relative_error(values, old)


def test_int8_features_of_format_1_are_read_as_they_were_stored(tmp_path):
    """Parts without channel scales, in a space that says no format; and the two formats have different spaces."""
    from pipelines.embed.space import Space

    spec = TimmImage(arch="a", width=16, grid=2, dtype="int8")
    stored = store(tmp_path, spec, [[4, 4], [4]], form=1)
    for part, rows in enumerate(([0, 4, 8], [0, 4])):
        directory = tmp_path / "stores" / "embeddings" / "s" / "parts" / f"p{part}"
        assert not (directory / "channels.npy").exists()
        values, scales = np.load(directory / "features.npy"), np.load(directory / "scales.npy")
        for start, key in zip(rows, ["k000", "k001"] if part == 0 else ["k002"], strict=False):
            assert np.array_equal(stored.get(key), values[start : start + 4] * scales[start : start + 4, None])
    described = {dtype: Space.of(TimmImage(arch="a", width=16, grid=2, dtype=dtype), "w", tmp_path).description for dtype in DTYPES}
    assert {dtype: one.get("format") for dtype, one in described.items()} == dict.fromkeys(DTYPES) | FORMATS == dict.fromkeys(DTYPES) | {"int8": 2}


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


def store(root: Path, spec: EncoderConfig, lengths: list[list[int]], in_columns: int | None = None, form: int | None = None) -> EmbeddingSet:
    """An artifact over parts whose items have these lengths; sample i's values are i. in_columns: the part whose file is laid out column after column; form:
    of the stored type, the present one unless told."""
    rng, rows, entries, number = np.random.default_rng(1), [], [], 0
    for p, part in enumerate(lengths):
        staging, total = root / "staging", sum(part)
        staging.mkdir(parents=True)
        features = rng.normal(size=(total, spec.width)).astype(np.float32)
        files = pack(features.astype(computed_dtype(spec.dtype)), spec.dtype)
        if form == 1:
            files = {name: array for name, array in files.items() if name != "channels.npy"}
        for name, array in files.items():
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
    generation["space"] |= {"format": FORMATS[spec.dtype]} if spec.dtype in FORMATS and form is None else {}
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
