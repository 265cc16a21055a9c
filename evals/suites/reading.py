"""Scoring: our own, versioned reading of short answers, beside the harness's.

Owns how a letter, a yes or no and a short answer are read out of what a model said, and what that is worth. Input: the answer and what is right;
output: Scored, which also says how it was read. Nothing is ever drawn at random: what cannot be read is wrong, and counted (`UNPARSED`).

Soft accuracy: Antol et al. 2015 (VQA, section 4): an answer is worth min(1, matches / 3), averaged over all subsets of nine annotators.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SCORER = "anyloom-1"
"""Version of everything here; bumped when any answer would be read or scored differently."""
UNPARSED = "unparsed"
EXPLAINED = {
    "vqa": "the harness compares the whole answer; ours also leaves out what leads in to it (`the answer is`, `it is a`) and reads the first word of an "
    "answer to a yes/no question",
    "choice": "the harness's static judge takes capital letters and substrings, in a fixed order; ours also reads `b` and `option d`, takes the letter that "
    "is named as the answer (`It's B because A is wrong` is B), tells the article `A` from the letter, and counts what it cannot read as wrong",
    "yes_no": "the harness compares the whole answer with yes or no; ours reads the first word, or the only yes or no in it",
    "exact": "the harness compares the whole answer; ours also leaves out what leads in to it (`the answer is`, `it is a`)",
}
"""reading -> why the two scores can differ."""
NUMBERS = dict(zip("none zero one two three four five six seven eight nine ten".split(), "0 0 1 2 3 4 5 6 7 8 9 10".split(), strict=True))
_LEAD_IN = re.compile(
    r"^(?:(?:the|my|correct|best|final)\s+)*answer(?:\s+is|\s*:)\s*|^(?:it|that|this)(?:\s+is|['’]s)\s+|^there\s+(?:is|are)\s+|^i\s+(?:see|think\s+it\s+is)\s+",
    re.I,
)
_LETTER = r"[\(\[]?(?:([A-H])(?![A-Za-z'’])|([a-h])(?=[\)\].:,;!?]|\s*$))[\)\]]?"
"""A capital letter that stands alone, or a small one that nothing but punctuation follows (`a` before a word is an article)."""
_WHOLE = re.compile(r"^[\(\[]?([A-Ha-h])[\)\]]?[.:,;!]?$")
_NAMED = (
    re.compile(rf"\b(?i:answer)(?:\s+(?i:is|would\s+be))?\s*:?\s*(?:(?i:option|choice)\s*)?{_LETTER}"),
    re.compile(r"\b(?i:option|choice|letter)(?:\s+(?i:is))?\s*:?\s*[\(\[]?([A-Ha-h])(?![A-Za-z'’])"),
    re.compile(rf"^(?i:it['’]s|it\s+is|i\s+(?:choose|pick|select|say|think\s+it['’]s|think\s+it\s+is))\s+{_LETTER}"),
    re.compile(r"^[\(\[]?([A-Ha-h])[\)\].:,]\s"),
)
_LONE = re.compile(r"(?<![A-Za-z0-9'’])(?:[\(\[]([A-H])[\)\]]|([B-H])(?![A-Za-z0-9'’])|(A)(?=[.,;:\)]|\s*$))")
_PUNCTUATION = re.compile(r"[^\w\s.:%/$-]|(?<!\d)[.:-]|[.:-](?!\d)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """One answer as we read it."""

    parsed: str
    """What was read; "" when nothing could be."""
    how: str
    """Which rule read it, or UNPARSED."""
    score: float


def parse_choice(text: str, options: Mapping[str, str]) -> tuple[str, str]:
    """(letter, how it was read) of an answer to a multiple-choice question; ("", UNPARSED) when none, or more than one, is named.

    options: letter -> its text, the letters that exist.
    """
    said = text.strip().strip("*_`\"' ")
    whole = _WHOLE.match(said)
    if whole and whole[1].upper() in options:
        return whole[1].upper(), "letter" if whole[1].isupper() else "small letter"
    for number, rule in enumerate(_NAMED):
        found = rule.search(said)
        letter = next((group for group in found.groups() if group), "").upper() if found else ""
        if letter in options and letter:
            return letter, "named" if number < 3 else "leading letter"
    lone = {next(group for group in found.groups() if group) for found in _LONE.finditer(said)} & options.keys()
    if len(lone) == 1:
        return lone.pop(), "only letter"
    return ("", UNPARSED) if lone else _option_text(said, options)


def _option_text(said: str, options: Mapping[str, str]) -> tuple[str, str]:
    """The option whose words the answer has; of several the one that contains all the others."""
    words = f" {normal(said)} "
    found = {letter: normal(option) for letter, option in options.items() if normal(option) and f" {normal(option)} " in words}
    longest = [letter for letter, own in found.items() if all(f" {other} " in f" {own} " for other in found.values())]
    return (longest[0], "option text") if len(longest) == 1 else ("", UNPARSED)


def score_choice(text: str, options: Mapping[str, str], answer: str) -> Scored:
    """1 when the letter read is the right one."""
    letter, how = parse_choice(text, options)
    return Scored(parsed=letter, how=how, score=float(letter == answer.strip().upper() and letter != ""))


def normal(text: str) -> str:
    """Case, punctuation, articles and number words evened out."""
    words = _PUNCTUATION.sub(" ", text.casefold().replace("'", "").replace("’", "")).split()
    return " ".join(NUMBERS.get(word, word) for word in words if word not in ("a", "an", "the"))


def without_lead_in(text: str) -> tuple[str, str]:
    """(the answer without what leads in to it, how)."""
    said = text.strip()
    rest = _LEAD_IN.sub("", said, count=1)
    return (rest, "lead-in left out") if rest != said and normal(rest) else (said, "as written")


def parse_yes_no(text: str) -> tuple[str, str]:
    """(yes or no, how); ("", UNPARSED) when neither or both are said."""
    words = re.findall(r"[a-z]+", text.casefold())
    if words[:1] and words[0] in ("yes", "no"):
        return words[0], "as written" if len(words) == 1 else "first word"
    said = {word for word in words if word in ("yes", "no")}
    return (said.pop(), "only yes or no") if len(said) == 1 else ("", UNPARSED)


def score_yes_no(text: str, answer: str) -> Scored:
    """1 when the yes or no that is read is the right one."""
    parsed, how = parse_yes_no(text)
    return Scored(parsed=parsed, how=how, score=float(parsed != "" and parsed == answer.strip().casefold()))


def _short(text: str, answers: Sequence[str]) -> tuple[str, str]:
    """A short answer, read as a yes or no where the right answers are one."""
    if all(normal(answer) in ("yes", "no") for answer in answers):
        parsed, how = parse_yes_no(text)
        if parsed:
            return parsed, how
    rest, how = without_lead_in(text)
    return (normal(rest), how) if normal(rest) else ("", UNPARSED)


def score_exact(text: str, answer: str) -> Scored:
    """1 when the short answer read is the right one."""
    parsed, how = _short(text, [answer])
    return Scored(parsed=parsed, how=how, score=float(parsed != "" and parsed == normal(answer)))


def score_vqa(text: str, answers: Sequence[str]) -> Scored:
    """Soft accuracy against the annotators' answers, each of them left out once."""
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
