"""The whole DAG on the tiny recipe: identity, equality with and without Ray and Prefect, and that other tools read what it writes."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from infra.artifact import all_records, find, verify

pytestmark = pytest.mark.timeout(900)  # each starts real servers; the first one also runs the whole tiny recipe


def statuses(output):
    """Step -> status of a closing table."""
    return {m[1]: m[2].strip() for m in re.finditer(r"│ (\w+) +│ ([a-z ]+?) +│ [\d.]+ +│", output)}


def digests(root):
    return {record.name: record.digest for _, record in all_records(root)}


def test_everything_ran_once(tiny):
    assert set(statuses(tiny.output).values()) == {"executed"} and len(statuses(tiny.output)) == 37
    for path, record in all_records(tiny.root):
        verify(path, record)
    assert not list((tiny.root / "work").glob("*/*"))
    assert "Traceback" not in tiny.output


def test_second_run_executes_nothing(tiny, cli):
    output = cli("run", "--recipe", "tiny", "--root", tiny.root).stdout
    assert set(statuses(output).values()) == {"done"} and re.search(r"\b0 of 37 steps executed", output)


@pytest.mark.slow
def test_without_ray_and_prefect_the_bytes_are_the_same(tiny, here, tmp_path):
    here("run", "--recipe", "tiny", "--root", tmp_path / "plain", "--no-ray", "--no-prefect")
    assert digests(tmp_path / "plain") == digests(tiny.root)


@pytest.mark.slow
def test_a_changed_learning_rate_runs_exactly_what_follows(copy, here):
    plan = here("plan", "--recipe", "tiny", "--root", copy, "--set", "stage3.lr=1e-4").stdout
    assert re.search(r"stage3 +│ stale +│ config\.stage\.lr: 0\.001 -> 0\.0001", plan)
    output = here("run", "--recipe", "tiny", "--root", copy, "--set", "stage3.lr=1e-4", "--no-ray", "--no-prefect").stdout
    ran = {name for name, status in statuses(output).items() if status == "executed"}
    judged = {"eval_vqa", "eval_drift", "eval_drawing", "eval_generation", "eval_captioning", "eval_objects_as_pope"}
    assert ran == {"stage3", "export", "export_early", *judged, "history", "report"}


def test_forced_upstream_with_equal_bytes_runs_nothing_downstream(copy, here):
    output = here("run", "--recipe", "tiny", "--root", copy, "--force", "lists", "--force", "shards_cc3m", "--no-ray", "--no-prefect").stdout
    changed = {name: status for name, status in statuses(output).items() if status not in ("done", "reused")}
    assert changed == {"lists": "same bytes", "shards_cc3m": "same bytes"}


def test_shards_open_with_webdataset_and_tar(tiny):
    import webdataset

    path, _ = find(tiny.root, "shards_cc3m")
    tars = sorted(str(tiny.root / "stores" / e["path"] / "shard.tar") for e in json.loads((path / "generation.json").read_text())["entries"])
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    with tarfile.open(tars[0]) as tar:
        names = tar.getnames()
    assert len(samples) > 30 and names == sorted(names)
    assert all({"png", "txt", "json"} <= set(sample) for sample in samples)
    assert len({sample["__key__"] for sample in samples}) == len(samples)


def test_lora_opens_with_peft(tiny):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    export, _ = find(tiny.root, "export")
    base = AutoModelForCausalLM.from_pretrained(export / "lm")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = PeftModel.from_pretrained(base, export / "lora")
    assert any("lora_B" in name and bool(value.any()) for name, value in model.state_dict().items())
    assert all(
        bool((model.get_base_model().state_dict().get(n.replace(".weight", ".base_layer.weight"), model.get_base_model().state_dict().get(n)) == v).all())
        for n, v in before.items()
    )


def test_history_opens_with_plain_duckdb_and_sql(tiny, cli):
    import duckdb

    with duckdb.connect(str(tiny.root / "history.duckdb"), read_only=True) as db:
        assert db.execute("select count(*) from leaderboard").fetchone()[0] > 0
    rows = json.loads(cli("sql", "select * from leaderboard", "--json", "--root", tiny.root).stdout)
    assert {row["recipe"] for row in rows} == {"tiny"} and all(row["n"] > 0 for row in rows)
    assert "one SQL" in cli("sql", "select 1; drop table run", "--root", tiny.root, expect=1).stderr


def test_report_is_one_self_contained_page(tiny):
    html = (find(tiny.root, "report")[0] / "report.html").read_text()
    assert "easyvqa_as_vqav2" in html and "data:image/png;base64," in html
    assert not re.search(r"""(src|href)=["']https?:""", html)


def test_generate_answers_from_the_exported_directory_alone(tiny, cli, here, tmp_path):
    export, _ = find(tiny.root, "export")
    shutil.copytree(export, tmp_path / "model")
    lists, _ = find(tiny.root, "lists")
    picture = sorted(lists.rglob("media/**/*.png"))[0]
    done = cli("generate", "--model", tmp_path / "model", "--image", picture, "--max-new-tokens", "5", "what shape is in the image?")
    assert done.stdout.endswith("\n") and done.stderr == ""
    broken = tmp_path / "page.png"
    broken.write_text("<html>not found</html>")
    wrong = here("generate", "--model", tmp_path / "model", "--image", broken, "what?", expect=1)
    assert len(wrong.stderr.splitlines()) == 1 and "Traceback" not in wrong.stderr


@pytest.mark.slow
def test_lmms_eval_from_the_shell(tiny, cli, tmp_path):
    export, _ = find(tiny.root, "export")
    told = json.loads(cli("eval-task", tmp_path / "task", "--root", tiny.root, "--json").stdout)
    assert told == {"directory": str(tmp_path / "task"), "task": "easyvqa_as_vqav2"}
    command = [
        str(Path(sys.executable).with_name("lmms-eval")),
        "--model",
        "anyloom",
        "--model_args",
        f"path={export}",
        "--tasks",
        "easyvqa_as_vqav2",
        "--include_path",
        str(tmp_path / "task"),
        "--log_samples",
        "--output_path",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (tmp_path / "out").rglob("*_results.json")
    ours = find(tiny.root, "eval_vqa")[1].result
    shell = json.loads(results.read_text())["results"]["easyvqa_as_vqav2"]["exact_match,none"]
    assert shell == pytest.approx(ours["accuracy"], abs=1e-6)


@pytest.mark.slow
def test_the_plain_lmms_eval_command_answers_prepared_official_data(tiny, cli, tmp_path):
    sys.path.insert(0, str(Path(__file__).parent))
    import official_data

    official_data.core(tmp_path / "hub")
    said = cli("eval", "prepare", "core", "--data", tmp_path / "data", "--from", tmp_path / "hub").stdout
    assert "vqav2_val: 12 questions" in said and "mmbench_en_dev_static: 24 questions" in said
    export, _ = find(tiny.root, "export")
    words = ["--model", "anyloom", "--model_args", f"path={export}", "--tasks", "vqav2_val_local", "--include_path", str(tmp_path / "data" / "vqav2_val")]
    command = [str(Path(sys.executable).with_name("lmms-eval")), *words, "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=tmp_path, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (tmp_path / "out").rglob("*_results.json")
    told = json.loads(path.read_text())
    assert told["n-samples"]["vqav2_val_local"]["effective"] == 12 and 0 <= told["results"]["vqav2_val_local"]["exact_match,none"] <= 1


def test_artifacts_list_why_verify_gc(copy, here):
    assert "37 artifacts" in here("artifacts", "--root", copy).stdout
    why = here("artifacts", "why", "stage1", "--root", copy).stdout
    assert "embed_image/" in why and "manifest_cc3m/" in why and "lists/" in why and "stamps_train" in why
    assert "ok       lists/" in here("artifacts", "verify", "--root", copy).stdout
    here("run", "--recipe", "tiny", "--root", copy, "--set", "stage1.seed=5", "stage1", "--no-ray", "--no-prefect")
    doomed = here("artifacts", "gc", "tiny", "--root", copy).stdout
    assert "stage1/" in doomed and "add --yes" in doomed and "lists/" not in doomed
    assert "removed" in here("artifacts", "gc", "tiny", "--yes", "--root", copy).stdout
    assert "nothing to remove" in here("artifacts", "gc", "tiny", "--root", copy).stdout
    assert re.search(r"\b0 of 37 steps executed", here("run", "--recipe", "tiny", "--root", copy).stdout)


def test_a_damaged_artifact_is_named(copy, here):
    path, _ = find(copy, "stage1")
    target = path / "tensors.safetensors"
    data = target.read_bytes()
    target.unlink()  # a hard link: the original stays whole
    target.write_bytes(data[:-1] + b"x")
    done = here("artifacts", "verify", "--root", copy, expect=1)
    assert "DAMAGED" in done.stdout and str(path) in done.stdout


def own_list(tmp_path, text):
    path = tmp_path / "mine.tsv"
    path.write_text(text)
    return ("run", "--recipe", "tiny", "--no-ray", "--no-prefect", "--list", f"stamps_train={path}")


@pytest.mark.slow
def test_a_list_of_which_nothing_is_left_stops_with_one_line(copy, cli, tmp_path):
    done = cli(*own_list(tmp_path, "a cat\tcat.png\nonly a caption\n"), "--root", copy, expect=1)
    assert "stamps_train" in done.stderr and "ledger.parquet" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_an_unreadable_picture_becomes_a_ledger_row(copy, here, tmp_path):
    import pyarrow.parquet as pq

    lists, _ = find(copy, "lists")
    good = sorted(lists.rglob("media/**/*.png"))[0]
    shutil.copy(good, tmp_path / "good.png")
    (tmp_path / "page.png").write_text("<html>404</html>")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:60])
    arguments = own_list(tmp_path, "a thing\tgood.png\na page\tpage.png\na cut one\tcut.png\ngone\tgone.png\nescape\t../../etc/passwd\n")
    output = here(*arguments, "--root", copy, "shards_cc3m").stdout
    assert re.search(r"left out \(shards_cc3m\): 4 of \d+ rows \(.*not_media 1.*\), the first is stamps_train-000001", output)
    path, _ = find(copy, "shards_cc3m")
    assert str(path / "ledger.parquet") in output
    rows = {row["key"]: (row["status"], row["reason"]) for row in pq.read_table(path / "ledger.parquet").to_pylist() if row["key"].startswith("stamps_train")}
    assert rows["stamps_train-000000"] == ("written", "")
    assert rows["stamps_train-000001"] == ("quarantined", "not_media")
    assert rows["stamps_train-000002"][0] == "quarantined"
    assert rows["stamps_train-000003"] == ("failed", "missing_file")
    assert rows["stamps_train-000004"] == ("failed", "bad_uri")


@pytest.mark.slow
def test_no_disk_space_is_one_line_and_loses_nothing(copy, tmp_path):
    script = (
        f"mkdir -p {tmp_path}/small && mount -t tmpfs -o size=1m tmpfs {tmp_path}/small && "
        f"{sys.executable} -m flows.cli.main run --recipe tiny --root {tmp_path}/small/runs --no-ray --no-prefect lists weights_lm weights_image"
    )
    done = subprocess.run(["unshare", "-Urm", "sh", "-c", script], capture_output=True, text=True, timeout=200, cwd=Path(__file__).parents[2])
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no user namespaces here: {done.stderr.strip()[:80]}")
    assert done.returncode == 1, done.stderr
    assert re.search(r"no space left on the disk|No space left", done.stderr) and len(done.stderr.strip().splitlines()) == 1


def test_no_installed_package_takes_our_names():
    owners = importlib.metadata.packages_distributions()
    for name in ("flows", "pipelines", "evals", "mmcore", "infra"):
        assert set(owners.get(name, ["anyloom"])) == {"anyloom"}
