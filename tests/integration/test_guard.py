"""Nobody is let in: a live run's Prefect server, Ray cluster and scratch directories, tried by another user of this machine and by a page in a browser."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from infra.settings import private_directory

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))
sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import Browser, chromium
from http_servers import HttpServer, Said

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
PROJECT = Path(__file__).resolve().parents[2]
ANYLOOM = str(Path(sys.executable).with_name("anyloom"))
NOBODY = 65534
HOSTILE = "open(__file__ + '.ran', 'w').close()\n"
"""A module that tells that it was imported."""


@dataclass(frozen=True)
class Live:
    """A run of tiny at work."""

    process: subprocess.Popen
    login: str
    token: str
    api: str
    ports: dict[int, str]
    """Port that is listened on -> address."""


def environment_of(pid: int) -> dict[str, str]:
    return dict(line.split("=", 1) for line in Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0") if "=" in line)


def descendants(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """It is halted while it is tried: its server and Ray answer. Its directory has modules that must not be imported."""
    directory = tmp_path_factory.mktemp("elsewhere")
    for name in ("psutil", "signal", "uvicorn", "prefect", "ray", "json", "socket"):
        (directory / f"{name}.py").write_text(HOSTILE)
    root = tmp_path_factory.mktemp("guard") / "runs"
    command = [ANYLOOM, "run", "--recipe", "tiny", "--root", str(root)]
    process = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if line.startswith("[start] shards"):
            break
    process.send_signal(signal.SIGSTOP)
    family = descendants(process.pid)
    found = {port.laddr.port: port.laddr.ip for one in family for port in connections(one) if port.status == psutil.CONN_LISTEN}
    environments = [environment_of(one.pid) for one in family if one.status() != psutil.STATUS_ZOMBIE]
    known = next(one for one in environments if "PREFECT_API_AUTH_STRING" in one and "RAY_AUTH_TOKEN" in one)
    yield Live(process=process, login=known["PREFECT_API_AUTH_STRING"], token=known["RAY_AUTH_TOKEN"], api=known["PREFECT_API_URL"], ports=found)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert not list(directory.glob("*.ran")), "a module of the current directory was imported"


def connections(process: psutil.Process) -> list:
    try:
        return process.net_connections("tcp")
    except psutil.Error:
        return []


def as_user(uid: int, attempt: Callable[[], str], seconds: float = 25.0) -> str:
    """What the attempt returns in a forked process of that user; "" when it raises, is killed by what it tries or does not end in time."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if uid:
                os.setgroups([])
                os.setgid(uid)
                os.setuid(uid)
            os.write(writing, attempt().encode())
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(0)
    os.close(writing)
    ready, _, _ = select.select([reading], [], [], seconds)
    said = os.read(reading, 65536).decode() if ready else ""
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reading)
    return said


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def ask(live: Live, path: str, body: object = None, **headers: str) -> int:
    """Status of a request to the run's Prefect server."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{live.api}/{path}", data=data, headers={"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def with_login(live: Live) -> dict[str, str]:
    from base64 import b64encode

    return {"Authorization": f"Basic {b64encode(live.login.encode()).decode()}"}


def test_everything_listens_on_loopback(live: Live) -> None:
    assert live.ports and {address for address in live.ports.values()} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, live.ports


def test_prefects_api_wants_the_login_and_its_own_host_name(live: Live) -> None:
    assert ask(live, "flow_runs/filter", {}, **with_login(live)) == 200  # it is the way in for who knows the password
    assert ask(live, "flow_runs/filter", {}) == 401
    assert ask(live, "flow_runs/filter", {}, Authorization="Basic YWRtaW46YWRtaW4=") == 401
    assert ask(live, "flow_runs/filter", {}, Host="rebound.example", **with_login(live)) == 400
    assert ask(live, "work_pools/", {"name": "mine", "type": "process"}) == 401


KEYS = """
import os, sys
from ray._raylet import GcsClient  # loaded before the user changes: another one cannot read the interpreter's files
if uid := int(sys.argv[2]):
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
print("let in:", GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, timeout=10))
"""


def rays_store(address: str, uid: int, **environment: str) -> str:
    """What Ray's control store says to a user with these variables."""
    command = [sys.executable, "-c", KEYS, address, str(uid)]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=45, env={**os.environ, **environment}).stdout
    except subprocess.TimeoutExpired:
        return ""


def test_rays_store_opens_for_the_token_and_not_for_another_user(live: Live) -> None:
    commands = " ".join(" ".join(one.cmdline()) for one in descendants(live.process.pid))
    gcs = re.search(r"--gcs-address=([\d.]+:\d+)", commands)[1]
    assert "let in" in rays_store(gcs, 0, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=live.token)
    nobody = NOBODY if os.geteuid() == 0 else 0
    assert "let in" not in rays_store(gcs, nobody, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
    assert "let in" not in rays_store(gcs, nobody, RAY_AUTH_MODE="disabled")


@needs_root
def test_another_user_cannot_look_into_the_scratch_or_prepare_it(live: Live) -> None:
    scratch = private_directory()
    assert any((scratch / "ray").glob("session_*"))
    assert as_user(0, lambda: str(os.listdir(scratch))) != ""
    assert as_user(NOBODY, lambda: str(os.listdir(scratch))) == ""
    assert as_user(NOBODY, lambda: str((scratch / "mine").mkdir())) == ""
    assert as_user(NOBODY, lambda: str(scratch.rename(scratch.with_name("mine")))) == ""
    assert as_user(NOBODY, lambda: Path(f"/proc/{live.process.pid}/environ").read_text()) == ""


@pytest.mark.skipif(chromium() is None, reason="no browser on this machine")
def test_a_page_of_another_origin_can_neither_read_nor_start_anything(live: Live) -> None:
    script = f"""
const tried = [];
const attempt = async (name, options) => {{
  try {{ const answer = await fetch("{live.api}/" + name, options); tried.push(name + ": " + answer.status + " " + (await answer.text()).slice(0, 40)); }}
  catch (error) {{ tried.push(name + ": refused"); }}
}};
const json = {{"Content-Type": "application/json"}};
Promise.all([
  attempt("flow_runs/filter", {{method: "POST", headers: json, body: "{{}}"}}),
  attempt("flow_runs/filter", {{method: "POST", credentials: "include", body: "{{}}"}}),
  attempt("work_pools/", {{method: "POST", mode: "no-cors", body: JSON.stringify({{name: "mine", type: "process"}})}}),
  attempt("admin/version"),
]).then(() => {{ window.tried = tried; }});
"""

    page = Said(f"<!doctype html><script>{script}</script>".encode(), headers={"Content-Type": "text/html"})
    with HttpServer(lambda asked: page) as server:
        with Browser() as browser:
            browser.call("Page.navigate", url=f"{server.url}/")
            patience = time.monotonic() + 60
            while not (tried := browser.run("window.tried || null")) and time.monotonic() < patience:
                time.sleep(0.3)
    assert tried and len(tried) == 4 and all(one.endswith(": refused") or one.endswith(": 0 ") for one in tried), tried
    assert ask(live, "work_pools/mine", **with_login(live)) == 404


@pytest.mark.parametrize("wait", ["lists", *(pytest.param(one, marks=pytest.mark.long) for one in ("starting", "embed_image"))])
def test_ctrl_c_in_a_terminal_ends_the_run_within_ten_seconds(wait: str, tmp_path: Path) -> None:
    """The key reaches the whole foreground group of the terminal, as it does in a shell."""
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as from an interactive shell, also where the tests run in the background
        os.execv(ANYLOOM, [ANYLOOM, "run", "--recipe", "tiny", "--root", str(tmp_path / "runs")])
    said, patience = "", time.monotonic() + 200
    while wait not in said and time.monotonic() < patience:
        said += os.read(terminal, 65536).decode(errors="replace")
    assert wait in said
    time.sleep(1.0)
    pressed = time.monotonic()
    os.write(terminal, b"\x03")
    status = None
    while time.monotonic() < pressed + 60:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                said += os.read(terminal, 65536).decode(errors="replace")
            except OSError:
                time.sleep(0.05)
    assert time.monotonic() - pressed < 10 and os.waitstatus_to_exitcode(status) == 130, said[-2000:]
    assert "Traceback" not in said


def test_a_prefect_server_that_is_not_there_is_one_line_with_the_remedy(cli: Callable, tmp_path: Path) -> None:
    done = cli("run", "--recipe", "tiny", "--root", tmp_path / "runs", expect=1, env={"PREFECT_API_URL": "http://user:s3cret@127.0.0.1:9/api"})
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("anyloom: PREFECT_API_URL names http://127.0.0.1:9, which does not answer") and "--no-prefect" in last
    assert "s3cret" not in done.stderr and "Traceback" not in done.stderr
