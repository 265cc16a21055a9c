"""Short answers: words, numbers, yes and no, evened out as the official scorers do.

Owns the forms in which two short answers are the same, and what leads in to one. Input: an answer; output: its form, or the yes or no in it.

Sources: VQA v2's evaluation (GT-Vision-Lab/VQA, vqaEval.py: case, punctuation, contractions, number words, articles, commas within numbers); MMMU's
(eval_utils.py: numbers are compared as numbers); POPE's (evaluate.py: `not` makes a statement a no).
"""

from __future__ import annotations

import re
from decimal import Decimal

from evals.suites.plain import plain, unicode_plain
from evals.suites.yes_no_words import MEANING

NUMBERS = dict(zip("none zero one two three four five six seven eight nine ten".split(), "0 0 1 2 3 4 5 6 7 8 9 10".split(), strict=True))
ARTICLES = ("a", "an", "the")
_CONTRACTED = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he's he'd've how'd how'll how's
i'd've i'm i've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't o'clock oughtn't shan't she'd've
should've shouldn't shouldn't've somebody'd somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd
there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've y'all you'd you'd've
you'll you're you've""".split()
_CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTED}
"""Written without its apostrophe -> with it: the official table, but for forms that are words of their own."""
_NUMBER = re.compile(r"([+-]?)([$€£¥]?)([+-]?)(\d{1,3}(?:,\d{3})+|\d*)(\.\d+)?(%?)")
_UNIT = re.compile(r"(?<=\d)\s+(?=%)|(?<=[$€£¥])\s+(?=[\d.])")
"""What stands between a number and its sign of percent or currency."""
_PUNCTUATION = re.compile(r"[;\[\]\"{}()=+\\_\-><@`,?!]|(?<!\d)/|/(?!\d)|\.(?!\d)")
_EDGES = ";:[]\"'{}()=\\_><@`,?!*"
_AROUND = f"{_EDGES} .。、…¡¿؟"
"""What may stand around a word that is the whole answer."""
_LEAD_IN = re.compile(
    r"^(?:(?:so|well|ok|okay|sure)\s*[,.!]\s*)?"
    r"(?:(?:(?:the|my)\s+)?(?:(?:short|correct|right|best|final)\s+)*answer(?:\s+is(?:\s*:)?|\s*[:=])\s*|(?:it|that|this)(?:\s+is|'s)\s+|there\s+(?:is|are)\s+|there's\s+"
    r"|i\s+(?:can\s+)?see\s+|i\s+(?:think|believe)\s+(?:that\s+)?(?:it\s+is|it's|this\s+is)\s+)",
    re.I,
)
_ECHO = re.compile(r"[\(\[]?\b(?:(?:yes|s[iíì])\s*(?:/|or|and|[oye])\s*no|no\s*(?:/|or|and|[oye])\s*(?:yes|s[iíì]))\b[\)\]]?\s*[?:.]?")
_SAID = re.compile(r"\b(yes|yeah|yep|yup|no|nope|nah)\b")
_YES = ("yes", "yeah", "yep", "yup")
_FOREIGN_YES = re.compile(r"\b(?:sí|sì)\b")
"""Beside a `no`, which is English as well, it is both."""
_TAKEN_BACK = re.compile(r"\b(?:wait|actually|sorry|correction|i mean|scratch that|on second thought|my mistake|rather|oops|final answer)\b")
_PARTICLE = r"(?!\s+(?!(?:there|it|i|the|this|that|these|those|he|she|they|we|you|not|because|since|as|sir|and|but|or|is|isn't)\b)[a-z])"
"""What follows a `no` that answers: not a noun, as in `no dog`."""
_NO_PARTICLE = re.compile(rf"\bno\b{_PARTICLE}")
_DENIED = re.compile(r"\bnot\s+(?:an?\s+)?[\"']?(?:yes|no)\b")
_NO_IDEA = re.compile(r"\bno\s+(?:idea|clue|information|comment|answer|way|means|doubt|question|one\s+(?:knows|can))\b")
_STATEMENT = re.compile(
    r"^(?:there\s+(?:is|are|was|were)\s+(?:not|no)\b|there's\s+(?:not|no)\b|there\s+(?:isn't|aren't|wasn't|weren't)\b|i\s+(?:can\s+)?see\s+no\b"
    r"|i\s+(?:do\s+not|don't|cannot|can't|can\s+not)\s+see\b|the\s+(?:image|picture|photo|video|scene|audio)\s+(?:(?:shows|has|contains)\s+no\b|does\s+not\b|doesn't\b))"
)
_NEGATED = re.compile(
    r"^(?:the|a|an|this|that|these|those|he|she|it|they|his|her|its|their|none|nobody|nothing)\b[^.;:?!\n]*?\b(?:is|are|was|were|does|do|did|has|have|had)"
    r"(?:\s+not|n't)\b(?!\s+(?:\w+ly\s+|really\s+|very\s+|quite\s+|entirely\s+)?(?:sure|certain|clear|able|possible|enough|tell|say|know|only|just|determin\w*|"
    r"provid\w*|given|specif\w*|stat\w*|mention\w*|show|indicat\w*|allow|without|un\w+)\b)[^.;:?!\n]*[.!]?$"
)
"""One sentence that denies what was asked; what cannot be told is no denial."""
_TWICE_NEGATED = re.compile(r"\b(?:no|not|never|without|nor|neither|but|however|unless|although|whether|if)\b|n't\b")
_FINAL = re.compile(r"(?:^|(?<=[\s(]))(?:the\s+|my\s+)?final\s+answer(?:\s+is)?\s*:?\s+(?=\S)([^\n]+)", re.I)
_PHRASES = {
    "no": (
        "not really",
        "definitely not",
        "certainly not",
        "absolutely not",
        "of course not",
        "not at all",
        "i do not think so",
        "i don't think so",
        "negative",
    ),
    "yes": ("definitely", "certainly", "absolutely", "of course", "indeed", "affirmative", "i think so", "i believe so"),
}
"""Whole answers that are a yes or a no in other words."""


def normal(text: str) -> str:
    """The form in which two short answers are compared. Never empty but for an answer without a visible character: what has only articles or signs stays."""
    said = _UNIT.sub("", unicode_plain(text).casefold())
    words = [part for word in said.split() for part in _word(word).split()]
    kept = [_CONTRACTIONS.get(word, word) for word in (NUMBERS.get(word, word) for word in words) if word not in ARTICLES]
    return " ".join(kept) or " ".join(words) or " ".join(said.split())


def _word(word: str) -> str:
    """A word without its punctuation; a number in its one form, with its sign."""
    bare = word.strip(_EDGES)
    number = _number(bare.rstrip(".") if bare.count(".") > 1 or bare.endswith(".") else bare)
    if number:
        return number
    joined = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", bare)
    return _PUNCTUATION.sub(lambda found: "" if found[0] == "." else " ", joined).strip()


def _number(word: str) -> str:
    """5.00 -> 5, .5 -> 0.5, 1,000 -> 1000, -5 -> -5; "" for what is not a number."""
    found = _NUMBER.fullmatch(word)
    if found is None or not (found[4] or found[5]):
        return ""
    value = Decimal((found[4].replace(",", "") or "0") + (found[5] or ""))
    sign = "-" if "-" in (found[1], found[3]) and value else ""
    whole = value == value.to_integral_value()
    return f"{sign}{found[2]}{int(value) if whole else format(value.normalize(), 'f')}{found[6]}"


def as_precise_as(said: str, right: str) -> str:
    """A number said with more decimals than the right one has (two at least) is rounded to as many; anything else stays."""
    try:
        places = max(2, -int(Decimal(right).as_tuple().exponent))
        return (_number(str(round(Decimal(said), places))) or said) if "." in right else said
    except ArithmeticError:
        return said


def without_lead_in(text: str) -> tuple[str, str]:
    """(the answer without what leads in to it, how): behind the last `final answer` (a box and an answer tag say that), or behind the words that begin it."""
    said = rest = plain(text)
    final = _FINAL.findall(said)
    if final and any(character.isalnum() for character in final[-1]):
        rest = final[-1].strip()
    for _ in range(3):
        shorter = _LEAD_IN.sub("", rest, count=1).strip()
        if not any(character.isalnum() for character in shorter):
            break
        rest = shorter
    return (rest, "final answer" if final else "lead-in left out") if rest != said else (text.strip(), "as written")


def parse_yes_no(text: str) -> tuple[str, str]:
    """(yes or no, how); ("", "") when neither, or both, are said: `Yes/No` and `yes and no` are both."""
    said = plain(text).casefold()
    echoed = _ECHO.sub(" ", said)
    said = _NO_IDEA.sub(" ", _DENIED.sub(" ", echoed))
    spoken = [(found.start(), "yes" if found[0] in _YES else "no") for found in _SAID.finditer(said) if _answers(said, found)]
    words = re.findall(r"[a-z']+", said)
    if _FOREIGN_YES.search(said) and any(word == "no" for _, word in spoken):
        return "", ""
    if len({word for _, word in spoken}) == 2:
        last = max(place for place, word in spoken if word != spoken[-1][1])
        if _TAKEN_BACK.search(said, last, spoken[-1][0]):
            return spoken[-1][1], "taken back"
        alone = {line.strip(_EDGES + " .*") for line in said.splitlines()} & {found[0] for found in _SAID.finditer(said)}
        return ("yes" if alone <= set(_YES) else "no", "a line of its own") if len(alone) == 1 else ("", "")
    if spoken:
        return spoken[0][1], "as written" if len(words) == 1 else "first word" if spoken[0][0] == len(said) - len(said.lstrip("\"'([ ")) else "only yes or no"
    if said == echoed and (_STATEMENT.match(said) or (_NEGATED.match(said) and len(_TWICE_NEGATED.findall(said)) == 1)):
        return "no", "statement"
    for word, phrases in _PHRASES.items():
        if said.strip(" .!,") in phrases:
            return word, "stock phrase"
    word = MEANING.get(plain(without_lead_in(text)[0]).casefold().strip(_AROUND), "")
    return word, "another language" if word else ""


def _answers(said: str, found: re.Match[str]) -> bool:
    """Whether a yes or no is an answer, and not the `no` of `no dog`; the first word is one."""
    return found[0] != "no" or found.start() == 0 or bool(_NO_PARTICLE.match(said, found.start()))
