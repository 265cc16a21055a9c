"""CLIP's words: a text -> ids of byte-pair pieces, as CLIP and ImageBind read it.

Owns the cleaning of a text, its cut into words and the 49408 pieces. The list of merges is the file that the package open_clip_torch carries (MIT; the
package itself is not imported), checked by its hash; the merging is done by `tokenizers`. Input: a text; output: ids without start, end and padding
(mmcore.encoders.imagebind.inputs adds those).

Source: Radford et al. 2021 (arXiv 2103.00020), section 2.4; byte-pair merging: Sennrich et al. 2016 (arXiv 1508.07909).
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import html
from importlib import metadata
from pathlib import Path

import ftfy
import regex
from tokenizers import models, pre_tokenizers

PACKAGE, FILE = "open_clip_torch", "open_clip/bpe_simple_vocab_16e6.txt.gz"
SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
NUM_MERGES = 48894
"""The file has more lines; CLIP uses the first ones: 2 * 256 bytes + merges + 2 marks = 49408 pieces."""
MARKS = ("<|startoftext|>", "<|endoftext|>")
START, END = 49406, 49407
"""Ids of MARKS, the two highest. A mark that stands in a text is read as the mark, as the public code does."""
WORDS = regex.compile(r"<\|(?:start|end)oftext\|>|'(?:s|t|re|ve|m|ll|d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE)
"""Marks, English endings, runs of letters, single digits, runs of other signs."""


def clean(text: str) -> str:
    """Broken encodings mended (ftfy), HTML entities resolved twice, white space made single blanks, lower case."""
    mended = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
    return regex.sub(r"\s+", " ", mended).strip().lower()


def _merges() -> list[tuple[str, str]]:
    """Pairs of pieces, the most frequent first. Raises ValueError when the package is missing or carries another file."""
    try:
        packed = Path(str(metadata.distribution(PACKAGE).locate_file(FILE))).read_bytes()
    except (metadata.PackageNotFoundError, FileNotFoundError) as error:
        raise ValueError(f"CLIP's vocabulary is missing: install the package {PACKAGE}, which carries {FILE}") from error
    if hashlib.sha256(packed).hexdigest() != SHA256:
        raise ValueError(f"{FILE} of the installed {PACKAGE} is not CLIP's vocabulary: install the release named in requirements.lock")
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : NUM_MERGES + 1]  # line 0 names the format
    return [(first, second) for first, _, second in (line.partition(" ") for line in lines)]


@functools.cache
def _model() -> models.BPE:
    """The merging model: bytes, bytes that end a word, then one piece for each merge."""
    merges = _merges()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(letter + "</w>" for letter in letters), *(first + second for first, second in merges)]
    return models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, end_of_word_suffix="</w>")


@functools.cache
def _letter_of_byte() -> list[str]:
    """Byte -> the sign that stands for it: itself where it can be printed, else the next one from U+0100 on."""
    printed = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (chr(256 + n) for n in range(256 - len(printed)))
    return [chr(byte) if byte in printed else next(others) for byte in range(256)]


def encode(text: str) -> list[int]:
    """Ids of a text's pieces, any number of them. Raises ValueError when the vocabulary is missing."""
    ids: list[int] = []
    for word in WORDS.findall(clean(text)):
        if word in MARKS:
            ids.append(START + MARKS.index(word))
        else:
            ids += [piece.id for piece in _model().tokenize("".join(_letter_of_byte()[byte] for byte in word.encode("utf-8")))]
    return ids
