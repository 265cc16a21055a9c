"""Credentials: a signed address is fetched whole, and no artifact, shard, ledger or quarantine holds its signature."""

from __future__ import annotations

import gzip
import json
import logging

import pyarrow.parquet as pq
import pytest
from data_steps import png, run_step
from http_servers import Asked, HttpServer, Said

from infra.fingerprint import canonical_json, to_plain
from infra.logs import quiet
from infra.secrets import shown_template, shown_values
from infra.step import AnyloomError
from pipelines.dag.build import build
from pipelines.readers import cc3m
from pipelines.readers.rows import ReadOptions
from pipelines.recipes import get_recipe
from pipelines.shards.config import DatasetSpec, ManifestConfig, ShardsConfig


def to_the_signed(asked: Asked) -> Said:
    """An image for whoever has the signature."""
    number = {"/a.png?X-Amz-Signature=s3cret": 1, "/a.png?X-Amz-Signature=s3cret2": 2}.get(asked.path)
    return Said(png(number)) if number else Said(b"none", 404)


@pytest.fixture
def signed():
    with HttpServer(to_the_signed) as server:
        yield f"127.0.0.1:{server.port}"


def contents(root):
    """Everything below a directory as bytes, texts of Parquet files as they read."""
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.parent.name != "private":
            yield path, json.dumps(pq.read_table(path).to_pylist(), default=str).encode() if path.suffix == ".parquet" else path.read_bytes()


def test_a_signed_address_is_fetched_and_its_signature_kept_nowhere(signed, tmp_path):
    uris = [
        *(f"http://{signed}/a.png?X-Amz-Signature=s3cret", f"http://{signed}/a.png?X-Amz-Signature=s3cret2", f"http://{signed}/gone.png?sig=s3cret"),
        *("s3://KEY:s3cret@bucket/x.png", f"http://me:s3cret@{signed}/x.png", "https://me:s3cret@[/x.png", "x:s3cret@y"),
    ]
    (tmp_path / "mine").mkdir()
    listed = tmp_path / "mine" / "web.tsv"
    listed.write_text("".join(f"an image {number}\t{uri}\n" for number, uri in enumerate(uris)))
    spec = DatasetSpec(name="web", format="cc3m", path="web.tsv", split="train", licence="x")
    run_step(tmp_path, "manifest", "pipelines.shards.manifest:run", ManifestConfig(datasets=(spec,)), {}, {"web": listed})
    config = ShardsConfig(allow_private_addresses=True, fetch_attempts=1, max_lost=1.0)
    run_step(tmp_path, "shards", "pipelines.shards.plan:run", config, {"manifest": "manifest"}, {"web": listed})
    lines = pq.read_table(tmp_path / "shards" / "ledger.parquet").to_pylist()
    assert [(line["status"], line["reason"]) for line in lines] == [("written", ""), ("written", ""), ("failed", "http_4xx"), *[("failed", "bad_uri")] * 4]
    (tmp_path / "mine" / "web.tsv").unlink()
    assert not [path for path, data in contents(tmp_path) if b"s3cret" in data or b"s3cret" in (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else b"")]
    assert (tmp_path / "stores" / "private").stat().st_mode & 0o077 == 0


def test_where_the_whole_address_is_not_kept_the_row_says_so(signed, tmp_path):
    listed = tmp_path / "web.tsv"
    listed.write_text(f"an image\thttp://{signed}/a.png?X-Amz-Signature=s3cret\n")
    spec = DatasetSpec(name="web", format="cc3m", path="web.tsv", split="train", licence="x")
    run_step(tmp_path, "manifest", "pipelines.shards.manifest:run", ManifestConfig(datasets=(spec,)), {}, {"web": listed})
    (tmp_path / "stores" / "private" / "addresses.json").unlink()
    config = ShardsConfig(allow_private_addresses=True, max_lost=1.0)
    run_step(tmp_path, "shards", "pipelines.shards.plan:run", config, {"manifest": "manifest"}, {"web": listed})
    (line,) = pq.read_table(tmp_path / "shards" / "ledger.parquet").to_pylist()
    assert line["reason"] == "bad_uri" and "run again with --force of the manifest step and of this shards step" in line["detail"]


SECRET = "s3cret"
TEMPLATES = [
    "http://{host}/{{url}}?X-Amz-Signature=s3cret",
    "http://me:s3cret@{host}/{{url}}",
    "{{url}}?sig=s3cret",
    "s3://KEY:s3cret@bucket/{{url}}#s3cret",
    "//me:s3cret@{host}/{{url}}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_credentials_in_a_media_template_are_kept_nowhere(signed, tmp_path, template):
    """Neither in the manifest, shards and ledger, nor in what a step's record says of its config."""
    key = "datasets.stamps_train.media_template"
    whole = template.format(host=signed)
    steps = build(get_recipe("tiny", {key: whole, "max_lost": 1.0}))
    (tmp_path / "list").mkdir()
    listed = tmp_path / "list" / "web.tsv"
    listed.write_text(f"an image\t{f'http://{signed}/' if whole.startswith('{') else ''}a.png\n")
    (spec,) = (spec for spec in steps["manifest_cc3m"].config.datasets if spec.name == "stamps_train")
    run_step(tmp_path, "manifest", "pipelines.shards.manifest:run", ManifestConfig(datasets=(spec,)), {}, {"stamps_train": listed})
    config = ShardsConfig(allow_private_addresses=True, fetch_attempts=1, max_lost=1.0)
    run_step(tmp_path, "shards", "pipelines.shards.plan:run", config, {"manifest": "manifest"}, {"stamps_train": listed})
    (line,) = pq.read_table(tmp_path / "shards" / "ledger.parquet").to_pylist()
    assert line["status"] == ("written" if "X-Amz" in whole else "failed")
    assert not [path for path, data in contents(tmp_path) if SECRET.encode() in data]
    for said in (
        canonical_json([steps["manifest_cc3m"].config, get_recipe("tiny", {key: whole})]),
        repr(spec),
        json.dumps(shown_values({"overrides": {key: whole}})),
    ):
        assert SECRET not in said
    other = build(get_recipe("tiny", {key: whole.replace(SECRET, "other")}))
    assert to_plain(other["manifest_cc3m"].config) != to_plain(steps["manifest_cc3m"].config)  # still another identity
    with pytest.raises(AnyloomError) as caught:
        list(cc3m.read(listed, ReadOptions(media_template=whole + "{none}")))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "template", ["media/audio/{youtube_id}.ogg", "{youtube_id}_{start_time}.wav", "videos/{page_dir}/{videoid}.mp4", "https://host/{id}.jpg", ""]
)
def test_a_template_without_credentials_is_shown_as_it_is(template):
    assert shown_template(template) == template


def test_what_libraries_log_is_written_without_logins_and_signatures(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    quiet(tmp_path / "run.log")
    logging.getLogger("urllib3").error("retrying s3://KEY:s3cret@bucket/a and http://host/b?X-Amz-Signature=s3cret, again")
    try:
        raise ValueError("https://me:s3cret@host/x?sig=s3cret is not there")
    except ValueError:
        logging.getLogger("fsspec").exception("failed")
    said = (tmp_path / "run.log").read_text()
    assert "s3://***@bucket/a" in said and "http://host/b" in said and "https://***@host/x" in said and SECRET not in said
