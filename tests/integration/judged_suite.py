"""Runs every task of the suite full on small official data, with a judge on loopback, and prints the scores as JSON. A script of test_full_suite.py:

the packaged scorers read their endpoint once per process. usage: judged_suite.py FOLDER answering|silent
"""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import official_data
import pytest
from suite_fakes import Says, context, nearest, use

from evals.config import SuiteConfig
from evals.suites import run as suite_run
from evals.suites.catalogue import suite_tasks
from evals.suites.data import prepare
from infra.settings import offline_environment
from infra.step import AnyloomError

ANSWERING = "answering"


class Judge(BaseHTTPRequestHandler):
    """An OpenAI-compatible endpoint: MM-Vet's prompt gets 0.5, LLaVA-Bench's the scores 8 and 6; a silent one says nothing."""

    says = ANSWERING

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        asked = asked if isinstance(asked, str) else json.dumps(asked)
        text = ("0.5" if "Correctness" in asked else "8 6\nThe first is better.") if self.says == ANSWERING else ""
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        body = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def main(folder: Path, judge: str) -> None:
    """Scores of every task by its name, or the error that it ended with."""
    Judge.says = judge
    server = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    offline_environment()
    record = prepare("full", folder / "data", official_data.full(folder / "hub"), say=lambda line: None)
    told = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYLOOM_JUDGE_URL", f"http://127.0.0.1:{server.server_port}/v1")
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
