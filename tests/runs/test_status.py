"""State of runs: listings, lost runs, details."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from launcher.config import create
from launcher.core.files import write_json
from launcher.core.rundir import RunDir, State, Status
from launcher.runs import status

WORDS = ("model=tiny", "data.train=builtin:quickstart-text", "batch.sequences=8")


def write(root, name, **changes):
    values = {"state": "succeeded", "attempt": 1, "host": "elsewhere", "pid": 1, "time": 1.0}
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps({**values, **changes}))


@pytest.fixture
def dead_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_listing_is_sorted_by_change_and_skips_what_is_no_run(tmp_path):
    write(tmp_path, "b", time=2.0)
    long = "first line" + ", which says all of what it has to say" * 9
    write(tmp_path, "a", time=3.0, state="failed", reason=f"{long}\nsecond")
    (tmp_path / "not-a-run").mkdir()
    (tmp_path / "file").write_text("")
    rows = status.listing(tmp_path)
    assert [row.name for row in rows] == ["b", "a"]
    lines = status.table(rows).splitlines()
    assert lines[0].split() == ["RUN", "STATE", "STEP", "ATTEMPT", "CHANGED", "REASON"]
    assert lines[2].startswith("a    failed")
    assert lines[2].endswith(f"  {long}")
    assert rows[1].to_json()["state"] == "failed"


def test_listing_shows_the_step_of_running_runs(tmp_path):
    write(tmp_path, "r", state="running", step=3, steps=9)
    write_json(tmp_path / "r" / "heartbeats" / "rank-0.json", {"step": 7})
    [row] = status.listing(tmp_path)
    assert row.status.step == 7
    assert "7/9" in status.table([row])


def test_listing_of_no_folder_is_empty(tmp_path):
    assert status.listing(tmp_path / "absent") == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"state": "sleeping"}', '{"stat": 1}'])
def test_unreadable_status_is_shown_and_breaks_nothing(tmp_path, content):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "status.json").write_text(content)
    [row] = status.listing(tmp_path)
    assert "not readable" in row.status.reason
    assert status.table([row])


def test_run_whose_process_is_gone_is_lost(tmp_path, dead_pid):
    here = {"host": socket.gethostname(), "time": time.time(), "state": "running"}
    write(tmp_path, "dead", **here, pid=dead_pid)
    write(tmp_path, "alive", **here, pid=os.getpid())
    write(tmp_path, "reused", **{**here, "time": time.time() - 9999}, pid=os.getpid())
    write(tmp_path, "remote", **{**here, "host": "elsewhere"}, pid=dead_pid)
    states = {row.name: row.status.state for row in status.listing(tmp_path)}
    assert states == {
        "dead": State.failed,
        "reused": State.failed,
        "alive": State.running,
        "remote": State.running,
    }


@pytest.mark.slow
def test_listing_opens_one_file_an_ended_run(tmp_path):
    """10,000 runs, counted in a child, so that the audit hook goes with it."""
    for number in range(10_000):
        write(tmp_path, f"run-{number}", state="failed" if number % 2 else "succeeded")
    code = (
        "import sys\n"
        "from launcher.runs import status\n"
        "opened = []\n"
        "sys.addaudithook(lambda name, args: name == 'open' and opened.append(args[0]))\n"
        "rows = status.listing(sys.argv[1])\n"
        "print(len(rows), len([path for path in opened if sys.argv[1] in str(path)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["10000", "10000"]


@pytest.fixture
def run(tmp_path) -> RunDir:
    return create.create([*WORDS, f"run.root={tmp_path}", "run.name=r", "run.tags=[first,second]"])


def test_details_of_a_running_run(run):
    run.set_status(State.running, attempt=1, steps=10, step=0)
    lines = [
        {"kind": "train", "step": 4, "loss": 2.0, "step_time_s": 3.0, "tokens_per_s": 100.0},
        {"kind": "eval", "step": 4, "eval/loss": 1.5},
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tra')
    beat = {"rank": 0, "host": "h", "pid": 1, "phase": "step", "step": 4, "time": time.time()}
    write_json(run.heartbeat(0), beat)
    found = status.details(run)
    assert (found["step"], found["steps"], found["state"]) == (4, 10, "running")
    assert found["eta_s"] == 18.0
    assert found["metrics"]["loss"] == 2.0
    assert found["ranks"] == [beat]
    text = status.text(found)
    for part in ("first, second", "4/10", "loss 2.0000", "100 tok/s", "ETA 0:18", "rank 0"):
        assert part in text


def test_details_of_a_finished_run_have_no_eta(run):
    run.set_status(State.failed, attempt=2, exit_code=3, reason="train.jsonl:3: not JSON", steps=10)
    run.metrics.write_text('{"kind": "train", "step": 4, "loss": 2.0, "step_time_s": 3.0}\n')
    found = status.details(run)
    assert "eta_s" not in found
    assert "ranks" not in found
    text = status.text(found)
    assert "ETA" not in text
    assert "exit     3" in text
    assert "train.jsonl:3" in text


def test_last_record_reads_only_the_end(tmp_path):
    file = tmp_path / "metrics.jsonl"
    record = json.dumps({"kind": "train", "step": 1, "filler": "x" * 1000})
    with file.open("w") as stream:
        stream.writelines([f"{record}\n"] * 1000)
        stream.write('{"kind": "train", "step": 2}\n')
    assert status.last_record(file) == {"kind": "train", "step": 2}
    assert status.last_record(tmp_path / "absent") is None


def test_own_process_is_not_another_one():
    mine = Status(
        State.running, host=socket.gethostname(), pid=os.getpid(), time=time.time(), attempt=1
    )
    assert not status.is_live(mine)
    assert status.observed(mine).state is State.running
