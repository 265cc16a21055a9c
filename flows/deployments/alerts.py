"""Alerts: what happens when a flow run fails or crashes, or when a night's scores are worse.

Input: a flow run and one text. Output: a line in its log, a Markdown artifact beside it, and a POST of {"text": ...} to the webhook of
ANYLOOM_ALERT_URL (Slack, Mattermost, Discord-compatible and most relays take that). The address is a secret: it is never logged, not even by an error,
and no parameter of a flow: it comes from the environment alone.
"""

from __future__ import annotations

import json
import urllib.request
import warnings
from typing import Any

from prefect.artifacts import MarkdownArtifact
from prefect.logging.loggers import flow_run_logger

from infra.logs import one_line
from infra.secrets import without_secrets
from infra.settings import Settings, load_settings

TIMEOUT_S = 10.0
MOST = 4000
"""Characters of a message; chat services cut longer ones."""


def hooks(settings: Settings | None = None) -> dict[str, Any]:
    """Arguments of every @flow. settings: those of a run on this machine; None: the environment's, when there is something to tell."""

    def on_failed_or_crashed(flow: Any, flow_run: Any, state: Any) -> None:
        """State hook. Called in the flow's process, or by the worker when that process is gone."""
        why = without_secrets(" ".join((state.message or "").split())) or "no message"
        text = f"flow run **{flow_run.name}** of **{flow.name}** is **{state.name}**: {why}"
        alert(flow_run, f"{flow.name} {state.name.lower()}", text, settings or load_settings())

    return {"on_failure": [on_failed_or_crashed], "on_crashed": [on_failed_or_crashed]}


def alert(flow_run: Any, title: str, markdown: str, settings: Settings) -> None:
    """Log, keep and send one alert. A webhook that does not answer is logged; it changes nothing about the run."""
    logger = flow_run_logger(flow_run)
    logger.error("ALERT %s: %s", title, markdown)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a worker's hook has no run context; the run is named instead
        MarkdownArtifact(key="alert", markdown=f"# {title}\n\n{markdown}\n", description=title, flow_run_id=flow_run.id).create(_sync=True)  # type: ignore[call-arg]
    url = settings.alert_url
    if url is not None:
        try:
            _post(url.get_secret_value(), f"{title}\n{markdown}")
        except (OSError, ValueError) as error:
            logger.error("the webhook of ANYLOOM_ALERT_URL did not take the alert: %s", one_line(error).replace(url.get_secret_value(), "***"))


def _post(url: str, text: str) -> None:
    body = json.dumps({"text": text[:MOST]}).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        answer.read()
