"""English words -> the phoneme ids that a Piper voice reads, by a pronouncing dictionary.

Owns the reading of CMU's dictionary (words in ARPAbet) and its table to the IPA signs of Piper's espeak-ng voices, after the phone list of the dictionary
and the phonemes of espeak-ng's en-us. Input: the dictionary's text, the voice's table sign -> id, a text; output: ids. A word that the dictionary does not
have is an error, never guessed. Importing this module must not import torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from infra.step import AnyloomError

IPA = {
    "AA": "ɑː", "AE": "æ", "AH": "ʌ", "AO": "ɔː", "AW": "aʊ", "AY": "aɪ", "EH": "ɛ", "ER": "ɜː", "EY": "eɪ", "IH": "ɪ", "IY": "iː", "OW": "oʊ", "OY": "ɔɪ",
    "UH": "ʊ", "UW": "uː", "B": "b", "CH": "tʃ", "D": "d", "DH": "ð", "F": "f", "G": "ɡ", "HH": "h", "JH": "dʒ", "K": "k", "L": "l", "M": "m", "N": "n",
    "NG": "ŋ", "P": "p", "R": "ɹ", "S": "s", "SH": "ʃ", "T": "t", "TH": "θ", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "ʒ",
}  # fmt: skip
"""ARPAbet -> IPA, of a vowel that carries stress."""
UNSTRESSED = {"AH": "ə", "ER": "ɚ", "IY": "i"}
"""The vowels that sound otherwise without stress."""
STRESS = {"0": "", "1": "ˈ", "2": "ˌ"}
BEGIN, END, PAD, GAP, STOP = "^", "$", "_", " ", "."
"""Signs of Piper's table: both ends of a text, what stands between any two signs, the gap between words, and the full stop that ends a sentence."""
_QUOTED, _WORD = re.compile(r'"([^"]*)"'), re.compile(r"[a-z']+")


class Pronouncer:
    """dictionary: CMU's, a word and its phones a line; ids: the voice's phoneme_id_map."""

    def __init__(self, dictionary: Path, ids: Mapping[str, list[int]]):
        """Raises AnyloomError for a line that is no entry, or a table without a sign that is needed."""
        self._ids, self._words = ids, _entries(dictionary)
        needed = {BEGIN, END, PAD, GAP, STOP, *STRESS.values(), *"".join([*IPA.values(), *UNSTRESSED.values()])} - {""}
        if missing := sorted(needed - set(ids)):
            raise AnyloomError(f"the voice has no phoneme '{missing[0]}': use a Piper voice of espeak-ng's en-us")

    def ids(self, text: str) -> list[int]:
        """Phoneme ids of a text's spoken words (see spoken). Raises AnyloomError for a word that the dictionary does not have."""
        signs = GAP.join(self._said(word, text) for word in spoken(text)) + STOP
        padded = [BEGIN, PAD, *(piece for sign in signs for piece in (sign, PAD)), END]
        return [number for sign in padded for number in self._ids[sign]]

    def _said(self, word: str, text: str) -> str:
        if word not in self._words:
            raise AnyloomError(f"the pronouncing dictionary has no word '{word}' (in '{text}'): word the caption otherwise, or leave it out")
        return "".join(map(_sign, self._words[word].split()))


def spoken(text: str) -> list[str]:
    """The words of a text that are said: those between double quotes where there are any, else all; lower case. Raises AnyloomError when there are none."""
    quoted = _QUOTED.findall(text)
    words = _WORD.findall(" ".join(quoted or [text]).lower())
    if not words:
        raise AnyloomError(f"there is nothing to say in '{text}': a spoken caption needs English words")
    return words


def _sign(phone: str) -> str:
    """One ARPAbet phone, with its stress mark before it."""
    name, stress = (phone[:-1], phone[-1]) if phone[-1].isdigit() else (phone, "")
    return UNSTRESSED[name] if stress == "0" and name in UNSTRESSED else STRESS.get(stress, "") + IPA[name]


def _entries(path: Path) -> dict[str, str]:
    """word -> its first pronunciation; further ones are `word(2)`, comments begin with #."""
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        word, _, phones = line.partition("#")[0].strip().partition(" ")
        if not word:
            continue
        if not phones or any(phone.rstrip("012") not in IPA for phone in phones.split()):
            raise AnyloomError(f"{path}, line {number}: '{line.strip()}' is no entry of a pronouncing dictionary (a word and its ARPAbet phones)")
        found.setdefault(word, phones)
    return found
