"""Runs every task of the suite full on small official data, with a judge on loopback, and prints the scores as JSON. A script of test_full_suite.py:

the packaged scorers read their endpoint once per process. usage: judged_suite.py FOLDER answering|silent
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import official_data
import pytest
from suite_fakes import Says, context, nearest, use

from evals.config import SuiteConfig
from evals.suites import run as suite_run
from evals.suites.catalogue import suite_tasks
from evals.suites.data import prepare
from infra.settings import offline_environment
from infra.step import AnyloomError

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from http_servers import Asked, HttpServer, Said

ANSWERING = "answering"


def judge_that(says: str) -> Callable[[Asked], Said]:
    """An OpenAI-compatible endpoint: MM-Vet's prompt gets 0.5, LLaVA-Bench's the scores 8 and 6; one that is not answering says nothing."""

    def answer(request: Asked) -> Said:
        asked = json.loads(request.body)["messages"][-1]["content"]
        asked = asked if isinstance(asked, str) else json.dumps(asked)
        text = ("0.5" if "Correctness" in asked else "8 6\nThe first is better.") if says == ANSWERING else ""
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice], "usage": usage}
        return Said(json.dumps(body).encode(), headers={"Content-Type": "application/json"})

    return answer


def main(folder: Path, judge: str) -> None:
    """Scores of every task by its name, or the error that it ended with."""
    offline_environment()
    record = prepare("full", folder / "data", official_data.full(folder / "hub"), say=lambda line: None)
    told = {}
    with pytest.MonkeyPatch.context() as patch, HttpServer(judge_that(judge)) as server:
        patch.setenv("ANYLOOM_JUDGE_URL", f"{server.url}/v1")
        use(patch, Says(lambda prompt, seen: "B" if "B. " in prompt else f"a {nearest(seen)} square"))
        for task in suite_tasks("full") if judge == ANSWERING else [t for t in suite_tasks("full") if t.judge]:
            config = SuiteConfig(lmms_task=task.lmms_task, conditions=("plain_prompt",), bootstrap_draws=20, judge="judge" if task.judge else "")
            try:
                result = suite_run.run(context(folder / task.lmms_task, config, sources={"suite": record}))
                told[task.lmms_task] = result["scores"]["plain_prompt"]
            except AnyloomError as error:
                told[task.lmms_task] = str(error)
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
