"""`launcher serve` killed at random moments while a client uploads, creates, pauses and cancels.

    python tests/bench/api_kill.py --kills 50

At the end no job may be lost, doubled or stuck, and every file is whole or not there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from launcher.core import processes
from launcher.core.files import read_json
from launcher.core.rundir import run_dirs
from launcher.launch.local import supervisor_file
from support import served
from support.workshop import ENDED, WORDS, examples

_CONTENT = examples(12)
_STEPS = 12
_QUICK = {"n_epochs": 2, "batch_size": 2, "learning_rate_multiplier": 1}
_END_S = 600


@dataclass
class Client:
    """Asks without pause, and remembers what it was promised."""

    url: str = ""
    most: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(1))
    jobs: dict[str, str] = field(default_factory=dict)
    """Job -> what it was asked for last: run, paused or cancelled."""
    files: list[str] = field(default_factory=list)
    stop: bool = False

    def work(self) -> None:
        """Until told to stop; errors of the connection are the rule here."""
        while not self.stop:
            with contextlib.suppress(httpx2.HTTPError, KeyError, ValueError):
                self._once()
            time.sleep(0.05)

    def _once(self) -> None:
        headers = {"Authorization": f"Bearer {served.DEMO_KEY}"}
        with httpx2.Client(base_url=f"{self.url}/v1", headers=headers, timeout=10) as client:
            sent = {"file": ("data.jsonl", _CONTENT)}
            answer = client.post("/files", files=sent, data={"purpose": "fine-tune"})
            self.files.append(answer.json()["id"])
            if len(self.jobs) < self.most:
                asked = {"training_file": self.files[-1], "model": "tiny"}
                asked["hyperparameters"] = _QUICK
                self.jobs[client.post("/fine_tuning/jobs", json=asked).json()["id"]] = "run"
            for job in list(self.jobs):
                client.get(f"/fine_tuning/jobs/{job}").raise_for_status()
            job = self.chance.choice(list(self.jobs))
            action = self.chance.choice(["", "", "", "", "pause", "resume", "resume", "cancel"])
            if action:
                found = client.post(f"/fine_tuning/jobs/{job}/{action}")
                if found.status_code == 200 and action == "cancel":
                    self.jobs[job] = "cancelled"


def main() -> int:
    """Returns the number of findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=12)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        offers = {"tiny": {"overrides": WORDS}}
        (home / "serve.yaml").write_text(yaml.safe_dump({"models": offers}))
        client = Client(most=parsed.jobs)
        worker = threading.Thread(target=client.work, daemon=True)
        chance = random.Random(2)
        for number in range(parsed.kills):
            server = served.start(home)
            client.url = server.url
            if number == 0:
                worker.start()
            time.sleep(chance.uniform(0.2, 5.0))
            server.kill()
        client.stop = True
        worker.join()
        print(f"{parsed.kills} kills, {len(client.jobs)} jobs, {len(client.files)} files")
        with served.served(home) as server, server.client() as session:
            findings = _findings(client, session, home)
    print("\n".join(findings) or "nothing lost, doubled or stuck")
    return len(findings)


def _findings(client: Client, session: httpx2.Client, home: Path) -> list[str]:
    found = []
    end = time.monotonic() + _END_S
    left = set(client.jobs)
    while left and time.monotonic() < end:
        for job in list(left):
            state = session.get(f"/fine_tuning/jobs/{job}").json()["status"]
            if state == "paused":
                session.post(f"/fine_tuning/jobs/{job}/resume")
            elif state in ENDED:
                left.discard(job)
        time.sleep(0.5)
    found += [f"stuck: {job}" for job in left]
    time.sleep(5)  # processes of the last cancelled jobs
    states = Counter()
    for job, wanted in client.jobs.items():
        seen = session.get(f"/fine_tuning/jobs/{job}").json()
        states[seen["status"]] += 1
        # Not the reverse: a cancel whose answer was cut off may have been heard.
        if wanted == "cancelled" and seen["status"] != "cancelled":
            found.append(f"{job}: {wanted}, but is {seen['status']}")
        if seen["status"] == "succeeded":
            found += _of_succeeded(session, seen)
        elif seen["status"] == "failed":
            found.append(f"{job}: {seen['error']}")
    print(dict(states))
    for file in client.files:
        if session.get(f"/files/{file}/content").content != _CONTENT:
            found.append(f"file {file} is not what was sent")
    for run in run_dirs(home / "runs"):
        for attempt in run.attempts():
            beat = read_json(supervisor_file(run, attempt))
            if beat and processes.alive(beat["pid"], beat["time"]):
                found.append(f"{run.name}: attempt {attempt} still runs")
    return found


def _of_succeeded(session: httpx2.Client, job: dict[str, object]) -> list[str]:
    answer = session.get(f"/fine_tuning/jobs/{job['id']}/events", params={"limit": 1000})
    events = answer.json()["data"]
    steps = Counter(event["data"]["step"] for event in events if event["type"] == "metrics")
    messages = Counter(event["message"] for event in events)
    found = []
    if steps != Counter(range(1, _STEPS + 1)):
        found.append(f"{job['id']}: steps {json.dumps(steps)}")
    if messages["The job has successfully completed"] != 1:
        found.append(f"{job['id']}: ended more than once")
    if len(job["result_files"]) != 1:  # type: ignore[arg-type]
        found.append(f"{job['id']}: results {job['result_files']}")
    return found


if __name__ == "__main__":
    sys.exit(main())
