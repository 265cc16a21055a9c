"""Our own reading of answers: letters, yes and no, short answers; nothing is guessed."""

from __future__ import annotations

import pytest

from evals.suites.reading import UNPARSED, circular, normal, parse_choice, parse_yes_no, score_choice, score_exact, score_vqa, score_yes_no

OPTIONS = {"A": "cat", "B": "black cat", "C": "a dog", "D": "tree"}


@pytest.mark.parametrize(
    ("text", "letter", "how"),
    [
        ("B", "B", "letter"),
        ("(C).", "C", "letter"),
        ("b", "B", "small letter"),
        ("b.", "B", "small letter"),
        ("option d", "D", "leading letter"),
        ("Option D is right", "D", "named"),
        ("It's B because A is wrong", "B", "named"),
        ("The answer is C, not A.", "C", "named"),
        ("The correct answer is: (d)", "D", "named"),
        ("B. black cat", "B", "leading letter"),
        ("c) a dog", "C", "leading letter"),
        ("I would go with D", "D", "named"),
        ("The answer is a dog", "C", "option text"),
        ("A dog", "C", "option text"),
        ("It's a dog.", "C", "option text"),
        ("a black cat on a wall", "B", "option text"),
        ("Tree", "D", "option text"),
        ("A cat or a dog", "", UNPARSED),
        ("Both B and D", "", UNPARSED),
        ("a bird", "", UNPARSED),
        ("", "", UNPARSED),
        ("E", "", UNPARSED),
    ],
)
def test_a_letter_is_read_or_it_is_not(text: str, letter: str, how: str) -> None:
    assert parse_choice(text, OPTIONS) == (letter, how)
    scored = score_choice(text, OPTIONS, letter or "A")
    assert scored.score == float(bool(letter)) and scored.how == how


def test_letters_without_options_do_not_exist() -> None:
    assert parse_choice("D", {"A": "cat", "B": "dog"}) == ("", UNPARSED)
    assert parse_choice("none of these", {"A": "cat", "B": "nan"}) == ("", UNPARSED)


def test_short_answers_are_evened_out() -> None:
    assert normal("The  Cat, isnt\nred!") == "cat isn't red"
    assert normal("Two dogs") == "2 dogs" and normal("3.5%") == "3.5%" and normal("10:30") == "10:30"
    assert score_exact("It is a cat.", "cat").score == 1.0 and score_exact("it is a cat", "dog").score == 0.0
    assert score_exact("The answer is: the red one", "red one").how == "lead-in left out"
    assert score_exact("...", "cat").how == UNPARSED


@pytest.mark.parametrize(("matching", "worth"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_accuracy_leaves_each_annotator_out_once(matching: int, worth: float) -> None:
    answers = ["cat"] * matching + ["dog"] * (10 - matching)
    assert score_vqa("it's a cat", answers).score == pytest.approx(worth)
    assert score_vqa("", answers).score == 0.0


def test_yes_and_no() -> None:
    assert parse_yes_no("Yes, there is.") == ("yes", "first word") and parse_yes_no("no") == ("no", "as written")
    assert parse_yes_no("I think yes") == ("yes", "only yes or no") and parse_yes_no("yes or no?")[0] == ""
    assert parse_yes_no("maybe") == ("", UNPARSED) == parse_yes_no("well, yes and no")
    assert score_yes_no("There is none", "no").score == 0.0
    assert score_vqa("no, it is blue", ["no"] * 10).score == 1.0


def test_a_group_is_right_when_all_its_rotations_are() -> None:
    assert circular([7, 7, 8, 8, 7], [1.0, 0.0, 1.0, 1.0, 1.0]) == {7: 0.0, 8: 1.0}
