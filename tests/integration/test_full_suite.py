"""All ten tasks of the suite full through the packaged scorers (COCO's starts Java), the judged ones with a judge on loopback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from evals.suites.catalogue import SUITES, suite_task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SCRIPT = Path(__file__).parent / "judged_suite.py"


def scores(folder: Path, judge: str) -> dict:
    done = subprocess.run([sys.executable, str(SCRIPT), str(folder), judge], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.skipif(shutil.which("java") is None, reason="COCO's packaged scorer starts Java, which is not installed")
def test_every_task_is_scored(tmp_path: Path) -> None:
    told = scores(tmp_path, "answering")
    assert set(told) == set(SUITES["full"])
    for name, found in told.items():
        assert isinstance(found, dict) and suite_task(name).headline in found, (name, found)
    assert told["mmvet"]["gpt_eval_score"] == 50.0 and told["llava_in_the_wild"]["gpt_eval_llava_all"] == 75.0
    assert told["seedbench"]["seed_all"] == 1.0 and told["coco2017_cap_val"]["coco_CIDEr"] > 0


def test_a_silent_judge_is_an_error_and_never_a_score(tmp_path: Path) -> None:
    told = scores(tmp_path, "silent")
    assert all("did not answer for 6 of 6" in told[name] for name in ("mmvet", "llava_in_the_wild")), told
