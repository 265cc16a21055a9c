"""anyloom doctor: every line is an answer of this machine, and what is missing says what it costs."""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flows.cli import checks
from flows.cli.checks import CHECKS, Finding
from flows.cli.doctor import WIDTH, lines, looked
from flows.cli.main import main
from infra.settings import Settings


def program(directory: Path, name: str, script: str) -> None:
    directory.mkdir(exist_ok=True)
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


def test_it_answers_every_question_as_one_document(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    code = main(["doctor", "--json", "--root", str(tmp_path)])
    said = json.loads(capsys.readouterr().out)
    rows = {row["what"]: row for row in said["findings"]}
    assert len(rows) == len(CHECKS) and code == int(not said["ok"]) == int(bool(said["fails"]))
    for row in rows.values():
        assert row["found"] and (row["state"] == "ok") == (row["costs"] == "") and bool(row["costs"]) == bool(row["remedy"]), row
        assert row["state"] in ("ok", "missing", "fails") and (row["state"] != "fails" or row["required"])
    assert rows["CPU"]["facts"]["usable"] == len(os.sched_getaffinity(0)) and rows["CPU"]["facts"]["threads"] == Settings().num_threads
    assert len(rows["GPU"]["facts"]["gpus"]) == torch.cuda.device_count()
    assert rows["memory"]["facts"]["total_bytes"] >= rows["memory"]["facts"]["available_bytes"] > 0 and rows["disk"]["facts"]["root_bytes"] > 0
    assert rows["Python"]["state"] == "ok" and rows["FFmpeg"]["facts"] == {"lacking": []}


def test_a_person_reads_lines_of_a_hundred_columns(capsys):
    main(["doctor", "--root", "/tmp"])
    said = capsys.readouterr().out.splitlines()
    assert max(map(len, said)) <= WIDTH and sum(line.startswith(("ok ", "missing ", "fails ")) for line in said) == len(CHECKS)
    assert said[-1].split(" ok, ")[0].isdigit()


def test_without_java_the_line_says_what_it_costs(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    found = checks.java(Settings())
    assert (found.state, found.found) == ("missing", "no java on PATH")
    for word in ("coco2017_cap_val", "tokenizer=ptb", "SPICE"):
        assert word in found.costs
    assert "Java runtime" in found.remedy
    shown = "\n".join(lines([found]))
    assert shown.startswith("missing  Java") and "coco2017_cap_val is skipped" in " ".join(shown.split())
    assert checks.spice(Settings()).state == "missing" and "there is no java here" in checks.spice(Settings()).found


@pytest.mark.parametrize(
    ("script", "state", "found"),
    [
        ("echo 'openjdk version \"17.0.1\"' >&2", "ok", 'openjdk version "17.0.1"'),
        ("echo 'cannot find libjvm.so'; exit 3", "missing", "ended with 3: cannot find libjvm.so"),
    ],
)
def test_a_program_is_started_not_only_looked_for(script, state, found, tmp_path, monkeypatch):
    program(tmp_path / "bin", "java", script)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    answer = checks.java(Settings())
    assert answer.state == state and answer.found.endswith(found)


def test_a_bare_path_misses_what_is_on_it_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    assert checks.stamps(Settings()).costs.startswith("smol runs without Tux Paint's stamps")
    browser = checks.browser(Settings())
    assert (
        browser.state == "missing" and "anyloom show" in browser.costs and "make screenshot" in browser.costs and "apt-get install chromium" in browser.remedy
    )
    program(tmp_path / "bin", "chromium", "exit 0")
    monkeypatch.setenv("DISPLAY", ":0")
    assert checks.browser(Settings()).state == "ok"
    assert "no ffmpeg on PATH, which no step starts" in checks.media(Settings()).found and checks.media(Settings()).state == "ok"


def test_a_root_that_cannot_be_written_is_required(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    found = checks.disk(Settings(root=tmp_path / "file" / "runs"))
    assert found.state == "fails" and f"{tmp_path / 'file'} cannot be written by this user" in found.costs
    assert main(["doctor", "--root", str(tmp_path / "file" / "runs")]) == 1 and "is a file; give a directory" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpus_that_torch_does_not_see_are_required():
    found = checks.gpus(Settings(gpus=2))
    assert found.state == "fails" and "ANYLOOM_GPUS=0" in found.remedy
    none = checks.gpus(Settings(gpus=0))
    assert none.state == "missing" and "llava15_7b" in none.costs and "smol" not in none.costs


@pytest.mark.parametrize(("gb", "state", "named"), [(24, "missing", "nextgpt_7b (25 GB)"), (80, "ok", "")])
def test_a_gpu_is_measured_against_what_recipes_need(gb, state, named, monkeypatch):
    """On a machine that pretends to have a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: SimpleNamespace(name="A GPU", total_memory=gb * 10**9))
    found = checks.gpus(Settings(gpus=1))
    assert (found.state, found.found) == (state, f"A GPU with {gb} GB") and named in found.costs and "smol" not in found.costs
    assert found.facts == {"used": 1, "gpus": [{"name": "A GPU", "bytes": gb * 10**9}]}


def test_a_server_or_a_cluster_that_does_not_answer_is_required(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    for check, option in ((checks.prefect, "--no-prefect"), (checks.ray, "--no-ray")):
        found = check(Settings())
        assert found.state == "fails" and "does not answer" in found.found and option in found.remedy
    assert checks.prefect(Settings(use_prefect=False)).state == checks.ray(Settings(use_ray=False)).state == "ok"


def test_a_taken_port_is_named(monkeypatch):
    monkeypatch.setattr("infra.machine.port_problem", lambda host, port: "Address already in use" if port == 6379 else "")
    found = checks.ports(Settings())
    assert found.found == "taken: 6379" and "another --ray-port than 6379" in found.costs
    monkeypatch.setattr("infra.machine.port_problem", lambda host, port: "Operation not permitted")
    assert checks.ports(Settings()).state == "fails"


def test_missing_packages_are_named_with_what_needs_them(monkeypatch):
    def nowhere(name: str) -> importlib.metadata.Distribution:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", nowhere)
    found = checks.demo(Settings())
    assert found.state == "missing" and "smol" in found.costs and "make demo-assets" in found.remedy and "easy-vqa==1.0 is not installed" in found.found
    assert checks.packages(Settings()).what == "packages" and checks.packages(Settings()).costs


def test_a_check_that_cannot_look_is_a_finding():
    def torch_is_broken(settings: Settings) -> Finding:
        raise ImportError("libcudart.so.12: cannot open\nshared object file")

    found = looked(torch_is_broken, Settings())
    assert found.state == "fails" and "libcudart.so.12" in found.found
