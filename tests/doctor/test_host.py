"""What is measured on a real host: folders with room, full, read-only or absent."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.core.host import machine, storage
from launcher.doctor import storage as judged


@contextlib.contextmanager
def tmpfs(place: Path, options: str) -> Iterator[Path]:
    """A small file system of its own; skips where it cannot be mounted."""
    place.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def worst(facts) -> str:
    found = [finding.verdict.value for finding in judged.judge("run.root", facts)]
    return max(found, key=["pass", "warn", "fail"].index)


def test_facts_are_json():
    facts = machine.facts(["pytest", "no-such-package"], ["sh", "no-such-program"])
    assert json.loads(json.dumps(facts)) == facts
    assert facts["packages"]["pytest"]
    assert facts["packages"]["no-such-package"] is None
    assert facts["programs"] == ["sh"]
    assert "lo" in facts["interfaces"]


def test_a_good_folder(weird_tmp_path):
    facts = storage.measure(weird_tmp_path, reserve_bytes=1 << 20)
    assert facts["error"] is None
    assert facts["locks"]
    assert facts["reserved"]
    assert facts["write_s"] > 0
    assert list(weird_tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_yet_is_not_made(tmp_path):
    facts = storage.measure(tmp_path / "a" / "b", reserve_bytes=1 << 20)
    assert facts["error"] is None
    assert facts["path"] == str(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_a_folder(tmp_path):
    (tmp_path / "runs").write_text("")
    facts = storage.measure(tmp_path / "runs", reserve_bytes=1 << 20)
    assert facts["error"] == "Not a directory"


def test_a_full_disk(tmp_path):
    with tmpfs(tmp_path / "small", "size=2m") as place:
        facts = storage.measure(place, reserve_bytes=8 << 20)
        assert facts["filesystem"] == "tmpfs"
        assert facts["reserved"] is False
        assert worst(facts) == "fail"
        (place / "fill").write_bytes(bytes(facts["free_bytes"]))
        assert storage.measure(place)["error"] == "No space left on device"


def test_a_read_only_folder(tmp_path):
    with tmpfs(tmp_path / "small", "size=2m,ro") as place:
        facts = storage.measure(place / "runs")
        assert facts["error"] == "Read-only file system"
        assert worst(facts) == "fail"
