"""Scoring: our own, versioned reading of short answers, beside the harness's.

Owns the table of rules by which an answer is read, and what it is worth. Input: the answer and what is right; output: Scored, which also says by which rule
it was read. Nothing is ever drawn at random: what cannot be read is wrong, and counted (`UNPARSED`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evals.suites.letters import parse_choice as _letter
from evals.suites.short_answers import ARTICLES, as_precise_as, normal, without_lead_in
from evals.suites.short_answers import parse_yes_no as _yes_no

SCORER = "anyloom-4"
"""Version of everything here; bumped when any answer would be read or scored differently."""
UNPARSED = "unparsed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One rule of the reading."""

    reading: str
    """The readings that have it: choice, yes_no, short (vqa and exact)."""
    says: str
    source: str
    """Where it comes from; `own` where the official scorer lacks it, so that a score can be above the official one by it."""


VQA_V2 = "VQA v2 evaluation, vqaEval.py"
MMBENCH = "MMBench, VLMEvalKit matching_util.py"
MMMU = "MMMU, eval_utils.py"
POPE = "POPE, evaluate.py"
OWN = "own"
RULES: Mapping[str, Rule] = {
    "letter": Rule(reading="choice", says="the whole answer is the letter, in whatever brackets, quotes or markup", source=MMBENCH),
    "small letter": Rule(reading="choice", says="the same with a small letter", source=OWN),
    "final answer": Rule(reading="choice short", says="what stands in a box, an answer tag or behind `final answer`; of several the last", source=OWN),
    "named": Rule(reading="choice", says="the letter that is called the answer, the choice or correct (`the answer is B`, `B is right`)", source=OWN),
    "conclusion": Rule(reading="choice", says="the letter behind `so`, `therefore`, `thus`, `hence`", source=OWN),
    "leading letter": Rule(reading="choice", says="the letter that the answer begins with (`B. black dog`, `B because`)", source=MMBENCH),
    "only letter": Rule(reading="choice", says="the one letter that stands for an option anywhere", source=MMBENCH),
    "option text": Rule(reading="choice", says="the one option whose words are said; longer ones hide those within them", source=MMBENCH),
    "taken back": Rule(reading="choice yes_no", says="what is said behind `wait`, `actually`, `no,` and the like counts, not what is before", source=OWN),
    "as written": Rule(reading="short yes_no", says="evened out: case, punctuation, contractions, number words, articles, commas in numbers", source=VQA_V2),
    "number": Rule(
        reading="short",
        says="by value and sign: 5.00 is 5, .5 is 0.5, -5 is not 5; more decimals are rounded to the right one's",
        source=MMMU,
    ),
    "lead-in left out": Rule(reading="short", says="`the answer is`, `it is`, `there are`, `I see` before the answer are left out", source=OWN),
    "first word": Rule(reading="yes_no", says="an answer that begins with yes or no", source=POPE),
    "a line of its own": Rule(reading="yes_no", says="of yes and no the one that stands on a line of its own", source=OWN),
    "only yes or no": Rule(reading="yes_no", says="the only yes or no that is said; the `no` of `no dog` is none", source=OWN),
    "statement": Rule(reading="yes_no", says="a sentence that denies (`there is no`, `I don't see`, `the man isn't wearing a hat`) is a no", source=POPE),
    "stock phrase": Rule(reading="yes_no", says="`definitely`, `of course`, `not really` and the like as a whole answer", source=OWN),
    "another language": Rule(
        reading="yes_no", says="a yes or no of another language as the whole answer (`Sí`, `oui`, `是的`), of the table below", source=OWN
    ),
    UNPARSED: Rule(reading="choice yes_no short", says="nothing, or more than one thing, is said: wrong, never drawn at random", source=MMBENCH),
}
"""Rule -> what it reads. Letters that are denied (`not B`, `B is wrong`) are named by no rule; two letters together (`A and B`) are not read."""
EXPLAINED = {
    "vqa": "the harness compares the whole answer; ours also leaves out what leads in to it (`the answer is`, `it is a`), compares numbers by their value "
    "and sign, and reads the yes or no of an answer to a yes/no question",
    "choice": "the harness's static judge takes capital letters and substrings, in a fixed order; ours also reads `b` and `option d`, takes the letter that "
    "is named as the answer (`It's B because A is wrong` is B), tells the article `A` from the letter, takes no letter that is denied or taken back, and "
    "counts two letters, or none, as wrong",
    "yes_no": "the harness compares the whole answer with yes or no; ours reads the first word, or the only yes or no in it",
    "exact": "the harness compares the whole answer; ours also leaves out what leads in to it (`the answer is`, `it is a`) and compares numbers by their value",
}
"""reading -> why the two scores can differ."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One answer as we read it."""

    parsed: str
    """What was read; "" when nothing could be."""
    how: str
    """Of RULES: which one read it, or UNPARSED."""
    score: float


def parse_choice(text: str, options: Mapping[str, str]) -> tuple[str, str]:
    """(letter, rule) of an answer to a multiple-choice question; ("", UNPARSED) when none, or more than one, is named.

    options: letter -> its text, the letters that exist.
    """
    letter, how = _letter(text, options)
    return (letter, how) if letter else ("", UNPARSED)


def score_choice(text: str, options: Mapping[str, str], answer: str) -> Scored:
    """1 when the letter read is the right one."""
    letter, how = parse_choice(text, options)
    return Scored(parsed=letter, how=how, score=float(letter == answer.strip().upper() and letter != ""))


def parse_yes_no(text: str) -> tuple[str, str]:
    """(yes or no, rule); ("", UNPARSED) when neither or both are said."""
    word, how = _yes_no(text)
    return (word, how) if word else ("", UNPARSED)


def score_yes_no(text: str, answer: str) -> Scored:
    """1 when the yes or no that is read is the right one."""
    parsed, how = parse_yes_no(text)
    return Scored(parsed=parsed, how=how, score=float(parsed != "" and parsed == answer.strip().casefold()))


def _short(text: str, answers: Sequence[str]) -> tuple[str, str]:
    """(form, rule) of a short answer: as written where that is one of the right ones; a yes or no where most of these are; else without what leads in."""
    forms = [normal(answer) for answer in answers]
    written = normal(text)
    if written in forms:
        return (written, "as written") if written else ("", UNPARSED)
    if 2 * sum(form in ("yes", "no") for form in forms) > len(forms):
        parsed, how = _yes_no(text)
        if parsed or {"yes", "no"} <= set(written.split()):
            return (parsed, how) if parsed else ("", UNPARSED)
    rest, how = without_lead_in(text)
    form = normal(rest)
    return (form, how) if any(character.isalnum() for character in form) and form not in ARTICLES else ("", UNPARSED)


def score_exact(text: str, answer: str) -> Scored:
    """1 when the short answer read is the right one."""
    parsed, how = _short(text, [answer])
    right = normal(answer)
    rounded = as_precise_as(parsed, right)
    return Scored(parsed=parsed, how=how if rounded == parsed else "number", score=float(parsed != "" and right in (parsed, rounded)))


def score_vqa(text: str, answers: Sequence[str]) -> Scored:
    """Soft accuracy: an answer is worth min(1, matches / 3), averaged over all subsets of nine of the ten annotators (Antol et al. 2015, VQA, section 4)."""
    parsed, how = _short(text, answers)
    same = [normal(answer) == parsed for answer in answers]
    worth = [min(1.0, (sum(same) - own) / 3) for own in same]
    return Scored(parsed=parsed, how=how, score=sum(worth) / len(worth) if parsed else 0.0)


def circular(groups: Sequence[int], scores: Sequence[float]) -> dict[int, float]:
    """Group -> 1 when every one of its rotations is right, in order of first appearance."""
    hits: dict[int, float] = {}
    for group, score in zip(groups, scores, strict=True):
        hits[group] = min(hits.get(group, 1.0), score)
    return hits
