"""`launcher openai pull` and `replay` on an account of many jobs, killed again and again.

    python tests/bench/account_kill.py --jobs 200 --kills 10

The account is a folder of `launcher serve` with jobs that have ended. At the end nothing of it may
be missing in what was pulled or stand there twice, nor may a job be run twice or not at all.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import yaml
from sqlalchemy import select

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launcher.account.layout import Folder
from launcher.core.files import read_json
from launcher.core.rundir import run_dirs
from launcher.serve.db.tables import Event, Job
from launcher.serve.service import Service
from support import account
from support.project import LAUNCHER
from support.ranks import environment
from support.served import Served, served
from support.workshop import WORDS


def main() -> int:
    """Returns the number of findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--replayed", type=int, default=10, help="of them, from the first on")
    parser.add_argument("--kills", type=int, default=10)
    parsed = parser.parse_args()
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as place:
        folder, out = Path(place) / "account", Path(place) / "new"
        account.fill(Path(place) / "home", parsed.jobs)
        with served(Path(place) / "home") as home:
            environ = environment(OPENAI_API_KEY=home.key, OPENAI_BASE_URL=home.base_url)
            pull = [*LAUNCHER, "openai", "pull", str(folder)]
            killed = killed_often(pull, environ, parsed.kills, chance, 0.3, 1.5)
            print(f"pull: killed {killed} times, then went to its end")
            findings = wrong_in_pull(home, folder)
        offers = {"tiny": {"overrides": WORDS}}
        (folder / "models.yaml").write_text(yaml.safe_dump({"models": offers}))
        names = [f"ftjob-{n:04}" for n in range(parsed.replayed)]
        replay = [*LAUNCHER, "openai", "replay", str(folder), "--to", str(out)]
        replay += ["--jobs", ",".join(names)]
        killed = killed_often(replay, environment(), parsed.kills, chance, 3.0, 20.0)
        print(f"replay: killed {killed} times, then went to its end")
        findings += wrong_in_replay(out, names)
    print("\n".join(findings) or "nothing lost or doubled")
    return len(findings)


def killed_often(
    command: list[str],
    environ: dict[str, str],
    kills: int,
    chance: random.Random,
    least_s: float,
    most_s: float,
) -> int:
    """Kill a command at random moments and begin it anew, at last to its end; how often it was
    killed in its work."""
    killed = 0
    for _ in range(kills):
        process = subprocess.Popen(command, env=environ, **_QUIET)
        try:
            process.wait(chance.uniform(least_s, most_s))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
    begun = time.monotonic()
    subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
    print(f"the last one took {time.monotonic() - begun:.1f} s")
    return killed


_QUIET = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)


def wrong_in_pull(home: Served, folder: Path) -> list[str]:
    """What differs from what the server tells."""
    kept, found = Folder(folder), []
    with home.client(timeout_s=120) as client:
        for kind, path in (("files", "/files"), ("jobs", "/fine_tuning/jobs")):
            told = client.get(path, params={"limit": 10000}).json()["data"]
            here = kept.records(kind)
            names = Counter(record["id"] for record in here)
            found += [f"{kind}/{record['id']}: lost" for record in told if record not in here]
            found += [f"{kind}/{name}: {count} times" for name, count in names.items() if count > 1]
            found += [f"{kind}: {len(here)} of {len(told)}"] if len(here) != len(told) else []
        for record in kept.records("files"):
            content = client.get(f"/files/{record['id']}/content").content
            there = kept.kept(record["id"])
            if there is None or there.path.read_bytes() != content:
                found.append(f"{record['id']}: other bytes")
            elif there.sha256 != hashlib.sha256(content).hexdigest():
                found.append(f"{record['id']}: another hash")
        for record in kept.records("jobs"):
            for name in ("events", "checkpoints"):
                path = f"/fine_tuning/jobs/{record['id']}/{name}"
                told = client.get(path, params={"limit": 10000}).json()["data"]
                if list(kept.lines("jobs", record["id"], f"{name}.jsonl")) != told:
                    found.append(f"{record['id']}: other {name}")
    return found


def wrong_in_replay(out: Path, names: list[str]) -> list[str]:
    """Jobs that are lost, doubled or have not succeeded."""
    found = []
    made = read_json(out / "replay.json")
    left = {row["id"] for row in made["left_out"]}
    service = Service.open(out)
    with service.database.read() as session:
        jobs = [job.id for job in session.scalars(select(Job))]
        wanted = sorted(set(names) - left)
        if sorted(jobs) != wanted:
            found.append(f"jobs {sorted(jobs)}, not {wanted}")
        for name in jobs:
            events = session.scalars(select(Event).where(Event.job_id == name)).all()
            steps = Counter(e.data["step"] for e in events if e.type == "metrics" and e.data)
            if steps != {1: 1, 2: 1} or sum(e.key == "succeeded" for e in events) != 1:
                found.append(f"{name}: {dict(steps)}")
    service.database.engine.dispose()
    runs = sorted(run.name for run in run_dirs(out / "runs"))
    found += [f"runs {runs}"] if runs != sorted(jobs) else []
    print(Counter(row["state"] for row in made["jobs"]), f"{len(left)} left out")
    return found


if __name__ == "__main__":
    sys.exit(main())
