"""Which failures are worth another try: those of infrastructure, never wrong input or wrong code."""

from __future__ import annotations

import errno

import pytest
import ray

from flows.running.graph import NotRun
from flows.running.task import of_infrastructure
from infra.step import AnyloomError


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.WorkerCrashedError(),
        ray.exceptions.NodeDiedError("gone"),
        ConnectionResetError(),
        TimeoutError(),
        OSError(errno.EIO, "input/output error"),
    ],
)
def test_lost_workers_nodes_and_connections_are(error):
    assert of_infrastructure(error)


@pytest.mark.parametrize(
    "error", [AnyloomError("wrong"), NotRun("left out"), ValueError(), KeyError(), RuntimeError("shape mismatch"), FileNotFoundError(), PermissionError()]
)
def test_wrong_input_and_wrong_code_are_not(error):
    assert not of_infrastructure(error)
