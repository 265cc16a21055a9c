"""What an export lacks of its projectors is never drawn at random in silence: what it reads is refused, what it would emit is one line when it comes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from toy_model import SPEC, build

from infra.fingerprint import to_plain
from infra.step import AnyloomError
from mmcore.inference.conversation import Conversation
from mmcore.inference.forced import forced_blocks
from mmcore.inference.generator import Generator
from mmcore.types import Question, SignalBlock
from pipelines.toys.parts import tiny_llama

INPUTS, OUTPUTS = "input_projectors.image.", "output_projectors.image."
NEVER = r"^the model emits image, but its output projector was never trained: train stage2 and export again, or ask for words$"


def export(root: Path, *left_out: str) -> Path:
    """A toy export without the tensors whose names begin so."""
    base, tokenizer = tiny_llama(0)
    base.save_pretrained(root / "lm")
    tokenizer.save_pretrained(root / "lm")
    tensors = {name: value.detach().clone() for name, value in build().named_parameters() if not name.startswith("lm.base")}
    save_file({name: value for name, value in tensors.items() if not name.startswith(left_out)}, root / "tensors.safetensors")
    (root / "anyloom.json").write_text(json.dumps({"model": to_plain(SPEC), "caption_turn": False, "stages": []}))
    return root


def drawing(generator: Generator) -> Generator:
    """The same, but it begins every answer with a signal token."""
    table = generator.model.lm.table

    def logits(hidden_PD: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full((len(hidden_PD),), table.base), table.base + table.num_signals).float()

    generator.model.lm.logits = logits
    return generator


def test_an_export_without_the_projector_of_what_it_reads_is_refused(tmp_path):
    with pytest.raises(AnyloomError, match=rf"tensors\.safetensors lacks {INPUTS}.*: the input projector of image was never trained; train stage1") as caught:
        Generator.load(export(tmp_path / "none", INPUTS))
    assert "\n" not in str(caught.value)
    for start, rest in ((INPUTS, "the input projector of image was never trained"), (OUTPUTS, "but holds the rest of this projector: export again")):
        (name, *_) = (name for name, _ in build().named_parameters() if name.startswith(start))
        with pytest.raises(AnyloomError, match=rf"lacks {name}.*{rest}"):
            Generator.load(export(tmp_path / name, name))
    whole = export(tmp_path / "bare")
    (whole / "tensors.safetensors").unlink()
    with pytest.raises(AnyloomError, match=r"bare: it has no tensors\.safetensors: copy the whole export"):
        Generator.load(whole)


def test_an_export_from_before_stage_2_answers_in_words_and_names_what_it_cannot_emit(tmp_path):
    whole, words = Generator.load(export(tmp_path / "whole")), Generator.load(export(tmp_path / "words", OUTPUTS))
    assert whole.model.untrained == frozenset() and words.model.untrained == {"image"}
    features = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)
    asked = [Question(text="what?", modality="image", media_key="a", features_NE=features), Question(text="who?")]
    answers = [[answer.token_ids for answer in generator.answer(asked, max_new_tokens=5)] for generator in (whole, words)]
    assert answers[0] == answers[1] and all(answers[0])
    assert [type(event) for event in drawing(whole).stream("draw", max_new_tokens=1)] == [SignalBlock]
    drawing(words)
    for emit in (
        lambda: list(words.stream("draw", max_new_tokens=1)),
        lambda: list(Conversation(words).say("draw", max_new_tokens=1)),
        lambda: forced_blocks(words.model, "image", ["draw"]),
    ):
        with pytest.raises(AnyloomError, match=NEVER):
            emit()


def test_among_many_answers_a_block_that_cannot_be_given_is_noted_and_the_others_are_answered(tmp_path):
    """A model that draws on one question of a benchmark, asked before its stage 2, is still asked the rest."""
    words = drawing(Generator.load(export(tmp_path, OUTPUTS)))
    noted = "the image block is whole, but nothing has trained its output projector"
    for answers in (
        words.answer([Question(text="draw"), Question(text="what?")], max_new_tokens=1),
        words.follow_up([Question(text="who?")], ["draw"], max_new_tokens=1),
    ):
        assert all(noted in answer.broken and not answer.blocks and answer.token_ids for answer in answers)
