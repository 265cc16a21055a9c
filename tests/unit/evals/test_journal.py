"""Journal: what was written before a kill is read after it, in the format it always had."""

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
    assert path.read_text() == '[{"row": 0}, {"row": 1}]\n'


def test_the_format_of_answers_is_what_it_was(tmp_path):
    path = tmp_path / "answers.jsonl"
    answers = AnswerFile(path)
    answers.begin(["k"])
    answers.add({"k": Reply(text="x", caption="", num_input_tokens=1, num_tokens=2)})
    begun, reply = path.read_text().splitlines()
    assert begun.startswith('{"begun": "') and begun.endswith('", "answers": 1}')
    assert reply == '{"caption": "", "key": "k", "num_input_tokens": 1, "num_tokens": 2, "text": "x"}'
    assert AnswerFile(path).replies == answers.replies and AnswerFile(path).begun == answers.begun
