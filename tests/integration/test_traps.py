"""The seventeen traps of lmms-eval 0.7.3: each test names one, shows it where it is, and that our way does not step into it; and equality with the harness."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import math
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from evals.config import HistoryConfig, SuiteConfig
from evals.harness.answers import AnswerFile
from evals.history.rows import collect
from evals.nightly.comparison import compare
from evals.statistics.intervals import cluster_sums
from evals.statistics.significance import permutation_p
from evals.suites import run as suite_run
from evals.suites.catalogue import SUITES, TASKS, suite_task, suite_tasks
from evals.suites.data import prepare
from evals.suites.reading import OWN, RULES, score_choice, score_vqa
from evals.suites.rows import draw_docs, read_docs, whole_groups
from evals.suites.task_files import packaged_config, task_yaml
from infra.settings import offline_environment
from infra.step import AnyloomError, Artifact

sys.path.insert(0, str(Path(__file__).parent))
import official_data
from suite_fakes import COLOURS, Says, context, nearest, use

STYLES = Path(__file__).parents[1] / "cases" / "answers"
CORE = SUITES["core"]
HEADLINE = {task.lmms_task: task.headline for task in TASKS}


@pytest.fixture(scope="module", autouse=True)
def _offline() -> Iterator[None]:
    offline_environment()
    yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every suite's data, prepared from files in the official schemas."""
    root = tmp_path_factory.mktemp("official")
    prepare("full", root / "data", official_data.full(root / "hub"), say=lambda line: None)
    prepare("core", root / "data", root / "hub", say=lambda line: None)
    return root / "data"


def babble(prompt: str, seen: tuple[int, ...] | None) -> str:
    """Answers of every kind, a function of question and picture: right, wrong, badly written, unreadable."""
    name = nearest(seen)
    draw = (list(COLOURS).index(name) + ("Is it" in prompt)) % 6
    if "A. " in prompt:
        letter = next((line[0] for line in prompt.splitlines() if line[1:] == f". {name}"), "D")
        return [letter, letter, f"({letter}) {name}", letter.lower(), f"It's {letter} because A is wrong", "who knows"][draw]
    return [name, name, f"It is {name}.", f"{name}s", "", "Yes" if name == "red" else "no, never"][draw]


def ask(root: Path, data: Path, task: str, monkeypatch: pytest.MonkeyPatch, says: Says, attempt: str = "a", **options: Any) -> tuple[dict[str, Any], Path]:
    """(result, output) of one suite step."""
    use(monkeypatch, says)
    config = SuiteConfig(lmms_task=task, conditions=("plain_prompt",), bootstrap_draws=50, **options)
    ctx = context(root, config, attempt, sources={"suite": data / "full.json"})
    return dict(suite_run.run(ctx)), ctx.output


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def stored(output: Path, metric: str) -> dict[str, Any]:
    return next(row for row in rows_of(output / "metrics.parquet") if (row["metric"], row["subgroup"], row["kind"]) == (metric, "all", "score"))


def peer(folder: Path, data: Path, task: str, reply: Callable[[str, tuple[int, ...] | None], str], **options: Any) -> dict[str, Any]:
    """lmms-eval on its own: its packaged file included as it is, its evaluator with its defaults, a model that shares nothing with ours."""
    import argparse

    from lmms_eval.api.model import lmms
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.tasks import TaskManager
    from lmms_eval.tasks import __file__ as packaged

    class Peer(lmms):
        def generate_until(self, requests: list[Any]) -> list[str]:
            said = []
            for prompt, _, doc_to_visual, doc_id, name, split in (request.args for request in requests):
                (picture,) = doc_to_visual(self.task_dict[name][split][doc_id])
                said.append(reply(prompt, tuple(round(float(c)) for c in np.asarray(picture, np.float32).mean((0, 1)))))
            return said

        def loglikelihood(self, requests: list[Any]) -> Any:
            raise AssertionError

        def generate_until_multi_round(self, requests: list[Any]) -> Any:
            raise AssertionError

    entry, names = suite_task(task), sorted(path.name for path in (data / task).glob("*.parquet"))
    include = Path(packaged).parent / entry.packaged[0] / entry.packaged[1]
    files = json.dumps({entry.split: [str(data / task / name) for name in names]})
    folder.mkdir(parents=True, exist_ok=True)
    text = f"include: {include}\ntask: peer_{task}\ndataset_path: parquet\ndataset_name: null\ndataset_kwargs: {{data_files: {files}}}\n"
    (folder / "peer.yaml").write_text(text)
    manager = TaskManager(verbosity="ERROR", include_path=str(folder), include_defaults=False)
    given = argparse.Namespace(output_path=str(folder), process_with_media=True)
    return simple_evaluate(model=Peer(), tasks=[f"peer_{task}"], task_manager=manager, bootstrap_iters=0, verbosity="ERROR", cli_args=given, **options)


@pytest.mark.parametrize("task", CORE)
def test_stored_harness_scores_equal_lmms_evals_own_to_the_last_digit(tmp_path, data, monkeypatch, task: str) -> None:
    result, output = ask(tmp_path, data, task, monkeypatch, Says(babble))
    theirs = peer(tmp_path / "peer", data, task, babble)
    assert stored(output, HEADLINE[task])["value"] == float(theirs["results"][f"peer_{task}"][f"{HEADLINE[task]},none"])  # bit for bit
    said = {sample["doc_id"]: sample["filtered_resps"][0] for sample in theirs["samples"][f"peer_{task}"]}
    assert [row["prediction"] for row in rows_of(output / "samples.parquet")] == [said[i] for i in range(len(said))]
    assert 0 < stored(output, HEADLINE[task])["value"] and result["explained"]["ours_higher"] > 0  # and our own score differs, with the reason
    assert stored(output, "ours_circular" if task == "mmbench_en_dev_static" else "ours_accuracy")["value"] > 0


# ---- the traps, by their numbers --------------------------------------------------------------------------------------


def test_trap_1_the_model_survives_an_evaluation(data) -> None:
    from evals.harness.adapter import AnyloomLmms, run_lmms

    model = AnyloomLmms(generator=Says(babble))
    model.net = torch.nn.Linear(2, 2)
    first, second = (run_lmms(data / "pope", "pope", model, scratch=data / "scratch") for _ in range(2))
    assert first["results"] == second["results"] and isinstance(model.net, torch.nn.Module)
    super(AnyloomLmms, model).clean()  # what the harness would have done
    assert not isinstance(getattr(model, "net", None), torch.nn.Module)


def test_trap_2_llava_bench_without_a_judge_is_never_scored(tmp_path) -> None:
    packaged = importlib.import_module("lmms_eval.tasks.llava-in-the-wild.utils")
    assert packaged.llava_all_aggregation([{"scores": [-1, -1]}] * 4) == 100.0  # the trap
    task = suite_task("llava_in_the_wild")
    with pytest.raises(AnyloomError, match="did not answer for 2 of 3"):
        suite_run.refuse_unjudged(task, [{task.headline: {"scores": scores}} for scores in ([-1, -1], [8.0, 7.0], [-1, -1])])
    assert "skipped" in suite_run.run(context(tmp_path, SuiteConfig(lmms_task="llava_in_the_wild")))


def test_trap_3_unreadable_mmbench_answers_are_wrong_and_cost_no_time(tmp_path, data, monkeypatch) -> None:
    assert not any(task.packaged[1] == "mmbench_en_dev.yaml" for task in TASKS)  # the judge that asks, sleeps and then draws a letter
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("the judge sleeps"))
    _, output = ask(tmp_path, data, "mmbench_en_dev_static", monkeypatch, Says(lambda prompt, seen: "hmm"))
    assert stored(output, "gpt_eval_score")["value"] == 0.0 == stored(output, "ours_circular")["value"]
    assert stored(output, "harness_vanilla")["value"] == 0.0  # no letter was drawn for any rotation
    assert stored(output, "ours_unparsed")["value"] == 1.0


def test_trap_4_mmmu_is_the_same_every_time(tmp_path, data, monkeypatch) -> None:
    outputs = []
    for attempt in ("a", "b"):
        random.seed(attempt)
        outputs.append(ask(tmp_path / attempt, data, "mmmu_val", monkeypatch, Says(lambda prompt, seen: "who knows"))[1])
    first, second = (rows_of(output / "metrics.parquet") for output in outputs)
    assert [row["value"] for row in first] == [row["value"] for row in second]
    told = json.loads((outputs[0] / "info/lmms/plain_prompt.json").read_text())
    assert told["config"]["process_docs_parallel"] == 1
    assert stored(outputs[0], "ours_accuracy")["value"] == 0.0  # the harness draws a letter where we read none
    assert stored(outputs[0], "ours_unparsed")["value"] > 0.5


def test_trap_5_no_share_of_the_rows_is_carried_from_task_to_task(data) -> None:
    from evals.harness.adapter import AnyloomLmms, run_lmms

    with pytest.raises(AnyloomError, match="whole number of rows"):
        run_lmms(data / "pope", "pope", AnyloomLmms(generator=Says(babble)), limit=0.25)  # type: ignore[arg-type]
    docs = read_docs(suite_task("pope"), sorted((data / "pope").glob("*.parquet")))
    assert [len(draw_docs(docs[:size], size // 3, seed=0)) for size in (6, 3)] == [2, 1]


def test_trap_6_other_data_has_another_fingerprint(tmp_path, data, monkeypatch) -> None:
    from evals.harness.adapter import AnyloomLmms, run_lmms

    hashes = {sample["doc_hash"] for sample in run_lmms(data / "pope", "pope", AnyloomLmms(generator=Says(babble)), scratch=tmp_path)["samples"]}
    assert hashes == {hashlib.sha256(b"null").hexdigest()}  # the trap
    results = [ask(tmp_path / str(n), data, "pope", monkeypatch, Says(babble), num_questions=3, seed=n)[0] for n in (0, 1)]
    assert len({result["dataset_sha256"] for result in results}) == len({result["history_fingerprint"] for result in results}) == 2


@pytest.mark.parametrize("task", CORE)
def test_trap_7_checkpoints_are_compared_by_our_own_paired_difference(tmp_path, data, monkeypatch, task: str) -> None:
    from lmms_eval.baselines import load_baseline

    theirs = peer(tmp_path / "peer", data, task, babble)
    earlier = tmp_path / "earlier.jsonl"
    earlier.write_text("".join(json.dumps(sample, default=str) + "\n" for sample in theirs["samples"][f"peer_{task}"]))
    scores, _ = load_baseline(str(earlier), task)
    assert len(scores) == len(theirs["samples"][f"peer_{task}"])  # it has read them all, and yet:
    again = peer(tmp_path / "again", data, task, lambda prompt, seen: "A", baseline=str(earlier))
    assert not any("paired" in key for key in again["results"][f"peer_{task}"])  # the trap

    runs = []
    for name, says in (("before", babble), ("after", lambda prompt, seen: "A" if "A. " in prompt else nearest(seen))):
        result, output = ask(tmp_path / name, data, task, monkeypatch, Says(says))
        given = {"eval_x": Artifact(name="eval_x", path=output, fingerprint="f" * 64, digest=name, result=result)}
        runs.append(collect(HistoryConfig(recipe="tiny"), name, given))
    a, b = (run["sample"].to_pylist() for run in runs)
    comparable = {task: runs[0]["task"]["history_fingerprint"][0].as_py()}
    rows = compare(a, b, run_a="before", run_b="after", fingerprints_a=comparable, fingerprints_b=comparable, draws=50)
    found = {row["metric"]: row for row in rows if row["subgroup"] == "all"}
    assert HEADLINE[task] in found and set(found) <= {"exact_match", "gpt_eval_score", "harness_vanilla"}
    for metric, row in found.items():
        before, after = ({r["subgroup"]: r["value"] for r in run["metric"].to_pylist() if r["metric"] == metric}["all"] for run in runs)
        assert row["delta"] == pytest.approx(after - before) and row["delta"] != 0 and 0 < row["p"] <= 1
    row, old, new = found["harness_vanilla" if task == "mmbench_en_dev_static" else "exact_match"], *([r["score"] for r in rows] for rows in (a, b))
    flips = [sum(y > x for x, y in zip(old, new, strict=True)), sum(y < x for x, y in zip(old, new, strict=True))]
    assert [row["flips_up"], row["flips_down"]] == flips != [0, 0] and row["n_paired"] == len(old)
    changes = np.array(new) - np.array(old)
    assert row["p"] == pytest.approx(permutation_p(cluster_sums(changes, np.abs(changes), [r["cluster"] for r in a])[0])[0])


def test_trap_8_versions_are_recorded_by_us(tmp_path, data, monkeypatch) -> None:
    result, output = ask(tmp_path, data, "vqav2_val", monkeypatch, Says(babble))
    told = json.loads((output / "info/lmms/plain_prompt.json").read_text())
    installed = importlib.metadata.version("lmms-eval")
    # the trap: "unknown", or branch and commit of whichever repository is the working directory
    assert told["versions"]["vqav2_val"] == "Yaml" and installed not in told["lmms_eval_version"]
    assert result["harness"] == f"lmms-eval {installed}" and result["scorer"] == "anyloom-4"
    assert len(result["task_sha256"]) == len(result["dataset_sha256"]) == 64


def test_trap_9_targets_are_the_true_answers_as_they_were_given(tmp_path, data, monkeypatch) -> None:
    from lmms_eval.tasks.vqav2.utils import vqav2_process_results_val

    from evals.harness.adapter import AnyloomLmms, run_lmms

    sample = run_lmms(data / "vqav2_val", "vqav2_val", AnyloomLmms(generator=Says(babble)), scratch=tmp_path / "scratch")["samples"][0]
    assert sample["target"] == "answer"  # the trap
    doc = {"question_id": 1, "answers": [{"answer": "Two Cats.", "answer_confidence": "yes", "answer_id": i} for i in range(10)]}
    vqav2_process_results_val(doc, ["2 cats"])
    assert {answer["answer"] for answer in doc["answers"]} == {"2 cats"}  # and the document is not what it was
    _, output = ask(tmp_path, data, "vqav2_val", monkeypatch, Says(babble))
    given = rows_of(next((data / "vqav2_val").glob("*.parquet")))
    targets = [row["target"] for row in rows_of(output / "samples.parquet")]
    assert targets == [row["multiple_choice_answer"] for row in given] and targets.count("Two Cats.") == 1


def test_trap_10_annotators_are_told_apart(data) -> None:
    from lmms_eval.tasks.vqav2.utils import vqav2_process_results_val

    told_apart = [{"answer": "cat", "answer_confidence": "yes", "answer_id": i} for i in range(10)]
    alike = [{"answer": "cat", "answer_confidence": "yes"} for _ in range(10)]
    scores = [vqav2_process_results_val({"question_id": 1, "answers": answers}, ["cat"])["exact_match"] for answers in (told_apart, alike)]
    assert scores == [1, 0]  # the trap
    assert score_vqa("cat", ["cat"] * 10).score == 1.0
    for row in rows_of(next((data / "vqav2_val").glob("*.parquet"))):
        assert len({answer["answer_id"] for answer in row["answers"]}) == 10


def test_trap_11_a_kill_loses_the_batch_in_flight_only(tmp_path, data) -> None:
    from evals.harness.adapter import AnyloomLmms, run_lmms

    answers = tmp_path / "answers.jsonl"
    first = Says(babble, batches=3)
    with pytest.raises(KeyboardInterrupt):
        run_lmms(data / "pope", "pope", AnyloomLmms(generator=first, answers=answers, chunk=1), scratch=tmp_path)
    assert len(AnswerFile(answers).replies) == first.asked == 3
    second = Says(babble)
    run_lmms(data / "pope", "pope", AnyloomLmms(generator=second, answers=answers, chunk=1), scratch=tmp_path)
    begun = AnswerFile(answers).begun
    assert second.asked == 3 and sorted(begun.values()) == [1, 1, 1, 1, 1, 2]  # the one in flight was begun twice


def test_trap_12_an_answer_belongs_to_weights_prompt_picture_task_and_decoding(tmp_path, data, monkeypatch) -> None:
    from evals.harness import adapter as lmms_adapter

    monkeypatch.setattr(lmms_adapter, "_loaded", lambda *_: Says(babble))  # no real weights; their bytes are looked at all the same
    export = tmp_path / "export"
    export.mkdir()
    (export / "anyloom.json").write_text("{}")
    (export / "weights.safetensors").write_bytes(b"one")

    def keys(folder: Path, path: Path = export, **options: Any) -> set[tuple[tuple[str, int], str]]:
        model = lmms_adapter.AnyloomLmms(path=str(path), **options)
        lmms_adapter.run_lmms(folder, "pope", model, scratch=tmp_path / "scratch")
        return set(model.asked.items())  # document -> the answer that it gets

    known = keys(data / "pope")
    assert keys(data / "pope") == known == keys(data / "pope", path=shutil.copytree(export, tmp_path / "moved"))  # another instance, another place
    (export / "weights.safetensors").write_bytes(b"two")
    assert not keys(data / "pope") & known  # new weights below the same path
    (export / "weights.safetensors").write_bytes(b"one")
    assert not keys(data / "pope", caption_turn="false") & known
    assert not keys(data / "pope", condition="blank") & known
    (path,) = (data / "pope").glob("*.parquet")
    folder = tmp_path / "other"
    folder.mkdir()
    rows = pq.read_table(path)
    pictures = rows.column("image").to_pylist()
    turned = pa.array(pictures[1:] + pictures[:1], type=rows.schema.field("image").type)
    pq.write_table(rows.set_column(rows.column_names.index("image"), rows.schema.field("image"), turned), folder / "x.parquet")
    (folder / "pope.yaml").write_text(task_yaml("pope", "x.parquet"))
    assert not keys(folder) & known  # the same questions about other pictures
    (folder / "pope.yaml").write_text(task_yaml("pope", str(path)).replace("max_new_tokens: 128", "max_new_tokens: 8"))
    assert not keys(folder) & known
    (folder / "pope.yaml").write_text(task_yaml("pope", str(path)).replace("single word or phrase", "single word"))
    assert not keys(folder) & known
    (folder / "pope.yaml").write_text(task_yaml("pope", str(path)))
    assert keys(folder) == known  # where the data lies says nothing


def test_trap_13_nothing_is_written_where_nobody_asked_and_no_error_is_swallowed(tmp_path, data, monkeypatch) -> None:
    place = tmp_path / "cwd"
    place.mkdir()
    monkeypatch.chdir(place)
    result, output = ask(tmp_path, data, "textvqa_val", monkeypatch, Says(babble))
    ask(tmp_path / "mmbench", data, "mmbench_en_dev_static", monkeypatch, Says(babble))
    assert not list(place.iterdir()) and result["questions"] == len(rows_of(output / "samples.parquet"))
    says, real = Says(babble), pq.write_table

    def full(table: Any, where: Any, **options: Any) -> None:
        if Path(where).name == "samples.parquet":
            raise OSError(28, "No space left on device")
        real(table, where, **options)

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(OSError, match="No space left on device"):
        ask(tmp_path / "full", data, "pope", monkeypatch, says)
    assert says.asked == 6 and not (tmp_path / "full" / "output-a" / "metrics.parquet").exists()  # asked and scored, then not saved: that is an error


def test_trap_14_mm_vet_without_a_judge_is_never_scored(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")  # without one its module cannot even be imported beside a newer openai
    task = suite_task("mmvet")
    unjudged = {"gpt_eval_score": {"score": 0.0, "eval_model": ""}}  # what the packaged scorer makes of no answer: a zero
    packaged = importlib.import_module("lmms_eval.tasks.mmvet.utils")
    assert packaged.mmvet_aggregate_results([{"score": 0.0, "capabilities": "rec", "eval_model": ""}]) == 0.0  # the trap
    with pytest.raises(AnyloomError, match="did not answer for 1 of 1"):
        suite_run.refuse_unjudged(task, [unjudged])
    assert "skipped" in suite_run.run(context(tmp_path, SuiteConfig(lmms_task="mmvet")))


def test_trap_15_the_answer_of_seed_bench_is_read_as_a_whole(tmp_path, data, monkeypatch) -> None:
    result, output = ask(tmp_path, data, "seedbench", monkeypatch, Says(lambda prompt, seen: "The answer is B."))
    assert stored(output, "seed_all")["value"] == 0.0 and stored(output, "ours_accuracy")["value"] == 1.0
    assert result["left_out"] == ["1 questions of seedbench: more than one picture"]


# ---- what the traps are about, besides -------------------------------------------------------------------------------


def test_trap_16_the_yes_ratio_is_the_model_s(tmp_path, data, monkeypatch) -> None:
    for said, ratio in (("yes", 1.0), ("no", 0.0)):
        theirs = peer(tmp_path / f"peer {said}", data, "pope", lambda prompt, seen, said=said: said)["results"]["peer_pope"]
        assert theirs["pope_yes_ratio,none"] == pytest.approx(1 / 6)  # the trap: whatever the model says
        _, output = ask(tmp_path / said, data, "pope", monkeypatch, Says(lambda prompt, seen, said=said: said))
        rows = rows_of(output / "metrics.parquet")
        assert "pope_yes_ratio" not in {row["metric"] for row in rows}
        told = {row["condition"]: row["value"] for row in rows if (row["metric"], row["subgroup"]) == ("ours_yes_ratio", "all")}
        assert told == {"plain_prompt": ratio, "truth": pytest.approx(1 / 6)}
        assert {row["metric"]: row["ci_lo"] for row in rows if row["metric"].startswith("pope_")}["pope_f1_score"] is None


def test_trap_17_questions_of_two_categories_are_told_apart(tmp_path, data, monkeypatch) -> None:
    _, output = ask(tmp_path, data, "pope", monkeypatch, Says(babble))
    samples = rows_of(output / "samples.parquet")
    (path,) = (data / "pope").glob("*.parquet")
    assert len({row["question_id"] for row in rows_of(path)}) < len(samples) == len({row["doc_key"] for row in samples})


def test_mmbench_groups_are_drawn_whole_and_both_scores_are_told(tmp_path, data, monkeypatch) -> None:
    always_a = Says(lambda prompt, seen: "A")
    result, _output = ask(tmp_path, data, "mmbench_en_dev_static", monkeypatch, always_a, num_questions=5)
    assert result["questions"] == 8 and result["groups"] == 2
    scores = result["scores"]["plain_prompt"]
    assert (scores["gpt_eval_score"], scores["harness_vanilla"], scores["ours_vanilla"], scores["ours_circular"]) == (0.0, 25.0, 0.25, 0.0)
    docs = read_docs(suite_task("mmbench_en_dev_static"), sorted((data / "mmbench_en_dev_static").glob("*.parquet")))
    with pytest.raises(AnyloomError, match="needs its base row"):
        whole_groups(suite_task("mmbench_en_dev_static"), [doc for doc in docs if doc.question_id != 0])


RIGHT = (
    "{}",
    "{} is the correct answer because of its color.",
    "The answer is **{}**.",
    "\\boxed{{}}",
    "{}\n\nThe image shows that color.",
    'The answer is "{}".',
)


def test_a_model_that_is_always_right_scores_1_however_it_says_so(tmp_path, data, monkeypatch) -> None:
    def letter(prompt: str, seen: tuple[int, ...] | None) -> str:
        return next(line[0] for line in prompt.splitlines() if line[1:] == f". {nearest(seen)}")

    for number, wording in enumerate(RIGHT):
        says = Says(lambda prompt, seen, wording=wording: wording.replace("{}", letter(prompt, seen)))
        result, _ = ask(tmp_path / str(number), data, "mmbench_en_dev_static", monkeypatch, says)
        scores = result["scores"]["plain_prompt"]
        assert (scores["ours_vanilla"], scores["ours_circular"]) == (1.0, 1.0), wording


def test_gqa_needs_no_network_and_keeps_its_scorer(tmp_path, data, monkeypatch) -> None:
    assert "process_docs" in packaged_config("gqa", "gqa.yaml") and "process_docs" not in task_yaml("gqa", "x.parquet")
    result, _ = ask(tmp_path, data, "gqa", monkeypatch, Says(lambda prompt, seen: nearest(seen)))
    assert result["scores"]["plain_prompt"]["exact_match"] == result["scores"]["plain_prompt"]["ours_accuracy"] == 1.0


def test_every_suite_has_known_tasks_and_plain_names_are_official() -> None:
    for suite in SUITES:
        for task in suite_tasks(suite):
            assert task.stand_in == ("_as_" in task.lmms_task) == (suite == "stand_in")
            assert math.isfinite(len(task_yaml(task, "x.parquet")))


# ---- our reading ------------------------------------------------------------------------------------------------------


def official(text: str, options: dict[str, str]) -> str:
    """What MMBench's own matching reads without a judge; it knows four letters."""
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    return "" if set(options) - set("ABCD") else MMBench_Evaluator(API_KEY="none", API_URL="").can_infer(text, dict(options)) or ""


def harness(text: str, options: dict[str, str]) -> str:
    """What the harness's static judge reads."""
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer

    return official(text, options) or extract_mcq_answer(text, choices=sorted(options))


def test_answers_in_real_models_styles() -> None:
    """No letter that a careful reader would not read, at least 97 % of the others, and no score above the official one but by a documented rule.

    Every answer was labelled twice, the second time without sight of the first; where these differ (one of 308), `letter` is what was settled on.
    """
    counts = dict.fromkeys(("readable", "unread", "false letter", "harness false letter", "harness unread", "official false letter", "official unread"), 0)
    above: dict[str, int] = {}
    sets = json.loads((STYLES / "options.json").read_text())
    answers = [json.loads(line) for line in (STYLES / "choice.jsonl").read_text().splitlines()]
    for answer in answers:
        assert answer["letter"] in (answer["first"], answer["second"]), answer
        options, text, right = sets[answer["options"]], answer["text"], answer["letter"]
        scored = score_choice(text, options, right or "?")
        theirs = harness(text, options)
        named = official(text, options) if set(options) <= set("ABCD") else right
        counts["readable"] += bool(right)
        for name, read in (("", scored.parsed), ("harness ", theirs), ("official ", named)):
            counts[f"{name}unread"] += bool(right) and not read
            counts[f"{name}false letter"] += bool(read) and read != right
        if right and scored.score > float(named == right):
            above[scored.how] = above.get(scored.how, 0) + 1
    print(len(answers), counts, "above the official score by rule:", above)
    assert len(answers) >= 300 and counts["false letter"] == 0
    assert counts["unread"] <= 0.03 * counts["readable"]
    assert all(RULES[how].source == OWN or "markup" in RULES[how].says or how in ("leading letter", "only letter", "option text") for how in above)
