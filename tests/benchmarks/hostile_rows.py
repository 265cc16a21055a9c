"""Classes of fuzz_lists: one record of a list that does not fit, or only looks as if it did not. Input and output as in sound_lists."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sound_lists import CSV, JSON, KINDS, MALFORMED, TAKEN, Fixed, Given, as_text, left_out, sound

TABLES = ("cc3m", *CSV)
Change = Callable[[dict[str, Any], random.Random], object]
Make = Callable[[random.Random, Path], Given]


def of_line(change: Callable[[str, random.Random], str], kinds: tuple[str, ...]) -> Make:
    """A table with another line in the place of one."""

    def make(rng: random.Random, box: Path) -> Given:
        given = sound(rng, box, kinds)
        number = rng.randrange(len(given.records))
        lines = given.path.read_text().split("\n")
        at = number + (given.kind in CSV)
        lines[at] = change(lines[at], rng)
        given.path.write_text("\n".join(lines))
        given.changed = {number}
        return given

    return make


def of_column(column: int, values: tuple[str, ...], kinds: tuple[str, ...]) -> Make:
    """A table with another value in a column of one record."""

    def make(rng: random.Random, box: Path) -> Given:
        given = sound(rng, box, kinds)
        number = rng.randrange(len(given.records))
        given.records[number][column] = rng.choice(values)
        given.changed = {number}
        given.write()
        return given

    return make


def of_text(values: tuple[str, ...], kinds: tuple[str, ...] = KINDS) -> Make:
    """A list with another text in one record."""

    def make(rng: random.Random, box: Path) -> Given:
        given = sound(rng, box, kinds)
        number = rng.randrange(len(given.records))
        given.set_text(number, rng.choice(values))
        given.changed = {number}
        given.write()
        return given

    return make


def of_record(change: Change, kinds: tuple[str, ...] = JSON) -> Make:
    """A JSON list with one record changed in place."""

    def make(rng: random.Random, box: Path) -> Given:
        given = sound(rng, box, kinds)
        number = rng.randrange(len(given.records))
        change(given.records[number], rng)
        given.changed = {number}
        given.write()
        return given

    return make


def other_record(values: tuple[Any, ...]) -> Make:
    """A JSON list with something else in the place of one record."""

    def make(rng: random.Random, box: Path) -> Given:
        given = sound(rng, box, JSON)
        number = rng.randrange(len(given.records))
        given.records[number] = rng.choice(values)
        given.changed = {number}
        given.write()
        return given

    return make


def misnamed(rng: random.Random, box: Path) -> Given:
    """A JSON list of a name that is no UTF-8, with something else in the place of one record."""
    given = other_record(NO_TURN[:4])(rng, box)
    given.path = given.path.rename(given.folder / "\udcff\udc80 \x1b.json")
    return given


def headed(rng: random.Random, box: Path) -> Given:
    """A CC3M list with a header."""
    given = sound(rng, box, ("cc3m",))
    given.path.write_text(rng.choice(("caption\turl", "Caption\tURL")) + "\n" + as_text("cc3m", given.records))
    return given


def turns(record: dict[str, Any]) -> list[dict[str, Any]]:
    return record["conversations"]  # type: ignore[no-any-return]


def put(field: str, values: tuple[Any, ...]) -> Change:
    """Another value of a field."""
    return lambda record, rng: record.update({field: rng.choice(values)})


def put_in_turn(field: str, values: tuple[Any, ...]) -> Change:
    """Another value of a field of one turn."""
    return lambda record, rng: rng.choice(turns(record)).update({field: rng.choice(values)})


def add_turns(count: int) -> Change:
    """More turns, human first."""

    def change(record: dict[str, Any], rng: random.Random) -> None:
        turns(record).extend({"from": ("human", "gpt")[n % 2], "value": f"and {n}?"} for n in range(count))

    return change


def said_before(words: str) -> Change:
    """Words before the question."""

    def change(record: dict[str, Any], rng: random.Random) -> None:
        turns(record)[0]["value"] = words + turns(record)[0]["value"]

    return change


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


LONG = "x" * 50_000
HALF = ("\ud83d", "a \udc38 b")
SEPARATORS = ("a\x0bb", "a\x0cb", "a\x85b", "a\u2028b", "a\u2029b")
NO_TEXT = ("", " ", "\u3000 ", "\xa0\xa0")
NO_LIST = (None, 7, "text", {}, {"0": "x"}, True)
NO_TURN = (None, 7, "text", [], ["human", "hi"], nested(300))
NO_MEDIUM = (7, False, 0, {}, {"path": "x"}, [None], [["x"]], [7], nested(300))
CLASSES: dict[str, tuple[Make, Fixed]] = {
    "row: a column too few": (of_line(lambda line, rng: line.replace("\t" if "\t" in line else ",", " "), TABLES), MALFORMED),
    "row: a column too many": (of_line(lambda line, rng: line + rng.choice(("\tmore", "\t", "\t\t")), ("cc3m",)), MALFORMED),
    "row: a value too many": (of_line(lambda line, rng: f"{line},{rng.choice(('more', '', '1,2'))}", CSV), MALFORMED),
    "row: a quote that does not end": (of_line(lambda line, rng: f'1,"{line.replace(chr(34), "")}', CSV), MALFORMED),
    "row: words after a quote": (of_line(lambda line, rng: f'"1"x,{line}', CSV), MALFORMED),
    "row: a zero byte in a text": (of_text(("a\0b", "\0"), TABLES), MALFORMED),
    "record: a zero byte in a text, escaped": (of_text(("a\0b", "b\0"), JSON), TAKEN),
    "row: quotes are characters": (of_text(('"', 'a "quoted" one', '"whole"', "'", '""""'), TABLES), TAKEN),
    "row: a line end inside quotes": (of_text(("two\nlines", "two\r\nlines", "\n\nlate"), CSV), TAKEN),
    "row: separators of lines that are none": (of_text(SEPARATORS), TAKEN),
    "row: a carriage return in a text": (of_text(("a\rb", "a\r\rb"), ("cc3m", *JSON)), TAKEN),
    "row: no text": (of_text(NO_TEXT, TABLES), left_out("empty_text")),
    "row: a start that is no time": (of_column(2, ("", "x", "-1", "nan", "inf", "1e999", "0x5", "12:30", "--", "1,5"), ("audiocaps",)), MALFORMED),
    "row: a start far away": (of_column(2, ("1e300", "99999999999", "0.0000001", " 3 ", "1_0"), ("audiocaps",)), TAKEN),
    "row: a header in a list without one": (headed, TAKEN),
    "row: a long text": (of_text((LONG, "猫" * 30_000)), TAKEN),
    "record: no object": (other_record((*NO_TURN[:4], True, 1.5)), left_out("bad_record")),
    "record: no object, in a file whose name is no text": (misnamed, left_out("bad_record")),
    "record: an empty object": (other_record(({}, {"id": 3}, {"image": "x"})), left_out("bad_record")),
    "record: no conversations": (of_record(lambda record, rng: record.pop("conversations")), left_out("bad_record")),
    "record: conversations that are no list": (of_record(put("conversations", NO_LIST)), left_out("bad_record")),
    "record: a turn that is no object": (of_record(lambda record, rng: turns(record).append(rng.choice(NO_TURN))), left_out("bad_record")),
    "record: a turn without words": (of_record(lambda record, rng: rng.choice(turns(record)).pop("value")), left_out("bad_record")),
    "record: words that are no text": (of_record(put_in_turn("value", NO_MEDIUM)), left_out("bad_record")),
    "record: nobody speaks": (of_record(lambda record, rng: rng.choice(turns(record)).pop("from")), left_out("bad_record")),
    "record: an unknown speaker": (of_record(put_in_turn("from", (None, 7, "user", "Human", "", ["human"], {"a": 1}, "human\n"))), left_out("bad_record")),
    "record: a speaker of many words": (of_record(put_in_turn("from", (LONG, [LONG], nested(200), "\x1b[2J\n" * 9))), left_out("bad_record")),
    "record: half a character": (
        of_record(lambda record, rng: turns(record)[0].update(value=turns(record)[0]["value"] + rng.choice(HALF))),
        left_out("bad_record"),
    ),
    "record: a caption that is no text": (of_record(put("image_captions", NO_MEDIUM[:-1]), ("nextgpt",)), left_out("bad_record")),
    "record: half a character in a caption": (of_record(put("image_captions", (list(HALF), HALF[0])), ("nextgpt",)), left_out("bad_record")),
    "record: a medium that is no text": (of_record(put("image", NO_MEDIUM), ("llava",)), left_out("bad_record")),
    "record: a medium of the answer that is no text": (of_record(put("output_image", NO_MEDIUM), ("nextgpt",)), left_out("bad_record")),
    "record: a medium without a name": (of_record(put("image", (" ", "\n", ["media", " "])), ("llava",)), left_out("bad_record")),
    "record: a medium named twice over": (of_record(lambda record, rng: record.update(input_image=record["image"]), ("llava",)), left_out("bad_record")),
    "record: fields that nobody reads": (of_record(lambda record, rng: record.update({"": nested(200), "x\0": None, "weights": {"a": [1]}})), TAKEN),
    "record: more turns": (of_record(add_turns(2)), TAKEN),
    "record: ends with a question": (of_record(add_turns(1)), left_out("ends_with_question")),
    "record: begins with an answer": (of_record(lambda record, rng: turns(record).pop(0)), left_out("begins_with_answer")),
    "record: two questions": (of_record(lambda record, rng: turns(record).insert(1, {"from": "human", "value": "Or?"})), left_out("turn_order")),
    "record: two answers": (of_record(lambda record, rng: turns(record).append({"from": "gpt", "value": "Or."})), left_out("turn_order")),
    "record: the system in between": (of_record(lambda record, rng: turns(record).insert(1, {"from": "system", "value": "Be brief."})), left_out("turn_order")),
    "record: the system first": (of_record(lambda record, rng: turns(record).insert(0, {"from": "system", "value": rng.choice(("", "Be brief."))})), TAKEN),
    "record: only the system": (of_record(put("conversations", ([{"from": "system", "value": "Be brief."}],))), left_out("empty_text")),
    "record: nobody says anything": (of_record(put("conversations", ([],)), ("llava",)), left_out("empty_text")),
    "record: an empty answer": (of_record(lambda record, rng: turns(record)[1].update(value=rng.choice(NO_TEXT))), left_out("empty_text")),
    "record: a placeholder too many": (of_record(said_before("<image>\n")), left_out("placeholder_count")),
    "record: no placeholder": (of_record(lambda record, rng: turns(record)[0].update(value="What?")), left_out("placeholder_count")),
    "record: only a placeholder": (of_record(lambda record, rng: turns(record)[0].update(value="<image>")), TAKEN),
    "record: the name of a placeholder inside a sentence": (of_record(said_before("What does the tag <image> mean in HTML?\n")), TAKEN),
    "record: placeholders of media that are not there": (of_record(said_before("<video>\n<audio> <video>\n")), TAKEN),
    "record: placeholders without any medium": (of_record(put("image", ("", [], None)), ("llava",)), TAKEN),
    "record: a placeholder in another turn": (of_record(lambda record, rng: turns(record)[1].update(value="<image> it is"), ("llava",)), TAKEN),
}
