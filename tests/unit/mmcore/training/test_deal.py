"""The drawing of questions: none twice within a row while there are others, none on two visits in a row where that can be, all equally often."""

from collections import Counter
from itertools import pairwise

import pytest
from toy_any import any_model
from toy_model import Features

from mmcore.config import RowsStage
from mmcore.training.batching import deal, deal_questions
from mmcore.training.rows import ChatData
from mmcore.types import IGNORE, Sample, Shown

SIZES = [(num, count) for num in (1, 2, 3, 4, 5, 7, 8, 9, 12, 13) for count in (1, 2, 3, 4, 8)]


@pytest.mark.parametrize(("num", "count"), SIZES)
def test_no_item_twice_in_a_visit_and_none_on_two_visits_in_a_row(num, count):
    for seed in range(5):
        visits = [deal(range(num), count, seed, "key", visit) for visit in range(60)]
        assert all(len(set(visit)) == len(visit) == min(num, count) for visit in visits)
        for first, second in pairwise(visits):
            assert len(set(first) & set(second)) == max(0, 2 * count - num) if num > count else first == second
            assert num <= count or first[-1] != second[0]
        shown = Counter(item for visit in visits for item in visit)
        assert max(shown.values()) - min(shown.values()) <= 1 and len(shown) == num


def test_the_order_is_that_of_the_key_and_the_seed():
    orders = {tuple(deal(range(8), 8 - 1, seed, key, 0)) for seed in range(3) for key in "abc"}
    assert len(orders) == 9


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_question_that_a_record_has_twice_is_one_question(count):
    pairs = [("hue?", "red"), ("form?", "dot"), ("hue?", "red"), ("hue?", "crimson"), ("n?", "1"), ("form?", "dot")]
    seen = Counter()
    for visit in range(60):
        dealt = deal_questions(pairs, count, 0, "key", visit)
        questions = [question for question, _ in dealt]
        assert len(set(questions)) == len(questions) == min(3, count) and set(dealt) <= set(pairs)
        seen.update(dealt)
    assert abs(seen["hue?", "red"] - seen["hue?", "crimson"]) <= 1 and seen["form?", "dot"] == pytest.approx(20 * min(3, count), abs=1)


def test_questions_without_repeats_are_dealt_as_they_are():
    pairs = [(f"q{i}?", "a") for i in range(7)]
    for visit in range(9):
        assert deal_questions(pairs, 3, 1, "key", visit) == deal(pairs, 3, 1, "key", visit)


def test_a_row_of_training_asks_no_question_twice():
    model = any_model("shared")
    pairs = tuple((f"{name}?", name) for name in "bcdef")
    sample = Sample(key="k", source="s", modality="image", conversations=(((Shown("image"), "\na?"), "a"), *pairs))
    config = RowsStage(stage="stage3", steps=2, batch=2, lr=1e-3, questions=4, mixture=(("s", 1.0),))
    data = ChatData(config, model.chat, {"s": [sample]}, {"image": Features()}, model.spec.input_projector)
    for visit in range(20):
        row = data.row(sample, visit, 3)
        answers = model.chat.decode([int(i) for i in row.targets if i != IGNORE])
        assert len(answers) == 4 == len(set(answers))
