"""Configs of the evaluations of what the model makes: media on request, the decoder's own images, and the judge of both.

Owns plain frozen dataclasses (torch-free: importing this module keeps planning instant). Every field is identity.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmcore.config import FitConfig
from mmcore.encoder_config import EncoderConfig

ASKED, FORCED = "asked", "forced"
"""How a medium comes about: the model writes the whole signal block by itself, or the block is put behind the request for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationEvalConfig:
    """Text to image, video and audio (eval_generation)."""

    how: tuple[str, ...] = (ASKED,)
    """`asked`, and `forced` beside it: what the output side can do where the model does not begin a block. A forced medium is help and named so."""
    datasets: tuple[tuple[str, str], ...] = ()
    """(modality, held-out dataset whose captions are asked for); its media are the reference. Filled in from the recipe's decoders."""
    captions: int = 24
    """Captions asked for in each dataset, drawn with the seed. Distances want thousands; on a GPU take as many as there are."""
    max_words: int = 8
    """Longest caption that is put inside a request."""
    concepts: tuple[tuple[str, str], ...] = ()
    """(modality, dataset of the reference media) of requests for the 24 concepts of mmcore.concepts.shapes. Filled in from the recipe's decoders."""
    concept_draws: int = 2
    """Requests for every concept."""
    references: int = 192
    """Reference media of each dataset at most, drawn with the seed."""
    frames: int = 4
    """Frames of a video that are looked at."""
    query: EncoderConfig | None = None
    """Encoder of sentences into the space of the recipe's media encoders; None: no such space, and no CLIPScore. Filled in."""
    max_new_tokens: int = 40
    """Longest reply; a block of 24 signal tokens must fit."""
    chunk: int = 24
    """Requests answered, drawn and persisted together; part of the identity because batches fix the rounding."""
    heard_s: float = 10.0
    """Window of the speech judge in seconds."""
    jackknife_groups: int = 20
    """Groups that intervals of distances leave out in turn."""
    shown: int = 12
    """Seeded draws of every suite that the report shows, failures included."""
    seed: int = 0
    """Draws captions, references, wordings, what is shown, and the noise."""
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeakingEvalConfig:
    """Requests for spoken words to the whole model, and what asks for none beside them (eval_speaking)."""

    draws: int = 1
    """Requests for every concept, in new and in trained wordings."""
    questions: int = 24
    """Test images that are asked about, and as many requests for images; none of these asks for an audio clip."""
    questions_source: str = "easyvqa_test"
    """Dataset of these images."""
    max_new_tokens: int = 16
    """Longest reply."""
    chunk: int = 192
    """Prompts answered together; part of the identity because batches fix the rounding."""
    batch: int = 24
    """Audio clips heard together; the same."""
    heard_s: float = 10.0
    """Window of the judge's encoder in seconds; its own is 30, which costs more than three times as much."""
    shown: int = 8
    """Seeded draws whose audio clips are kept for the report."""
    seed: int = 0
    """Draws the prompts and what is shown."""
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    """A classifier of shape and colour that learns from real images which no decoder has seen (picture_judge)."""

    source: str = "easyvqa_test"
    """Dataset with questions about its images; what they affirm is the truth."""
    side: int = 32
    """Pixels of a crop's side, as the decoder makes them."""
    train_share: float = 0.5
    """Share of the images that it learns from; it is tested on the others."""
    fit: FitConfig = FitConfig(steps=250, batch=64, lr=2e-3, warmup_steps=40, weight_decay=1e-2)


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawingEvalConfig:
    """Requests to the whole model, and ordinary talk beside them (eval_drawing)."""

    draws: int = 4
    """Requests for every concept, in new and in trained wordings."""
    others: int = 48
    """Requests for held-out things that are no shapes."""
    others_source: str = "stamps_heldout"
    """Dataset whose captions name them."""
    others_max_words: int = 5
    """Longest caption."""
    questions: int = 100
    """Test images that are asked about; none of these questions asks for an image."""
    questions_source: str = "easyvqa_test"
    """Dataset of these images."""
    max_new_tokens: int = 24
    """Longest reply."""
    chunk: int = 192
    """Prompts answered together; part of the identity because batches fix the rounding."""
    batch: int = 24
    """Images drawn together; the same."""
    seed: int = 0
    """Draws the prompts and the noise."""
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PicturesEvalConfig:
    """Seeded draws of the decoder, judged (eval_pictures)."""

    draws: int = 4
    """Images of every concept under every condition."""
    steps: int = 25
    """DDIM steps of an image."""
    guidance: float = 2.0
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598). Measured on 48 images in new wordings: 1 gives 0.88, 2 gives 0.98, 4 gives 0.85
    and 7 gives 0.54 with shape and colour right: with a noise schedule that reaches zero signal, stronger guidance shifts the colours."""
    batch: int = 24
    """Images drawn together; part of the identity because it fixes the rounding."""
    seed: int = 0
    """Draws the noise and the wordings; the same noise under every condition."""
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0
