"""Letters: which option of a multiple-choice question an answer names, by letter or in words.

Owns how a letter is told from an article, a pronoun and a name, what counts as naming it, and what takes it back. Input: the answer and its options;
output: a letter and the rule that read it, or none. Every rule treats every letter alike; only `A` before a noun is an article and `I` before a verb a pronoun.

Sources: MMBench's evaluation (open-compass/VLMEvalKit, matching_util.py: a letter with its punctuation, else the one option whose text is named);
MMMU's (eval_utils.py: `(A)`, `A `, `A.`, else the text of an option). Unlike theirs nothing is drawn at random, and of two letters none is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from evals.suites import letter_words as vocabulary
from evals.suites.plain import plain, unicode_plain
from evals.suites.short_answers import normal, parse_yes_no, without_lead_in

_TOKEN = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)*|\d+(?:[.,]\d+)*|[\u3400-\u9fff]|\n|[^\sA-Za-z0-9]")
_TAKEN_BACK = re.compile(
    r"\b(?:wait|actually|or rather|sorry|correction|scratch that|on second thoughts?|my mistake|oops|i mean|hold on|looking (?:again|closer)"
    r"|let me (?:re\w+|check|look)|hmm+|i change)\b"
    r"|(?<=[.,;(?!-])\s*no\s*[,.]",
    re.I,
)
_ALL_TAKEN_BACK = re.compile(r"\b(?:that|this|it)(?:'s| is| was) (?:wrong|incorrect|not (?:right|correct))\b", re.I)
RANKS = ("final answer", "named", "conclusion", "leading letter", "only letter")
"""How firmly a letter is named; the firmest that is there counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mention:
    """Letters that are named together."""

    letters: tuple[str, ...]
    rank: str
    """Of RANKS."""
    denied: bool
    listed: bool
    """As the head of an option that is copied: `B. black dog`."""


def parse_choice(text: str, options: Mapping[str, str]) -> tuple[str, str]:
    """(letter, the rule that read it) of an answer to a multiple-choice question; ("", "") when none, or more than one, is named.

    options: letter -> its text, the letters that exist.
    """
    said = plain(text)
    bare = said.strip("\"'()[]{}<>.,:;!*_ \n-")
    if bare.upper() in options and len(bare) == 1:
        return bare.upper(), "letter" if bare.isupper() else "small letter"
    same = [letter for letter, option in options.items() if normal(option) == normal(without_lead_in(said)[0]) != ""]
    if len(same) == 1:
        return same[0], "option text"
    words = {token.upper() for token in _TOKEN.findall(said) if token.isalnum() and token.lower() not in vocabulary.JOINS}
    copied = any(normal(said) == normal(f"{letter}. {option}") for letter, option in options.items())
    if len(words) > 1 and words <= set(options) and not copied:
        return "", ""  # nothing but letters
    parts = _parts(said)
    for place, part in reversed(list(enumerate(parts))):
        letter, how = _read(part, options)
        if letter or how:
            return (letter, "taken back" if place and letter and how != "final answer" else how) if letter else ("", "")
        if _ALL_TAKEN_BACK.search(part) and place:
            return "", ""
    return "", ""


def _parts(said: str) -> list[str]:
    """The answer, cut where it takes something back."""
    cuts = [found.start() for found in _TAKEN_BACK.finditer(said)]
    return [said[start:end] for start, end in zip([0, *cuts], [*cuts, len(said)], strict=True) if said[start:end].strip()]


def _read(part: str, options: Mapping[str, str]) -> tuple[str, str]:
    """(letter, rule); ("", "two letters") for a part that names more than one; ("", "") for one that names none."""
    mentions = list(_mentions(_masked(part, options), options))
    denied = {letter for mention in mentions if mention.denied for letter in mention.letters}
    headed = {letter for mention in mentions if mention.listed and not mention.denied for letter in mention.letters}
    for rank in RANKS:
        named = [mention.letters for mention in mentions if mention.rank == rank and not mention.denied]
        found = {letter for letters in named for letter in letters} - (denied if rank != "final answer" else set())
        if rank == "final answer" and named:
            found = set(named[-1])
        if rank == "leading letter" and len(headed - denied) > 1:
            return "", "two letters"
        if len(found) == 1:
            return found.pop(), rank
        if found:
            return "", "two letters"
    return _option_text(part, options, denied)


def _masked(part: str, options: Mapping[str, str]) -> str:
    """The part without the option texts that hold a capital letter by themselves (`Vitamin C`): there it is no letter of an option."""
    for option in sorted(map(unicode_plain, options.values()), key=len, reverse=True):
        if len(option) > 1 and re.search(r"(?<![A-Za-z0-9])[A-Z](?![A-Za-z0-9])", option):
            part = re.sub(rf"(?<!\w){re.escape(option)}(?!\w)", " # ", part, flags=re.I)
    return part


def _mentions(part: str, options: Mapping[str, str]) -> Iterator[_Mention]:
    tokens = _TOKEN.findall(part)
    place = 0
    while place < len(tokens):
        if not _is_letter(tokens, place, options):
            place += 1
            continue
        last, letters = place, [tokens[place].upper()]
        while (following := _joined(tokens, last, options)) is not None:
            last = following
            letters.append(tokens[last].upper())
        before, after = tokens[:place], tokens[last + 1 :]
        rank = "" if len(letters) > 1 and after[:1] == ["?"] else _rank(before, tokens[place], after)
        if rank:
            closed = bool(after) and after[0] in ".):" and len(letters) == 1
            line = not before or before[-1] == "\n" or (before[-1] in vocabulary.OPEN and (len(before) == 1 or before[-2] == "\n"))
            denied = _denied(before, after)
            headed = line or before[-1].lower() in ("option", "choice") or _copies(after[1:], letters[0], options)
            yield _Mention(letters=tuple(dict.fromkeys(letters)), rank=rank, denied=denied, listed=closed and headed and bool(after[1:]))
        place = last + 1


def _is_letter(tokens: list[str], place: int, options: Mapping[str, str]) -> bool:
    """Whether a token is the letter of an option."""
    token = tokens[place]
    if len(token) != 1 or token.upper() not in options or not token.isascii() or not token.isalpha():
        return False
    before = tokens[place - 1] if place else "\n"
    after = tokens[place + 1] if place + 1 < len(tokens) else "\n"
    if token.islower():
        bracketed = after == ")" and (before in vocabulary.OPEN or before in "\n.:")
        headed = after in ".):" and before == "\n"
        named = _anchor(tokens[:place]) != "" and (after in vocabulary.ENDS or after in vocabulary.FOLLOWS)
        option = before.lower() in ("option", "choice", "letter") and (after in vocabulary.ENDS or after in vocabulary.FOLLOWS)
        return bracketed or headed or named or option
    word = after.lower()
    if token == "I" and (word in vocabulary.VERBS_OF_I or (after.isalpha() and word not in ("is", "because", "and", "or"))):
        return False
    if after == "'" and place + 2 < len(tokens) and tokens[place + 2].isalpha() and before not in vocabulary.OPEN:
        return False
    if after == "-" and place + 2 < len(tokens) and tokens[place + 2].isalnum() and before.isalpha():
        return False
    if after == ">" and before == "<":
        return True
    return after in vocabulary.ENDS or word in vocabulary.FOLLOWS or not after.isascii() or after in "([{<" or _predicate(tokens[place + 1 :])


def _predicate(after: list[str]) -> bool:
    """`best describes the picture` and its like, which no article has behind it."""
    return (
        len(after) > 1
        and after[0].lower() in ("best", "most", "clearly", "correctly", "accurately")
        and after[1].lower() in (vocabulary.DESCRIBES | vocabulary.FOLLOWS)
    )


def _joined(tokens: list[str], place: int, options: Mapping[str, str]) -> int | None:
    """Place of the letter that is joined to this one: `A and B`, `A/B`, `A, B`, `A) and B)`, `'A' or 'B'`, `A as well as B`."""
    following = place + 1
    while following < len(tokens) and tokens[following] in vocabulary.CLOSE:
        following += 1
    joins = following
    while joins < len(tokens) and (tokens[joins].lower() in (vocabulary.JOINS | vocabulary.BESIDE_JOINS) or tokens[joins] in vocabulary.OPEN):
        joins += 1
    if [token.lower() for token in tokens[joins : joins + 3]] == ["as", "well", "as"]:
        joins += 3
    if joins == following or joins >= len(tokens) or len(tokens[joins]) != 1 or tokens[joins].upper() not in options or not tokens[joins].isalpha():
        return None
    after = tokens[joins + 1].lower() if joins + 1 < len(tokens) else "\n"
    if tokens[joins].islower() and not (tokens[place].islower() and after in vocabulary.ENDS):
        return None
    between = tokens[following:joins]
    if all(token in vocabulary.PAUSES for token in between) and (
        after in vocabulary.COPULA - {"are", "were"}
        or after in vocabulary.DENY_AFTER
        or (after in (".", ":") and joins + 2 < len(tokens) and tokens[joins + 2] not in "\n")
        or (_denied(tokens[:place], []) and ("," not in between or tokens[place - 1].lower() == "of"))
    ):
        return None
    return joins if after in vocabulary.ENDS or after in vocabulary.FOLLOWS or after in vocabulary.COPULA or not after.isascii() or after in ")]}" else None


def _anchor(before: list[str]) -> str:
    """The word that names what follows: `answer` in `the answer is clearly`; "final" with `final` before it; "" where there is none."""
    passed: list[str] = []
    for place in range(len(before) - 1, -1, -1):
        word = before[place].lower()
        if word in vocabulary.NAMES:
            verb = any(one in vocabulary.VERB for one in passed)
            if word in ("answer", "answers") and place and before[place - 1].lower() == "final":
                return "final"
            meant = word == "say" and place > 0 and before[place - 1].lower() in ("i'd", "would")
            if word not in vocabulary.WEAK or verb or meant or (word == "it" and "is" in passed):
                return word
        if word in vocabulary.CJK_NAMES and word:
            return "答"
        if word not in vocabulary.FILLERS and word not in vocabulary.CJK_FILLERS and word not in vocabulary.NAMES and word not in vocabulary.DENY_BEFORE:
            return ""
        passed.append(word)
        if word == "\n" and passed.count("\n") > 2:
            return ""
    return ""


def _rank(before: list[str], token: str, after: list[str]) -> str:
    """Of RANKS; "" for a letter that only looks like one."""
    anchor = _anchor(before)
    if anchor:
        return "final answer" if anchor == "final" else "named"
    word = before[-1].lower() if before else "\n"
    if _praised(after):
        return "named"
    if word in vocabulary.CONCLUDES or (word in ",:" and len(before) > 1 and before[-2].lower() in vocabulary.CONCLUDES):
        return "conclusion"
    opened = [one for one in before if one not in vocabulary.OPEN and one != "\n" and one.lower() not in ("option", "choice", "answer", "letter")]
    if not opened and (not after or after[0].lower() not in vocabulary.COPULA):
        return "leading letter"
    if word == "." and before[-2].lower() in vocabulary.TITLES:
        return ""
    if word == "\n" or word in vocabulary.OPEN or word in vocabulary.BEFORE or not word[0].isalnum() or not word.isascii():
        return "only letter" if token.isupper() or word in vocabulary.OPEN or word in ("option", "choice", "letter", "\n") else ""
    return ""


def _praised(after: list[str]) -> bool:
    """`is the correct answer`, `best describes it`, 正确."""
    words = [word.lower() for word in after[:7]]
    if words and words[0] in vocabulary.CLOSE:
        words = words[1:]
    if words and words[0] and words[0] in "项选是":
        return any(word in vocabulary.CJK_GOOD for word in words[:3]) and not any(word in vocabulary.CJK_BAD for word in words[:3])
    if words and words[0] in ("best", "most", "clearly", "correctly", "accurately"):
        words = words[1:]
        if words and words[0] in vocabulary.DESCRIBES:
            return True
    if not words or words[0] not in vocabulary.COPULA:
        return bool(words) and words[0] in vocabulary.DESCRIBES
    rest = [word for word in words[1:] if word not in vocabulary.DEGREE and word not in vocabulary.COPULA]
    return bool(rest) and rest[0] in vocabulary.GOOD


def _denied(before: list[str], after: list[str]) -> bool:
    """`not B`, `B is wrong`, `rather than B`, `B can be ruled out`."""
    words = [word.lower() for word in after[:7]]
    if words and words[0] in vocabulary.CLOSE:
        words = words[1:]
    if words and words[0] in "项选" and words[0]:
        words = words[1:]
    if words and (words[0] in vocabulary.DENY_AFTER or (words[0] and words[0] in vocabulary.CJK_BAD)):
        return True
    if words and words[0] in (":", "-", "("):
        words = words[1:]
        if words and words[0] in vocabulary.BAD - {"out", "not"}:
            return True
    elif words and words[0] in vocabulary.COPULA:
        rest = [word for word in words[1:] if word not in vocabulary.DEGREE and word not in vocabulary.COPULA]
        if rest and rest[0] in vocabulary.BAD:
            return True
    elif words and words[0] in ("does", "do") and "not" in words[1:2]:
        return True
    for word in reversed([one.lower() for one in before[-6:]]):
        if word in vocabulary.DENY_BEFORE or (word in "不非" and word) or (word == "but" and vocabulary.ALL & {one.lower() for one in before[-6:]}):
            return True
        if (word == "out" and "rul" in " ".join(before[-6:]).lower()) or (word == "of" and "instead" in " ".join(before[-6:]).lower()):
            return True
        passed = word in vocabulary.FILLERS - {":", "\n", "-", "="} or word in vocabulary.CJK_FILLERS
        if not passed and word not in ("option", "choice", "answer", "either", "both", "of"):
            return False
    return False


def _copies(after: list[str], letter: str, options: Mapping[str, str]) -> bool:
    """Whether the text of the letter's own option follows."""
    own = _TOKEN.findall(unicode_plain(options[letter]).lower())
    return bool(own) and [word.lower() for word in after[: len(own)]] == own


def _option_text(part: str, options: Mapping[str, str], denied: set[str]) -> tuple[str, str]:
    """The option whose words the part has and does not deny; longer ones hide those within them."""
    forms = {letter: normal(option) for letter, option in options.items() if normal(option)}
    if {"yes", "no"} <= set(forms.values()):
        said, _ = parse_yes_no(part)
        if said:
            return next(letter for letter, form in forms.items() if form == said), "option text"
    words = normal(part).split()
    spans = [
        (start, start + len(form.split()), letter)
        for letter, form in forms.items()
        for start in range(len(words))
        if words[start : start + len(form.split())] == form.split()
    ]
    spans = [span for span in spans if not any(other[0] <= span[0] and span[1] <= other[1] and other[1] - other[0] > span[1] - span[0] for other in spans)]
    found = {letter for start, _, letter in spans if not _text_denied(words[max(0, start - 3) : start])} - denied
    loose = {word for word in re.findall(r"(?<![\w'])[B-HJ-Z](?![\w'])", _masked(part, options)) if word in options} - denied
    if len(found) == 1 and loose <= found:
        return found.pop(), "option text"
    return ("", "two letters") if len(found) > 1 else ("", "")


def _text_denied(before: list[str]) -> bool:
    return any(word in vocabulary.DENY_BEFORE - {"over", "than"} or word == "0" or word in ("no", "isn't", "instead") for word in before[-2:]) or before[
        -2:
    ] == [
        "rather",
        "than",
    ]
