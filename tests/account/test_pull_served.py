"""What our own service holds is taken out of it, by the same command."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from launcher.account.layout import Folder
from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from support import account as accounts
from support.project import LAUNCHER
from support.ranks import environment
from support.served import Served, served

pytestmark = pytest.mark.slow
JOBS = 20


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A service with jobs that have ended."""
    folder = tmp_path_factory.mktemp("account") / "home"
    accounts.fill(folder, JOBS, events=110)
    with served(folder) as found:
        yield found


def command(home: Served, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*LAUNCHER, "openai", "pull", str(folder)],
        env=environment(OPENAI_API_KEY=home.key, OPENAI_BASE_URL=home.base_url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def require_same(home: Served, folder: Path) -> None:
    """The folder has what the server tells a client, no more and no less."""
    kept = Folder(folder)
    with home.client() as client:
        files = client.get("/files", params={"limit": 10000}).json()["data"]
        jobs = client.get("/fine_tuning/jobs", params={"limit": 10000}).json()["data"]
        assert len(jobs) == JOBS
        assert sorted(kept.records("files"), key=str) == sorted(files, key=str)
        assert kept.records("jobs") == jobs[::-1]
        for job in jobs:
            for name in ("events", "checkpoints"):
                asked = f"/fine_tuning/jobs/{job['id']}/{name}"
                told = client.get(asked, params={"limit": 1000}).json()["data"]
                assert list(kept.lines("jobs", job["id"], f"{name}.jsonl")) == told
        made = read_json(folder / "manifest.json")
        for row in made["files"]:
            content = client.get(f"/files/{row['id']}/content").content
            assert (folder / row["path"]).read_bytes() == content
            assert row["sha256"] == hashlib.sha256(content).hexdigest()
        assert {model["id"] for model in made["models"]} >= {
            job["fine_tuned_model"] for job in jobs if job["fine_tuned_model"]
        }


def test_all_of_it_comes_and_a_second_pull_changes_nothing(home, tmp_path):
    for _ in range(2):
        process = command(home, tmp_path)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == ExitCode.ok, errors
        assert f"jobs     {JOBS}, " in out
        require_same(home, tmp_path)
    made = json.loads((tmp_path / "manifest.json").read_text())
    assert made["complete"]
    assert home.key not in (tmp_path / "manifest.json").read_text() + out + errors


def test_kills_at_random_moments_lose_and_double_nothing(home, tmp_path):
    chance, killed = random.Random(7), 0
    for _ in range(10):
        process = command(home, tmp_path)
        end = time.monotonic() + chance.uniform(0.15, 0.9)
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
    assert killed >= 5
    process = command(home, tmp_path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == ExitCode.ok, errors
    require_same(home, tmp_path)
