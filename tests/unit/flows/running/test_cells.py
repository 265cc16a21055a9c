"""Cells: every type that DuckDB hands out is strict JSON."""

from __future__ import annotations

import json
from decimal import Decimal

import duckdb
import pytest

from flows.running.cells import inert, json_document, json_row, json_text, plain, visible


def strict(text: str) -> object:
    """Parsed without NaN and infinities, which are no JSON; decimals keep their digits."""

    def refuse(name: str) -> object:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse, parse_float=Decimal)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("NULL", None),
        ("true", True),
        ("'nan'::double", None),
        ("'inf'::double", None),
        ("'-inf'::float", None),
        ("0.1::double", Decimal("0.1")),
        ("1e300::double", Decimal("1e300")),
        ("12.50::decimal(10, 2)", Decimal("12.50")),
        ("0.00000001::decimal(18, 8)", Decimal("0.00000001")),
        ("99999999999999999999999999999999999999::decimal(38, 0)", 99999999999999999999999999999999999999),
        ("170141183460469231731687303715884105727::hugeint", 170141183460469231731687303715884105727),
        ("sum(9223372036854775807) from range(4)", 4 * 9223372036854775807),
        ("date '2026-01-02'", "2026-01-02"),
        ("timestamp '2026-01-02 03:04:05.5'", "2026-01-02T03:04:05.500000"),
        ("time '10:00:00'", "10:00:00"),
        ("'24:00:00'::time", "24:00:00"),
        ("'290000-01-01'::timestamp", "290000-01-01 00:00:00"),
        ("interval '1 day 2 hours'", "P1DT7200S"),
        ("interval '-1 day'", "-P1DT0S"),
        ("interval '1500 milliseconds'", "P0DT1.5S"),
        ("'\\xAA\\x00'::blob", "aa00"),
        ("'101'::bit", "101"),
        ("'2b5f9b3e-9f0b-4c8e-9a51-111111111111'::uuid", "2b5f9b3e-9f0b-4c8e-9a51-111111111111"),
        ("chr(27) || '[31m' || chr(0) || chr(8232)", "\x1b[31m\x00\u2028"),
        ("'[/INST] \"a\" \\ cat'", '[/INST] "a" \\ cat'),
        ("[1.0::double, 'nan'::double, NULL]", [Decimal("1.0"), None, None]),
        ("{'a': 'inf'::double, 'b': [date '2026-01-02']}", {"a": None, "b": ["2026-01-02"]}),
        ("map {1: 'x', 2: 'y'}", {"1": "x", "2": "y"}),
        ("map {date '2026-01-02': 'nan'::double}", {"2026-01-02": None}),
        ("row(1, '\\x01'::blob)", [1, "01"]),
        ("array_value(1.5::float, 2.5::float)", [Decimal("1.5"), Decimal("2.5")]),
        ("union_value(k := 'z')", "z"),
        ("'x'::enum('x', 'y')", "x"),
        ("'{\"a\": 1}'::json", '{"a": 1}'),
    ],
)
def test_every_type_is_strict_json(sql: str, expected: object) -> None:
    (value,) = duckdb.sql(f"select {sql}").fetchone() or ()
    line = json_row(["x"], [value])
    assert strict(line) == {"x": expected} and line.isascii() and line.isprintable()


def test_columns_of_one_name_are_all_there() -> None:
    assert strict(json_row(["a", "a", "a_1", "A"], [1, 2, 3, 4])) == {"a": 1, "a_2": 2, "a_1": 3, "A": 4}


def test_nested_values_as_text_are_their_json() -> None:
    assert plain([1.5, float("nan"), b"\x00"]) == json_text([1.5, None, "00"]) == '[1.5, null, "00"]'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[/INST] a cat", "[/INST] a cat"),
        ("[bold]x[/bold] :smile: \\x1b é 漢 👩‍🚀", "[bold]x[/bold] :smile: \\x1b é 漢 👩‍🚀"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("a\nb\r\tc\x00\x7f\x9b", "a\\nb\\r\\tc\\x00\\x7f\\x9b"),
        ("\u202eabc\u2066\u2028\u2029\ud800", "\\u202eabc\\u2066\\u2028\\u2029\\ud800"),
    ],
)
def test_a_text_is_shown_as_it_is_and_the_terminal_obeys_nothing(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_a_text_that_a_spreadsheet_would_run_gets_an_apostrophe() -> None:
    for text in ("=1+1", "+1", "-1+1", "@sum(a1)", "\t=1", "\r=1", "\n=1"):
        assert inert(text) == f"'{text}"
    for text in ("", "a=1", " =1", "'=1", "1-1", "é"):
        assert inert(text) == text


@pytest.mark.parametrize("value", [{}, [], None, [1, {"a": [float("nan"), "é\n"]}], {"b": {"c": [1, 2]}, "d": "x\x1b"}, "text"])
def test_a_document_is_one_json_value_with_a_line_per_element(value: object) -> None:
    said = json_document(value)
    assert json.loads(said) == json.loads(json_text(value)) and said.isascii()
    assert len(said.splitlines()) == (len(value) + 2 if isinstance(value, (list, dict)) and value else 1)
