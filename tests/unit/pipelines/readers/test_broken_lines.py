"""Broken lines: one line that is no record is one refused row with its number and reason, the good lines around it are read as they were, and a file that is
no such list at all is one clear line."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_steps import png, run_step

from infra.step import AnyloomError
from pipelines.readers import audiocaps, cc3m, instruct, webvid
from pipelines.readers.rows import ReadOptions
from pipelines.shards.config import DatasetSpec, ManifestConfig, ShardsConfig

TALK = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a cat"}]
LONG = "x" * (csv.field_size_limit() + 1)
CSV = {
    "unbalanced quote at the start": b'8,abc,0,"a tone',
    "unbalanced quote, the rest of the file ends in one": b'8,abc,0,"a tone, "loud',
    "a quote in the wrong place": b'8,abc,0,"a" tone',
    "too few fields": b"8,abc,0",
    "too many fields": b"8,abc,0,a tone, loud",
    "NUL": b"8,abc,0,a\0tone",
    "not UTF-8": b"8,abc,0,caf\xe9",
    "a field over the limit of csv": b"8,abc,0," + LONG.encode(),
    "a quoted field over the limit": b'8,abc,0,"' + LONG.encode() + b'"',
    "a time that is none": b"8,abc,soon,a tone",
}
TSV = {
    "no tab": b"only a caption",
    "two tabs": b"a\tb\tc",
    "NUL": b"a\0b\tu.png",
    "not UTF-8": b"caf\xe9\tu.png",
    "half a character": b"\xed\xa0\xbd\tu.png",
}
JSONL = {
    "not JSON": b"{what?",
    "cut short": json.dumps({"conversations": TALK}).encode()[:-5],
    "NUL": b'{"conversations": "\0"}',
    "not UTF-8": b'{"conversations": "caf\xe9"}',
    "no object": b"[1, 2]",
    "too deep": b"[" * 100_000,
    "no conversation": b"{}",
}
HEADER = b"audiocap_id,youtube_id,start_time,caption"
SOUNDS = ReadOptions(media_template="{youtube_id}.wav")


def sound(number: int, caption: str = "a tone") -> bytes:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow([number, f"id{number}", 0, caption])
    return buffer.getvalue().rstrip("\n").encode()


def read(tmp_path: Path, name: str, lines: list[bytes], end: bytes = b"\n"):
    path = tmp_path / name
    path.write_bytes(end.join(lines) + end)
    reader = {"csv": audiocaps, "tsv": cc3m, "jsonl": instruct}[path.suffix[1:]]
    return list(reader.read(path, SOUNDS if reader is audiocaps else ReadOptions()))


@pytest.mark.parametrize("end", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("kind", CSV)
@pytest.mark.parametrize("place", [0, 2, 4])
def test_a_broken_line_of_a_csv_is_one_row(tmp_path, kind, place, end):
    good = [sound(0), sound(1, 'he says "hi", twice'), sound(2, "two\nlines"), sound(3)]
    lines = [*good[:place], CSV[kind], *good[place:]]
    rows = read(tmp_path, "s.csv", [HEADER, *lines], end)
    at = 2 + place + (place > 2)  # the header, and the record of two lines
    assert [row.media[0].uri for row in rows if row.refused is None] == [f"id{number}.wav" for number in range(4)]
    (bad,) = [row for row in rows if row.refused]
    assert bad.refused[0] == "bad_record" and bad.refused[1].startswith(f"s.csv, line {at}: ") and rows.index(bad) == place, bad
    assert rows[2 + (place <= 2)].texts == ("two\nlines",) and "\udce9" not in bad.refused[1]


@pytest.mark.parametrize("kind", TSV)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_broken_line_of_a_tsv_is_one_row(tmp_path, kind, place):
    good = [b"a cat\t1.png", b'"a dog\t2.png']
    rows = read(tmp_path, "a.tsv", [*good[:place], TSV[kind], *good[place:]])
    assert [row.media[0].uri for row in rows if row.refused is None] == ["1.png", "2.png"]
    assert rows[place].refused[0] == "bad_record" and rows[place].refused[1].startswith(f"a.tsv, line {place + 1}: ")


@pytest.mark.parametrize("kind", JSONL)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_broken_line_of_a_jsonl_is_one_row(tmp_path, kind, place):
    good = [json.dumps({"conversations": TALK}).encode()] * 2
    rows = read(tmp_path, "talk.jsonl", [*good[:place], JSONL[kind], *good[place:]])
    assert [row.refused is None for row in rows] == [number != place for number in range(3)]
    assert rows[place].refused[1].startswith(f"talk.jsonl, line {place + 1}: ")


def test_a_byte_that_is_not_utf8_in_a_json_list_is_one_record(tmp_path):
    records = json.dumps([{"conversations": TALK}, {"conversations": [TALK[0], {"from": "gpt", "value": "cafX"}]}, {"conversations": TALK}])
    (tmp_path / "i.json").write_bytes(records.encode().replace(b"cafX", b"caf\xe9"))
    rows = list(instruct.read(tmp_path / "i.json"))
    assert [row.refused is None for row in rows] == [True, False, True] and "not UTF-8" in rows[1].refused[1]


@pytest.mark.parametrize(
    ("name", "body", "problem"),
    [
        ("s.csv", b"", "line 1: column 'audiocap_id' is missing"),
        ("s.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "line 1: "),
        ("s.csv", "audiocap_id,youtube_id,start_time,caption\n1,a,0,b\n".encode("utf-16"), "line 1: "),
        ("s.csv", b'"audiocap_id,youtube_id\n1,2\n', "line 1: unexpected end of data"),
        ("s.csv", HEADER + b"\n1;a;0;b\n2;c;0;d\n", r"s\.csv, line 2: 1 values for the 4 columns .*; no line of the file is a record"),
        ("a.tsv", b"caption,url\na,b\n", r"a\.tsv, line 1: column 'url' is missing.*; no line of the file is a record"),
        ("a.tsv", "a cat\t1.png\n".encode("utf-16"), r"a\.tsv, line 1: .*; no line of the file is a record"),
        ("t.jsonl", b"[\n1,\n2]\n", r"t\.jsonl, line 1: .*; no line of the file is a record"),
    ],
)
def test_a_file_that_is_no_such_list_is_one_clear_line(tmp_path, name, body, problem):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(AnyloomError, match=problem) as caught:
        list({"csv": audiocaps, "tsv": cc3m, "jsonl": instruct}[name.rpartition(".")[2]].read(tmp_path / name, SOUNDS))
    assert "\n" not in str(caught.value) and str(caught.value).encode() and len(str(caught.value)) < 600 + len(str(tmp_path))


def test_well_formed_csv_is_read_as_the_csv_module_reads_it(tmp_path):
    """Quotes, commas and line ends in any value, whatever stands around them."""
    for seed in range(200):
        draws = random.Random(seed)
        names = ["".join(draws.choice('ab",\n\r é') for _ in range(draws.randrange(12))) for _ in range(draws.randrange(1, 8))]
        buffer = io.StringIO(newline="")
        end, quoting = draws.choice([("\r\n", csv.QUOTE_MINIMAL), ("\n", csv.QUOTE_ALL), ("\r\n", csv.QUOTE_ALL)])
        writer = csv.writer(buffer, lineterminator=end, quoting=quoting)
        writer.writerows([["videoid", "contentUrl", "name"], *[[number, f"{number}.mp4", name] for number, name in enumerate(names)]])
        (tmp_path / "v.csv").write_bytes(buffer.getvalue().encode())
        rows = list(webvid.read(tmp_path / "v.csv"))
        assert [(row.refused, row.media[0].uri, row.texts) for row in rows] == [
            (None, f"{number}.mp4", (name.strip(),) if name.strip() else ()) for number, name in enumerate(names)
        ]


def test_no_good_line_is_lost_behind_broken_ones(tmp_path):
    """Any mixture of good and broken lines: every good one comes out, in order, and every line that is lost has a reason."""
    for seed in range(100):
        draws = random.Random(seed)
        broken = [line for name, line in CSV.items() if "limit" not in name and "ends in one" not in name]
        kinds = [draws.random() < 0.4 for _ in range(12)]
        lines = [draws.choice(broken) if bad else sound(number) for number, bad in enumerate(kinds)]
        if all(kinds):
            continue
        rows = read(tmp_path, "s.csv", [HEADER, *lines])
        assert [row.media[0].uri for row in rows if row.refused is None] == [f"id{number}.wav" for number, bad in enumerate(kinds) if not bad], seed
        assert [int(row.refused[1].partition(", line ")[2].partition(":")[0]) - 2 for row in rows if row.refused] == [n for n, bad in enumerate(kinds) if bad]


def test_broken_lines_are_rows_of_the_ledger(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "1.png").write_bytes(png(1))
    listed = tmp_path / "mine" / "own.tsv"
    listed.write_bytes(b"a cat\t1.png\nno tab\ncaf\xe9\t1.png\na\tb\tc\n")
    spec = DatasetSpec(name="own", format="cc3m", path="own.tsv", split="train", licence="x")
    told = run_step(tmp_path, "manifest", "pipelines.shards.manifest:run", ManifestConfig(datasets=(spec,)), {}, {"own": listed})
    assert told["total"] == 4 and told["refused"] == 3
    result = run_step(tmp_path, "shards", "pipelines.shards.plan:run", ShardsConfig(max_lost=1.0), {"manifest": "manifest"}, {"own": listed})
    assert (result["rows"], result["written"], result["quarantined"], result["reasons"]) == (4, 1, 3, {"bad_record": 3})
    lines = pq.read_table(tmp_path / "shards" / "ledger.parquet").to_pylist()
    assert [line["detail"].partition(":")[0] for line in lines] == ["", "own.tsv, line 2", "own.tsv, line 3", "own.tsv, line 4"]
