"""Requests for media: the prompts of eval_generation, and the media that what is made is compared with.

Owns the wordings of videos and audio clips, the draw of held-out captions and of reference media. Input: shards; output: Request, Reference. No wording here
stands in a training list.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evals.generation.config import GenerationEvalConfig
from evals.generation.drawing_prompts import NEW_REQUESTS as DRAW_CONCEPTS
from evals.generation.drawing_prompts import NEW_REQUESTS_OF as DRAW
from evals.generation.requests import concept_requests
from evals.generation.speaking_prompts import NEW_REQUESTS as SPEAK_CONCEPTS
from evals.heldout import SHARDS, distinct_media
from infra.step import StepContext
from mmcore.concepts.shapes import CONCEPTS, asked_crops
from mmcore.stores.shards import ShardSet

HELD_OUT, CONCEPTS_SUITE = "held_out", "concepts"
WORDINGS = {
    "image": DRAW,
    "video": ("could you film {} for me", "produce a short clip of {}", "would you kindly record a video of {}", "give me moving pictures of {}, nothing else"),
    "audio": ("i want to listen to {}", "produce a recording of {}", "would you kindly let me listen to {}", "give me a recording of {}, nothing else"),
}
"""{}: what the medium should show or sound like."""
CONCEPT_WORDINGS = {"image": DRAW_CONCEPTS, "audio": SPEAK_CONCEPTS}


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One thing asked for."""

    suite: str
    modality: str
    text: str
    caption: str
    """What is asked for."""
    concept: int = -1
    """Place in CONCEPTS; -1: it is none."""
    shown: bool = False
    """A seeded draw that the report shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A real medium that made ones are compared with."""

    data: bytes
    sha256: str
    caption: str


def requests_of(ctx: StepContext[GenerationEvalConfig]) -> list[Request]:
    """Every request: the held-out captions of each modality, then the concepts."""
    config = ctx.config
    found = []
    for modality, dataset in config.datasets:
        captions = _captions(_shards(ctx, modality), dataset, config)
        wordings = WORDINGS[modality]
        texts = [(wordings[i % len(wordings)].format(caption), caption, -1) for i, caption in enumerate(captions)]
        found += _suite(HELD_OUT, modality, texts, config)
    for modality, _ in config.concepts:
        prompts = concept_requests(CONCEPTS_SUITE, CONCEPT_WORDINGS[modality], config.concept_draws, config.seed)
        found += _suite(CONCEPTS_SUITE, modality, [(prompt.text, _caption(prompt.concept), prompt.concept) for prompt in prompts], config)
    return found


def _suite(suite: str, modality: str, texts: Sequence[tuple[str, str, int]], config: GenerationEvalConfig) -> list[Request]:
    shown = set(np.random.default_rng(config.seed).permutation(len(texts))[: config.shown].tolist())
    return [
        Request(suite=suite, modality=modality, text=text, caption=caption, concept=concept, shown=number in shown)
        for number, (text, caption, concept) in enumerate(texts)
    ]


def _caption(concept: int) -> str:

    return CONCEPTS[concept].caption


def in_sentence(caption: str) -> str:
    """A caption as it stands inside a sentence: without its full stop, and a capital only where a word has several."""
    text = caption.strip().rstrip(".!").strip()
    return text if len(text) > 1 and text[:2].isalpha() and text[:2].isupper() else text[:1].lower() + text[1:]


def _captions(shards: ShardSet, dataset: str, config: GenerationEvalConfig) -> list[str]:
    """A seeded draw of the dataset's distinct captions of few words."""
    texts = sorted({in_sentence(text) for meta in shards.metas(sorted(shards.keys(source=dataset))) for text in meta["texts"]})
    short = [text for text in texts if text and len(text.split()) <= config.max_words]
    picks = np.random.default_rng(config.seed).permutation(len(short))[: config.captions]
    return [short[i] for i in sorted(picks.tolist())]


def _shards(ctx: StepContext[GenerationEvalConfig], modality: str) -> ShardSet:

    return ShardSet(ctx.inputs[SHARDS[modality]].path, ctx.stores)


# ---- reference media ------------------------------------------------------------------------------------------------


def references_of(ctx: StepContext[GenerationEvalConfig], suite: str, modality: str, side: int) -> tuple[str, list[Reference]]:
    """(dataset, a seeded draw of its distinct media, in the drawn order). side: pixels of the made images, to which images of concepts are cropped.

    Raises AnyloomError or ValueError when there are none.
    """
    config = ctx.config
    if suite == CONCEPTS_SUITE and modality == "image":
        return _crops(ctx, dict(config.concepts)[modality], side)
    dataset = dict(config.concepts if suite == CONCEPTS_SUITE else config.datasets)[modality]
    shards = _shards(ctx, modality)
    media = distinct_media(shards, (dataset,))
    picks = np.random.default_rng(config.seed).permutation(len(media.keys))[: config.references].tolist()
    return dataset, [Reference(data=shards.media(media.keys[i]), sha256=media.sha256[i], caption=in_sentence(media.captions[i][0])) for i in picks]


def _crops(ctx: StepContext[GenerationEvalConfig], dataset: str, side: int) -> tuple[str, list[Reference]]:
    """Test images, cut as the decoder's own images are."""
    import hashlib

    from PIL import Image

    config = ctx.config
    crops = asked_crops(ShardSet(ctx.inputs["shards_instruct"].path, ctx.stores), dataset, side)
    found = []
    for i in np.random.default_rng(config.seed).permutation(len(crops))[: config.references].tolist():
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(crops.pixels[i].transpose(1, 2, 0))).save(buffer, "PNG")
        data = buffer.getvalue()
        found.append(Reference(data=data, sha256=hashlib.sha256(data).hexdigest(), caption=CONCEPTS[crops.concepts[i]].caption))
    return f"{dataset}, crops of {side} pixels", found
