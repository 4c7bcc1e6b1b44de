"""The benchmark of saves, small: it must not rot, and its kills must lose nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SMALL = ("--hidden=64", "--length=64", "--sequences=2")


def run(*words):
    script = Path(__file__).with_name("saves.py")
    done = subprocess.run(
        [sys.executable, str(script), *words, *SMALL], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_save_is_held_against_the_steps_around_it():
    rows = run("cost", "--steps=20", "--every=5", "--ranks=1").splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["training waits", "behind training"]
    for row in rows:
        plain, saving, ratio = (float(cell.strip(" sx")) for cell in row.split("|")[2:5])
        assert ratio == pytest.approx(saving / plain, rel=0.5)


def test_kills_lose_the_unfinished_one_alone():
    shown = run("kill", "--kills=2", "--steps=60", "--every=10", "--within=0.2")
    assert "2 kills, " in shown
    assert shown.endswith("the last one is that of a whole run\n")


def test_a_restore_is_told_part_by_part():
    (row,) = run("restore", "--stages=3", "--turns=1").splitlines()[-1:]
    zero, *cells = (cell.strip() for cell in row.strip("|").split("|"))
    assert (zero, len(cells)) == ("3", 7)
    assert int(cells[1].removesuffix(" MiB")) > 0
    for cell in (cells[0], *cells[2:5]):
        clock, cpu = map(float, cell.strip(")").split(" s ("))
        assert clock > 0
        assert cpu > 0
    for cell in cells[5:]:
        assert cell.endswith(" MiB")
        assert len(cell.split(", ")) == 2  # of two ranks
