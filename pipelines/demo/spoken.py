"""Lists of spoken words: the captions of mmcore.concepts.shapes, said by the demo's voice.

Owns the datasets spoken_train (the audio clips with what is said) and speak_train (requests for them). Input: voice/ of the `assets` artifact; output: the list
files and media/spoken/*.wav, the same bytes for the same assets. Its world are the 24 concepts: whoever learns from it can say nothing else.
"""

from __future__ import annotations

from pathlib import Path

from infra.storage import read_json, write_atomic
from mmcore.concepts.shapes import CONCEPTS, Concept
from mmcore.decoders.speech.phonemes import Pronouncer
from mmcore.decoders.speech.text import DICTIONARY, GRAPH, SETTINGS, open_graph, say
from mmcore.media.encode import wav
from pipelines.demo.config import PACE
from pipelines.demo.listfiles import draw_record, write_audiocaps, write_instruct

FOLDER = "media/spoken"
SPOKEN = 'the words "{}"'
"""Caption of an audio clip in which a voice says something: what is said stands between double quotes."""


def write_spoken(output: Path, voice: Path | None, per_caption: int, restate: bool) -> dict[str, int]:
    """Say every concept once and write both lists, empty ones without a voice. per_caption: requests for each, in the wordings of REQUESTS in turn;
    restate: answers say the caption before the audio clip.

    Returns rows per dataset.
    """
    said = [] if voice is None else _say_all(output, voice)
    asked = [
        draw_record(f"speak_{stem}_{n}", caption, f"{FOLDER}/{stem}.wav", n, "audio", restate=restate) for stem, caption in said for n in range(per_caption)
    ]
    return {"spoken_train": write_audiocaps(output, "spoken_train", said), "speak_train": write_instruct(output, "speak_train", asked)}


def stem_of(concept: Concept) -> str:
    """Name of the audio clip that says a concept."""
    return f"{concept.colour}_{concept.shape}"


def _say_all(output: Path, voice: Path) -> list[tuple[str, str]]:
    """Write the audio clip of every concept. Returns (stem of the file, caption) each."""
    settings, graph = read_json(voice / SETTINGS), open_graph(voice / GRAPH)
    pronouncer, rate_hz = Pronouncer(voice / DICTIONARY, settings["phoneme_id_map"]), settings["audio"]["sample_rate"]
    said = []
    for concept in CONCEPTS:
        caption, stem = SPOKEN.format(concept.caption), stem_of(concept)
        write_atomic(output / FOLDER / f"{stem}.wav", wav(say(graph, pronouncer.ids(caption), PACE).reshape(-1), rate_hz))
        said.append((stem, caption))
    return said
