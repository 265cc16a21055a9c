"""Prompts of eval_speaking: requests to say something in wordings that no training list has.

Owns words only.
"""

from __future__ import annotations

NEW_REQUESTS = (
    'say the words "a {c} {s}" aloud',
    'could you speak the words "a {c} {s}" for me',
    'read this out loud: "a {c} {s}"',
    'i want to listen to the words "a {c} {s}"',
    'give me a recording of the words "a {c} {s}"',
    'please pronounce the words "a {c} {s}"',
)
"""{c}: colour, {s}: shape."""
