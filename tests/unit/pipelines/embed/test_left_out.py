"""A medium that an encoder cannot take is a ledger row with its key and reason; everything else is embedded as without it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_steps import mp4, png, row, run_step, write_manifest
from PIL import Image
from test_embed import SPEC, weights  # noqa: F401  # a fixture
from twins import pairs, spec_of, weights_of

from flows.running.run import rows_left_out
from infra.step import AnyloomError
from mmcore.encoders import MODALITY_OF, load_encoder
from mmcore.encoders.squares import padded_square, refuse_thin
from mmcore.encoders.timm_image import TimmImageEncoder
from mmcore.media.decode import MediaError
from mmcore.stores.embeddings import EmbeddingSet
from pipelines.embed.config import EmbedConfig
from pipelines.shards.config import ShardsConfig
from pipelines.toys.media import medium

CASES = Path(__file__).parents[3] / "cases" / "unencodable"
INPUTS = {"weights": "weights", "shards_pets": "shards"}


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("twins")


def shards_of(root: Path, weights_dir: Path, count: int) -> Path:
    (root / "lists" / "media").mkdir(parents=True)
    for number in range(count):
        (root / "lists" / "media" / f"{number}.png").write_bytes(png(number))
    write_manifest(root, [row(number, f"media/{number}.png") for number in range(count)])
    run_step(root, "shards", "pipelines.shards.plan:run", ShardsConfig(samples_per_shard=10), {"manifest": "manifest", "lists": "lists"})
    (root / "weights").symlink_to(weights_dir)
    return root


ERRORS = [
    (lambda: RuntimeError("Calculated padded input size per channel: (1)"), "not_encodable"),
    (lambda: ValueError("cannot reshape"), "not_encodable"),
]


@pytest.mark.parametrize("where", ["prepare", "forward"])
@pytest.mark.parametrize(("make", "reason"), ERRORS, ids=range(len(ERRORS)))
def test_one_medium_that_fails_is_a_row_and_the_rest_goes_on(tmp_path, weights, monkeypatch, where, make, reason):  # noqa: F811
    root = shards_of(tmp_path, weights, 11)
    bad = load_encoder(SPEC, weights).prepare(png(5))
    original = getattr(TimmImageEncoder, where)

    def failing(self, given, *more):
        if (where == "prepare" and given == png(5)) or (where == "forward" and any(np.array_equal(item, bad) for item in given)):
            raise make()
        return original(self, given, *more)

    with monkeypatch.context() as patch:
        patch.setattr(TimmImageEncoder, where, failing)
        result = run_step(root, "embed", "pipelines.embed.media:run", EmbedConfig(spec=SPEC), INPUTS)
    assert (result["rows"], result["failed"], result["samples"], result["reasons"]) == (11, 1, 10, {reason: 1})
    (line,) = pq.read_table(root / "embed" / "ledger.parquet").to_pylist()
    assert (line["key"], line["status"], line["reason"]) == ("pets-000005", "failed", reason) and "\n" not in line["detail"]
    assert rows_left_out("embed", root / "embed", result)[0].startswith(f"left out (embed): 1 of 11 rows ({reason} 1), the first is pets-000005: ")
    stored = EmbeddingSet(root / "embed", root / "stores")
    assert stored.keys() == [f"pets-{number:06d}" for number in range(11) if number != 5]
    computed = load_encoder(SPEC, weights).encode([png(number) for number in range(11) if number != 5])
    assert np.allclose(stored.gather(stored.keys())[0], np.stack(computed), atol=2e-3)
    again = run_step(root, "again", "pipelines.embed.media:run", EmbedConfig(spec=SPEC), INPUTS)
    assert again == result and json.loads((root / "again" / "info" / "timing.json").read_text())["encoded"] == 0
    mended = run_step(root, "mended", "pipelines.embed.media:run", EmbedConfig(spec=SPEC), INPUTS, force=True)
    assert mended["samples"] == 11 and "failed" not in mended and not (root / "mended" / "ledger.parquet").exists()


def test_strips_are_refused_before_they_are_scaled():
    strip = Image.open(CASES / "strip.png")
    for refused in (lambda: padded_square(strip, (0.5, 0.5, 0.5)), lambda: refuse_thin(strip), lambda: refuse_thin(Image.new("RGB", (1, 401)))):
        with pytest.raises(MediaError, match="too_large"):
            refused()
    assert refuse_thin(Image.new("RGB", (1, 400))).size == (1, 400) and padded_square(Image.new("RGB", (2, 4000)), (0, 0, 0)).size == (4000, 4000)


def smallest(modality: str) -> bytes:
    """An image of one pixel, a video of one frame, or the audio of one sample of the cases."""
    if modality == "audio":
        return (CASES / "one_sample.wav").read_bytes()
    if modality == "video":
        return mp4([Image.new("RGB", (16, 16), "red")])
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(("kind", "twin"), [pair for pair in pairs() if MODALITY_OF[pair[0]] != "text"])
def test_the_smallest_medium_is_embedded_and_a_strip_is_a_ledger_row(kind, twin, tmp_path, twins):
    """By every encoder there is, through both steps. An encoder that distorts or crops what it scales takes the strip as well."""
    modality = MODALITY_OF[kind]
    media = [medium(modality), smallest(modality)]
    if modality == "image":
        media.append((CASES / "strip.png").read_bytes())
    (tmp_path / "lists").mkdir()
    for number, data in enumerate(media):
        (tmp_path / "lists" / str(number)).write_bytes(data)
    write_manifest(tmp_path, [row(number, str(number), modality=modality) for number in range(len(media))])
    run_step(tmp_path, "shards", "pipelines.shards.plan:run", ShardsConfig(), {"manifest": "manifest", "lists": "lists"})
    (tmp_path / "weights").symlink_to(weights_of(twins, kind, twin))
    for pad in (False, True):
        spec = spec_of(kind, twin)
        if pad and not hasattr(spec, "pad"):
            continue
        spec = replace(spec, pad=True) if pad else spec
        result = run_step(tmp_path, f"embed{pad}", "pipelines.embed.media:run", EmbedConfig(spec=spec), INPUTS)
        thin = modality == "image" and kind in ("hf_image", "imagebind_image")
        assert result.get("reasons", {}) == ({"too_large": 1} if thin else {}) and result["samples"] == len(media) - thin
        stored = EmbeddingSet(tmp_path / f"embed{pad}", tmp_path / "stores")
        assert all(np.isfinite(stored.gather([key])[0].astype(float)).all() for key in stored.keys())
        if thin:
            (line,) = pq.read_table(tmp_path / f"embed{pad}" / "ledger.parquet").to_pylist()
            assert line["key"] == "pets-000002" and "1 x 1000000 pixels" in line["detail"]


@pytest.mark.parametrize("where", ["prepare", "forward"])
@pytest.mark.parametrize("make", [MemoryError, lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory"), lambda: RuntimeError("std::bad_alloc")])
def test_too_little_memory_for_one_medium_is_one_line_and_is_kept_nowhere(tmp_path, weights, monkeypatch, where, make):  # noqa: F811
    root = shards_of(tmp_path, weights, 3)
    original = getattr(TimmImageEncoder, where)

    def failing(self, given, *more):
        if len(given) == 1 or (where == "prepare" and given == png(1)):
            raise make()
        if where == "forward" and len(given) > 1:
            raise make()
        return original(self, given, *more)

    with monkeypatch.context() as patch:
        patch.setattr(TimmImageEncoder, where, failing)
        with pytest.raises(AnyloomError, match=r"pets-00000\d: the encoder timm_image .* needs more memory"):
            run_step(root, "embed", "pipelines.embed.media:run", EmbedConfig(spec=SPEC), INPUTS)
    result = run_step(root, "again", "pipelines.embed.media:run", EmbedConfig(spec=SPEC), INPUTS)
    assert result["samples"] == 3 and "failed" not in result


def test_what_was_left_out_alone_is_tried_again_when_that_is_forced(tmp_path, weights, monkeypatch):  # noqa: F811
    root = shards_of(tmp_path, weights, 3)
    original = TimmImageEncoder.prepare

    def failing(self, given, *more):
        if given == png(1):
            raise ValueError("cannot reshape")
        return original(self, given, *more)

    for name, force in (("embed", False), ("forced", True)):
        with monkeypatch.context() as patch:
            patch.setattr(TimmImageEncoder, "prepare", failing)
            assert run_step(root, name, "pipelines.embed.media:run", EmbedConfig(spec=SPEC), INPUTS, force=force)["failed"] == 1
    mended = run_step(root, "mended", "pipelines.embed.media:run", EmbedConfig(spec=SPEC), INPUTS, force=True)
    assert mended["samples"] == 3 and "failed" not in mended
