"""Reading of multiple-choice answers: 308 answers in the styles of real models, labelled twice, and the same reading for every letter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.suites.reading import OWN, RULES, UNPARSED, parse_choice, score_choice

CASES = Path(__file__).parents[3] / "cases"
OPTIONS = {"A": "cat", "B": "black dog", "C": "a parrot", "D": "tree"}
SETS = json.loads((CASES / "answers" / "options.json").read_text())
WORDINGS = (CASES / "answers" / "wordings.txt").read_text().replace("\\n", "\n").split("\n----\n")
"""`{}` stands for the letter."""


def lines(*files: Path) -> list[dict]:
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


ANSWERS = lines(CASES / "answers" / "choice.jsonl")


@pytest.mark.parametrize("case", lines(*sorted(CASES.glob("S0[1-5]*/answers.jsonl")), CASES / "S05-numbers" / "choice.jsonl"), ids=lambda case: case["text"])
def test_a_letter_is_read_as_a_careful_reader_reads_it(case: dict) -> None:
    letter, how = parse_choice(case["text"], case["options"])
    assert letter == case["letter"] and how in RULES and (how == UNPARSED) == (letter == "")


@pytest.mark.parametrize("wording", WORDINGS)
def test_a_wording_is_read_alike_whichever_letter_it_names(wording: str) -> None:
    read = [parse_choice(wording.replace("{}", letter), OPTIONS) for letter in OPTIONS]
    assert [letter for letter, _ in read] == list(OPTIONS)
    assert len({how for _, how in read}) == 1


def official(text: str, options: dict[str, str]) -> str:
    """What MMBench's own matching reads without a judge."""
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    return MMBench_Evaluator(API_KEY="none", API_URL="").can_infer(text, dict(options)) or ""


def harness(text: str, options: dict[str, str]) -> str:
    """What the harness's static judge reads."""
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer

    return official(text, options) or extract_mcq_answer(text, choices=sorted(options))


def test_answers_in_real_models_styles() -> None:
    """No letter that a careful reader would not read, at least 97 % of the others, and no score above the official one but by a documented rule."""
    counts = dict.fromkeys(("readable", "unread", "false letter", "harness false letter", "harness unread", "official false letter", "official unread"), 0)
    above: dict[str, int] = {}
    for answer in ANSWERS:
        assert answer["letter"] == answer["second"], answer
        options, text, right = SETS[answer["options"]], answer["text"], answer["letter"]
        scored = score_choice(text, options, right or "?")
        theirs = harness(text, options)
        named = official(text, options) if set(options) <= set("ABCD") else right
        counts["readable"] += bool(right)
        for name, read in (("", scored.parsed), ("harness ", theirs), ("official ", named)):
            counts[f"{name}unread"] += bool(right) and not read
            counts[f"{name}false letter"] += bool(read) and read != right
        if right and scored.score > float(named == right):
            above[scored.how] = above.get(scored.how, 0) + 1
    print(len(ANSWERS), counts, "above the official score by rule:", above)
    assert len(ANSWERS) >= 300 and counts["false letter"] == 0
    assert counts["unread"] <= 0.03 * counts["readable"]
    assert all(RULES[how].source == OWN or "markup" in RULES[how].says or how in ("leading letter", "only letter", "option text") for how in above)
