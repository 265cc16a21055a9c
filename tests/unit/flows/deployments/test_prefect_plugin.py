"""The plugin: NAME means NAME/NAME, a full name stays, and Prefect loads it where prefect.toml is."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from flows.deployments.plugin import full_name

PROJECT = Path(__file__).resolve().parents[4]
LOOK = """
import asyncio
from prefect.client.orchestration import PrefectClient, SyncPrefectClient
asked = []
class Stop(Exception): pass
def request(self, method, path, path_params, **_):
    asked.append(path_params)
    raise Stop
PrefectClient.request = SyncPrefectClient.request = request
def ask(name):
    try:
        SyncPrefectClient.read_deployment_by_name(object.__new__(SyncPrefectClient), name)
    except Stop: pass
    except ValueError as error: asked.append(str(error)[:31])
    try:
        asyncio.run(PrefectClient.read_deployment_by_name(object.__new__(PrefectClient), name))
    except Stop: pass
    except ValueError as error: asked.append(str(error)[:31])
ask("train-stage3")
ask("end-to-end/other")
print(asked)
"""


def test_a_bare_name_is_the_flows_and_the_deployments():
    assert full_name("train-stage3") == "train-stage3/train-stage3"
    assert full_name("end-to-end/smol") == "end-to-end/smol"


@pytest.mark.parametrize("here", [True, False])
def test_both_clients_take_bare_names_in_the_project_and_nowhere_else(here, tmp_path):
    assert [entry.value for entry in entry_points(group="prefect.plugins") if entry.name == "anyloom"] == ["flows.deployments.plugin"]
    done = subprocess.run([sys.executable, "-c", LOOK], cwd=PROJECT if here else tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    bare, full = {"flow_name": "train-stage3", "deployment_name": "train-stage3"}, {"flow_name": "end-to-end", "deployment_name": "other"}
    assert done.stdout.strip() == str([bare, bare, full, full] if here else ["Invalid deployment name format:"] * 2 + [full, full])
