"""Ray: one local (or existing) cluster per run, and the two ways we use it.

`run_isolated` runs one function as one task with its own threads; `map_tasks` spreads independent pieces over tasks and yields results in
submission order, or without Ray makes them here, with the same bytes. Ray only schedules: it is never asked what is done. `interrupt` ends all of it
at once, on a cluster that goes on as well.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from infra.settings import background_is_normal, cluster_is_given, private_directory, quiet_environment, ray_address, ray_login, thread_environment
from infra.step import AnyloomError, StepDied

BACKGROUND = {"env_vars": {"ANYLOOM_BACKGROUND": "1"}}
"""Environment of the workers of background tasks: Ray gives a task only a worker of its own environment."""

KNOCK_S = 10.0
"""How long a cluster that RAY_ADDRESS names may be on its way up; Ray itself would try for two minutes."""

ASK_S, LOST_S = 2.0, 15.0
"""How often Ray's servers are asked for a sign of life, and how long one may be silent."""

_interrupted = threading.Event()


@contextmanager
def _sigterm_stays_ours() -> Iterator[None]:
    """Ray takes SIGTERM for itself while it starts, to leave at once; give it back, with the signal if it came meanwhile."""
    ours = signal.getsignal(signal.SIGTERM) if threading.current_thread() is threading.main_thread() else None
    try:
        yield
    except SystemExit:
        if ours is not None:
            signal.signal(signal.SIGTERM, ours)
            os.kill(os.getpid(), signal.SIGTERM)
        raise
    finally:
        if ours is not None:
            signal.signal(signal.SIGTERM, ours)


def start(num_cpus: int, num_gpus: int = 0) -> None:
    """Connect to Ray (RAY_ADDRESS) or start a quiet local cluster of `num_cpus` and `num_gpus`. Does nothing when Ray already runs here.

    Raises AnyloomError when it cannot, or after `interrupt`.
    """
    if _interrupted.is_set():
        raise AnyloomError("the run was interrupted; run it again to continue")
    quiet_environment()
    ray_login()
    import ray
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled, without types

    if not ray.is_initialized():
        Config.initialize("")  # it may have been loaded before there was a token, and would remember that
        AuthenticationTokenLoader.instance().reset_cache()
        scratch = private_directory() / "ray"
        local = {} if cluster_is_given() else {"num_cpus": num_cpus, "num_gpus": num_gpus, "_temp_dir": str(scratch), "object_store_memory": 512 * 2**20}
        _knock(ray_address())
        try:
            with _sigterm_stays_ours():
                ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR", configure_logging=True, **local)  # type: ignore[arg-type]
        except Exception as error:  # Ray raises Exception itself when its node does not come up in time
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            where = "RAY_ADDRESS does not answer" if cluster_is_given() else "Ray did not start"
            raise AnyloomError(f"{where} ({reason}); on a busy machine try again, or run without it: --no-ray") from error


def _knock(address: str) -> None:
    """Raises AnyloomError when nothing listens where RAY_ADDRESS says HOST:PORT. What `auto` and its like mean, Ray says itself."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal() or "/" in address:
        return
    patience = time.monotonic() + KNOCK_S
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
            return
        except (OSError, OverflowError, ValueError) as error:
            if time.monotonic() < patience:
                time.sleep(min(0.5, KNOCK_S))
                continue
            remedy = "start that cluster, unset the variable so that the run starts its own, or run without Ray: --no-ray"
            raise AnyloomError(f"RAY_ADDRESS does not answer ({address}: {error}); {remedy}") from None


def num_gpus(local: int) -> int:
    """GPUs of the cluster that RAY_ADDRESS names, or without one those of this machine."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0)) if cluster_is_given() else local


def cpus_of_a_node(local: int) -> int:
    """CPUs that one task can get: those of the largest node of the cluster that RAY_ADDRESS names, or without one `local`."""
    import ray

    return max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=local) if cluster_is_given() else local


def interrupt() -> None:
    """End all Ray work of this process, tasks and actors; whoever waits for some gets an exception. Ray cannot be used here any more."""
    _interrupted.set()
    stop()


def stop() -> None:
    """Disconnect; a local cluster ends with it."""
    import ray

    with _watches_lock:
        while _watches:
            _watches.pop().leave()
    ray.shutdown()


def _remote(name: str, threads: int, gpus: int = 0) -> Any:
    import ray

    # max_retries=0: what a dead worker means is decided by the record on storage, not by a silent second try.
    return ray.remote(num_cpus=threads, num_gpus=gpus, max_retries=0)(_with_threads).options(name=name)


def _with_threads(function: Callable[..., Any], threads: int, *args: Any) -> Any:
    thread_environment(threads)
    return function(*args)


def _in_background(function: Callable[..., Any], threads: int, *args: Any) -> Any:
    """As _with_threads, at the lowest priority. There is no way back from it: the worker process serves background tasks only (BACKGROUND). On a machine that
    others keep busy this can mean no time at all; ANYLOOM_BACKGROUND_PRIORITY=normal makes such tasks tasks like any other."""
    if background_is_normal():
        return _with_threads(function, threads, *args)
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    if hasattr(os, "SCHED_IDLE"):  # Linux: gives way at once when another thread wakes up; a merely nice one makes it wait
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    return _with_threads(function, threads, *args)


def _end_at_once() -> None:
    """In the place of Ray's own end, which would wait for a lost server until it ends the process with a message of its own, or in a fault."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


class _Watch:
    """Watches the two of Ray's servers that our calls depend on, the head of the cluster and the raylet of this machine. Ray itself waits for a lost one, for a
    minute or for ever, depending on what it is asked for meanwhile."""

    def __init__(self) -> None:
        import ray

        ours = ray.get_runtime_context()
        self._servers = {"head": ours.gcs_address}
        for node in ray.nodes():
            if node["NodeID"] == ours.get_node_id():
                self._servers["raylet"] = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
        self._over = threading.Event()
        self._lost = ""
        threading.Thread(target=self._watch, name="watch Ray", daemon=True).start()

    def _watch(self) -> None:
        heard = dict.fromkeys(self._servers, time.monotonic())
        while not self._over.wait(ASK_S):
            for server, address in self._servers.items():
                host, _, port = address.rpartition(":")
                try:
                    socket.create_connection((host.strip("[]"), int(port)), timeout=ASK_S).close()
                except OSError:
                    silent = time.monotonic() - heard[server]
                    if silent >= LOST_S and not self._over.is_set():
                        self._lost = f"Ray's {server} at {address} is lost: no answer for {silent:.0f} s"
                        return
                else:
                    heard[server] = time.monotonic()

    def is_lost(self, how: str) -> None:
        """Ray itself has told so, before we found it out."""
        self._lost = self._lost or how

    def leave(self) -> None:
        """Watch no longer: we leave the cluster."""
        self._over.set()

    def check(self) -> None:
        """Raises AnyloomError when one of them has not answered for LOST_S; this process ends with 1 then, whatever follows."""
        if self._lost:
            atexit.register(_end_at_once)
            again = "start that cluster again, then run the same command" if cluster_is_given() else "run the same command"
            raise AnyloomError(f"{self._lost}; {again} to continue")


_watches: list[_Watch] = []
"""That of the cluster which this process uses, if it uses one."""
_watches_lock = threading.Lock()


def _watch() -> _Watch:
    with _watches_lock:
        if not _watches:
            _watches.append(_Watch())
        return _watches[0]


def _submit(remote: Any, *args: Any) -> Any:
    """The reference of a task that has been handed to Ray. From a thread of its own, for Ray asks the head first, and keeps that thread if it is lost."""
    watch, done, made = _watch(), threading.Event(), dict[str, Any]()

    def hand_over() -> None:
        try:
            made["reference"] = remote.remote(*args)
        except BaseException as error:  # raised again by the caller's thread
            made["error"] = error
        finally:
            done.set()

    threading.Thread(target=hand_over, name="submit", daemon=True).start()
    while not done.wait(ASK_S):
        watch.check()
    if "error" in made:
        raise made["error"]
    return made["reference"]


def _wait(reference: Any, on_poll: Callable[[], None] | None = None, poll_s: float = ASK_S) -> Any:
    """The result of a task, or its exception as it was. Raises AnyloomError when Ray is lost meanwhile."""
    import ray

    watch = _watch()
    while not ray.wait([reference], timeout=poll_s)[0]:
        watch.check()
        if on_poll is not None:
            on_poll()
    try:
        return ray.get(reference)
    except ray.exceptions.LocalRayletDiedError:
        watch.is_lost("Ray's raylet of this machine is lost")
        watch.check()
    except ray.exceptions.RayTaskError as error:
        cause = error.cause if isinstance(getattr(error, "cause", None), Exception) else error
        raise cause from None


def run_isolated(
    name: str,
    function: Callable[..., Any],
    *args: Any,
    threads: int = 1,
    gpus: int = 0,
    holds: bool = True,
    background: bool = False,
    on_poll: Callable[[], None] | None = None,
    poll_s: float = 0.3,
) -> Any:
    """Run `function(*args)` as one Ray task and wait. `on_poll` is called while waiting. Its exception is raised here as it was.

    name: of the task, for the StepDied of a worker that dies. holds: the task holds its threads and GPUs in the cluster; False when it starts Ray work to
    which it leaves them. background: at the lowest priority, and without a share of the cluster's CPUs.
    Raises AnyloomError when Ray is lost meanwhile.
    """
    import ray

    if background:
        remote = ray.remote(num_cpus=0, max_retries=0)(_in_background).options(name=name, runtime_env=BACKGROUND)
    else:
        remote = _remote(name, threads if holds else 0, gpus if holds else 0)
    try:
        return _wait(_submit(remote, function, threads, *args), on_poll, poll_s)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
        raise StepDied(name, type(error).__name__) from None


def map_tasks(function: Callable[[Any], Any], items: Iterable[Any], num_workers: int, threads: int = 1, use_ray: bool = True, gpus: int = 0) -> Iterator[Any]:
    """function(item) for every item, results in the order of the items, at most `num_workers` at a time, each with `threads` and `gpus`.

    In process (one after the other) without Ray, or with one worker that needs no GPU. An exception of the function is raised at its item.
    Raises AnyloomError when Ray is lost meanwhile.
    """
    if not use_ray or (num_workers <= 1 and not gpus):
        for item in items:
            yield function(item)
        return
    remote, running = _remote(getattr(function, "__qualname__", "task"), threads, gpus), []
    for item in items:
        running.append(_submit(remote, function, threads, item))
        if len(running) >= num_workers:
            yield _wait(running.pop(0))
    while running:
        yield _wait(running.pop(0))
