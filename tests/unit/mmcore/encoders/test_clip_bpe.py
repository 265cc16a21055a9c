"""CLIP's words: the same ids as open_clip's own tokenizer (pure Python) and as transformers' CLIPTokenizer, on varied texts."""

from __future__ import annotations

import importlib.util
import os
import random
import unicodedata
from importlib import metadata

import pytest
from transformers import CLIPTokenizer

from mmcore.encoders.imagebind import clip_bpe

PARTS = (
    *(
        "A photo of a dog",
        "it's they'll WE'VE don't",
        "3 km, 12,500 kg — 42%",
        "naïve café Ærø ŒUVRE",
        "straße İstanbul ΣΊΣΥΦΟΣ",
        "漢字かな交じり文",
        "Привет, мир!",
    ),
    *("مرحبا بالعالم", "नमस्ते दुनिया", "한국어 텍스트", "שלום", "ไทย", "e\u0301 o\u0308 n\u0303", "ﬁne ﬂow", "½ ² ⅷ ①", "x² + y₁ ≤ ∞"),
    *("&amp; &lt;b&gt; &quot;quoted&quot;", "&amp;amp; twice", "&#233; &#x1F600; &nbsp;", "&copy;2024 &unknown; &", "a<b & c>d", "schÃ¶n â€œquotesâ€\x9d"),
    *(
        "🐕‍🦺 🇩🇪 👩🏽‍🚀 ❤️",
        "😀😀😀",
        "!!! ??? ... ;-) :-(",
        "#hash @you http://a.b/c?d=e&f=g",
        "snake_case camelCase",
        "\t tab \r\n line\u2028sep",
        "zero\u200bwidth \ufeff bom",
    ),
    *(
        "\u00a0hard\u3000wide",
        "'s 't 're 've 'm 'll 'd 'x",
        "’s ’ll",
        "''' \"\"\" ```",
        "aaaaaaaaaaaaaaaaaaaa",
        "supercalifragilisticexpialidocious",
        "0123456789",
        "\x07bell\x1fseparator",
    ),
)


def texts(count: int) -> list[str]:
    """Each part alone, then seeded mixtures of parts and of single signs from all over Unicode, some of them long."""
    draw = random.Random(7)
    made = ["", " ", *PARTS]
    while len(made) < count:
        pieces = [draw.choice(PARTS) for _ in range(draw.randint(1, 4))]
        if draw.random() < 0.5:
            pieces += ["".join(chr(draw.choice((draw.randint(32, 126), draw.randint(160, 0x2FFF), draw.randint(0x1F300, 0x1FAFF)))) for _ in range(12))]
        made.append(draw.choice(("", " ", "  ", "-")).join(pieces) * (60 if draw.random() < 0.05 else 1))
    return made


@pytest.fixture(scope="module")
def their_tokenizer():
    """open_clip's tokenizer module alone; importing it sets an environment variable, which is put back."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    path = metadata.distribution("open_clip_torch").locate_file("open_clip/tokenizer.py")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer_alone", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if before is None:
        del os.environ["TOKENIZERS_PARALLELISM"]
    else:
        os.environ["TOKENIZERS_PARALLELISM"] = before
    return module.SimpleTokenizer()


def test_ids_are_those_of_open_clip(their_tokenizer):
    for text in texts(600):
        assert clip_bpe.encode(text) == their_tokenizer.encode(text), ascii(text)


def test_ids_are_those_of_transformers():
    """On signs that have been in Unicode for a while: each regular-expression engine knows the letters of another version."""
    vocabulary = {clip_bpe._model().id_to_token(i): i for i in range(clip_bpe.START)} | dict(zip(clip_bpe.MARKS, (clip_bpe.START, clip_bpe.END), strict=True))
    other = CLIPTokenizer(vocab=vocabulary, merges=clip_bpe._merges())
    assert len(other) == 49408
    old = [text for text in texts(900) if all(unicodedata.ucd_3_2_0.category(sign) != "Cn" or sign >= "\U0001f000" for sign in text)]
    assert len(old) > 300
    for text in old:
        assert [clip_bpe.START, *clip_bpe.encode(text), clip_bpe.END] == other(clip_bpe.clean(text))["input_ids"], ascii(text)


def test_a_mark_in_a_text_is_the_mark():
    assert clip_bpe.encode("a <|endoftext|> b <|StartOfText|>") == [320, 49407, 321, 49406]


def test_another_vocabulary_is_refused(monkeypatch):
    monkeypatch.setattr(clip_bpe, "SHA256", "0")
    with pytest.raises(ValueError, match=r"bpe_simple_vocab_16e6\.txt\.gz of the installed open_clip_torch is not CLIP's vocabulary"):
        clip_bpe._merges()
    monkeypatch.setattr(clip_bpe, "PACKAGE", "no-such-package")
    with pytest.raises(ValueError, match="install the package no-such-package"):
        clip_bpe._merges()
