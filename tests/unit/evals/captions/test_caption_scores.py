"""Scores of captions on worked examples, object words, CHAIR on captions made by hand, and the questions and rates of POPE."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from evals.captions.caption_scores import bleu, cider, rouge_l, spice_refusal, tokenized, words
from evals.captions.captioning import caption_metrics, chair_task
from evals.captions.chair import chair_metrics
from evals.captions.objects import EASYVQA_WORDS, head_word, named, vocabulary_of
from evals.config import CaptioningEvalConfig, PopeEvalConfig
from evals.questions.objects_as_pope import parsed, pope_metrics, sample_rows
from evals.questions.pope_questions import PopeQuestion, Shown, pope_questions
from evals.statistics.intervals import ratio_interval
from evals.tables import VQA_SAMPLES
from infra.step import AnyloomError

OPTIONS = {"draws": 100, "seed": 0}
REFERENCES = [["A red circle."], ["A blue triangle!"], ["a small gray rectangle", "a rectangle"]]


# ---- scores ---------------------------------------------------------------------------------------------------------


def test_cider_of_a_worked_example():
    pair = REFERENCES[:2]
    right = cider(tokenized(["a red circle", "a blue triangle"], pair, "words-1"))
    assert right.tolist() == pytest.approx([7.5, 7.5])  # 1 for each of 1-, 2- and 3-grams, no 4-gram: 10 * 3/4; `a` is everywhere and weighs nothing
    half = cider(tokenized(["a red square", "a blue triangle"], pair, "words-1"))
    assert half[0] == pytest.approx(10 * (0.5 + 0.5) / 4)  # one of two weighted words, one of two pairs, no triple
    assert cider(tokenized(["", "dogs"], pair, "words-1")).tolist() == [0.0, 0.0]


def test_rouge_and_bleu_of_a_worked_example():
    captions = tokenized(["a red square"], [["a red circle"]], "words-1")
    assert rouge_l(captions)[0] == pytest.approx(2 / 3)  # two of three words in order, both ways
    assert bleu(captions)[:2] == pytest.approx([2 / 3, np.sqrt(2 / 3 * 1 / 2)], rel=1e-6)
    short = tokenized(["a circle"], [["a red circle here"]], "words-1")
    assert bleu(short)[0] == pytest.approx(np.exp(1 - 4 / 2), rel=1e-6)  # both words right, half as long


def test_the_tokenizer_is_named_and_an_unknown_one_refused():
    assert words(["A Frog's  leap, isn't_it?"]) == ["a frog's leap isn't it"]
    with pytest.raises(AnyloomError, match="no tokenizer called 'ptb2': use one of words-1, ptb"):
        tokenized(["a"], [["a"]], "ptb2")
    with pytest.raises(ValueError, match="references of its own"):
        tokenized(["a"], [[]], "words-1")


@pytest.mark.skipif(shutil.which("java") is None, reason="the PTB tokenizer is a Java program")
def test_both_tokenizers_agree_on_plain_captions():
    said = ["a red circle", "the small, gray rectangle.", ""]
    assert tokenized(said, REFERENCES, "ptb") == tokenized(said, REFERENCES, "words-1")


def test_spice_says_why_it_cannot_run():
    assert "Java" in spice_refusal() or "stanford-corenlp-3.6.0" in spice_refusal() or spice_refusal() == ""


def caption_rows(said):
    rows = []
    for i, (text, references) in enumerate(zip(said, REFERENCES * 2, strict=True)):
        own = tokenized([text], [references], "words-1")
        rows.append({"modality": "image", "source": "stamps_heldout", "key": f"k{i}", "media_sha256": f"s{i}", "references": references, "generated": text})
        rows[-1] |= {"other_key": f"k{(i + 1) % 6}", "cider": 1.0 + i, "cider_of_other": 0.5, "rouge_l": rouge_l(own)[0], "rouge_l_of_other": 0.0}
    return rows


def test_caption_metrics_hold_scores_floors_differences_and_what_is_behind_them():
    said = ["a red circle", "a blue triangle", "a rectangle"] * 2
    metrics, details = caption_metrics(CaptioningEvalConfig(bootstrap_draws=100), caption_rows(said), {})
    at = {(row["condition"], row["metric"]): row for row in metrics}
    assert at["generated", "rouge_l"]["value"] == pytest.approx(1.0) and at["generated, shuffled", "rouge_l"]["value"] == 0
    assert at["generated - shuffled", "cider"]["value"] == pytest.approx(3.0) and at["generated", "cider"]["n"] == 6
    assert at["generated", "bleu_1"]["value"] == pytest.approx(1.0, rel=1e-6) and at["generated, shuffled", "bleu_4"]["value"] < 0.01
    assert len(details) == len(metrics) and all("words-1" in row["definition"] and "pycocoevalcap" in row["definition"] for row in details)
    assert {row["reference_sha256"] for row in details} == {details[0]["reference_sha256"]} and details[0]["n_reference"] == 8
    refused: dict[str, str] = {}
    few, _ = caption_metrics(CaptioningEvalConfig(bootstrap_draws=100), caption_rows(said)[:3], refused)
    assert not [row for row in few if row["metric"].startswith("bleu")] and "3 media" in refused["stamps_heldout bleu"]


# ---- objects --------------------------------------------------------------------------------------------------------


def test_head_words_make_a_vocabulary_and_plurals_are_found():
    captions = ["A slice of bread.", "An African elephant, walking", "Cherries", "a cherry", "the sun is red", "of", "", "a bus"]
    assert [head_word(caption) for caption in captions] == ["slice", "elephant", "cherries", "cherry", "sun", "of", "", "bus"]
    vocabulary = vocabulary_of(captions)
    assert vocabulary == ("bus", "cherry", "elephant", "of", "slice", "sun")
    assert named("Two elephants, one bus and CHERRIES on elephants", vocabulary) == ["elephant", "bus", "cherry"]
    assert named("a grey circle and a redish shape", EASYVQA_WORDS) == ["gray", "circle"]


def test_chair_on_captions_made_by_hand():
    said = [["red", "circle"], ["red", "triangle"], []]
    present = [["red", "circle"], ["blue", "triangle"], ["gray", "rectangle"]]
    rows = chair_metrics("easyvqa_chair", said, present, present[1:] + present[:1], ["a", "b", "c"], **OPTIONS)
    at = {(row["condition"], row["metric"]): row for row in rows}
    assert at["generated", "chair_i"]["value"] == pytest.approx(1 / 4) and at["generated", "chair_i"]["n"] == 4
    assert at["generated", "chair_s"]["value"] == pytest.approx(1 / 3) and at["generated", "object_recall"]["value"] == pytest.approx(3 / 6)
    assert at["generated", "names_an_object"]["value"] == pytest.approx(2 / 3) and at["generated", "chair_i"]["clusters"] == 2
    assert at["generated, shuffled", "chair_i"]["value"] == 1.0 and at["generated, shuffled", "chair_i"]["ci_lo"] < 1
    silent = chair_metrics("easyvqa_chair", [[], []], present[:2], present[:2], ["a", "b"], **OPTIONS)
    assert "chair_i" not in {row["metric"] for row in silent}  # no mention: no share of them
    assert chair_task("stamps_heldout") == "stamps_chair"


def test_a_ratio_without_cases_has_no_interval_and_one_at_the_edge_has_width():
    assert ratio_interval([0.0], [0.0], ["a"], **OPTIONS) is None
    edge = ratio_interval([2.0, 1.0], [2.0, 1.0], ["a", "b"], **OPTIONS)
    assert edge is not None and edge.value == 1 and edge.ci_lo < 0.7 and edge.ci_hi == 1 and edge.n == 3


# ---- yes and no -----------------------------------------------------------------------------------------------------


def pictures():
    found = [("red", "circle")] * 3 + [("red", "triangle")] * 2 + [("blue", "circle"), ("blue", "rectangle")]
    return [Shown(key=f"k{i}", sha256=f"s{i}", objects=objects) for i, objects in enumerate(found)]


def test_absent_objects_are_random_popular_or_adversarial():
    everything = pictures()
    questions = pope_questions("easyvqa_as_pope", [everything[0], everything[6]], everything, 0)

    def chosen(key, setting):
        return [question.object for question in questions if question.key == key and setting in question.settings and not question.present]

    assert [q.object for q in questions if q.key == "k0" and q.present] == ["red", "circle"]
    assert sorted(chosen("k0", "popular")) == ["blue", "triangle"]  # two pictures each, rectangle one
    assert sorted(chosen("k0", "adversarial")) == ["blue", "triangle"]  # blue circle, red triangle
    assert sorted(chosen("k6", "popular")) == ["circle", "red"] and sorted(chosen("k6", "adversarial")) == ["circle", "red"]
    assert all(len(chosen(key, "random")) == 2 for key in ("k0", "k6")) and len({(q.key, q.object) for q in questions}) == len(questions)
    assert questions == pope_questions("easyvqa_as_pope", [everything[0], everything[6]], everything, 0)
    assert {q.text for q in questions if q.key == "k0"} >= {"Is there a red shape in the image?", "Is there a circle in the image?"}
    single = [Shown(key=f"k{i}", sha256=f"s{i}", objects=(name,)) for i, name in enumerate(("apple", "bus", "bus"))]
    alone = pope_questions("stamps_as_pope", single, single, 0)
    assert {setting for question in alone for setting in question.settings} == {"random", "popular"}
    assert {q.text for q in alone} == {"Is there an apple in the image?", "Is there a bus in the image?"}


def test_an_answer_is_yes_no_or_neither():
    assert [parsed(text) for text in ("Yes.", " no, it is", "yesterday", "", "I see no circle", "**Yes**")] == ["yes", "no", "", "", "no", "yes"]


def test_rates_of_a_model_that_always_says_yes_and_of_one_that_knows():
    everything = pictures()
    questions = pope_questions("easyvqa_as_pope", everything, everything, 0)
    config = PopeEvalConfig(bootstrap_draws=100)
    knows = [question.answer for question in questions]
    knows[0], knows[1] = "no", "perhaps"  # one present object is denied, one answer is neither
    at = {(row["condition"], row["metric"]): row for row in pope_metrics(config, questions, {"right": knows, "blank": ["yes"] * len(knows)})}
    blank, floor = ({metric: at[f"random, {name}", metric]["value"] for metric in ("accuracy", "recall", "f1", "yes_rate")} for name in ("blank", "always_yes"))
    assert blank == floor == pytest.approx({"accuracy": 0.5, "recall": 1.0, "f1": 2 / 3, "yes_rate": 1.0})
    assert at["random, blank", "hallucination_rate"]["value"] == 1.0 and at["random", "hallucination_rate"]["value"] == 0.0
    assert at["random", "accuracy"]["value"] == pytest.approx(26 / 28) and at["random", "recall"]["value"] == pytest.approx(12 / 14)
    assert at["random", "precision"]["value"] == 1.0 and at["random", "unparsed_rate"]["value"] == pytest.approx(1 / 28)
    assert at["random", "f1"]["value"] == pytest.approx(24 / 26) and at["random", "f1"]["n"] == 28 and at["random", "accuracy"]["clusters"] == 7
    assert at["random - blank", "accuracy"]["value"] == pytest.approx(26 / 28 - 0.5)
    rows = sample_rows(questions, knows, "right")
    overall = {condition: row["value"] for (condition, metric), row in at.items() if row["subgroup"] == "all"}
    assert overall["right"] == pytest.approx(sum(row["score"] for row in rows) / len(rows)) and overall["blank"] == overall["always_yes"] < overall["right"]
    assert all(set(row) == set(VQA_SAMPLES.names) for row in rows) and rows[0]["answer_type"] == "present" and rows[0]["score"] == 0
    assert isinstance(questions[0], PopeQuestion) and {row["answer_type"] for row in rows if row["target"] == "no"} <= {
        "random", "popular", "adversarial", "random+popular", "random+adversarial", "popular+adversarial", "random+popular+adversarial"
    }  # fmt: skip
