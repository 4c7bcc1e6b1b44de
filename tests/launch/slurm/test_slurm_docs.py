"""The commands of docs/slurm.md, run on a cluster."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.core.rundir import RunDir, State
from support import slurm
from support.chats import chat
from support.ranks import environment

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]

PAGE = Path(__file__).resolve().parents[3] / "docs" / "slurm.md"
#: Longer than all of a page's commands together on a busy machine.
TIMEOUT_S = 500


def test_commands_of_the_page(tmp_path, tmp_path_factory):
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\S*) ?(.*)\n((?:.*\n)*?)```$", text, flags=re.MULTILINE)
    for _, name, content in blocks:
        if name:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    records = [chat(f"What is {n} + {n}?", f"It is {2 * n}.") for n in range(60)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    commands = "".join(content for language, _, content in blocks if language == "sh")
    assert commands.count("launcher ") >= 12
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as cluster:
        if cluster is None:
            pytest.skip(slurm.SKIP)
        path = f"{Path(sys.executable).parent}:{environment()['PATH']}"
        done = subprocess.run(
            ["bash", "-euxo", "pipefail", "-c", commands],
            cwd=tmp_path,
            env=environment(PATH=path, **cluster.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
        )
    assert done.returncode == 0, done.stdout
    states = {
        name: RunDir(tmp_path / "runs" / name).status().state
        for name in ("first", "unwanted", "prepared")
    }
    assert states == {
        "first": State.succeeded,
        "unwanted": State.cancelled,
        "prepared": State.succeeded,
    }
    assert '#SBATCH --comment="paid by project 7"' in done.stdout
