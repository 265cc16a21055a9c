"""Settings: the one place that reads (and, for child libraries, sets) environment variables.

Owns where the root is, how many threads there are, and the quiet and offline switches of the libraries below us.
Secrets come from the environment, are never copied into a record and never logged.
"""

from __future__ import annotations

import os
import secrets
import socket
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from infra.step import AnyloomError


class Settings(BaseModel):
    """Where and with how much machine; changes no bytes. One object travels from the command line or the deployment to the task."""

    model_config = ConfigDict(frozen=True)

    root: Path = Field(default=Path("runs"), description="directory of artifacts, stores, history and report (ANYLOOM_ROOT)")
    threads: int = Field(default=0, ge=0, description="CPU threads in all; 0 means every core (ANYLOOM_THREADS)")
    gpus: int | None = Field(default=None, ge=0, description="GPUs to use; by default all of this machine (ANYLOOM_GPUS)")
    use_ray: bool = Field(default=True, description="run steps as Ray tasks (ANYLOOM_RAY)")
    use_prefect: bool = Field(default=True, description="schedule steps as Prefect tasks (ANYLOOM_PREFECT)")
    remote: str = Field(default="", description="fsspec URL that mirrors finished artifacts and stores, e.g. s3://bucket/run (ANYLOOM_REMOTE)")
    alert_url: SecretStr | None = Field(default=None, description="webhook told of failed flow runs and worse scores; a secret (ANYLOOM_ALERT_URL)")
    recipe_dirs: str = Field(default="", description="directories, separated by :, that deployments take recipe files from (ANYLOOM_RECIPE_DIRS)")
    root_url: str = Field(default="", description="where a web server of yours shows the root; Prefect's links to reports lead there (ANYLOOM_ROOT_URL)")

    @property
    def num_threads(self) -> int:
        """Threads in all, at least 1: those asked for, else the cores that this process may use and its container's share of them."""
        return self.threads or max(1, min(len(os.sched_getaffinity(0)), quota_of_cpus(Path("/sys/fs/cgroup"))))

    @property
    def num_gpus(self) -> int:
        """GPUs of this machine to use, found without loading a library: those asked for, else those of CUDA_VISIBLE_DEVICES, else all."""
        found = len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) if self.gpus is None else self.gpus
        return found if "CUDA_VISIBLE_DEVICES" not in os.environ else min(found, len(visible_gpus(os.environ["CUDA_VISIBLE_DEVICES"])))


def visible_gpus(variable: str) -> list[str]:
    """What CUDA_VISIBLE_DEVICES shows: as CUDA does, nothing behind the first number that is negative or no device."""
    shown: list[str] = []
    for name in (part.strip() for part in variable.split(",")):
        if not name or name.startswith("-") or name == "NoDevFiles" or name in shown:
            break
        shown.append(name)
    return shown


def quota_of_cpus(cgroup: Path) -> int:
    """CPUs that a container may use at once, rounded up (cgroup v2: cpu.max; v1: cpu/cpu.cfs_quota_us); a large number where there is no limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        except OSError:
            return NO_QUOTA
    return NO_QUOTA if quota in ("max", "-1") else max(1, -(-int(quota) // int(period)))


NO_QUOTA = 1 << 20
"""What `quota_of_cpus` says where there is no limit."""


def load_settings(**overrides: object) -> Settings:
    """Settings from ANYLOOM_* variables; `overrides` that are not None win. Raises AnyloomError naming the wrong variable."""
    names = {field: f"ANYLOOM_{field.removeprefix('use_').upper()}" for field in Settings.model_fields}
    values: dict[str, object] = {field: os.environ[name] for field, name in names.items() if name in os.environ}
    values |= {field: value for field, value in overrides.items() if value is not None}
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
        raise AnyloomError(f"{names.get(field, field)} is wrong: {error.errors()[0]['msg']}") from None
    there = next((place for place in (settings.root, *settings.root.absolute().parents) if place.exists()), settings.root)
    if not there.is_dir():
        raise AnyloomError(f"--root {settings.root}: {there} is a file; give a directory, which need not be there yet (ANYLOOM_ROOT says the same)")
    return settings


def offline_environment() -> None:
    """Keep Hugging Face libraries from any network access, and quiet. Call before importing transformers, datasets or lmms_eval."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ.setdefault(name, "1")
    quiet_environment()


def quiet_environment() -> None:
    """Switch off progress bars, telemetry and chatter of the libraries; a variable the user has set wins."""
    quiet = {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "DATASETS_VERBOSITY": "error",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_DEDUP_LOGS": "1",
        "RAY_ENABLE_AUTO_CONNECT": "0",
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
        "RAY_TRAIN_METRICS_ENABLED": "0",
        "RAY_COLOR_PREFIX": "0",
        "RAY_worker_niceness": "0",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "45",  # a lost head is an error after that, not after one minute or more
        "PYTHONWARNINGS": "ignore",
        "PYTHONSAFEPATH": "1",  # no process started from here imports what lies in the directory the user happens to be in
        "WANDB_MODE": "disabled",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "LMMS_EVAL_LOG_LEVEL": "ERROR",
    }
    if not cluster_is_given():
        quiet["RAY_idle_worker_killing_time_threshold_ms"] = "20000"  # Ray's second passes between two steps, and the next would import everything again
        quiet["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"  # nobody reclaims the machine we sit on: one process less per stage
        quiet |= LOOPBACK_RAY
    for name, value in quiet.items():
        os.environ.setdefault(name, value)


LOOPBACK_RAY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray's way to say: one node, so listen on loopback alone. Without it every port of a local cluster is open to the network, whatever its address."""


def loopback_ranks() -> None:
    """Let torch's ranks in this process, all of whose peers are on this host, listen on loopback alone."""
    loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")
    os.environ["GLOO_SOCKET_IFNAME"], os.environ["NCCL_SOCKET_IFNAME"] = loopback, f"={loopback}"  # "=": this name, not what begins like it


def ray_login() -> None:
    """A token for a local Ray cluster, without which any user of this machine could have code run by it. A cluster that is given keeps its own."""
    if cluster_is_given():
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    elif os.environ.setdefault("RAY_AUTH_MODE", "token") == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def private_directory() -> Path:
    """A directory for sockets and scratch of this user, short enough for the paths of sockets (107 bytes), which nobody else can look into or prepare.

    Below TMPDIR or /tmp. Where the usual place belongs to somebody else, or others may look into it, a new one.
    """
    place = Path(tempfile.gettempdir()) / f"anyloom-{os.getuid()}"
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    found = place.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return place
    return Path(tempfile.mkdtemp(prefix="anyloom-"))


def background_is_normal() -> bool:
    """Whether background tasks have the priority of any other (ANYLOOM_BACKGROUND_PRIORITY=normal)."""
    return os.environ.get("ANYLOOM_BACKGROUND_PRIORITY") == "normal"


def cluster_is_given() -> bool:
    """True when RAY_ADDRESS names an existing Ray cluster."""
    return "RAY_ADDRESS" in os.environ


def ray_address() -> str:
    """The Ray cluster that the environment names, "" without one."""
    return os.environ.get("RAY_ADDRESS", "")


def has_display() -> bool:
    """Whether a browser could show something to the person at this terminal: there is a display, or BROWSER names a program."""
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def child_environment(**changes: str) -> dict[str, str]:
    """The environment of a process that is started from here: this one's with `changes`."""
    return {**os.environ, **changes}


def own_environment(**changes: str) -> dict[str, str]:
    """The same for a process that runs a module of this project with -P: it finds the project where this one did, installed or not."""
    home = str(Path(__file__).resolve().parents[1])
    given = os.environ.get("PYTHONPATH", "")
    return child_environment(PYTHONPATH=os.pathsep.join([home, given] if given else [home]), **changes)


def mark_environment(name: str, value: str) -> None:
    """Give a variable to every process that is started from here from now on."""
    os.environ[name] = value


def prefect_environment(root: Path) -> None:
    """Keep Prefect's log to errors and, without a configured server, its database below the root."""
    quiet_environment()
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
    if not prefect_url():
        os.environ.setdefault("PREFECT_HOME", str((root / "prefect").absolute()))


def prefect_url() -> str:
    """The API of the Prefect server that the environment names, "" without one."""
    return os.environ.get("PREFECT_API_URL", "")


def server_environment(host: str, port: int, login: str) -> dict[str, str]:
    """What a Prefect server of ours gets: its address, its password, and no answer for pages of other origins or for other host names."""
    return {
        "PREFECT_SERVER_API_HOST": host,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{host}:{port}",
        _SERVER_HOSTS: ",".join(dict.fromkeys((host, "127.0.0.1", "localhost"))),
    }


_SERVER_HOSTS = "ANYLOOM_SERVER_HOSTS"


def server_hosts() -> list[str]:
    """Host names that a Prefect server of ours answers to."""
    return os.environ[_SERVER_HOSTS].split(",")


def judge_environment(model: str) -> None:
    """Point the packaged scorers that ask a language model at the endpoint of the settings. Call before lmms_eval reads its tasks.

    ANYLOOM_JUDGE_URL: an OpenAI-compatible base URL, e.g. https://host/v1; ANYLOOM_JUDGE_KEY: its key, where it wants one. Raises AnyloomError without a URL.
    """
    url = os.environ.get("ANYLOOM_JUDGE_URL", "").rstrip("/")
    if not url:
        raise AnyloomError(f"suite.judge is {model}, but ANYLOOM_JUDGE_URL is not set: give the judge's OpenAI-compatible endpoint")
    os.environ["API_TYPE"], os.environ["MODEL_VERSION"] = "openai", model
    os.environ["OPENAI_BASE_URL"] = os.environ["OPENAI_API_URL"] = url
    os.environ["OPENAI_API_KEY"] = os.environ.get("ANYLOOM_JUDGE_KEY", "none")


def surroundings() -> tuple[dict[str, str], str, list[str]]:
    """What a process takes over when it is started: environment, directory and where modules are found."""
    return dict(os.environ), os.getcwd(), list(sys.path)


def thread_environment(threads: int) -> None:
    """Cap the thread pools of numpy's BLAS and torch, whether they are imported already or come afterwards: a warm process computes as a fresh one does."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)
    if "numpy" in sys.modules:
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads, user_api="blas")
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
