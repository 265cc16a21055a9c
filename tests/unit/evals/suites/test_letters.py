"""Reading of multiple-choice answers: 308 answers in the styles of real models, labelled twice, and the same reading for every letter."""

from __future__ import annotations

import itertools
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


PAIRS = list(itertools.permutations(OPTIONS, 2))
TWO, LAST, NONE, QUOTED, BY_TEXT = (
    [line.replace("\\n", "\n") for line in (CASES / "answers" / f"{name}.txt").read_text().splitlines()]
    for name in ("two_letters", "taken_back", "all_denied", "quoted", "named_by_text")
)
"""`{x}`, `{y}` and `{}` stand for letters, of BY_TEXT for the text of an option."""


@pytest.mark.parametrize(("wordings", "right"), [(TWO, ""), (LAST, "y"), (NONE, "")], ids=["two", "last", "none"])
def test_two_letters_and_letters_that_are_taken_back_are_read_alike_for_every_pair(wordings: list[str], right: str) -> None:
    wrong = []
    for wording in wordings:
        for x, y in PAIRS:
            said = wording.replace("{x}", x).replace("{y}", y)
            letter, _ = parse_choice(said, OPTIONS)
            if letter != (y if right else ""):
                wrong.append((said, letter))
    assert not wrong


FORMS = [0x41, 0xFF21, 0x24B6, 0x249C, 0x1D400]
"""A as a plain, full-width, circled, parenthesised and bold mathematical character."""


@pytest.mark.parametrize("wording", QUOTED)
def test_a_letter_is_read_in_whatever_quotes(wording: str) -> None:
    assert [parse_choice(wording.replace("{}", letter), OPTIONS)[0] for letter in OPTIONS] == list(OPTIONS)


@pytest.mark.parametrize("first", FORMS)
def test_a_letter_is_read_in_whatever_form_unicode_has_of_it(first: int) -> None:
    for wording in ("{}", "{}.", "The answer is {}."):
        assert [parse_choice(wording.replace("{}", chr(first + number)), OPTIONS)[0] for number in range(4)] == list(OPTIONS)


@pytest.mark.parametrize("wording", BY_TEXT)
def test_an_article_is_no_letter_wherever_the_option_stands(wording: str) -> None:
    texts = ["cat", "black dog", "a parrot", "tree"]
    for turn in range(4):
        options = dict(zip("ABCD", texts[turn:] + texts[:turn], strict=True))
        for letter, text in options.items():
            said = f"a {text.removeprefix('a ')}"
            for form in (said, said.capitalize()):
                assert parse_choice(wording.replace("{}", form), options)[0] == letter, (form, options)


NINTH = ("{}", "{}.", "({})", "The answer is {}.", "I think the answer is {}.", "I choose {}", "I am sure it's {}.", "I would say {}.", "Answer: {}")


@pytest.mark.parametrize("wording", NINTH)
def test_of_nine_options_the_ninth_is_read_like_the_others(wording: str) -> None:
    options = dict(zip("ABCDEFGHI", "cat dog parrot tree house car boat plane train".split(), strict=True))
    assert [parse_choice(wording.replace("{}", letter), options)[0] for letter in options] == list(options)


def test_options_that_are_letters_or_name_two_of_them() -> None:
    letters = {"A": "C", "B": "D", "C": "B"}
    assert [parse_choice(f"{letter}. {text}", letters)[0] for letter, text in letters.items()] == list(letters)
    both = {"A": "cat", "B": "dog", "C": "A and B", "D": "neither A nor B"}
    assert parse_choice("A and B", both)[0] == "C" and parse_choice("Neither A nor B", both)[0] == "D" and parse_choice("A, B", both)[0] == ""
