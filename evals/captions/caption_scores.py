"""Scores of captions against references: CIDEr, BLEU-1..4, ROUGE-L and, where it can run, SPICE, all by pycocoevalcap.

Owns the tokenizers and how the library is called. Input: generated captions and their references; output: numbers a caption and for the corpus.

The scores of two tokenizers are not comparable: the tokenizer's name is part of what a score is called. `words-1` is ours and runs everywhere; `ptb` is the
library's PTB tokenizer, a Java program, which published scores are made with.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from infra.step import AnyloomError

BLEUS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def words(texts: Sequence[str]) -> list[str]:
    """`words-1`: lower case, runs of letters and digits with inner apostrophes, one space between them."""
    return [" ".join(_WORD.findall(text.lower())) for text in texts]


def _ptb(texts: Sequence[str]) -> list[str]:
    """The library's tokenizer. Raises AnyloomError without Java."""
    if shutil.which("java") is None:
        raise AnyloomError("tokenizer=ptb is a Java program and there is no java here: install a Java runtime, or use tokenizer=words-1")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    found = PTBTokenizer().tokenize({i: [{"caption": text or " "}] for i, text in enumerate(texts)})
    return [found[i][0] if found.get(i) else "" for i in range(len(texts))]


TOKENIZERS: dict[str, Callable[[Sequence[str]], list[str]]] = {"words-1": words, "ptb": _ptb}


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenized:
    """Generated captions with their references, tokenized."""

    generated: list[str]
    references: list[list[str]]

    def where(self, keep: np.ndarray) -> Tokenized:
        """Some of them, by a mask."""
        rows = np.flatnonzero(keep).tolist()
        return Tokenized(generated=[self.generated[i] for i in rows], references=[self.references[i] for i in rows])


def tokenized(generated: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str) -> Tokenized:
    """Raises AnyloomError for an unknown tokenizer, or one that cannot run here; ValueError for a caption without references."""
    if tokenizer not in TOKENIZERS:
        raise AnyloomError(f"no tokenizer called '{tokenizer}': use one of {', '.join(TOKENIZERS)}")
    if len(generated) != len(references) or not all(references):
        raise ValueError(f"every one of {len(generated)} captions needs references of its own, not {len(references)} lists")
    flat = TOKENIZERS[tokenizer]([*generated, *(text for texts in references for text in texts)])
    found, rest = flat[: len(generated)], iter(flat[len(generated) :])
    return Tokenized(generated=found, references=[[next(rest) for _ in texts] for texts in references])


def _pairs(captions: Tokenized) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    return dict(enumerate(captions.references)), {i: [text] for i, text in enumerate(captions.generated)}


def cider(captions: Tokenized) -> np.ndarray:
    """CIDEr-D of every caption, 0..10 [N] (Vedantam et al. 2015, arXiv 1411.5726): weighted by how many media's references have an n-gram. The corpus score is
    their mean."""
    from pycocoevalcap.cider.cider import Cider

    return np.asarray(Cider().compute_score(*_pairs(captions))[1], np.float64)


def rouge_l(captions: Tokenized) -> np.ndarray:
    """ROUGE-L of every caption, 0..1 [N] (Lin 2004, F with beta 1.2)."""
    from pycocoevalcap.rouge.rouge import Rouge

    return np.asarray(Rouge().compute_score(*_pairs(captions))[1], np.float64)


def bleu(captions: Tokenized) -> list[float]:
    """Corpus BLEU-1..4 (Papineni et al. 2002), brevity against the closest reference."""
    from pycocoevalcap.bleu.bleu import Bleu

    return [float(value) for value in Bleu(4).compute_score(*_pairs(captions), verbose=0)[0]]


def spice_refusal() -> str:
    """Why SPICE cannot run here; "" when it can."""
    if shutil.which("java") is None:
        return "SPICE is a Java program and there is no java here"
    package = find_spec("pycocoevalcap.spice")
    folder = Path(package.submodule_search_locations[0]) / "lib" if package and package.submodule_search_locations else Path()
    missing = [name for name in _SPICE_MODELS if not (folder / name).is_file()]
    return f"SPICE needs {' and '.join(missing)} in pycocoevalcap's spice/lib, which are a download of their own" if missing else ""


def spice(captions: Tokenized) -> np.ndarray:
    """SPICE of every caption, 0..1 [N] (Anderson et al. 2016, arXiv 1607.08822). Raises AnyloomError where it cannot run."""
    refusal = spice_refusal()
    if refusal:
        raise AnyloomError(f"{refusal}; add them, or set spice=false")
    from pycocoevalcap.spice.spice import Spice

    return np.array([float(item["All"]["f"]) for item in Spice().compute_score(*_pairs(captions))[1]])


def library() -> str:
    """Name and version of what computes the scores."""
    return f"pycocoevalcap {version('pycocoevalcap')}"
