"""anyloom stack: a Prefect server, a worker and a Ray head on this machine, with everything in prefect.yaml deployed.

Owns the stack's directory (.stack): stack.json (ports and processes), logs, Prefect's database, Ray's token and Prefect's login. `up` starts what does not
run and deploys; `down` ends what this stack started and nothing else. Every address is loopback unless --host says otherwise. Who can use the server can
run commands as its owner, so it always wants a login: PREFECT_SERVER_API_AUTH_STRING, or one that is made and kept in a file that only the owner reads.
Other secrets (ANYLOOM_ALERT_URL, ...) reach the processes through the environment; none is printed.
"""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from flows.running.answer import Answer
from flows.running.prefect_server import command, new_login
from infra.lock import exclusive
from infra.machine import port_problem
from infra.settings import LOOPBACK_RAY, child_environment, own_environment, private_directory, server_environment
from infra.step import AnyloomError
from infra.storage import read_json, write_atomic

PROJECT = Path(__file__).resolve().parents[2]
POOL = "anyloom"
ORDER = ("ray", "server", "worker")
TOKEN, LOGIN = "ray_token", "prefect_login"
START_S, DEPLOY_S, STOP_S = 180.0, 300.0, 20.0
EPILOG = """then:
  eval "$(anyloom stack env)"             this shell's prefect and anyloom use the stack
  prefect deployment run train-stage3     a flow run on the worker; the UI is at the address that `up` prints"""


@dataclass(kw_only=True, slots=True)
class Stack:
    """One stack: where it is kept, where it listens, what runs."""

    home: Path
    root: Path
    host: str = "127.0.0.1"
    port: int = 4200
    ray_port: int = 6379
    cpus: int = 0
    """CPUs of the Ray head; 0: every core."""
    processes: dict[str, list[float]] = field(default_factory=dict)
    """Name -> [pid, time it was started], so that another process with the same pid is not taken for it."""

    @property
    def url(self) -> str:
        """Where the server answers."""
        return f"http://{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can reach the stack."""
        return ipaddress.ip_address(socket.gethostbyname(self.host)).is_loopback

    @property
    def variables(self) -> dict[str, str]:
        """What makes prefect and anyloom use this stack. Holds no secret: token and login are in files that only their owner reads."""
        return (LOOPBACK_RAY if self.is_loopback else {}) | {
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_HOME": str(self.home / "prefect"),
            "RAY_ADDRESS": f"{self.host}:{self.ray_port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.home / TOKEN),
            "ANYLOOM_ROOT": str(self.root),
        }

    def environment(self) -> dict[str, str]:
        """The environment of the stack's processes."""
        quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "RAY_USAGE_STATS_ENABLED": "0", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}
        login = self.login()
        return own_environment(**self.variables, **quiet, **server_environment(self.host, self.port, login), PREFECT_API_AUTH_STRING=login)

    def login(self) -> str:
        """`user:password` of the server: the environment's, else the stack's own."""
        return child_environment().get("PREFECT_SERVER_API_AUTH_STRING") or _secret(self.home / LOGIN, new_login)

    def running(self, name: str) -> psutil.Process | None:
        """The process called `name`, None when it does not run any more."""
        pid, started = self.processes.get(name, (0, 0))
        try:
            process = psutil.Process(int(pid))
            same = abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
            return process if pid and same else None
        except psutil.NoSuchProcess:
            return None

    def save(self) -> None:
        """Write stack.json."""
        plain = {**asdict(self), "home": str(self.home), "root": str(self.root)}
        write_atomic(self.home / "stack.json", json.dumps(plain, indent=1))


def load(home: Path) -> Stack | None:
    """The stack that `home` describes, None without one. Raises AnyloomError for a damaged file."""
    path = home / "stack.json"
    if not path.exists():
        return None
    try:
        plain = read_json(path)
        return Stack(**{**plain, "home": Path(plain["home"]), "root": Path(plain["root"])})
    except (TypeError, KeyError) as error:
        raise AnyloomError(f"{path} is damaged ({error}): end its processes by hand and remove it") from None


def up(wanted: Stack, say: Callable[[str], None] = print) -> Stack:
    """Start what does not run yet and deploy. Running it twice changes nothing. Raises AnyloomError naming the port or the log."""
    if not (PROJECT / "prefect.yaml").exists():
        raise AnyloomError(f"{PROJECT} has no prefect.yaml: run this from a checkout of the project")
    with exclusive(wanted.home / "stack.lock", lambda who: say(f"waiting for {who}")):
        stack = _agreed(load(wanted.home), wanted)
        _check(stack)
        for name in ORDER:
            if stack.running(name) is None:
                say(f"starting {name}")
                _start(stack, name)
        _deploy(stack)
        say(f"login of Prefect's pages: what {stack.home / LOGIN} says")
        say(f"Prefect {stack.url}  Ray {stack.host}:{stack.ray_port}  root {stack.root}  logs {stack.home / 'logs'}")
        return stack


def _agreed(known: Stack | None, wanted: Stack) -> Stack:
    """The running stack when it is the wanted one, else the wanted one. Raises AnyloomError when another one runs in this home."""
    if known is None or not any(known.running(name) for name in ORDER):
        return wanted
    for name in ("root", "host", "port", "ray_port"):
        if getattr(known, name) != getattr(wanted, name):
            raise AnyloomError(f"the stack of {known.home} runs with {name} {getattr(known, name)}, not {getattr(wanted, name)}: anyloom stack down first")
    return known


def _check(stack: Stack) -> None:
    """Raises AnyloomError for a port that somebody else has."""
    for name, option, port in (("server", "--port", stack.port), ("ray", "--ray-port", stack.ray_port)):
        why = port_problem(stack.host, port) if stack.running(name) is None else ""
        if why:
            raise AnyloomError(f"port {port} of {stack.host} is not free ({why}): choose another with {option}")


def _command(stack: Stack, name: str) -> list[str]:
    prefect, ray = [sys.executable, "-P", "-m", "prefect"], [sys.executable, "-P", "-m", "ray.scripts.scripts"]
    scratch = private_directory() / f"stack-{stack.ray_port}"
    address, cpus = ["--node-ip-address", stack.host, "--port", str(stack.ray_port)], ["--num-cpus", str(stack.cpus)] if stack.cpus else []
    return {
        "ray": [*ray, "start", "--head", "--block", *address, "--include-dashboard=false", "--temp-dir", str(scratch), "--disable-usage-stats", *cpus],
        "server": command(stack.host, stack.port),
        "worker": [*prefect, "worker", "start", "--pool", POOL, "--type", "process", "--name", "stack", "--install-policy", "never"],
    }[name]


def _start(stack: Stack, name: str) -> None:
    """Start one process in a session of its own and wait until it answers."""
    _secret(stack.home / TOKEN, lambda: secrets.token_hex(32))
    if name == "worker":
        _make_pool(stack)
    log = stack.home / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".old.log"))
    with open(log, "wb") as handle:
        child = subprocess.Popen(
            _command(stack, name), cwd=PROJECT, env=stack.environment(), stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, start_new_session=True
        )
    stack.processes[name] = [child.pid, psutil.Process(child.pid).create_time()]
    stack.save()
    patience = time.monotonic() + START_S
    while not _answers(stack, name):
        if child.poll() is not None:
            raise AnyloomError(f"{name} ended with {child.returncode}: {log} says why")
        if time.monotonic() > patience:
            raise AnyloomError(f"{name} does not answer after {START_S:.0f} s: {log} says why; anyloom stack down ends it")
        time.sleep(0.3)


def _secret(path: Path, make: Callable[[], str]) -> str:
    """What the file says, which only its owner reads; made first where it is not there."""
    with suppress(FileExistsError):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(make())
    return path.read_text()


def _make_pool(stack: Stack) -> None:
    """The work pool, whose jobs take no command, environment or directory from a flow run's parameters. Raises AnyloomError when the server refuses it."""
    fixed = {"job_configuration": {"stream_output": True}, "variables": {"type": "object", "properties": {}}}
    if _ask(stack, f"work_pools/{POOL}") is None:
        made = _ask(stack, "work_pools/", {"name": POOL, "type": "process", "base_job_template": fixed})
    else:
        made = _ask(stack, f"work_pools/{POOL}", {"base_job_template": fixed}, method="PATCH")
    if made is None:
        raise AnyloomError(f"the Prefect server at {stack.url} does not take the work pool {POOL}: {stack.home / 'logs' / 'server.log'} says why")


def _answers(stack: Stack, name: str) -> bool:
    if name == "ray":  # the port opens before the head is ready; the message comes after
        with socket.socket() as probe:
            return probe.connect_ex((stack.host, stack.ray_port)) == 0 and b"Ray runtime started" in (stack.home / "logs" / "ray.log").read_bytes()
    if name == "server":
        return _ask(stack, "health") is not None
    # the pool, and the worker of an earlier start, are in the database already: this one has spoken only when it was seen since it was started
    since = datetime.fromtimestamp(stack.processes[name][1], UTC).isoformat()
    online = {"workers": {"status": {"any_": ["ONLINE"]}, "last_heartbeat_time": {"after_": since}}}
    return bool(_ask(stack, f"work_pools/{POOL}/workers/filter", online))


def headers(stack: Stack) -> dict[str, str]:
    """Of a request to the server."""
    return {"Content-Type": "application/json", "Authorization": f"Basic {b64encode(stack.login().encode()).decode()}"}


def _ask(stack: Stack, path: str, body: dict[str, Any] | None = None, method: str | None = None) -> Any:
    """What the server answers, to a POST when there is a body; None when it does not, or refuses."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{stack.url}/api/{path}", data=data, headers=headers(stack), method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return json.loads(answer.read() or b"{}")
    except OSError:  # not up yet, or no such pool yet
        return None


def _deploy(stack: Stack) -> None:
    deploy = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy", "--all"]
    log = stack.home / "logs" / "deploy.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(log, "wb") as handle:
            done = subprocess.run(deploy, cwd=PROJECT, env=stack.environment(), stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, timeout=DEPLOY_S)
    except subprocess.TimeoutExpired:
        raise AnyloomError(f"prefect deploy --all did not end in {DEPLOY_S:.0f} s: {log} says how far it came; anyloom stack up tries again") from None
    if done.returncode:
        raise AnyloomError(f"prefect deploy --all failed: {log} says why")


def down(home: Path, say: Callable[[str], None] = print) -> int:
    """End the stack's processes, the newest first, each with all that it has started. Returns how many ran. Without a stack nothing happens."""
    with exclusive(home / "stack.lock", lambda who: say(f"waiting for {who}")):
        stack = load(home)
        ended = 0
        for name in reversed(ORDER):
            process = stack.running(name) if stack else None
            if process is not None:
                say(f"stopping {name}")
                end_tree(process)
                ended += 1
        (home / "stack.json").unlink(missing_ok=True)
        return ended


def end_tree(process: psutil.Process) -> None:
    """End a process and everything below it: children first asked, then made to."""
    try:
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for ask in (psutil.Process.terminate, psutil.Process.kill):
        for member in family:
            try:
                ask(member)
            except psutil.NoSuchProcess:
                continue
        _, family = psutil.wait_procs(family, timeout=STOP_S)


def add_stack(commands: Any) -> None:
    """Add `stack` to a subparsers action."""
    parser = commands.add_parser(
        "stack",
        help="a local Prefect server, worker and Ray head with every deployment: up, down, status, env",
        description="Run a Prefect server, a worker and a Ray head on this machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("up", "down", "status", "env"))
    parser.add_argument("--home", type=Path, default=Path(".stack"), help="the stack's own directory: state, logs, Prefect's database (default: .stack)")
    parser.add_argument("--root", type=Path, help="root of the flow runs (default: runs, or ANYLOOM_ROOT)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: loopback, for this machine alone)")
    parser.add_argument("--port", type=int, default=4200, help="port of the Prefect server (default: 4200)")
    parser.add_argument("--ray-port", type=int, default=6379, help="port of the Ray head (default: 6379)")
    parser.add_argument("--cpus", type=int, default=0, help="CPUs of the Ray head (default: every core)")


def main(args: argparse.Namespace, root: Path) -> Answer:
    """Run one action. The exit code is 1 when `status` finds a process that does not run."""
    home = args.home.absolute()
    if args.action == "up":
        made = up(Stack(home=home, root=root, host=args.host, port=args.port, ray_port=args.ray_port, cpus=args.cpus))
        return Answer({"prefect": made.url, "ray": f"{made.host}:{made.ray_port}", "root": made.root, "home": home, "logs": home / "logs"})
    if args.action == "down":
        ended = down(home)
        return Answer({"home": home, "ended": ended}, lambda: print("the stack is down" if ended else f"no stack runs from {home}"))
    stack = load(home)
    if stack is None:
        raise AnyloomError(f"no stack runs from {home}: anyloom stack up")
    if args.action == "env":
        own = home / LOGIN if (home / LOGIN).exists() else None
        login = f"$(cat {shlex.quote(str(own))})" if own else "$PREFECT_SERVER_API_AUTH_STRING"
        lines = [*(f"export {name}={shlex.quote(value)}" for name, value in stack.variables.items()), f'export PREFECT_API_AUTH_STRING="{login}"']
        return Answer({"variables": stack.variables, "login_file": own}, lambda: print(*lines, sep="\n"))
    running = {name: stack.running(name) is not None for name in ORDER}
    told = [f"{name:<8} {'runs' if runs else 'does not run'}" for name, runs in running.items()]
    return Answer(running, lambda: print(*told, sep="\n"), int(not all(running.values())))
