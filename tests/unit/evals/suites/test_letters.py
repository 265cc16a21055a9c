"""Reading of multiple-choice answers: 308 answers in the styles of real models, labelled twice, and the same reading for every letter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.suites.reading import RULES, UNPARSED, parse_choice

CASES = Path(__file__).parents[3] / "cases"
OPTIONS = {"A": "cat", "B": "black dog", "C": "a parrot", "D": "tree"}
SETS = json.loads((CASES / "answers" / "options.json").read_text())
WORDINGS = (CASES / "answers" / "wordings.txt").read_text().replace("\\n", "\n").split("\n----\n")
"""`{}` stands for the letter."""


def lines(*files: Path) -> list[dict]:
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


@pytest.mark.parametrize("case", lines(*sorted(CASES.glob("S0[1-5]*/answers.jsonl")), CASES / "S05-numbers" / "choice.jsonl"), ids=lambda case: case["text"])
def test_a_letter_is_read_as_a_careful_reader_reads_it(case: dict) -> None:
    letter, how = parse_choice(case["text"], case["options"])
    assert letter == case["letter"] and how in RULES and (how == UNPARSED) == (letter == "")


@pytest.mark.parametrize("wording", WORDINGS)
def test_a_wording_is_read_alike_whichever_letter_it_names(wording: str) -> None:
    read = [parse_choice(wording.replace("{}", letter), OPTIONS) for letter in OPTIONS]
    assert [letter for letter, _ in read] == list(OPTIONS)
    assert len({how for _, how in read}) == 1


def test_the_page_has_the_rules_as_they_are() -> None:
    page = (CASES.parents[1] / "docs" / "suites.md").read_text()
    for name, rule in RULES.items():
        assert f"| {name} | {rule.reading} | {rule.says} | {rule.source} |" in page
