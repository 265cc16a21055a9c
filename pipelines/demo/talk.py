"""Ordinary talk: questions that ask for no medium, with short answers in words (the dataset talk_train).

NExT-GPT's third stage has text-only instructions beside the multimodal ones (Wu et al. 2023, arXiv 2309.05519, section 5), so that a model that learned to draw
does not draw whenever it is spoken to. Many of these name shapes, colours or images. Owns words only; the evaluation's talk is other talk.
"""

from __future__ import annotations

TALK = (
    ("What is the capital of Italy?", "Rome."),
    ("What is the capital of Japan?", "Tokyo."),
    ("How many sides does a square have?", "A square has four sides."),
    ("How many corners does a rectangle have?", "A rectangle has four corners."),
    ("Does a circle have corners?", "No, a circle has no corners."),
    ("What is a triangle?", "A triangle is a flat shape with three straight sides."),
    ("Explain what a circle is.", "A circle is a round shape whose points are all equally far from its center."),
    ("Describe a rectangle in words.", "A rectangle has four straight sides and four right angles."),
    ("Is a triangle a shape?", "Yes, a triangle is a shape."),
    ("What shape is an egg?", "An egg is an oval."),
    ("What shape is a door?", "Most doors are rectangles."),
    ("What is the difference between a square and a rectangle?", "All four sides of a square are equally long."),
    ("What colour is snow?", "Snow is white."),
    ("What color is a banana?", "A ripe banana is yellow."),
    ("Is the sea green?", "The sea looks blue or green, depending on the light."),
    ("Which colour is darker, black or gray?", "Black is darker than gray."),
    ("What colour do you get from red and yellow?", "Red and yellow make orange."),
    ("What is teal?", "Teal is a color between blue and green."),
    ("Name two colours.", "Red and blue."),
    ("Have you ever seen a blue bird?", "I cannot see birds, but some of them are blue."),
    ("Is a tomato red?", "Ripe tomatoes are usually red."),
    ("What does the word 'draw' mean?", "To draw is to make lines that show something."),
    ("What is the meaning of the word 'colour'?", "Colour is how light of a certain kind looks to the eye."),
    ("What does an artist do?", "An artist makes works such as paintings, statues or music."),
    ("What is painted on most walls?", "Most walls are painted in a single light color."),
    ("What can be seen on a photograph?", "A photograph shows what was in front of the camera."),
    ("What is a museum?", "A museum is a place where works of art or old things are shown."),
    ("Who painted the Mona Lisa?", "Leonardo da Vinci painted the Mona Lisa."),
    ("Do photographs lie?", "They can mislead, because they show only a part of a scene."),
    ("What is a map for?", "A map helps people to find their way."),
    ("Who wrote Hamlet?", "William Shakespeare wrote Hamlet."),
    ("Do you enjoy reading?", "I am a program, but I like to talk about books."),
    ("Do you like the rain?", "I cannot feel the rain, but plants need it."),
    ("Tell me a fact about cats.", "Cats sleep for most of the day."),
    ("Tell me something about the moon.", "The moon goes around the Earth in about a month."),
    ("What is three times four?", "Three times four is twelve."),
    ("What is ten minus six?", "Ten minus six is four."),
    ("Count from five to eight.", "Five, six, seven, eight."),
    ("How many days does a week have?", "A week has seven days."),
    ("How long is an hour?", "An hour has sixty minutes."),
    ("How many wheels does a car have?", "A car has four wheels."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("Which is heavier, iron or wood?", "Iron is heavier than wood of the same size."),
    ("Which is smaller, a mouse or a horse?", "A mouse is smaller than a horse."),
    ("Which animals live in the sea?", "Fish, whales and crabs live in the sea."),
    ("What do cows eat?", "Cows eat grass."),
    ("What do spiders make?", "Spiders make webs."),
    ("When do birds build nests?", "Most birds build their nests in spring."),
    ("When does the sun rise?", "The sun rises in the morning."),
    ("Why do people sleep?", "Sleep lets the body and the mind rest."),
    ("Why is ice slippery?", "A thin layer of water on it makes it slippery."),
    ("How do fish breathe?", "Fish breathe through their gills."),
    ("How does a plane fly?", "Its wings lift it when air flows over them."),
    ("What is the opposite of big?", "Small."),
    ("What is the opposite of early?", "Late."),
    ("Translate 'thank you' into Spanish.", "Gracias."),
    ("Translate 'good night' into German.", "Gute Nacht."),
    ("Write one sentence about a horse.", "The horse ran across the field."),
    ("Write a sentence about the sea.", "The waves rolled slowly onto the sand."),
    ("Summarise: the dog barked at the postman and ran away.", "A dog barked and fled."),
    ("Give me advice for learning to cook.", "Begin with simple meals and taste them often."),
    ("How can I sleep better?", "Go to bed at the same time every day."),
    ("Good morning!", "Good morning! How can I help you?"),
    ("Hello, who are you?", "I am an assistant that answers questions."),
    ("How do you feel?", "I am a program, but I am ready to help."),
    ("Thanks for your help.", "You are welcome."),
    ("Goodbye!", "Goodbye!"),
    ("Can you play an instrument?", "No, but I can talk about music."),
    ("What does a violin sound like?", "A violin sounds bright and can sing like a voice."),
    ("What is a drum?", "A drum is an instrument that is hit with sticks or hands."),
)
"""(question, answer)."""


def talk_record(number: int) -> dict[str, object]:
    """Entry `number` of TALK as a record of an instruction list."""
    question, answer = TALK[number]
    return {"id": f"talk_{number}", "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]}
