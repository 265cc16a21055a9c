"""Records: what a record of an instruction list says, as exchanges with their media in their places.

Owns which conversations can be learnt from: a turn of the system may stand first, then human and gpt take turns, human begins, and every answer says something.
Input: turns (speaker, text), and how many media the record has. Output: a Talk. Raises Misfit for a record that does not fit.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mmcore.chat.places import Misfit, placed
from mmcore.types import Said

HUMAN, GPT, SYSTEM = "human", "gpt", "system"
TURN_ORDER, BEGINS, ENDS, EMPTY_TEXT = "turn_order", "begins_with_answer", "ends_with_question", "empty_text"
"""Reasons of a Misfit, beside that of mmcore.chat.places."""
_UNSEEN = ("Cc", "Cf")
"""Unicode categories of characters without ink: control and format characters, such as the zero-width space."""
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0") | frozenset(map(chr, range(0xFE00, 0xFE10)))
"""Letters and signs that are blank, and variation selectors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Talk:
    """A conversation that can be learnt from."""

    system: str = ""
    """Words of the system's turn; "" without one."""
    exchanges: tuple[tuple[Said, Said], ...] = ()
    """(question, answer)s in order."""


def talk_of(turns: Sequence[tuple[str, str]], inputs: Mapping[str, int], outputs: Mapping[str, int]) -> Talk:
    """The conversation of a record. inputs, outputs: modality -> media of the questions, of the answers; without turns they stand nowhere.

    Raises Misfit, naming the turn or both counts.
    """
    if not turns:
        return Talk()
    first = int(turns[0][0] == SYSTEM)
    _check_order([speaker for speaker, _ in turns], first)
    questions, answers = ([text for _, text in turns[start::2]] for start in (first, first + 1))
    for number, answer in enumerate(answers):
        if says_nothing(answer):
            raise Misfit(EMPTY_TEXT, f"field 'conversations', turn {first + 2 * number + 1}: the answer is empty; write one, or remove the question")
    asked = placed(questions, inputs, "{named} {name} in the human turns but {given} input {modality} files; make them agree")
    said = placed(answers, outputs, "{named} {name} in the gpt turns but {given} output {modality} files; make them agree")
    return Talk(system=turns[0][1].strip() if first else "", exchanges=tuple(zip(asked, said, strict=True)))


def says_nothing(text: str) -> bool:
    """Whether no character of a text can be seen."""
    return all(one.isspace() or one in _FILLERS or unicodedata.category(one) in _UNSEEN for one in text)


def _check_order(speakers: Sequence[str], first: int) -> None:
    """Raises Misfit unless human and gpt take turns from `first` on."""
    for position, speaker in enumerate(speakers[first:], first):
        expected = (HUMAN, GPT)[(position - first) % 2]
        if speaker != expected:
            reason = BEGINS if position == first and speaker == GPT else TURN_ORDER
            remedy = "turns alternate and human begins; merge or reorder the turns"
            raise Misfit(reason, f"field 'conversations', turn {position}: 'from' is {speaker!r}, expected {expected!r}: {remedy}")
    if len(speakers) == first:
        raise Misfit(EMPTY_TEXT, "field 'conversations': there is only a turn of the system, nothing to learn from; add a question and its answer")
    if (len(speakers) - first) % 2:
        raise Misfit(ENDS, "field 'conversations': the last turn is 'human', there is nothing to learn from; add the answer")
