"""Plain text of an answer: what a model wrote without the dress it wrote it in.

Owns Unicode forms, thinking that comes before the answer, markup, text that is struck out, and boxes. Input: an answer; output: text in which only letters,
digits, plain quotes, plain hyphens and punctuation are left to read. A box or an answer tag becomes the sentence `the final answer is ...`, which is what it
says.
"""

from __future__ import annotations

import re
import unicodedata

_QUOTES = str.maketrans({**dict.fromkeys("‘’‚‛`´ʼ′", "'"), **dict.fromkeys("“”„«»「」『』″", '"'), **dict.fromkeys("‐‑‒–—―−", "-"), "⁄": "/", "\u00a0": " "})
_INVISIBLE = re.compile(r"[\u200b-\u200f\u2060\ufeff]")
_THINKING = re.compile(r"<(think|thinking|reasoning)>.*?(?:</\1>|\Z)", re.S | re.I)
_THOUGHT = re.compile(r"^.*</(?:think|thinking|reasoning)>", re.S | re.I)
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|mathbf|mathrm|rm|bf)\s*\{([^{}]*)\}")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{([^{}]*)\}|<\|begin_of_box\|>(.*?)<\|end_of_box\|>|<answer>(.*?)(?:</answer>|\Z)", re.S | re.I)
_MATHS = re.compile(r"\${1,2}([^$\n]*\\[a-z][^$\n]*|[A-Za-z]|[\d.,+-]+)\${1,2}(?!\d)|\\[(\[](.*?)\\[)\]]")
"""A formula; a dollar before an amount of money is none."""
_TAG = re.compile(r"</?[a-z][a-z0-9]*(?:\s[^<>]*)?/?>", re.I)
_STRUCK = re.compile(r"~~(?=\S)[^\n]+?(?<=\S)~~|<(del|strike)>.*?</\1>", re.S | re.I)
"""What its writer struck out."""
_EMPHASIS = re.compile(r"(?<!\w)(\*{1,3}|_{1,3})(?=\S)([^*\n]+?)(?<=\S)\1(?!\w)")


def unicode_plain(text: str) -> str:
    """Compatibility forms (NFKC), typographic quotes and hyphens, invisible characters: evened out."""
    return _INVISIBLE.sub("", unicodedata.normalize("NFKC", text).translate(_QUOTES))


def plain(text: str) -> str:
    """The answer that is left to read; lines stay lines."""
    said = unicode_plain(text)
    said = _THOUGHT.sub("", said)
    said = _STRUCK.sub(" ", _THINKING.sub("", said))
    said = _MATHS.sub(lambda found: f" {found[1] or found[2]} ", _WRAPPED.sub(r"\1", said))
    said = _BOXED.sub(lambda found: f"\nthe final answer is {next(group for group in found.groups() if group is not None).strip()}.\n", said)
    said = _EMPHASIS.sub(r"\2", _EMPHASIS.sub(r"\2", _without_tags(said)))
    said = re.sub(r"^\s*(?:#+|>)\s*", "", said.replace("**", ""), flags=re.M)
    return re.sub(r"[^\S\n]+", " ", said).strip()


def _without_tags(said: str) -> str:
    """The text without its HTML tags; a capital letter in angle brackets that closes nowhere is a letter."""
    return _TAG.sub(lambda tag: tag[0] if re.fullmatch("<[A-Z]>", tag[0]) and f"</{tag[0][1:]}".lower() not in said.lower() else " ", said)
