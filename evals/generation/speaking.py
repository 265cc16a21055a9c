"""The eval_speaking step: does the exported model answer with an audio clip when it is asked to, only then, and does the audio clip say what was asked for?

Input: `export` (with its voice), `voice` (the decoder's own text half), `speech_judge`, the shards of the questions. Output: replies.parquet (every prompt and
what it was answered with), samples.parquet (every audio clip, with what the judge heard), metrics.parquet and sounds/ (seeded draws).

Prompts: `asked_new_wording` (the 24 concepts, in requests that no training list has), `asked_trained_wording` and `asked_after_question` (new wordings, after
a question about a test image in the same conversation); `talk`, `picture_question` and `asked_for_a_picture` ask for no audio clip. Audio clips come from the
model's own signal tokens through the output projector and the frozen half of the voice; a judge that was trained on nothing of this (Whisper) writes them down,
and a word is right when it stands there. A request that got no audio clip, or one that cannot be read, counts as wrong; test images that the encoder cannot
take are left out, and told. `voice`: the same words as the voice itself says them, the upper limit. Floor `shuffled`: the same audio clips against another
request's words. Intervals are over whole concepts. The model's spoken world are these 24 concepts, all of them in training: only the wording of the request is
new.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evals.generation.config import SpeakingEvalConfig
from evals.generation.drawing_prompts import NEW_REQUESTS as NEW_DRAWINGS
from evals.generation.drawing_prompts import TALK
from evals.generation.made import drawn, texts_heard, unreadable, wav_bytes
from evals.generation.requests import AFTER, JUDGED, WORDED, Prompt, after_questions, answered, block_metrics, concept_requests, image_questions, reply
from evals.generation.speaking_prompts import NEW_REQUESTS
from evals.statistics.intervals import derangement, mean_interval, paired_interval
from evals.tables import METRICS, SPEAKING_REPLIES, SPEAKING_SAMPLES, metric_row, rounded, write_table
from infra.step import StepContext
from infra.storage import write_atomic
from mmcore.chat.wordings import REQUESTS
from mmcore.concepts.shapes import CONCEPTS
from mmcore.concepts.speech_judge import SpeechJudge
from mmcore.decoders import load_decoder
from mmcore.decoders.sampling import generate
from mmcore.decoders.texts import encode_texts
from mmcore.inference.drawer import Drawer
from mmcore.inference.generator import Generator
from mmcore.runtime.devices import device_for
from mmcore.types import SignalBlock

if TYPE_CHECKING:
    from mmcore.types import Answer, Medium

QUIET = ("talk", "picture_question", "asked_for_a_picture")
VOICE = "voice"
WORDS = ("shape", "colour", "both")
MODALITY = "audio"
SPELLINGS = {"grey": "gray"}
"""Another spelling of a word, which sounds the same."""


def run(ctx: StepContext[SpeakingEvalConfig]) -> Mapping[str, Any]:
    """Step entry: see the module docstring. Returns recall, precision and the shares of words that were heard, with their intervals, what is left out, and how
    many audio clips cannot be read."""
    import torch

    torch.set_num_threads(max(1, ctx.resources.threads))
    config = ctx.config
    generator = Generator.load(ctx.inputs["export"].path, device=device_for(ctx.resources.gpus))
    questions = image_questions(ctx, generator.encode)
    prompts = prompts_of(ctx, questions.prompts)
    answers = answered(ctx, generator, prompts, questions.features)
    replies = [
        reply(prompt, answer, MODALITY) | {"pictures": sum(block.modality == "image" for block in answer.blocks)}
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    audio = _audio(ctx, prompts, answers)
    heard = _heard(ctx, audio)
    samples = rows_of(config, prompts, heard, _kept(ctx, audio))
    metrics = block_metrics(config, replies, JUDGED, QUIET, MODALITY) + image_blocks(config, replies) + word_metrics(config, samples)
    write_table(ctx.output / "replies.parquet", replies, SPEAKING_REPLIES)
    write_table(ctx.output / "samples.parquet", samples, SPEAKING_SAMPLES)
    write_table(ctx.output / "metrics.parquet", metrics, METRICS)
    shown = {f"{row['condition']} {row['metric']} {row['subgroup']}": rounded(row) for row in metrics}
    counts = {name: sum(prompt.condition == name for prompt in prompts) for name in (*JUDGED, *QUIET)}
    lost = unreadable((name for name, _ in audio), (name for name, _ in heard))
    return {"prompts": counts, "unreadable": lost, "left_out": questions.left_out, **shown}


# ---- prompts --------------------------------------------------------------------------------------------------------


def prompts_of(ctx: StepContext[SpeakingEvalConfig], questions: Sequence[Prompt]) -> list[Prompt]:
    """Every prompt, in order. questions: about images."""

    config = ctx.config
    trained = tuple(wording.format('the words "a {c} {s}"') for wording in REQUESTS[MODALITY])
    found: list[Prompt] = []
    for name, wordings in zip(WORDED, (NEW_REQUESTS, trained), strict=True):
        found += concept_requests(name, wordings, config.draws, config.seed)
    others = concept_requests("asked_for_a_picture", NEW_DRAWINGS, 1, config.seed)
    picks = np.random.default_rng(config.seed).permutation(len(others))[: config.questions]
    found += [Prompt(condition="talk", text=text) for text in TALK]
    found += [others[i] for i in sorted(picks.tolist())] + [*questions]
    return found + after_questions(concept_requests(AFTER, NEW_REQUESTS, 1, config.seed), questions)


# ---- audio clips ---------------------------------------------------------------------------------------------------------

Place = tuple[str, int]
"""(condition, number of the prompt; for `voice` of the concept)."""


def _audio(ctx: StepContext[SpeakingEvalConfig], prompts: Sequence[Prompt], answers: Sequence[Answer]) -> dict[Place, bytes]:
    """The .wav of every request that got an audio clip, then of every concept as the voice itself says it; b"" for one that no
    file can hold."""

    config = ctx.config
    drawer, blocks = Drawer(ctx.inputs["export"].path), dict[int, SignalBlock]()
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        mine = [block for block in answer.blocks if block.modality == MODALITY]
        if prompt.condition in JUDGED and mine:
            blocks[number] = mine[0]

    def answers_of(numbers: list[int]) -> list[Medium]:
        return drawer.draw([blocks[number] for number in numbers], [config.seed + number for number in numbers])

    made: dict[Place, bytes] = {}
    for number in blocks:
        made[prompts[number].condition, number] = wav_bytes(drawn(answers_of, [number])[0])
        ctx.progress(len(made), len(blocks), "requests spoken")
    directory = ctx.inputs["voice"].path / "pipeline"
    voice = load_decoder(directory)
    streams, _ = encode_texts(directory, [concept.caption for concept in CONCEPTS], contract=voice.contract)

    def said(numbers: list[int]) -> list[Medium]:
        return generate(voice, voice.condition(*(stream[numbers] for stream in streams)), [config.seed] * len(numbers))

    made |= {(VOICE, number): wav_bytes(medium) for number, medium in enumerate(drawn(said, range(len(CONCEPTS))))}
    return made


def _heard(ctx: StepContext[SpeakingEvalConfig], audio: Mapping[Place, bytes]) -> dict[Place, str]:
    """What the judge writes down of each audio clip that it can read."""

    config = ctx.config
    judge, places = SpeechJudge(ctx.inputs["speech_judge"].path, config.heard_s), list(audio)
    found: dict[Place, str] = {}
    for start in range(0, len(places), config.batch):
        rows = places[start : start + config.batch]
        texts = texts_heard(judge, [audio[place] for place in rows])
        found |= {place: text for place, text in zip(rows, texts, strict=True) if text is not None}
        ctx.progress(start + len(rows), len(places), "audio clips heard")
    return found


def _kept(ctx: StepContext[SpeakingEvalConfig], audio: Mapping[Place, bytes]) -> dict[Place, str]:
    """Write a seeded draw of the audio clips asked for in new wordings -> their file names."""
    config = ctx.config
    places = sorted(place for place, data in audio.items() if place[0] == JUDGED[0] and data)
    picks = np.random.default_rng(config.seed).permutation(len(places))[: config.shown]
    kept = {places[i]: f"sounds/{places[i][1]:03d}.wav" for i in sorted(picks.tolist())}
    for place, name in kept.items():
        write_atomic(ctx.output / name, audio[place])
    return kept


# ---- words ----------------------------------------------------------------------------------------------------------


def right_words(heard: str, concept: int) -> dict[str, float]:
    """1 where a word of the concept stands in what was heard: shape, colour, both."""

    words = {SPELLINGS.get(word, word) for word in re.findall(r"[a-z]+", heard.lower())}
    shape, colour = float(CONCEPTS[concept].shape in words), float(CONCEPTS[concept].colour in words)
    return {"shape": shape, "colour": colour, "both": shape * colour}


def rows_of(config: SpeakingEvalConfig, prompts: Sequence[Prompt], heard: Mapping[Place, str], kept: Mapping[Place, str]) -> list[dict[str, Any]]:
    """Rows of SPEAKING_SAMPLES: every request for an audio clip, answered or not, then the voice's own audio clips."""

    asked = [(number, prompt) for number, prompt in enumerate(prompts) if prompt.condition in JUDGED]
    places = [(prompt.condition, number, prompt.text, prompt.concept) for number, prompt in asked]
    places += [(VOICE, number, concept.caption, number) for number, concept in enumerate(CONCEPTS)]
    rows = []
    for name in (*JUDGED, VOICE):
        mine = [place for place in places if place[0] == name]
        order = derangement([(str(place[3]),) for place in mine], config.seed)
        for (_, number, text, concept), other in zip(mine, order, strict=True):
            said, wrong = heard.get((name, number), ""), mine[other][3]
            rows.append(
                {
                    "made_as": name,
                    "prompt": text,
                    "concept": CONCEPTS[concept].caption,
                    "other_concept": CONCEPTS[wrong].caption,
                    "spoken": float((name, number) in heard),
                    "heard": said,
                    "sound": kept.get((name, number), ""),
                    **right_words(said, concept),
                    **{f"{word}_of_other": value for word, value in right_words(said, wrong).items()},
                }
            )
    return rows


# ---- metrics --------------------------------------------------------------------------------------------------------


def image_blocks(config: SpeakingEvalConfig, replies: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """emits_block of images: asked for one (as it should be), and asked for an audio clip (as it should not)."""
    options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed, "proportion": True}
    rows = []
    for name, chosen in (("asked", JUDGED), ("asked_for_a_picture", ("asked_for_a_picture",))):
        mine = [row for row in replies if row["condition"] in chosen]
        interval = mean_interval([float(row["pictures"] > 0) for row in mine], [row["prompt"] for row in mine], **options)
        rows.append(metric_row(interval, condition=name, metric="emits_block", subgroup="image", kind="score"))
    return rows


def word_metrics(config: SpeakingEvalConfig, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """heard_right by word: each condition, the same audio clips against another request's words, and the paired difference."""
    options: dict[str, Any] = {"draws": config.bootstrap_draws, "seed": config.bootstrap_seed}
    rows = []
    for word in WORDS:
        named = {"metric": "heard_right", "subgroup": word}
        for name in (*JUDGED, VOICE):
            mine = [sample for sample in samples if sample["made_as"] == name]
            if not mine:
                continue
            clusters = [sample["concept"] for sample in mine]
            own, other = [sample[word] for sample in mine], [sample[f"{word}_of_other"] for sample in mine]
            rows.append(metric_row(mean_interval(own, clusters, proportion=True, **options), condition=name, kind="score", **named))
            rows.append(metric_row(mean_interval(other, clusters, proportion=True, **options), condition=f"{name}, shuffled", kind="floor", **named))
            rows.append(
                metric_row(paired_interval(own, other, clusters, proportion=True, **options), condition=f"{name} - shuffled", kind="difference", **named)
            )
    return rows
