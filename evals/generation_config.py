"""Configs of the generation evaluations: what is asked for, of how many, with which randomness.

Owns plain frozen dataclasses (torch-free: importing this module keeps planning instant). Every field is identity. pipelines.steps_evaluation fills in what
depends on a recipe's decoders and datasets. Refuses to know paths, models in memory or how a number is computed.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmcore.config import EncoderSpec

ASKED, FORCED = "asked", "forced"
"""How a medium comes about: the model writes the whole signal block by itself, or the block is put behind the request for it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationEvalConfig:
    """Text to picture, clip and sound (eval_generation)."""

    how: tuple[str, ...] = (ASKED,)
    """`asked`, and `forced` beside it: what the output side can do where the model does not begin a block. A forced medium is help and named so."""
    datasets: tuple[tuple[str, str], ...] = ()
    """(modality, held-out dataset whose captions are asked for); its media are the reference. Filled in from the recipe's decoders."""
    captions: int = 24
    """Captions asked for in each dataset, drawn with the seed. Distances want thousands; on a GPU take as many as there are."""
    max_words: int = 8
    """Longest caption that is put inside a request."""
    concepts: tuple[tuple[str, str], ...] = ()
    """(modality, dataset of the reference media) of requests for the 24 concepts of mmcore.data.shapes. Filled in from the recipe's decoders."""
    concept_draws: int = 2
    """Requests for every concept."""
    references: int = 192
    """Reference media of each dataset at most, drawn with the seed."""
    frames: int = 4
    """Frames of a clip that are looked at."""
    query: EncoderSpec | None = None
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
class CaptioningEvalConfig:
    """Captions of held-out media, and the objects in them (eval_captioning)."""

    datasets: tuple[tuple[str, str], ...] = (("image", "stamps_heldout"), ("video", "clips_heldout"), ("audio", "sounds_heldout"))
    """(modality, held-out dataset): every distinct medium, with all its captions as references."""
    asked_source: str = "easyvqa_test"
    """Dataset of pictures whose questions tell what they show; "" leaves it out."""
    vocabulary: tuple[str, ...] = ("stamps_train", "stamps_heldout")
    """Datasets of captions whose head words are the object words of stamps_chair."""
    limit: int = 48
    """Media of each dataset, drawn with the seed; 0 takes all."""
    tokenizer: str = "words-1"
    """`words-1`: our own (lower case, runs of letters and digits, inner apostrophes), the same everywhere; `ptb`: the PTB tokenizer of pycocoevalcap (Java),
    whose scores compare with published ones."""
    spice: bool = False
    """Also SPICE and SPIDEr: needs Java and the Stanford CoreNLP 3.6.0 models beside pycocoevalcap, which come as a download of their own."""
    chunk: int = 24
    """Media captioned and persisted together; part of the identity because batches fix the rounding."""
    jackknife_groups: int = 20
    """Groups that intervals of corpus scores leave out in turn."""
    seed: int = 0
    """Draws the media and the captions of other media."""
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PopeEvalConfig:
    """Yes/no questions about objects that are, or are not, in a picture (eval_objects_as_pope)."""

    asked_source: str = "easyvqa_test"
    """Dataset of pictures whose questions tell what they show (easyvqa_as_pope); "" leaves it out."""
    captioned_source: str = "stamps_heldout"
    """Dataset of pictures whose captions name one object (stamps_as_pope); "" leaves it out."""
    pictures: int = 32
    """Pictures of each dataset, drawn with the seed; 0 takes all."""
    max_new_tokens: int = 4
    """Longest answer."""
    chunk: int = 192
    """Questions answered and persisted together; part of the identity because batches fix the rounding."""
    seed: int = 0
    """Draws the pictures and the random negatives."""
    bootstrap_draws: int = 2000
    bootstrap_seed: int = 0
