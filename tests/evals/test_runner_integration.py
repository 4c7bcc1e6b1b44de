"""Evaluation on two gloo ranks gives exactly the records that one process gives."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.ranks import environment

SCRIPT = Path(__file__).with_name("evaluate_on_ranks.py")


def result(output: str) -> dict:
    line = next(line for line in output.splitlines() if "RESULT " in line)
    return json.loads(line.split("RESULT ", 1)[1])


@pytest.fixture(scope="module")
def alone(tiny_llama) -> dict:
    """Seven records evaluated by one process; lockstep must not need a process group there."""
    finished = subprocess.run(
        [sys.executable, SCRIPT, tiny_llama, "7", "lockstep"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert finished.returncode == 0, finished.stderr
    return result(finished.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "mode"), [(1, "lockstep"), (7, "lockstep"), (7, "free")])
def test_two_ranks_score_each_record_once(tiny_llama, run_ranks, alone, count, mode):
    together = result(run_ranks(SCRIPT, str(tiny_llama), str(count), mode).output)
    for kind, records in alone.items():
        assert [record["id"] for record in together[kind]] == list(range(count))
        assert together[kind] == records[:count]
