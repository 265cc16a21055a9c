"""Comparison: pairing by key and content, the numbers of a row, families of tests, what is refused."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from evals.nightly.comparison import COMPARISONS, compare, decides, pair
from evals.statistics.significance import holm, mcnemar_exact
from infra.step import AnyloomError


def samples(scores: list[float], *, task: str = "t", condition: str = "plain_prompt", pictures: int = 1, **extra: Any) -> list[dict[str, Any]]:
    """Rows of the sample table; `pictures`: questions about one picture."""
    return [
        {
            "task": task,
            "condition": condition,
            "doc_key": f"q{i:03d}",
            "image": f"{i // pictures}.png",
            "question": f"is it number {i}?",
            "target": "yes",
            "answer_type": "yes/no" if i % 2 else "shape",
            "score": score,
            **extra,
        }
        for i, score in enumerate(scores)
    ]


def compared(a: list[dict[str, Any]], b: list[dict[str, Any]], first: str = "f", second: str = "f", **options: Any) -> list[dict[str, Any]]:
    """compare() of two runs whose tasks have one fingerprint each."""
    tasks = {row["task"] for row in [*a, *b]}
    return compare(a, b, run_a="old", run_b="new", fingerprints_a=dict.fromkeys(tasks, first), fingerprints_b=dict.fromkeys(tasks, second), **options)


def test_a_row_says_what_changed() -> None:
    before, after = [1.0] * 40, [1.0] * 28 + [0.0] * 12
    before[0] = 0.0
    made = datetime(2026, 1, 2)
    rows = compared(samples(before), samples(after), made=made)
    assert [row["subgroup"] for row in rows] == ["all", "shape", "yes/no"]
    row = rows[0]
    assert list(row) == COMPARISONS.names
    assert (row["n_paired"], row["clusters"], row["flips_up"], row["flips_down"]) == (40, 40, 1, 12)
    assert (row["value_a"], row["value_b"], row["delta"]) == pytest.approx((39 / 40, 28 / 40, -11 / 40))
    assert row["ci_lo"] < row["delta"] < row["ci_hi"] < 0
    assert (row["p"], row["test"]) == (mcnemar_exact(1, 12), "mcnemar_exact")
    assert row["detectable"] > 6 / 40
    assert (row["run_a"], row["run_b"], row["history_fingerprint"], row["made"]) == ("old", "new", "f", made)
    assert len({row["comparison_id"] for row in rows}) == 3
    assert pa.Table.from_pylist(rows, schema=COMPARISONS).num_rows == 3
    assert rows == compared(samples(before)[::-1], samples(after), made=made)


def test_samples_are_joined_by_key_and_never_by_position() -> None:
    scores = [float(i % 3 > 0) for i in range(30)]
    b = samples(scores)
    np.random.default_rng(0).shuffle(b)
    row = compared(samples(scores), b)[0]
    assert (row["delta"], row["flips_up"], row["flips_down"], row["p"]) == (0.0, 0, 0, 1.0)


@pytest.mark.parametrize(("field", "value"), [("question", "is it blue?"), ("image", "x.png"), ("target", "no")])
def test_another_content_under_the_same_key_is_refused(field: str, value: str) -> None:
    b = samples([1.0] * 5)
    b[3][field] = value
    with pytest.raises(AnyloomError, match=f"sample q003 of t .*the {field}"):
        compared(samples([1.0] * 5), b)


def test_a_document_hash_counts_only_where_both_have_one() -> None:
    first, second = samples([1.0], doc_sha256="a"), samples([1.0], doc_sha256="b")
    with pytest.raises(AnyloomError, match="doc_sha256"):
        compared(first, second)
    assert compared(first, samples([1.0], doc_sha256=None))[0]["n_paired"] == 1


def test_a_key_twice_is_refused() -> None:
    with pytest.raises(AnyloomError, match=r"q000 of t .*twice"):
        compared(samples([1.0]) * 2, samples([1.0]))


def test_samples_without_partner_are_counted_and_left_out() -> None:
    a, b = samples([1.0] * 6)[1:], samples([0.0] * 6)[:4]
    paired = pair(a, b)["t", "plain_prompt"]
    assert (len(paired.keys), paired.only_a, paired.only_b) == (3, 2, 1)
    assert compared(a, b)[0]["n_paired"] == 3
    assert compared(a, samples([0.0], task="u")) == []


def test_other_fingerprints_are_refused_unless_asked_for() -> None:
    a, b = samples([1.0] * 4), samples([0.0] * 4)
    with pytest.raises(AnyloomError, match=r"t has the history fingerprint f in run old and g in run new"):
        compared(a, b, "f", "g")
    with pytest.raises(AnyloomError, match="none"):
        compared(a, b, "", "")
    assert compared(a, b, "f", "g", across_fingerprints=True)[0]["history_fingerprint"] == "f g"


def test_a_score_that_is_missing_is_refused() -> None:
    with pytest.raises(AnyloomError, match="sample q000 has no score"):
        compared(samples([1.0]), [{**samples([1.0])[0], "score": None}])


def rotated(scores: list[list[float]], task: str) -> list[dict[str, Any]]:
    """Rows of a task with rotations: one list of scores per question."""
    rows = []
    for number, of in enumerate(scores):
        for turn, row in enumerate(samples(of, task=task, image=f"{number}.png", question=f"{number}?", answer_type="x")):
            index = turn * 10**6 + number
            rows.append(row | {"question_id": index, "doc_key": f"{task}-{index}"})
    return rows


def test_every_task_is_compared_by_its_own_metrics_in_their_unit() -> None:
    a = rotated([[1.0] * 4, [1.0] * 4, [1.0, 1.0, 0.0, 1.0]], "stamps_as_mmbench") + samples([1.0, 0.0], task="mmmu_val") + samples([0.5], task="mmvet")
    b = rotated([[1.0] * 4, [0.0, 1.0, 1.0, 1.0], [1.0] * 4], "stamps_as_mmbench") + samples([1.0, 1.0], task="mmmu_val") + samples([0.25], task="mmvet")
    found = {(row["task"], row["metric"]): row for row in compared(a, b) if row["subgroup"] == "all"}
    mmbench = {("stamps_as_mmbench", "gpt_eval_score"), ("stamps_as_mmbench", "harness_vanilla")}
    assert set(found) == mmbench | {("mmmu_val", "mmmu_acc"), ("mmvet", "gpt_eval_score")}
    circular, vanilla = (found["stamps_as_mmbench", metric] for metric in ("gpt_eval_score", "harness_vanilla"))
    assert (circular["n_paired"], circular["flips_up"], circular["flips_down"]) == (3, 1, 1)  # a question is right when all its rotations are
    assert (circular["value_a"], circular["value_b"], circular["delta"]) == pytest.approx((200 / 3, 200 / 3, 0))
    assert (vanilla["n_paired"], vanilla["flips_up"], vanilla["flips_down"], vanilla["clusters"]) == (12, 1, 1, 3)
    assert vanilla["value_a"] == pytest.approx(1100 / 12) and circular["detectable"] > 1
    assert (found["mmmu_val", "mmmu_acc"]["delta"], found["mmvet", "gpt_eval_score"]["delta"]) == (0.5, -25.0)


def test_a_score_that_a_run_does_not_have_is_not_compared() -> None:
    assert compared(samples([1.0]), samples([0.0]), scored={("t", "plain_prompt", "anls")}) == []
    assert len(compared(samples([1.0]), samples([0.0]), scored={("t", "plain_prompt", "exact_match")})) == 1
    assert compared(samples([1.0], task="coco2017_cap_val"), samples([0.0], task="coco2017_cap_val")) == []  # no score of single answers


def test_tests_of_different_metrics_are_one_family() -> None:
    tasks = ("t", "mmmu_val", "pope")
    a, b = ([row for task in tasks for row in samples(scores, task=task)] for scores in ([1.0] * 20, [1.0] * 13 + [0.0] * 7))
    deciding = [row for row in compared(a, b) if decides(row)]
    assert {row["metric"] for row in deciding} == {"exact_match", "mmmu_acc", "pope_accuracy"}
    assert [row["p_adjusted"] for row in deciding] == holm([row["p"] for row in deciding]) != [row["p"] for row in deciding]


def test_families_of_tests() -> None:
    rng = np.random.default_rng(0)
    a, b = [], []
    for task in ("t", "u"):
        for condition in ("helped", "plain_prompt", "blank"):
            a += samples([1.0] * 60, task=task, condition=condition)
            b += samples((rng.random(60) < 0.9).astype(float).tolist(), task=task, condition=condition)
    rows = compared(a, b)
    deciding = [row for row in rows if decides(row)]
    assert [(row["task"], row["condition"]) for row in deciding] == [(t, c) for t in "tu" for c in ("helped", "plain_prompt")]
    assert [row["p_adjusted"] for row in deciding] == holm([row["p"] for row in deciding])
    others = [row for row in rows if not decides(row)]
    assert [row["p_adjusted"] for row in others] == holm([row["p"] for row in others])


def test_clusters_are_pictures_and_soft_scores_are_permuted() -> None:
    rows = compared(samples([1.0] * 40, pictures=4), samples([0.6] * 12 + [1.0] * 28, pictures=4))
    assert (rows[0]["clusters"], rows[0]["test"]) == (10, "permutation_exact")
    assert rows[0]["p"] == pytest.approx(2 * 0.5**3)
    apart = [dict(row, cluster=row["doc_key"]) for row in samples([1.0] * 40, pictures=4)]
    assert compared(apart, samples([0.6] * 12 + [1.0] * 28, pictures=4))[0]["clusters"] == 40
