"""Wordings: the sentences in which users ask for a description or for a medium, and the demo's questions about videos and audio clips.

Owns the texts, and the kinds of those questions. Input: a question with its answer. Output: DESCRIBE and REQUESTS, by modality; WORDINGS; the kind of a
question. Raises nothing.
"""

from __future__ import annotations

DESCRIBE = {"image": "Describe the image.", "video": "Describe the video.", "audio": "Describe the sound."}

REQUESTS: dict[str, tuple[str, ...]] = {
    "image": (
        "draw {}",
        "please draw {}",
        "can you draw {}?",
        "show me a picture of {}",
        "make a picture of {}",
        "create an image of {}",
        "paint {}",
        "i would like to see {}",
        "could you draw {}?",
        "draw me {}",
        "i need a picture of {}",
        "show me {}",
        "a picture of {}, please",
        "can i see {}?",
        "make an image that shows {}",
        "please paint {} for me",
        "let's see {}",
        "generate an image of {}",
        "how about a picture of {}?",
        "picture {}",
        "render {}",
        "would you paint {}?",
        "i'd love a drawing of {}",
        "design {}",
        "draw {} on a plain background",
        "i want {}, as a picture",
        "make {} for me, just that",
        "paint {} on white paper",
        "draw {} and write nothing",
        "a picture with {} on it",
        "an image that has {} in the middle",
        "show {} to me as a picture",
        "please make {} the only thing in the picture",
        "draw {} now",
        "create a simple picture: {}",
        "your task is to draw {} as well as you can",
        "next, {} as an image, thank you",
        "imagine {} and draw it",
        "can you make {} appear?",
    ),
    "video": (
        "film {}",
        "please film {}",
        "can you film {}?",
        "show me a video of {}",
        "make a video of {}",
        "create a clip of {}",
        "i would like to watch {}",
        "animate {}",
    ),
    "audio": (
        "play {}",
        "please play {}",
        "can you play {}?",
        "let me hear {}",
        "make the sound of {}",
        "create a sound of {}",
        "what does {} sound like?",
        "i would like to hear {}",
        "let me listen to {}",
        "i need to hear {}",
        "would you play {}?",
        "make an audio clip of {}",
        "{}, as a sound please",
        "produce audio of {}",
        "can i hear {}?",
        "sound out {}",
        "i want the audio of {}",
        "recite {}",
        "say {}",
        "speak {}, clearly and slowly",
        "your voice, please: {}",
        "turn {} into sound",
        "record {}, nothing more",
        "how would you pronounce {}?",
    ),
}
"""How a caption becomes a request for a medium."""

YES_NO, NAME, MOTION, LANGUAGE = "yes/no", "name", "motion", "language"
"""Kinds of questions about videos and audio clips."""
OTHER = "other"
"""Kind of a question in words of somebody else's."""
WORDINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "clip": {
        YES_NO: ("Is this {}?", "Does the clip show {}?"),
        NAME: ("What moves here?", "What does the clip show?"),
        MOTION: ("How does the picture move?", "How does it move?"),
    },
    "sound": {YES_NO: ("Is this the sound of {}?", "Do you hear {}?"), NAME: ("What do you hear?", "What makes this sound?")},
    "voice": {
        YES_NO: ("Does the voice name {}?", "Is the voice talking about {}?"),
        NAME: ("What does the voice name?", "What does the voice say?"),
        LANGUAGE: ("Which language does the voice speak?", "In which language is this?"),
    },
}
"""What a medium is -> kind of question -> wordings."""
_KIND = {wording: kind for kinds in WORDINGS.values() for kind, wordings in kinds.items() for wording in wordings}


def kind_of(question: str, answer: str) -> str:
    """The kind of a question about a video or an audio clip: by its words where they are ours, else YES_NO by its answer, or OTHER."""
    return _KIND.get(question) or (YES_NO if answer.casefold().strip(" .") in ("yes", "no") else OTHER)
