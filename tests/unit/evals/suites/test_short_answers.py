"""Short answers, numbers, yes and no: forms that are the same, and what is nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.suites.plain import unicode_plain
from evals.suites.reading import RULES, UNPARSED, parse_choice, parse_yes_no, score_exact, score_vqa, score_yes_no
from evals.suites.short_answers import normal
from evals.suites.yes_no_words import MEANING, WORDS

CASES = Path(__file__).parents[3] / "cases"
THEMSELVES = [
    *(CASES / "S06-same-text-scores-0" / "answers.txt").read_text().splitlines(),
    *'a the an + - ? . " * % $ & # 50% $5 -5 10:30 U.S. a.m. none no yes it 1/2 ½ ３ t-shirt c++ #1 1,2,3 ... café 5. (5) 5-10 <b> \\ n/a'.split(),
    *"北京 don't 'tis @ é st. john's|that is|answer is|a b|it is a|the the|one two|yes and no|the answer is|i see|no one".split("|"),
    *"$1,000.50|-1,000|3 - 5|a, b and c|what's up|it's|two and a half|I can see|there are|No, yes|maybe".split("|"),
]
"""Official answers, of all kinds of signs, articles and lead-ins."""


@pytest.mark.parametrize("answer", THEMSELVES)
def test_an_answer_that_is_the_official_one_scores_1(answer: str) -> None:
    assert score_vqa(answer, [answer] * 10).score == 1.0 == score_exact(answer, answer).score
    assert score_vqa(answer.upper(), [answer] * 10).score == 1.0
    assert normal(normal(answer)) == normal(answer)


@pytest.mark.parametrize("case", [json.loads(line) for line in (CASES / "S05-numbers" / "cases.jsonl").read_text().splitlines()], ids=str)
def test_numbers_count_by_value_and_sign(case: dict) -> None:
    assert score_exact(case["said"], case["right"]).score == case["score"] == score_vqa(case["said"], [case["right"]] * 10).score


@pytest.mark.parametrize(
    ("said", "right", "score"),
    [
        ("It is a cat.", "cat", 1),
        ("The answer is: the red one", "red one", 1),
        ("Two dogs", "2 dogs", 1),
        ("dont know", "don't know", 1),
        ("isn’t", "isn't", 1),
        ("hell", "he'll", 0),
        ("U.S.", "us", 1),
        ("T-shirt", "t shirt", 1),
        ("3.14159", "3.14", 1),
        ("3.15", "3.14", 0),
        ("5", "5.00", 1),
        ("50%", "50", 0),
        ("1,000 people", "1000 people", 1),
        ("50 %", "50%", 1),
        ("$ 1,000", "$1000", 1),
        ("5%", "5", 0),
        ("5 cats", "5cats", 0),
        ("1,234,567", "1234567", 1),
        ("it's 5", "5", 1),
        ("−5", "-5", 1),
        ("-$300", "$300", 0),
        ("$-300", "-$300", 1),
        ("５", "5", 1),
        ("**cat**", "cat", 1),
        ("12", "1,2", 0),
        ("2", "1/2", 0),
        ("10:30", "1030", 0),
        ("15% of 240 is 0.15 × 240 = 36.\n\nFinal answer: \\boxed{36}", "36", 1),
        ("<answer>a red bus</answer> as it has two decks", "red bus", 1),
        ("At first I read 7. My final answer is 9", "9", 1),
        ("Final answer: 9\nFinal answer: 8", "9", 0),
        ("the final answer is", "final answer is", 1),
    ],
)
def test_short_answers_are_evened_out(said: str, right: str, score: float) -> None:
    scored = score_exact(said, right)
    assert scored.score == score and scored.how in RULES


@pytest.mark.parametrize("case", [json.loads(line) for line in (CASES / "S15-yes-and-no" / "cases.jsonl").read_text().splitlines()], ids=str)
def test_yes_and_no_together_are_neither(case: dict) -> None:
    assert parse_yes_no(case["text"]) == (case["parsed"], UNPARSED)
    assert score_vqa(case["text"], ["yes"] * 10).score == 0.0 == score_yes_no(case["text"], "no").score


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("**Yes**", "yes"),
        ("Yes, there is no dog", "yes"),
        ("Yes; no person is there", "yes"),
        ("No, there is a cat", "no"),
        ("There is no dog in the image.", "no"),
        ("There are no dogs, so no.", "no"),
        ("There isn't a dog", "no"),
        ("I think yes", "yes"),
        ("The answer is no.", "no"),
        ("yes or no? Yes.", "yes"),
        ("(yes/no) no", "no"),
        ("yeah", "yes"),
        ("Nope!", "no"),
        ("Absolutely!", "yes"),
        ("Not really.", "no"),
        ("Yes. Wait, no.", "no"),
        ("<think>no</think>Yes", "yes"),
        ("no it is not", "no"),
        ("It is not yes, it is no", "no"),
        ("yes or no?", ""),
        ("yes, no", ""),
        ("Both yes and no", ""),
        ("Not yes", ""),
        ("No idea", ""),
        ("I have no idea", ""),
        ("maybe", ""),
        ("There is none", ""),
        ("", ""),
        ("NO\n\nReasoning: his hair is visible and nobody would say yes to a hat here.", "no"),
        ("Yes.\n\nOn the other hand, a shadow speaks for no.", "yes"),
        ("Yes.\n\nNo.", ""),
        ("One would say yes, another no.", ""),
        ("No doubt about it: yes, he wears a hat.", "yes"),
        ("The man isn't wearing a hat.", "no"),
        ("The dog does not appear in the image", "no"),
        ("The man is wearing a hat.", ""),
        ("The image is not clear enough.", ""),
        ("It is not possible to tell.", ""),
        ("It isn't specified.", ""),
        ("It is not that he has no hat.", ""),
        ("The man isn't without a hat.", ""),
        ("He is not sitting, but standing.", ""),
    ],
)
def test_yes_and_no(text: str, word: str) -> None:
    assert parse_yes_no(text)[0] == word


BOTH = (
    *("Yes & No", "no/yes", "YES | NO", "Yes or No?", "[Yes/No]", "(yes, no)", "Yes\nNo", "no yes", "yes no", "yes-no", "Answer: Yes/No"),
    *("Sí/No", "sí o no", "Sì e no", "Sí, no", "No, sí.", "si/no", "oui/non", "oui ou non", "ja/nein", "是/不是", "да или нет"),
)


@pytest.mark.parametrize("text", BOTH)
def test_both_words_are_neither_in_whatever_form_the_hint_is_repeated(text: str) -> None:
    assert parse_yes_no(text) == ("", UNPARSED)


DRESSES = ("{}", " {}.", "{}!", "{}。", "**{}**", "“{}”", "¡{}!", "({})", "<answer>{}</answer>", "\\boxed{{}}", "<think>no</think>{}", "The answer is {}.")


@pytest.mark.parametrize("language", list(WORDS))
def test_yes_and_no_of_another_language_are_read_as_whole_answers_only(language: str) -> None:
    for said, words in zip(("yes", "no"), WORDS[language], strict=True):
        for word in words.split():
            assert unicode_plain(word).casefold() == word and MEANING[word] == said
            for dress in DRESSES:
                for form in (word, word.capitalize(), word.upper()):
                    assert parse_yes_no(dress.replace("{}", form))[0] == said, (dress, form)
            assert score_yes_no(word, said).score == 1.0 == score_vqa(word, [said] * 10).score == score_exact(word, word).score
            assert parse_choice(word, {"A": "Yes", "B": "No"})[0] == {"yes": "A", "no": "B"}[said]
            if word != "no":  # which is English, too
                assert parse_yes_no(word)[1] == "another language"
                assert parse_yes_no(f"{word} 7 {word}")[0] == parse_yes_no(f"x {word}")[0] == parse_yes_no(f"{word} x")[0] == ""


def test_the_page_has_the_words_of_other_languages() -> None:
    page = (CASES.parents[1] / "docs" / "suites.md").read_text()
    for language, (yes, no) in WORDS.items():
        assert f"| {language} | {yes} | {no} |" in page


def test_a_dissenting_annotator_does_not_turn_the_reading_off() -> None:
    assert score_vqa("no, it is blue", ["no"] * 9 + ["maybe"]).score == 1.0
    assert score_vqa("Yes, it is", ["yes"] * 6 + ["no"] * 3 + ["unsure"]).score == 1.0
    assert score_vqa("no, it is blue", ["blue"] * 9 + ["no"]).score == 0.0
