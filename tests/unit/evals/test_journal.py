"""Journal: what was written before a kill is read after it, and nothing that is damaged; lines of earlier versions are read too."""

import random

from evals.harness.answers import AnswerFile, Reply
from evals.journal import Journal, Lines


def test_a_torn_line_is_cut_off_and_the_next_record_stands_on_its_own(tmp_path):
    path = tmp_path / "below" / "records.jsonl"
    assert Lines(path).read() == [] and not path.exists()
    Lines(path).append([{"a": 1}, [2, None]])
    with open(path, "ab") as handle:
        handle.write(b'{"a": 3, "b')
    assert Lines(path).read() == [{"a": 1}, [2, None]]
    Lines(path).append(["é"], durable=False)
    assert Lines(path).read() == [{"a": 1}, [2, None], "é"] and path.read_bytes().count(b"\n") == 3
    Lines(None).append([1])
    assert Lines(None).read() == []


def test_a_journal_goes_on_behind_the_last_whole_batch(tmp_path):
    path = tmp_path / "j.jsonl"
    rows = list(range(5))
    for batch in Journal(path).missing(rows, 2):
        Journal(path).add([{"row": row} for row in batch])
        break
    with open(path, "ab") as handle:
        handle.write(b'[{"row": 2}, {"ro')
    again = Journal(path)
    assert again.rows == [{"row": 0}, {"row": 1}] and [list(batch) for batch in again.missing(rows, 2)] == [[2, 3], [4]]
    assert path.read_text() == '[{"row": 0}, {"row": 1}]\t2ca29198\n'


def test_a_flipped_bit_costs_what_follows_and_nothing_is_read_wrong(tmp_path):
    path, records, rng = tmp_path / "r.jsonl", [{"key": str(i), "text": "yes" if i % 2 else "no\tnever"} for i in range(12)], random.Random(2)
    Lines(path).append(records)
    whole = path.read_bytes()
    for _ in range(300):
        at = rng.randrange(len(whole))
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        kept = Lines(path).read()
        assert kept == records[: whole[:at].count(b"\n")] and Lines(path).read() == kept
        Lines(path).append(records[len(kept) :])
        assert path.read_bytes() == whole


def test_lines_of_earlier_versions_are_read(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3\n{"a": 4}\n')
    assert Lines(path).read() == [{"a": 1}, {"a": 2}]
    Lines(path).append([{"a": 5}])
    assert Lines(path).read() == [{"a": 1}, {"a": 2}, {"a": 5}]


def test_the_format_of_answers_is_what_it_was(tmp_path):
    path = tmp_path / "answers.jsonl"
    answers = AnswerFile(path)
    answers.begin(["k"])
    answers.add({"k": Reply(text="x", caption="", num_input_tokens=1, num_tokens=2)})
    begun, reply = (line.partition("\t")[0] for line in path.read_text().splitlines())
    assert begun.startswith('{"begun": "') and begun.endswith('", "answers": 1}')
    assert reply == '{"caption": "", "key": "k", "num_input_tokens": 1, "num_tokens": 2, "text": "x", "unread": false}'
    assert AnswerFile(path).replies == answers.replies and AnswerFile(path).begun == answers.begun
