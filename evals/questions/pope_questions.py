"""Questions about objects that are, or are not, in an image: which are asked, after POPE's three ways of choosing absent ones.

Owns the choice and the wording. Input: images with the objects they show; output: questions.

Li et al. 2023 (arXiv 2305.10355): for every image as many absent objects as present ones, `random` (seeded), `popular` (the most frequent of the dataset)
or `adversarial` (those that stand most often beside the present ones). Where every image shows one object, nothing stands beside anything, and
`adversarial` is left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmcore.concepts.shapes import COLOURS

SETTINGS = ("random", "popular", "adversarial")
PRESENT = "present"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """An image and the objects it is known to show."""

    key: str
    sha256: str
    objects: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PopeQuestion:
    """One yes/no question. Asked once, even where several settings choose it."""

    task: str
    key: str
    sha256: str
    object: str
    settings: tuple[str, ...]
    """The settings it belongs to; a present object belongs to all of them."""
    present: bool

    @property
    def text(self) -> str:
        """The wording."""
        thing = f"{self.object} shape" if self.object in COLOURS else self.object
        return f"Is there {'an' if thing[0] in 'aeiou' else 'a'} {thing} in the image?"

    @property
    def answer(self) -> str:
        """yes or no."""
        return "yes" if self.present else "no"


def pope_questions(task: str, asked: Sequence[Shown], everything: Sequence[Shown], seed: int) -> list[PopeQuestion]:
    """The questions about the images `asked`, in their order; present objects first. everything: the whole dataset, whose counts say what is popular.

    An image for which there are too few absent objects is left out.
    """
    frequency = Counter(name for image in everything for name in image.objects)
    beside: dict[str, Counter[str]] = {name: Counter() for name in frequency}
    for image in everything:
        for name in image.objects:
            beside[name].update(other for other in image.objects if other != name)
    settings = SETTINGS if any(beside.values()) else SETTINGS[:2]
    draws = np.random.default_rng(seed)
    found = []
    for image in asked:
        absent = sorted(set(frequency) - set(image.objects))
        shuffled = [absent[i] for i in draws.permutation(len(absent))]
        wanted = len(image.objects)
        if len(absent) < wanted or not wanted:
            continue
        together = {name: sum(beside[there][name] for there in image.objects) for name in absent}
        chosen = {
            "random": shuffled[:wanted],
            "popular": sorted(absent, key=lambda name: (-frequency[name], name))[:wanted],
            "adversarial": sorted(absent, key=lambda name: (-together[name], -frequency[name], name))[:wanted],
        }
        rows: list[tuple[str, tuple[str, ...], bool]] = [(name, settings, True) for name in image.objects]
        for name in dict.fromkeys(name for setting in settings for name in chosen[setting]):
            rows.append((name, tuple(setting for setting in settings if name in chosen[setting]), False))
        found += [PopeQuestion(task=task, key=image.key, sha256=image.sha256, object=name, settings=which, present=present) for name, which, present in rows]
    return found
