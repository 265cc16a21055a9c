"""Prompts of eval_drawing: requests for an image in wordings that no training list has, and ordinary talk that asks for none.

Owns words only.
"""

from __future__ import annotations

NEW_REQUESTS = (
    "could you sketch a {c} {s} for me",
    "i want a picture of a {s}, and it must be {c}",
    "let me see a {s} painted {c}",
    "produce an illustration with a single {c} {s} in it",
    "would you kindly draw one {c} {s}",
    "give me a drawing of a {c} {s}, nothing else",
)
"""{c}: colour, {s}: shape."""
NEW_REQUESTS_OF = ("could you sketch {} for me", "produce an illustration of {}", "would you kindly draw {}", "give me a drawing of {}, nothing else")
"""{}: what the image should show, with its article."""
TALK = (
    "What is the capital of France?",
    "How many sides does a triangle have?",
    "Tell me a short joke.",
    "What is two plus three?",
    "Who wrote Romeo and Juliet?",
    "Name three colours of the rainbow.",
    "What is a circle?",
    "Explain what a rectangle is.",
    "Is the sky blue?",
    "Do you like music?",
    "What does the word 'paint' mean?",
    "Which is larger, the sun or the moon?",
    "How are you today?",
    "What colour do you get from blue and yellow?",
    "Give me advice for learning to swim.",
    "Write one sentence about a dog.",
    "What is the opposite of hot?",
    "How do birds fly?",
    "When do leaves fall from trees?",
    "Why is the sea salty?",
    "What is a painter's job?",
    "Have you seen a red car?",
    "Which animals live in a forest?",
    "Count from one to five.",
    "What shape is a football?",
    "What colour is grass?",
    "Is a square a rectangle?",
    "What is the meaning of the word 'image'?",
    "Translate 'good morning' into French.",
    "How long is a minute?",
    "What do bees make?",
    "Summarise: the cat sat on the mat and slept.",
    "Is brown darker than yellow?",
    "How many wheels does a bicycle have?",
    "Good evening!",
    "Thank you very much.",
    "Describe a triangle in words.",
    "What is drawn on most maps?",
    "Do cameras show the world as it is?",
    "What is your name?",
)
"""Ordinary talk, some of it about shapes, colours and images: none of it asks for one."""
