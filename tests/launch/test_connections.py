"""Hosts that refuse a connection once, played by an `ssh` and a `pdsh` of our own."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from launcher.config.compose import compose
from launcher.config.schema import Config, JudgeConfig
from launcher.core.errors import HangError
from launcher.core.rundir import RunDir
from launcher.launch import coordinator
from launcher.launch.coordinator import Coordinator
from launcher.launch.spec import NodePlan
from support.plans import launch_plan

#: Does what the next line of `script` says: a number to end with, or `stay`.
SSH = """#!/bin/bash
cd "$(dirname "$0")"
line=$(head -1 script); sed -i 1d script; echo x >>calls
[ "$line" = stay ] && exec sleep 30
echo "ssh: connect to host n2 port 22: Connection refused" >&2
[ "${0##*/}" = pdsh ] && echo "pdsh@here: n2: ssh exited with exit code $line" >&2
exit "$line"
"""
START = {"ssh": ("ssh",), "pdsh": ("env", "PDSH_SSH_ARGS_APPEND=-p 22", "pdsh", "-S", "-w")}


@pytest.fixture
def begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(coordinator, "_AGAIN_S", (0.0, 0.0, 0.0))
    for name in START:
        (tmp_path / name).write_text(SSH)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    made = []

    def begin(*lines: str, shell: str = "ssh") -> Coordinator:
        (tmp_path / "script").write_text("".join(f"{line}\n" for line in lines))
        run = RunDir(tmp_path / "run")
        start = (*START[shell], "n2", "true")
        node = NodePlan(host="n2", slots=(0,), command=("x",), start=start)
        plan = launch_plan(run, nodes=(node,))
        found = Coordinator(run, plan)
        made.append(found)
        found._start()
        return found

    yield begin
    for one in made:
        for starter in one._starters.values():
            starter.kill()
            starter.wait()
            starter.stdin.close()


def look(coordinator: Coordinator, seconds: float) -> None:
    """What the coordinator does while it waits for its nodes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        coordinator._refuse_unreachable({})
        time.sleep(0.02)


def calls(folder: Path) -> int:
    return len((folder / "calls").read_text().splitlines())


def test_keys_of_models_that_judge_are_sent_to_other_hosts(tmp_path, monkeypatch):
    run = RunDir(tmp_path / "run")
    config = Config()
    config.eval.judge = JudgeConfig(url="http://judge/v1", key_variable="FIRST_JUDGE")
    config.eval.endpoints = {"ours": {"url": "http://judge/v1", "key_variable": "SECOND_JUDGE"}}
    run.path.mkdir()
    compose.save(config, run.config)
    for name in ("FIRST_JUDGE", "SECOND_JUDGE", "THIRD_JUDGE"):
        monkeypatch.setenv(name, f"sk-{name}")
    (tmp_path / "ssh").write_text('#!/bin/sh\nread -r line; echo "$line" >"$0.read"\n')
    (tmp_path / "ssh").chmod(0o755)
    node = NodePlan(host="n2", slots=(0,), command=("x",), start=(str(tmp_path / "ssh"), "n2"))
    made = Coordinator(run, launch_plan(run, nodes=(node,)))
    made._start()
    (starter,) = made._starters.values()
    assert starter.wait(30) == 0
    starter.stdin.close()
    sent = json.loads((tmp_path / "ssh.read").read_text())
    judges = {name: value for name, value in sent.items() if name.endswith("_JUDGE")}
    assert judges == {"FIRST_JUDGE": "sk-FIRST_JUDGE", "SECOND_JUDGE": "sk-SECOND_JUDGE"}


@pytest.mark.thorough
@pytest.mark.parametrize("shell", list(START))
def test_a_connection_that_is_refused_once_is_tried_again(begin, tmp_path, capsys, shell):
    coordinator = begin("255", "255", "stay", shell=shell)
    look(coordinator, 4)
    assert calls(tmp_path) == 3
    assert coordinator._starters[0].poll() is None
    assert capsys.readouterr().out.count("n2: ssh: connect to host n2") == 2


@pytest.mark.thorough
@pytest.mark.parametrize("shell", list(START))
@pytest.mark.parametrize(("lines", "tried"), [(["255"] * 9, 4), (["1"] * 9, 1)])
def test_what_does_not_pass_is_told(begin, tmp_path, lines, tried, shell):
    coordinator = begin(*lines, shell=shell)
    with pytest.raises(HangError, match="host n2 cannot be used: ssh: connect to host n2"):
        look(coordinator, 10)
    assert calls(tmp_path) == tried
