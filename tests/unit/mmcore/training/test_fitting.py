"""What a stage's rows can hold: whatever is kept makes rows that the model reads, and nothing is left out that would have fitted."""

import dataclasses
import random

import pytest
from toy_any import STAGES, any_model
from toy_model import Features

from mmcore.chat.special_tokens import MEDIA
from mmcore.stores.left_out import CUT, LEFT_OUT
from mmcore.training.fitting import Fitting, check_lost, ledger_lines
from mmcore.training.rows import ChatData
from mmcore.types import Sample, Shown

LONGEST = 160
IMAGE = Shown("image")


def stage(**changes):
    return dataclasses.replace(STAGES["stage3"], mixture=(("s", 1.0),), **changes)


def fitting(model, config, longest=LONGEST, captions=None, features=None):
    given = {modality: Features() for modality in MEDIA} if features is None else features
    return Fitting(config, model.chat, given, model.spec.input_projector, captions or {}, longest)


def samples(seed: int, num: int = 60) -> list[Sample]:
    """Conversations and captions of all lengths, media in all places."""
    draws = random.Random(seed)

    def text() -> str:
        return "".join(draws.choice("ab é<>") for _ in range(draws.choice((1, 5, 20, 60, 200))))

    found = []
    for number in range(num):
        key = f"s-{number}"
        if number % 4 == 0:
            found.append(Sample(key=key, source="s", modality="image", texts=tuple(text() for _ in range(draws.randrange(1, 4)))))
            continue
        questions = [text() for _ in range(draws.randrange(1, 5))]
        if number % 4 == 1:
            place = draws.randrange(len(questions))
            questions[place] = draws.choice(((IMAGE, questions[place]), ("see ", IMAGE, questions[place])))
        answers = [(text(), Shown("audio")) if draws.random() < 0.1 else text() for _ in questions]
        modality = "image" if number % 4 == 1 else "text"
        pairs = tuple(zip(questions, answers, strict=True))
        found.append(Sample(key=key, source="s", modality=modality, conversations=pairs, system=draws.choice(("", "Be brief.")), media_sha256=key))
    return found


def longest_row(data: ChatData, sample: Sample) -> int:
    """Tokens of the longest of a sample's rows on any visit."""
    rows = [data.row(sample, visit, Features().length(sample.key) if sample.modality != "text" else 0) for visit in range(6)]
    return max(int(row.positions.max()) + 1 for row in rows)


@pytest.mark.parametrize("dialogues", [(), ("s",)])
@pytest.mark.parametrize("caption_turn", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_all_that_is_kept_fits_and_all_that_fits_is_kept(seed, caption_turn, dialogues):
    model, rows = any_model("shared"), samples(seed)
    config = stage(dialogues=dialogues, caption_turn=caption_turn)
    captions = {sample.key: "a red dot" for sample in rows}
    kept, lost = fitting(model, config, captions=captions).samples({"s": rows})
    status = {one.key: one.status for one in lost}
    assert set(status.values()) == {CUT, LEFT_OUT} and {one.reason for one in lost} == {"too_long"}

    def data(found: list[Sample]) -> ChatData:
        return ChatData(config, model.chat, {"s": found}, {"image": Features()}, model.spec.input_projector, captions)

    made, whole = data(kept["s"]), data(rows)
    by_key = {sample.key: sample for sample in kept["s"]}
    for sample in rows:
        longest = longest_row(whole, sample)
        if sample.key not in status:
            assert by_key[sample.key] == sample and longest <= LONGEST
            continue
        assert longest > LONGEST or not dialogues  # of independent questions any one may be too long
        if status[sample.key] == CUT:
            assert longest_row(made, by_key[sample.key]) <= LONGEST
            parts = by_key[sample.key].conversations or by_key[sample.key].texts
            assert 0 < len(parts) < len(sample.conversations or sample.texts)
        else:
            assert sample.key not in by_key
    left = fitting(model, dataclasses.replace(config, too_long="leave_out"), captions=captions).samples({"s": rows})[1]
    assert {one.key for one in left} == set(status) and {one.status for one in left} == {LEFT_OUT}


@pytest.mark.parametrize("seed", range(2))
def test_what_is_not_tokenized_is_surely_short_enough(seed):
    model = any_model("shared")
    made, config = fitting(model, stage(), longest=1), stage(dialogues=("s",))
    data = ChatData(config, model.chat, {"s": samples(seed)}, {"image": Features()}, model.spec.input_projector)
    for sample in samples(seed):
        tokens = Features().length(sample.key) if sample.modality != "text" else 0
        assert made._at_most(sample, tokens) >= longest_row(data, sample)


def test_a_medium_that_was_cut_off_takes_its_record_with_it():
    model = any_model("shared")
    pairs = (("q", "a"), ("r", "x" * 150), ((IMAGE, "what?"), "b"))
    kept, (reason, _) = fitting(model, stage()).fit(Sample(key="k", source="s", modality="image", conversations=pairs))
    assert kept is None and reason == "too_long"
    kept, _ = fitting(model, stage()).fit(Sample(key="k", source="s", modality="image", conversations=pairs[::-1]))
    assert kept is not None and kept.conversations == ((("what?"), "b"), ("q", "a"))  # independent questions: only the long one is left out


def test_without_a_limit_only_what_cannot_be_used_is_left_out():
    model = any_model("shared")
    made = fitting(model, stage(), longest=0, features={"image": Features()})
    fine = Sample(key="k", source="s", modality="text", conversations=(("q", "x" * 5000),))
    assert made.fit(fine) == (fine, None)
    for sample, reason in (
        (Sample(key="k", source="s", modality="audio", conversations=(("q", "a"),)), "no_features"),
        (Sample(key="k", source="s", modality="text", texts=("a dot",)), "nothing_to_learn"),
        (Sample(key="k", source="s", modality="image"), "nothing_to_learn"),
    ):
        assert made.fit(sample)[0] is None and made.fit(sample)[1][0] == reason


def test_the_share_that_may_be_lost():
    model = any_model("shared")
    rows = [Sample(key=f"k{i}", source="s", modality="text", conversations=(("q", "x" * (300 if i < 2 else 1)),)) for i in range(4)]
    kept, lost = fitting(model, stage()).samples({"s": rows})
    check_lost(lost, kept, 0.5)
    with pytest.raises(ValueError, match=r"^2 of 4 records are not trained on \(too_long 2\), the first is k0: .* more than max_lost 0\.4 of them"):
        check_lost(lost, kept, 0.4)
    assert len(ledger_lines(lost, 4)) == 1 and ledger_lines([], 4) == []
