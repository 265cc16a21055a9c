"""Deployments on a real stack: Prefect server, worker and Ray head, started once for all tests of this file, and once more with a second node."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from flows.deployments import stack as stacks
from infra.artifact import find
from infra.settings import LOOPBACK_RAY
from infra.storage import read_json
from tests.integration.conftest import PATIENT_RAY

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
from http_servers import Asked, HttpServer, Said

pytestmark = [pytest.mark.timeout(1800), pytest.mark.stack]
PROJECT = Path(__file__).resolve().parents[2]
SECRET = "hook-5ecre7"
LONG = '{"stage1.steps": 1000000}'
ENDED = ("COMPLETED", "FAILED", "CRASHED")
AT_WORK = ("PENDING", "RUNNING", "CANCELLING")


@dataclass
class Live:
    """A running stack and what its webhook was told."""

    stack: stacks.Stack
    told: list[str] = field(default_factory=list)

    def run(self, *command, expect=0, timeout=1200):
        done = subprocess.run([*map(str, command)], cwd=PROJECT, env=self.stack.environment(), capture_output=True, text=True, timeout=timeout)
        assert expect is None or done.returncode == expect, f"{command}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}\n{self.log()}"
        return done.stdout

    def prefect(self, *arguments, **options):
        """The literal command."""
        return self.run(Path(sys.executable).with_name("prefect"), *arguments, **options)

    def deployment(self, name, recipe, *arguments, expect=0):
        """`prefect deployment run NAME --param recipe=RECIPE --watch`. Returns the flow run."""
        said = self.prefect("deployment", "run", name, "--param", f"recipe={recipe}", *arguments, "--watch", expect=expect)
        return self.api(f"flow_runs/{re.search(r'UUID: ([0-9a-f-]{36})', said)[1]}")

    def started(self, name, *arguments):
        """Id of a flow run that is not waited for."""
        said = self.prefect("deployment", "run", name, *arguments)
        return re.search(r"UUID: ([0-9a-f-]{36})", said)[1]

    def api(self, path, body=None, method=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.stack.url}/api/{path}", data=data, headers=stacks.headers(self.stack), method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
            return json.loads(text) if text else None

    def flow_runs(self, deployment, states):
        """Of a deployment, those in one of these states: the server gives 200 at most, and a schedule makes many that never run."""
        found = self.api(f"deployments/name/{deployment}/{deployment}")
        wanted = {"deployments": {"id": {"any_": [found["id"]]}}, "flow_runs": {"state": {"type": {"any_": list(states)}}}}
        return self.api("flow_runs/filter", wanted)

    def artifacts(self, run):
        return {one["key"]: one for one in self.api("artifacts/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}}) if one["key"]}

    def state(self, run_id):
        return self.api(f"flow_runs/{run_id}")["state"]["type"]

    def log(self):
        return (self.stack.home / "logs" / "worker.log").read_text()[-3000:]


def free_ports(host="127.0.0.1"):
    """Two different ports that nobody has."""
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind((host, 0))
        return first.getsockname()[1], second.getsockname()[1]


def eventually(what, seconds=120, seen=lambda: ""):
    """Wait until what() is true, and return it. seen(): what was there instead, told when it never comes."""
    patience = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < patience, f"it never happened: {seen()}"
        time.sleep(0.3)
    return found


@pytest.fixture(scope="module")
def hook():
    """A webhook: (address, texts it was told)."""
    told: list[str] = []

    def heard(asked: Asked) -> Said:
        told.append(json.loads(asked.body)["text"])
        return Said()

    with HttpServer(heard) as server:
        yield f"{server.url}/{SECRET}", told


@pytest.fixture(scope="module")
def live(tiny, hook, tmp_path_factory):
    """The stack, and a root that starts from the finished tiny run (hard links: artifacts are immutable)."""
    base = tmp_path_factory.mktemp("stack")
    shutil.copytree(tiny.root, base / "runs", copy_function=os.link, ignore=shutil.ignore_patterns("prefect", "locks", "history.duckdb*"))
    port, ray_port = free_ports()
    wanted = stacks.Stack(home=base / "home", root=base / "runs", port=port, ray_port=ray_port, cpus=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYLOOM_ALERT_URL", hook[0])
        patch.setenv("ANYLOOM_RECIPE_DIRS", str(base / "recipes"))
        for name, value in PATIENT_RAY.items():
            patch.setenv(name, value)
        try:
            yield Live(stacks.up(wanted), hook[1])
        finally:
            stacks.down(wanted.home)


def own_address():
    """An address of this machine that is not loopback, None without one."""
    found = [one.address for interface in psutil.net_if_addrs().values() for one in interface if one.family == socket.AF_INET]
    return next((address for address in found if not ipaddress.ip_address(address).is_loopback), None)


@pytest.fixture
def two_nodes(tmp_path, monkeypatch):
    """A stack of its own whose Ray head a second node joins; for that it listens on the machine's own address, behind a password."""
    host = own_address()
    if host is None:
        pytest.skip("this machine has no address but loopback, and Ray lets no second node join where it is told to stay on loopback")
    for name, value in (PATIENT_RAY | {"PREFECT_SERVER_API_AUTH_STRING": "tester:t0p-5ecret"}).items():
        monkeypatch.setenv(name, value)
    for name in LOOPBACK_RAY:
        monkeypatch.delenv(name, raising=False)
    port, ray_port = free_ports(host)
    wanted = stacks.Stack(home=tmp_path / "home", root=tmp_path / "runs", host=host, port=port, ray_port=ray_port, cpus=2)
    node = None
    try:
        stack = stacks.up(wanted)
        join = [sys.executable, "-m", "ray.scripts.scripts", "start", "--address", f"{stack.host}:{stack.ray_port}", "--num-cpus", "2"]
        with open(tmp_path / "node.log", "wb") as log:
            join += ["--object-store-memory", "200000000", "--block"]
            node = subprocess.Popen(join, env=stack.environment(), stdout=log, stderr=log, start_new_session=True)
        eventually(lambda: b"Ray runtime started" in (tmp_path / "node.log").read_bytes())
        yield Live(stack)
    finally:
        if node is not None:
            stacks.end_tree(psutil.Process(node.pid))
            node.wait()
        stacks.down(wanted.home)


HOUSEKEEPING = ("IDLE", "Agent", "_StatsActor", "_AutoscalingCoordinatorActor", "ActorLocationTracker")
"""Ray's own processes, which stay with the cluster."""


def ray_work(live):
    """Names of the processes of the stack's cluster that work for a run."""
    token, found = str(live.stack.home / "ray_token"), []
    for process in psutil.process_iter():
        try:
            name = " ".join(process.cmdline())
            mine = name.startswith("ray::") and process.environ().get("RAY_AUTH_TOKEN_PATH") == token
            if mine and not any(part in name for part in HOUSEKEEPING):
                found.append(name)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def test_the_stack_listens_on_loopback_only_and_a_second_up_changes_nothing(live):
    family = [process for name in stacks.ORDER for process in tree(live.stack.running(name))]
    listening = {address for process in family for address in listens(process)}
    assert (live.stack.host, live.stack.port) in listening and (live.stack.host, live.stack.ray_port) in listening
    assert {address for address, _ in listening} <= {"127.0.0.1", "::1"}, listening
    pids = dict(live.stack.processes)
    assert stacks.up(live.stack).processes == pids
    token = live.stack.home / "ray_token"
    assert token.stat().st_mode & 0o077 == 0 and token.read_text() not in json.dumps(read_json(live.stack.home / "stack.json"))


def tree(process):
    return [process, *process.children(recursive=True)]


def listens(process):
    """(address, port) of everything that a process listens on; nothing when it has just ended."""
    try:
        open_ = [one.laddr for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    except psutil.NoSuchProcess:
        return []
    return [(address.ip.removeprefix("::ffff:"), address.port) for address in open_]


def test_every_deployment_is_there_with_described_parameters(live):
    found = {one["name"]: one for one in live.api("deployments/filter", {})}
    assert set(found) == {"prepare-data", "embed", "train-stage1", "train-stage2", "train-stage3", "evaluate", "nightly-eval", "end-to-end"}
    for one in found.values():
        properties = one["parameter_openapi_schema"]["properties"]
        assert {"recipe", "root", "overrides"} <= set(properties) and all(len(p["description"]) > 20 for p in properties.values()), one["name"]
        named, of_a_file = properties["recipe"]["anyOf"]
        assert "tiny" in named["enum"] and "pattern" in of_a_file and one["description"]
    nightly = found["nightly-eval"]
    assert nightly["schedules"][0]["schedule"]["cron"] == "0 2 * * *" and nightly["schedules"][0]["active"]
    assert nightly["global_concurrency_limit"]["limit"] == 1 and nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"


def test_the_bare_name_trains_stage_3_on_the_ray_cluster_and_the_scheduler_runs_the_night(live, cli):
    """The user's words, then a night that the scheduler starts: the new export is evaluated, its rows are found by SQL, no two nights overlap."""
    root = live.stack.root
    before = find(root, "export")[1].fingerprint
    run = live.deployment("train-stage3", "tiny", "--param", 'overrides={"stage3.lr": 1e-4}')
    assert run["state"]["type"] == "COMPLETED" and run["name"] == "train-stage3 tiny"
    export = find(root, "export")[1]
    assert export.fingerprint != before
    left = live.artifacts(run)
    steps = {row["step"]: row["status"] for row in json.loads(left["steps-tiny"]["data"])}
    assert steps["stage3"] == steps["export"] == "executed" and steps["stage2"] == "reused"
    assert left["loss-tiny"]["type"] == "image" and left["loss-tiny"]["data"].startswith("data:image/svg+xml;base64,")

    live.prefect("deployment", "schedule", "clear", "nightly-eval/nightly-eval", "-y")
    found = live.api("deployments/name/nightly-eval/nightly-eval")
    live.api(f"deployments/{found['id']}", {"parameters": {"recipe": "tiny"}}, "PATCH")
    live.prefect("deployment", "schedule", "create", "nightly-eval/nightly-eval", "--interval", "20", "--timezone", "UTC")
    eventually(lambda: live.flow_runs("nightly-eval", ENDED), 900)
    live.prefect("deployment", "schedule", "clear", "nightly-eval/nightly-eval", "-y")
    eventually(lambda: not live.flow_runs("nightly-eval", AT_WORK), 300)
    ran = live.flow_runs("nightly-eval", ENDED)
    assert all(one["state"]["type"] == "COMPLETED" and one["auto_scheduled"] for one in ran), live.log()
    night, *_ = ran = sorted(ran, key=lambda one: one["start_time"])
    times = [(one["start_time"], one["end_time"]) for one in ran]
    assert all(first_end <= next_start for (_, first_end), (next_start, _) in pairwise(times)), times
    left = live.artifacts(night)
    (row,) = json.loads(left["nightly-exports"]["data"])
    assert row["status"] == "evaluated" and row["export"] == f"export/{export.fingerprint[:12]}" and "nightly-review" in left
    assert left["report-tiny"]["type"] == "markdown" and "report.html" in left["report-tiny"]["data"]
    query = f"select r.inputs, count(*) as rows from run r join metric m using (run_id) where run_id = '{row['run']}' group by all"
    (answer,) = json.loads(cli("sql", query, "--json", "--root", root).stdout)
    assert json.loads(answer["inputs"])["export"] == row["export"] and answer["rows"] > 0


MINE = """
from dataclasses import replace

from pipelines.recipes import get_recipe
from pipelines.recipes.recipe import Recipe


def mine() -> Recipe:
    return replace(get_recipe("tiny", {"stage3.lr": 2e-4}), name="mine", generation=False)
"""


def test_a_recipe_s_file_is_trained_and_judged_at_night_and_only_where_the_worker_takes_it_from(live, cli):
    recipes, elsewhere = live.stack.root.parent / "recipes", live.stack.root.parent / "elsewhere"
    for directory in (recipes, elsewhere):
        directory.mkdir()
        (directory / "mine.py").write_text(MINE)
    run = live.deployment("train-stage3", recipes / "mine.py")
    assert run["state"]["type"] == "COMPLETED"
    steps = {row["step"]: row["status"] for row in json.loads(live.artifacts(run)["steps-mine"]["data"])}
    assert steps["stage3"] == steps["export"] == "executed" and steps["stage1"] == "reused"
    export, record = find(live.stack.root, "export")
    assert (export / "info" / "recipe.py").read_text() == MINE
    night = live.deployment("nightly-eval", recipes / "mine.py")
    assert night["state"]["type"] == "COMPLETED"
    (row,) = json.loads(live.artifacts(night)["nightly-exports"]["data"])
    assert row["status"] == "evaluated" and row["export"] == f"export/{record.fingerprint[:12]}"
    query = f"select recipe from run where run_id = '{row['run']}'"
    assert json.loads(cli("sql", query, "--json", "--root", live.stack.root).stdout) == [{"recipe": "mine"}]
    refused = live.deployment("train-stage3", elsewhere / "mine.py", expect=None)
    assert refused["state"]["type"] == "FAILED" and "ANYLOOM_RECIPE_DIRS" in refused["state"]["message"]


def long_run(live):
    """Id of a flow run that trains for hours, once its Ray workers are at work."""
    run = live.started("train-stage1", "--param", "recipe=tiny", "--param", f"overrides={LONG}")
    eventually(lambda: list(live.stack.root.glob("work/stage1/*/progress.json")) and any("RayTrainWorker" in name for name in ray_work(live)), 400)
    return run


def test_cancelling_a_run_ends_its_ray_work_and_leaves_the_cluster(live):
    run = long_run(live)
    live.prefect("flow-run", "cancel", run)
    eventually(lambda: live.state(run) == "CANCELLED")
    eventually(lambda: not ray_work(live), 120, lambda: ray_work(live))
    assert live.stack.running("ray") is not None and live.stack.running("worker") is not None
    assert read_state_name(live, run) == "Cancelled" and not any(SECRET in text for text in live.told)


def read_state_name(live, run):
    return live.api(f"flow_runs/{run}")["state"]["name"]


def test_a_killed_flow_process_is_reported_as_crashed_and_ends_its_ray_work(live):
    run = long_run(live)
    told = len(live.told)
    (engine,) = [process for process in tree(live.stack.running("worker")) if is_engine(process, run)]
    engine.kill()
    eventually(lambda: live.state(run) == "CRASHED", 240)
    eventually(lambda: len(live.told) > told, 240)
    assert "train-stage1 crashed" in live.told[told]
    eventually(lambda: not ray_work(live), 120, lambda: ray_work(live))


def is_engine(process, run):
    """True for the process that executes this flow run."""
    try:
        return "prefect.engine" in process.cmdline() and process.environ().get("PREFECT__FLOW_RUN_ID") == run
    except psutil.NoSuchProcess:
        return False


def test_a_failed_run_tells_the_webhook_and_keeps_its_address_secret(live):
    told = len(live.told)
    run = live.deployment("train-stage1", "tiny", "--param", 'overrides={"stage1.no_such_value": 1}', expect=None)
    assert run["state"]["type"] == "FAILED"
    eventually(lambda: len(live.told) > told, 60)
    assert "train-stage1 failed" in live.told[told]
    (kept,) = [one for one in live.api("artifacts/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}}) if one["key"] == "alert"]
    assert "train-stage1 failed" in kept["data"]

    def said():
        """What the run's log has by now: it is sent in batches, some seconds after the run has ended."""
        return [line["message"] for line in live.api("logs/filter", {"logs": {"flow_run_id": {"any_": [run["id"]]}}})]

    eventually(lambda: any("ALERT" in line for line in said()), 60)
    assert not any(SECRET in line for line in said())
    assert SECRET not in "".join(path.read_text(errors="replace") for path in (live.stack.home / "logs").glob("*.log"))


BREAKS_ONCE = """
import os
from pathlib import Path

def run(ctx):
    if not (ctx.work / "tried").exists():
        (ctx.work / "tried").touch()
        os.kill(os.getpid(), 9)
    (ctx.output / "done").write_text("done")
    return {}

def wrong(ctx):
    with open(ctx.work / "tries", "a") as handle:
        handle.write("x")
    raise ValueError("wrong input")
"""
RETRIES = """
import sys
from pathlib import Path
from prefect import flow
from flows.running.display import Display
from flows.running.runner import run_graph
from infra.materialize import Place
from infra.settings import load_settings
from infra.step import Step

@flow
def breaks(entry: str):
    root = Path(sys.argv[1])
    run_graph([Step(name=entry, config=None, run=f"breaks:{entry}")], Place(root=root), load_settings(root=root), Display())

breaks("run")
try:
    breaks("wrong")
except ValueError:
    print("raised once")
"""


def test_a_lost_ray_worker_is_tried_again_and_a_wrong_input_is_not(live, tmp_path):
    (tmp_path / "breaks.py").write_text(BREAKS_ONCE)
    (tmp_path / "script.py").write_text(RETRIES)
    said = live.run(sys.executable, tmp_path / "script.py", tmp_path / "runs")
    assert find(tmp_path / "runs", "run")[0].joinpath("done").exists() and "raised once" in said
    (tries,) = (tmp_path / "runs" / "work" / "wrong").glob("*/tries")
    assert tries.read_text() == "x"


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_other_deployment_runs_by_its_bare_name(live):
    for name in ("prepare-data", "embed", "train-stage1", "train-stage2", "evaluate", "nightly-eval", "end-to-end"):
        run = live.deployment(name, "tiny")
        assert run["state"]["type"] == "COMPLETED", live.log()
        assert ("nightly-exports" if name == "nightly-eval" else "steps-tiny") in live.artifacts(run)
    assert live.deployment("end-to-end/end-to-end", "tiny")["state"]["type"] == "COMPLETED"
    assert "not found" in live.prefect("deployment", "run", "no-such-thing", expect=1)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_tiny_nextgpt_goes_through_the_stages_and_the_evaluation_on_two_nodes(two_nodes, cli):
    root = two_nodes.stack.root
    code = "import ray; ray.init(logging_level='ERROR'); print(sum(node['Alive'] for node in ray.nodes()))"
    assert two_nodes.run(sys.executable, "-c", code).strip().endswith("2")
    for name in ("train-stage1", "train-stage2", "train-stage3", "evaluate"):
        assert two_nodes.deployment(name, "tiny_nextgpt")["state"]["type"] == "COMPLETED", two_nodes.log()
    assert {find(root, name)[1].name for name in ("stage1", "stage2", "stage3", "export", "history", "report")}
    rows = json.loads(cli("sql", "select recipe, n from leaderboard", "--json", "--root", root).stdout)
    assert rows and {row["recipe"] for row in rows} == {"tiny_nextgpt"}
    assert "t0p-5ecret" not in "".join(path.read_text(errors="replace") for path in two_nodes.stack.home.rglob("*") if path.suffix in (".log", ".json"))
