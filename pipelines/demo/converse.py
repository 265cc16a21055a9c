"""Conversations that turn from one thing to another (the dataset converse_train): questions about an image, then a request for an image or for spoken words.

NExT-GPT's modality-switching instructions (MosIT; Wu et al. 2023, arXiv 2309.05519, section 5.3) are such conversations, whose media were never published. Here
their turns come from the other lists: easy-VQA's training questions, the requests for images and words, and ordinary talk. Owns which turns follow each
other. Input: training images with their questions and captions; output: instruction records. What is asked for is no matter of what was shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from mmcore.chat.wordings import REQUESTS
from mmcore.concepts.shapes import CONCEPTS, PHRASES, Concept
from pipelines.demo.listfiles import chance
from pipelines.demo.spoken import FOLDER, SPOKEN, stem_of
from pipelines.demo.talk import TALK

KINDS = (
    ("ask", "draw"),
    ("ask", "ask", "draw"),
    ("ask", "speak"),
    ("talk", "draw"),
    ("ask", "draw", "ask"),
    ("draw", "talk"),
)
"""What follows what. ask: a question about the image that is shown."""
Pair = tuple[str, str]


def converse_records(
    questions: Mapping[int, Sequence[tuple[int, str, str]]],
    captions: Mapping[int, str],
    uri_of: Mapping[int, str],
    per_concept: int,
    voice: bool,
    restate: bool,
) -> list[dict[str, Any]]:
    """`per_concept` conversations that ask for each concept, the kinds in turn.

    questions: image number -> its (number, question, answer)s; captions, uri_of: image number -> caption and uri; voice: some ask for spoken words;
    restate: answers say what is asked for before they give it.
    """
    of_concept: dict[str, list[int]] = defaultdict(list)
    for image, caption in captions.items():
        of_concept[caption].append(image)
    shown = sorted(questions, key=lambda image: (chance(f"converse {image}"), image))
    kinds = [kind for kind in KINDS if voice or "speak" not in kind]
    records: list[dict[str, Any]] = []
    for place in range(per_concept):
        for concept in CONCEPTS:
            if not of_concept[concept.caption]:
                continue
            number, kind = len(records), kinds[place % len(kinds)]
            image = shown[number % len(shown)]
            asked = sorted(questions[image], key=lambda item: chance(f"converse {number} {item[0]}"))
            turns = _turns(kind, concept, number, [(question, answer) for _, question, answer in asked], restate)
            record = {"id": f"converse_{number}", "conversations": _spoken_by(turns, "ask" in kind)}
            record |= {"image": uri_of[image]} if "ask" in kind else {}
            if "speak" in kind:
                record |= {"output_audio": f"{FOLDER}/{stem_of(concept)}.wav", "audio_captions": [SPOKEN.format(concept.caption)]}
            else:
                drawn = of_concept[concept.caption]
                record |= {"output_image": uri_of[drawn[number % len(drawn)]], "image_captions": [concept.caption]}
            records.append(record)
    return records


def _turns(kind: Sequence[str], concept: Concept, number: int, asked: Sequence[Pair], restate: bool) -> list[Pair]:
    """(human, gpt) of each part of a conversation."""
    spoken = SPOKEN.format(concept.caption)
    questions = iter([*asked] * len(kind))
    turns: list[Pair] = []
    for part in kind:
        if part == "ask":
            turns.append(next(questions))
        elif part == "talk":
            turns.append(TALK[int(chance(f"converse talk {number}") * len(TALK))])
        elif part == "speak":
            turns.append((_request("audio", spoken, number), f"{spoken if restate else ''}<audio>"))
        else:
            said = concept.caption if number % 2 else concept.worded(PHRASES[number // 2 % len(PHRASES)])
            turns.append((_request("image", said, number), f"{concept.caption if restate else ''}<image>"))
    return turns


def _request(modality: str, said: str, number: int) -> str:
    """A request in one of the wordings, which differ between neighbours."""
    wordings = REQUESTS[modality]
    return wordings[int(chance(f"converse request {number}") * len(wordings))].format(said)


def _spoken_by(turns: Sequence[Pair], shown: bool) -> list[dict[str, str]]:
    """The turns as an instruction list has them; shown: the first one shows the image."""
    found = []
    for place, (human, gpt) in enumerate(turns):
        found += [{"from": "human", "value": ("<image>\n" if shown and place == 0 else "") + human}, {"from": "gpt", "value": gpt}]
    return found
