"""`launcher doctor` for real: ranks over gloo, folders that fail, a rank that never comes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.core.errors import ConfigError
from launcher.doctor import probe, ranks
from support import hints
from support.configs import make_config
from support.doctor import seen
from support.project import LAUNCHER, Project
from support.ranks import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "a 'project'"
    folder.mkdir()
    return Project(folder, Path("no-model"))


def findings(output: str) -> dict[str, dict]:
    """Check -> finding, of the JSON on stdout; progress stands before it."""
    listed = json.loads(output[output.index("{\n") :])["findings"]
    return {found["check"]: found for found in listed}


def test_two_ranks_pass_and_leave_nothing(project):
    done = project.run(LAUNCHER, "doctor", "launch.processes=2", "--json")
    assert done.code == 0, done.output
    found = findings(done.output)
    assert found["ranks"]["found"] == "2 joined, on 1 host"
    for check in ("collectives", "shared folder", "shared locks"):
        assert found[check]["verdict"] == "pass", found[check]
    for check, factor in (("all_reduce", 1.0), ("all_gather", 0.5), ("broadcast", 1.0)):
        numbers = found[check]["numbers"]
        assert numbers["bus"] == pytest.approx(numbers["algorithm"] * factor)
        assert numbers["algorithm"] == pytest.approx(numbers["bytes"] / numbers["seconds"])
    assert "doctor: 2 of 2 ranks are there" in done.output
    assert not (project.folder / "runs").exists()


def test_this_host_alone_is_a_table_without_colour(project):
    (failed,) = ranks.came(seen(asked=1, trouble="why"))
    done = project.run(LAUNCHER, *hints.commands(failed.hint)[0])  # typed where ranks fail
    assert done.code == 0, done.output
    (kept,) = (project.folder / "runs").iterdir()
    assert (kept / "attempts" / "0001" / "agent.log").exists()  # to which all ranks write
    assert re.search(r"^torch +pass  \d", done.output, re.MULTILINE)
    assert re.search(r"^ranks +pass  1 joined, on 1 host$", done.output, re.MULTILINE)
    assert re.search(r"^\d+ pass, \d+ warn, 0 fail$", done.output, re.MULTILINE)
    assert "\033" not in done.output


def test_a_run_root_that_cannot_be_written_fails(project):
    (project.folder / "file").write_text("")
    done = project.run(LAUNCHER, "doctor", "run.root=file/runs", "--json")
    assert done.code == 1, done.output
    found = findings(done.output)
    assert found["run.root"]["verdict"] == "fail"
    assert found["run.root"]["hint"]
    assert "run.root cannot be written" in found["ranks"]["found"]


def test_a_wrong_package_version_fails(project):
    # A package of this name is found first, and it is too old.
    info = project.folder / "peft-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.1\n")
    path = f"{project.folder}:{ROOT}"
    done = project.run(LAUNCHER, "doctor", "--json", PYTHONPATH=path)
    assert done.code == 1, done.output
    assert "0.1, but >=" in findings(done.output)["peft"]["found"]


@pytest.fixture
def importable(monkeypatch):
    """The ranks find the modules of tests/."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")


def test_a_rank_that_never_comes_is_named(tmp_path, importable):
    config = make_config(
        run={"root": str(tmp_path / "runs")}, launch={"processes": 2, "join_timeout_s": 3}
    )
    said: list[str] = []
    reports, trouble = probe.probe(
        config, timeout_s=60, keep=False, say=said.append, module="doctor.absent_rank"
    )
    assert list(reports) == [0]
    assert "HangError" in reports[0]["error"]
    assert "rank 1" in reports[0]["error"]
    assert trouble
    assert not (tmp_path / "runs").exists()


def test_ranks_that_hang_are_ended_when_the_time_is_over(tmp_path, importable):
    config = make_config(run={"root": str(tmp_path / "runs")}, launch={"processes": 2})
    said: list[str] = []
    _, trouble = probe.probe(
        config, timeout_s=2, keep=True, say=said.append, module="doctor.absent_rank"
    )
    assert trouble.startswith("not finished after 2 s")
    (kept,) = (tmp_path / "runs").iterdir()
    assert f"kept {kept}" in said


def test_a_wrong_launch_section_is_refused_before_anything_starts(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "launch.processes=0"]) == 2
    assert "launch.processes" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_config_of_a_model_is_no_hindrance():
    probe.check(make_config(model={"kind": "tiny", "recipe": "quickstart-base"}))
    with pytest.raises(ConfigError):
        probe.check(make_config(launch={"nodes": 0}))


def test_sigterm_takes_everything_back(project):
    started = project.start(LAUNCHER, "doctor", "launch.processes=2")
    root = project.folder / "runs"
    started.wait_until(lambda: list(root.glob(".doctor-*/attempts/0001/agent.log")), "the ranks")
    started.process.terminate()
    assert started.end().code == 130
    assert not root.exists()
