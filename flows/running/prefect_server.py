"""Prefect server: the one that a run starts for itself, and what the servers of runs and of the stack have in common.

Owns its command, its password, its way to end. A server listens on loopback, wants a password that only its starter knows, answers no page of another
origin and no other host name, and is in a session of its own, so that Ctrl-C in a terminal does not reach it. Input: the run's root. Output: a server that
this process's environment names. Raises AnyloomError when one does not start, or when the one that PREFECT_API_URL names does not answer.
"""

from __future__ import annotations

import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from infra.settings import mark_environment, own_environment, prefect_url, server_environment
from infra.step import AnyloomError

APP = "flows.running.prefect_app:create_app"
START_S, END_S = 120.0, 5.0


def command(host: str, port: int) -> list[str]:
    """What starts a server. -P: nothing is imported from the directory that the user happens to be in."""
    uvicorn = [sys.executable, "-P", "-m", "uvicorn", "--factory", APP, "--host", host, "--port", str(port)]
    return [*uvicorn, "--log-level", "error", "--lifespan", "on", "--timeout-keep-alive", "60"]


def new_login() -> str:
    """A user name and a password as Prefect's AUTH_STRING variables take them."""
    return f"anyloom:{secrets.token_hex(24)}"


def check_given() -> None:
    """Raises AnyloomError when PREFECT_API_URL is no address, or no server answers there."""
    try:
        url, shown = _address(prefect_url())
        with urllib.request.urlopen(f"{url}/health", timeout=10):
            return
    except urllib.error.HTTPError as error:
        if error.code < 500:
            return  # it answers; what it wants from us, its client says
        problem = f"{shown}, which answers HTTP {error.code}"
    except OSError as error:
        reason = " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
        problem = f"{shown}, which does not answer ({reason})"
    except HTTPException as error:
        problem = f"{shown}, which does not answer as a web server does ({type(error).__name__})"
    except ValueError:
        problem = "no address of a server (one is http://HOST:4200/api)"
    remedy = "start that server, unset the variable so that the run starts its own, or run without Prefect: --no-prefect"
    raise AnyloomError(f"PREFECT_API_URL names {problem}: {remedy}") from None


def _address(url: str) -> tuple[str, str]:
    """(the address without its user and password, its scheme, host and port). Raises ValueError for what is none."""
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"[\s\x00-\x1f]", parts.netloc + parts.path):
        raise ValueError("no address")
    _ = parts.port  # which is looked at only when it is asked for
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    return f"{place}{parts.path.rstrip('/')}", place


@contextmanager
def own_server(root: Path) -> Iterator[Callable[[], None]]:
    """A server for this process and what it starts; its database is below `root`. Yields a function that waits until the server answers."""
    port, login = _free_port(), new_login()
    log = root / "logs" / "prefect.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = own_environment(
        **server_environment("127.0.0.1", port, login), PREFECT_UI_ENABLED="0", PREFECT__SERVER_EPHEMERAL="1", PREFECT__SERVER_FINAL="1"
    )
    with log.open("ab") as handle:
        server = subprocess.Popen(
            command("127.0.0.1", port), env=environment, stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, start_new_session=True, cwd=root
        )
    try:
        mark_environment("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
        mark_environment("PREFECT_API_AUTH_STRING", login)
        if "prefect" in sys.modules:
            from prefect.context import refresh_global_settings_context

            refresh_global_settings_context()
        yield lambda: _wait(server, f"http://127.0.0.1:{port}/api/health", log)
    finally:
        server.terminate()
        try:
            server.wait(END_S)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: subprocess.Popen[bytes], health: str, log: Path) -> None:
    patience = time.monotonic() + START_S
    while True:
        if server.poll() is not None:
            raise AnyloomError(f"Prefect's server ended with {server.returncode}: {log} says why; without it: --no-prefect")
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except OSError:
            if time.monotonic() > patience:
                raise AnyloomError(f"Prefect's server does not answer after {START_S:.0f} s: {log} says why; without it: --no-prefect") from None
            time.sleep(0.1)
