"""What `anyloom doctor` looks at: one function per question to this machine, each of which really asks it.

Owns what is required, what each missing thing costs and what helps. Input: Settings and, below them, the kernel, PATH and the installed packages. Output:
Findings. Nothing is changed or started, and nothing is asked over the network but the servers that the environment names.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra import machine
from infra.settings import NO_QUOTA, Settings, has_display, prefect_url, quota_of_cpus, ray_address
from infra.step import AnyloomError

SMOL_MEMORY_BYTES, SMOL_DISK_BYTES = 24 * 10**9, 10 * 10**9
"""What the README says that the demo needs."""
DECODED = ("h264", "hevc", "vp9", "av1", "aac", "mp3", "opus", "vorbis", "flac", "pcm_s16le")
"""Codecs of the media that lists usually name."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The answer to one question."""

    what: str
    found: str
    costs: str = ""
    """What does not work because of it; "" when nothing is missing."""
    remedy: str = ""
    required: bool = False
    """Without it no recipe runs with these settings."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same in numbers."""

    @property
    def state(self) -> str:
        """ok, missing (something costs a feature), or fails (nothing runs)."""
        return "ok" if not self.costs else "fails" if self.required else "missing"


def python(settings: Settings) -> Finding:
    """The interpreter."""
    version = platform.python_version()
    facts = {"python": version, "platform": platform.platform()}
    if not (3, 11) <= sys.version_info[:2] <= (3, 12) or sys.platform != "linux":
        costs, remedy = "the pinned packages have no build for it", "use Linux with Python 3.11 (make install PYTHON=python3.11)"
        return Finding(what="Python", found=f"{version}, {sys.platform}", costs=costs, remedy=remedy, required=True, facts=facts)
    return Finding(what="Python", found=f"{version}{'' if sys.version_info[1] == 11 else ' (tested: 3.11)'}, {sys.platform}", facts=facts)


def packages(settings: Settings) -> Finding:
    """What pyproject.toml asks for, against what is installed."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in importlib.metadata.requires("anyloom") or []]
    except importlib.metadata.PackageNotFoundError:
        costs = "lmms-eval and Prefect do not find anyloom's plugins, and its dependencies cannot be compared"
        return Finding(what="packages", found="anyloom is not installed as a package", costs=costs, remedy="pip install --no-deps -e . in the checkout")
    wrong, counted = [], 0
    for one in wanted:
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        counted += 1
        try:
            version = importlib.metadata.version(one.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{one.name} is not installed")
        else:
            wrong += [] if one.specifier.contains(version, prereleases=True) else [f"{one.name} is {version}, wanted {one.specifier}"]
    if wrong:
        costs = "steps that import them fail, or compute something else than what was tested"
        return Finding(what="packages", found="; ".join(wrong), costs=costs, remedy="pip install -r requirements.lock", required=True, facts={"wrong": wrong})
    return Finding(what="packages", found=f"{counted} of {counted} as pinned", facts={"wrong": []})


def cores(settings: Settings) -> Finding:
    """Cores, quota and instructions of the CPU."""
    model, flags = machine.cpu()
    quota, usable = quota_of_cpus(Path("/sys/fs/cgroup")), len(os.sched_getaffinity(0))
    wide = {"AVX2": "avx2", "AVX-512": "avx512f", "AVX-512 bf16": "avx512_bf16", "AMX": "amx_tile", "AMX bf16": "amx_bf16", "NEON": "asimd"}
    has = {name: flag in flags for name, flag in wide.items()}
    facts = {"model": model, "cores": os.cpu_count(), "usable": usable, "quota": None if quota >= NO_QUOTA else quota, "threads": settings.num_threads, **has}
    shares = f"{usable} of {os.cpu_count()} cores" + (f", a quota of {quota}" if quota < NO_QUOTA else "")
    instructions = ", ".join(name for name, there in has.items() if there) or "no wide instructions"
    found = f"{model or platform.machine()}: {shares}, {settings.num_threads} threads; {instructions}"
    if settings.num_threads < 2:
        return Finding(what="CPU", found=found, costs="steps run one after the other, never side by side", remedy="give it 2 cores or more", facts=facts)
    return Finding(what="CPU", found=found, facts=facts)


def half_width(settings: Settings) -> Finding:
    """Whether the CPU multiplies bfloat16 and float16, as torch sees it."""
    from mmcore.runtime.devices import arithmetic
    from pipelines.recipes import RECIPES

    native = {dtype: arithmetic(dtype, "cpu") == dtype for dtype in ("bfloat16", "float16")}
    missing = [dtype for dtype, there in native.items() if not there]
    found = ", ".join(f"{dtype}: {'native' if there else 'no instructions'}" for dtype, there in native.items())
    concerned = [name for name, make in RECIPES.items() if make().two_tower is None and make().lm_dtype in missing]
    if "bfloat16" in missing:
        costs = f"on the CPU the language models of {', '.join(concerned)} compute in float32: twice the memory, other roundings than published figures"
        remedy = "a CPU with AVX-512 bf16 or AMX, or a GPU; nothing else is lost"
        return Finding(what="bf16 on the CPU", found=found, costs=costs, remedy=remedy, facts=native)
    return Finding(what="bf16 on the CPU", found=found, facts=native)


def memory(settings: Settings) -> Finding:
    """What may be used, not what is built in."""
    found = machine.memory()
    facts = {"total_bytes": found.total, "available_bytes": found.available, "limited_by": found.limited_by}
    said = f"{found.total / 1e9:.1f} GB ({found.available / 1e9:.1f} available), as {found.limited_by} allows"
    if found.total < SMOL_MEMORY_BYTES:
        costs = f"smol needs {SMOL_MEMORY_BYTES / 1e9:.0f} GB with two steps at a time: a step may be ended for lack of memory; the tiny recipes need less"
        return Finding(what="memory", found=said, costs=costs, remedy="more memory, or one step at a time: --threads 1", facts=facts)
    return Finding(what="memory", found=said, facts=facts)


def gpus(settings: Settings) -> Finding:
    """GPUs that the settings use, and what torch can do with them."""
    import torch

    from flows.cli.catalogues import smallest_gb
    from pipelines.recipes import RECIPES

    wanted, seen = settings.num_gpus, torch.cuda.device_count() if torch.cuda.is_available() else 0
    shown = [torch.cuda.get_device_properties(number) for number in range(seen)]
    facts: dict[str, Any] = {"used": wanted, "gpus": [{"name": one.name, "bytes": one.total_memory} for one in shown]}
    if wanted and not seen:
        costs = f"{wanted} GPUs are to be used, and torch {torch.__version__} sees none: steps that compute on them fail"
        remedy = "install torch with CUDA and a driver, or set ANYLOOM_GPUS=0"
        return Finding(what="GPU", found="the driver's, not torch's", costs=costs, remedy=remedy, required=True, facts=facts)
    if not wanted:
        large = [name for name, make in RECIPES.items() if smallest_gb(make()) > 8]
        costs = f"everything computes on the CPU: {', '.join(large)} are out of reach, and quantize=4bit or 8bit is refused"
        return Finding(
            what="GPU", found="none" if not seen else f"{seen}, not used (ANYLOOM_GPUS)", costs=costs, remedy="a CUDA GPU and torch with CUDA", facts=facts
        )
    found = ", ".join(f"{one.name} with {one.total_memory / 1e9:.0f} GB" for one in shown)
    room = max(one.total_memory for one in shown) / 1e9
    large = [f"{name} ({smallest_gb(make()):.0f} GB)" for name, make in RECIPES.items() if smallest_gb(make()) > room]
    if large:
        costs = f"too small for {', '.join(large)} at one row a pass"
        return Finding(what="GPU", found=found, costs=costs, remedy="--set quantize=4bit, or a larger GPU", facts=facts)
    return Finding(what="GPU", found=found, facts=facts)


def bitsandbytes(settings: Settings) -> Finding:
    """Language models in 4 or 8 bit."""
    there = importlib.util.find_spec("bitsandbytes") is not None
    if not there:
        return Finding(
            what="bitsandbytes",
            found="not installed",
            costs="--set quantize=4bit and 8bit are refused",
            remedy="pip install bitsandbytes (it wants a CUDA GPU)",
        )
    return Finding(what="bitsandbytes", found=importlib.metadata.version("bitsandbytes"))


def disk(settings: Settings) -> Finding:
    """Room and rights where the root is, or would be."""
    root, scratch = settings.root.absolute(), Path(tempfile.gettempdir())
    free = {"root_bytes": machine.free_bytes(root), "temporary_bytes": machine.free_bytes(scratch)}
    found = f"{free['root_bytes'] / 1e9:.1f} GB free at {root}, {free['temporary_bytes'] / 1e9:.1f} GB at {scratch}"
    if not machine.may_write(root):
        costs = f"{machine.existing(root)} cannot be written by this user: no step can keep its result"
        return Finding(what="disk", found=found, costs=costs, remedy="another --root, or mend its rights", required=True, facts=free)
    if free["root_bytes"] < SMOL_DISK_BYTES:
        costs = f"a run of smol needs {SMOL_DISK_BYTES / 1e9:.0f} GB; a run that finds the disk full stops and continues later"
        return Finding(what="disk", found=found, costs=costs, remedy="make room (anyloom artifacts gc), or take another --root", facts=free)
    return Finding(what="disk", found=found, facts=free)


def media(settings: Settings) -> Finding:
    """PyAV and the codecs of the FFmpeg libraries in it."""
    import av

    lacking = [name for name in DECODED if name not in av.codec.codecs_available]
    try:
        av.codec.Codec("libx264", "w")
    except ValueError:
        lacking.append("libx264 (writing)")
    libraries = ", ".join(f"{name} {'.'.join(map(str, av.library_versions[name]))}" for name in ("libavcodec", "libavformat"))
    said, why = machine.program("ffmpeg", "-version")
    found = f"PyAV {av.__version__} with {libraries}; the program: {said.split(' Copyright')[0] or why}, which no step starts"
    if lacking:
        costs = f"no {', '.join(lacking)}: media in them become rows of the ledger (undecodable); without libx264 no video is written"
        return Finding(what="FFmpeg", found=found, costs=costs, remedy="install PyAV's own wheel: pip install --force-reinstall av", facts={"lacking": lacking})
    return Finding(what="FFmpeg", found=found, facts={"lacking": []})


def java(settings: Settings) -> Finding:
    """The programs of pycocoevalcap are Java's."""
    from evals.suites.catalogue import TASKS

    said, why = machine.program("java", "-version")
    if why:
        skipped = ", ".join(task.lmms_task for task in TASKS if "java" in task.needs)
        costs = f"the suite task {skipped} is skipped, with its reason in the report; captions cannot be scored with tokenizer=ptb or SPICE"
        return Finding(what="Java", found=why, costs=costs, remedy="install a Java runtime (Debian: apt-get install default-jre-headless)")
    return Finding(what="Java", found=said)


def spice(settings: Settings) -> Finding:
    """The models that SPICE reads texts with."""
    from evals.captions.caption_scores import spice_refusal

    why = spice_refusal()
    if why:
        costs = "captions are scored without SPICE and SPIDEr; CIDEr, BLEU and ROUGE-L do not need it"
        return Finding(what="SPICE", found=why, costs=costs, remedy="install Java; python -m pycocoevalcap.spice.get_stanford_models downloads the rest once")
    return Finding(what="SPICE", found="Java and its language models are there")


def demo(settings: Settings) -> Finding:
    """The packages that carry smol's models and data, with the versions that are pinned."""
    from pipelines.demo.assets import REMEDY, locate
    from pipelines.demo.config import AssetsConfig, PackageFile, PackageTree
    from pipelines.recipes import RECIPES

    wanted, missing = AssetsConfig(), list[str]()
    carried: tuple[PackageFile | PackageTree, ...] = (*wanted.files, wanted.easy_vqa)
    for one in carried:
        try:
            locate(one.package, one.version, one.path)
        except AnyloomError as error:
            missing.append(str(error).partition(";")[0])
    count = len({one.package for one in carried})
    if missing:
        concerned = [name for name, make in RECIPES.items() if "assets" in step_names(make())]
        costs = f"{', '.join(concerned)} cannot run: the step assets stops; the tiny recipes and those on your own files do not need them"
        return Finding(what="demo data", found="; ".join(dict.fromkeys(missing)), costs=costs, remedy=REMEDY, facts={"missing": missing})
    return Finding(what="demo data", found=f"{count} packages with models and data", facts={"missing": []})


def step_names(recipe: Any) -> set[str]:
    """The steps of a recipe that needs no files of the user's; nothing for others."""
    from pipelines.dag.build import build
    from pipelines.dag.given import needs_files

    return set() if needs_files(recipe) else set(build(recipe))


def stamps(settings: Settings) -> Finding:
    """The programs that fetch Tux Paint's stamps from Debian."""
    missing = [name for name in ("apt-get", "dpkg-deb") if shutil.which(name) is None]
    if missing:
        costs = "smol runs without Tux Paint's stamps (images, videos and audio of things), and its report says so"
        return Finding(what="stamps", found=f"no {' and no '.join(missing)} on PATH", costs=costs, remedy="run smol on Debian or Ubuntu")
    return Finding(what="stamps", found="apt-get and dpkg-deb, which fetch tuxpaint-stamps-default")


def prefect(settings: Settings) -> Finding:
    """The scheduler, and the server that the environment names."""
    from flows.running.prefect_server import check_given

    version = importlib.metadata.version("prefect")
    if not settings.use_prefect:
        return Finding(what="Prefect", found=f"{version}, not used (ANYLOOM_PREFECT)")
    if not prefect_url():
        return Finding(what="Prefect", found=f"{version}; every run starts a server of its own on loopback")
    try:
        check_given()
    except AnyloomError as error:
        problem, _, remedy = str(error).partition(": ")
        return Finding(what="Prefect", found=problem, costs="no run starts", remedy=remedy, required=True)
    return Finding(what="Prefect", found=f"{version}; the server of PREFECT_API_URL answers")


def ray(settings: Settings) -> Finding:
    """The workers, and the cluster that the environment names."""
    version, address = importlib.metadata.version("ray"), ray_address()
    if not settings.use_ray:
        return Finding(what="Ray", found=f"{version}, not used (ANYLOOM_RAY)")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit() and not machine.connects(host.strip("[]"), int(port)):
        remedy = "start that cluster, unset the variable so that each run starts its own, or run without Ray: --no-ray"
        return Finding(what="Ray", found=f"RAY_ADDRESS names {host}:{port}, which does not answer", costs="no run starts", remedy=remedy, required=True)
    return Finding(what="Ray", found=f"{version}; " + (f"the cluster of RAY_ADDRESS ({address})" if address else "every run starts its own on loopback"))


def ports(settings: Settings) -> Finding:
    """Loopback, which runs need, and the ports that `anyloom stack up` takes unless it is told others."""
    why = machine.port_problem("127.0.0.1", 0)
    if why:
        remedy = "allow sockets on loopback, or run with --no-ray --no-prefect"
        return Finding(what="ports", found=f"nothing can listen on loopback ({why})", costs="no run with Prefect or Ray starts", remedy=remedy, required=True)
    taken = {option: port for option, port in (("--port", 4200), ("--ray-port", 6379)) if machine.port_problem("127.0.0.1", port)}
    if taken:
        costs = f"`anyloom stack up` needs {' and '.join(f'another {option} than {port}' for option, port in taken.items())}, unless the stack has them itself"
        return Finding(what="ports", found=f"taken: {', '.join(map(str, taken.values()))}", costs=costs, remedy="anyloom stack status says whether it is ours")
    return Finding(what="ports", found="loopback; 4200 and 6379 are free")


def remote(settings: Settings) -> Finding:
    """The file systems of --remote."""
    there = importlib.util.find_spec("s3fs") is not None
    found = f"s3fs {importlib.metadata.version('s3fs')}" if there else "no s3fs"
    if not there:
        required = settings.remote.startswith(("s3://", "s3a://"))
        return Finding(what="S3 mirror", found=found, costs="--remote s3://... is refused", remedy="pip install 'anyloom[s3]'", required=required)
    return Finding(what="S3 mirror", found=found)


def browser(settings: Settings) -> Finding:
    """What opens a page for a person, and what the tests of pages drive."""
    headless = next((name for name in BROWSERS if shutil.which(name)), "")
    lacking = [] if has_display() else ["`anyloom show` prints a page's path instead of opening it"]
    lacking += [] if headless else ["make screenshot and the tests of pages in a browser do not run"]
    found = f"{headless or 'no Chromium on PATH'}; {'a display' if has_display() else 'no display'}"
    remedy = "open the page on a machine with a display" if headless else "install Chromium (Debian: apt-get install chromium)"
    return Finding(
        what="browser", found=found, costs="; ".join(lacking), remedy=remedy if lacking else "", facts={"chromium": headless, "display": has_display()}
    )


CHECKS: tuple[Callable[[Settings], Finding], ...] = (
    python, packages, cores, half_width, memory, gpus, bitsandbytes, disk, media, java, spice, demo, stamps, prefect, ray, ports, remote, browser,
)  # fmt: skip
"""In the order in which they are shown."""
