"""Settings: what the command line and the environment say arrives whole in the run, with Prefect and without; the secret leaves no trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra.settings import Settings, load_settings

pytestmark = pytest.mark.timeout(600)
SECRET = "https://hook.invalid/T0P-S3CR3T"
SPY = """
import json, sys
import flows.running.run as running
from flows.cli.main import main

run_graph = running.run_graph

def told(*arguments, **options):
    run = run_graph(*arguments, **options)
    secret = run.settings.alert_url.get_secret_value()
    print("TOLD", json.dumps({**run.settings.model_dump(mode="json"), "alert_url": secret.removeprefix("https://hook.invalid/")[::-1]}))
    return run

running.run_graph = told
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("how", [pytest.param((), marks=pytest.mark.slow), ("--no-prefect",)])
def test_every_setting_arrives_in_the_run(tmp_path, how):
    root, mirror = tmp_path / "runs", tmp_path / "mirror"
    options = ("--root", root, "--threads", "1", "--no-ray", "--remote", f"file://{mirror}", *how)
    given = {"ANYLOOM_GPUS": "0", "ANYLOOM_ALERT_URL": SECRET, "ANYLOOM_ROOT_URL": "http://here", "ANYLOOM_REMOTE": "file:///nowhere"}
    given["ANYLOOM_RECIPE_DIRS"] = "/srv/recipes"
    command = [sys.executable, "-c", SPY, "run", "--recipe", "tiny", "lists", *map(str, options)]
    done = subprocess.run(command, env={**os.environ, **given}, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-2000:]
    settings = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("TOLD")).removeprefix("TOLD"))
    wanted = {"root": str(root), "threads": 1, "gpus": 0, "use_ray": False, "use_prefect": not how, "remote": f"file://{mirror}"}
    assert settings == {**wanted, "alert_url": SECRET.removeprefix("https://hook.invalid/")[::-1], "root_url": "http://here", "recipe_dirs": "/srv/recipes"}
    assert set(settings) == set(Settings.model_fields)
    (artifact,) = (root / "artifacts" / "lists").iterdir()
    assert (mirror / artifact.relative_to(root) / "artifact.json").exists()
    traces = [path for path in root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert traces == [] and SECRET not in done.stdout + done.stderr


def test_settings_cannot_be_changed_on_the_way():
    settings = load_settings(root=Path("here"))
    with pytest.raises(ValueError, match="frozen"):
        settings.threads = 3
