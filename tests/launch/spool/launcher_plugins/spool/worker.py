"""`python -m launcher_plugins.spool.worker FOLDER [TASKS]`: does the jobs of a spool, so many tasks
at a time, until it gets SIGTERM, which ends them."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher_plugins.spool.folder import Spool

from launcher import entry
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir, State
from launcher.launch.local import END_NOW, STOP, supervisor_file
from launcher.launch.outcome import WORTH_A_REQUEUE
from launcher.launch.queue import Ending
from launcher.launch.spec import job_file, open_file


@dataclass
class Started:
    """A task that runs: its supervisor is the one of local runs."""

    run: RunDir
    attempt: int
    restarts: int
    process: subprocess.Popen[bytes]
    wish: str = ""


class Worker:
    """Takes tasks in the order of their jobs."""

    def __init__(self, spool: Spool, most: int) -> None:
        self.spool, self.most = spool, most
        self.running: dict[str, Started] = {}

    def look(self) -> None:
        """End what is to end, note what has ended, start what can be started."""
        for task, started in list(self.running.items()):
            self._heed(task, started)
            if started.process.poll() is not None:
                del self.running[task]
                self._ended(task, started)
        for number, job in self.spool.all():
            if not all(self._is_gone(other) for other in job.get("after", ())):
                continue
            ids = range(len(job["runs"]))
            names = [f"{number}_{i}" for i in ids] if job.get("array") else [number]
            for task, (run, base) in zip(names, job["runs"], strict=True):
                at_once = sum(name in self.running for name in names)
                if len(self.running) < self.most and at_once < (job.get("max_parallel") or 1000):
                    self._take(task, RunDir(run), base, job["environment"])

    def _is_gone(self, number: str) -> bool:
        job = read_json(self.spool.jobs / number / "job.json")
        names = [f"{number}_{i}" for i in range(len(job["runs"]))]
        return all(self._state(task)["state"] == "gone" for task in names)

    def _state(self, task: str) -> dict[str, Any]:
        return read_json(self.spool.file(task, "task.json"), {"state": "queued", "restarts": 0})

    def _set(self, task: str, state: str, **more: Any) -> None:
        known = self._state(task)
        write_json(self.spool.file(task, "task.json"), {**known, "state": state, **more})

    def _wish(self, task: str) -> str:
        return str(read_json(self.spool.file(task, "wish"), {}).get("wish", ""))

    def _heed(self, task: str, started: Started) -> None:
        wish = self._wish(task)
        # Before it has taken over, a signal would end it without a word.
        hears = supervisor_file(started.run, started.attempt).exists()
        if hears and wish != started.wish:
            started.wish = wish
            started.process.send_signal(END_NOW if wish == "end" else STOP)

    def _take(self, task: str, run: RunDir, base: int, environment: dict[str, str]) -> None:
        known = self._state(task)
        if known["state"] != "queued":
            return
        if self._wish(task) in ("stop", "end"):
            self._set(task, "gone", ending=Ending.cancelled.value)
            return
        if self.spool.is_closed:
            return
        attempt = base + known["restarts"]
        raw = read_json(job_file(run, base))
        if attempt != base:
            run.attempt(attempt).mkdir(parents=True, exist_ok=True)
            command = list(raw["command"])
            command[command.index("--attempt") + 1] = str(attempt)
            log = str(run.attempt(attempt) / "agent.log")
            raw = {**raw, "command": command, "attempt": attempt, "log": log}
            write_json(job_file(run, attempt), raw)
        elif not raw.get("array"):
            # Whoever has submitted it may never have heard of the job.
            write_json(job_file(run, base), {**raw, "job": task})
        open_file(run, attempt).touch()
        with open(self.spool.file(task, "log"), "ab") as log_file:
            process = subprocess.Popen(
                entry.command("launcher.launch.supervisor", str(run), str(attempt)),
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                env=environment,
                start_new_session=True,
            )
        self.running[task] = Started(run, attempt, known["restarts"], process)
        self._set(task, "running")

    def _ended(self, task: str, ended: Started) -> None:
        run, wish = ended.run, self._wish(task)
        self.spool.file(task, "wish").unlink(missing_ok=True)
        status, code = run.status(), ended.process.returncode
        most = read_json(job_file(run, ended.attempt))["requeues"]
        is_wanted = wish not in ("stop", "end") and status.state is not State.succeeded
        if is_wanted and code in WORTH_A_REQUEUE and ended.restarts < most:
            run.set_status(State.queued, reason=f"requeued: {status.reason}")
            self._set(task, "queued", restarts=ended.restarts + 1)
        else:
            if is_wanted and code in WORTH_A_REQUEUE:
                reason = f"{status.reason}; not requeued: launch.max_requeues is used up"
                run.set_status(status.state, reason=reason, exit_code=code)
            ending = Ending.cancelled if wish in ("stop", "end") else Ending.other
            self._set(task, "gone", ending=ending.value)
        open_file(run, ended.attempt).unlink(missing_ok=True)


def main(words: list[str]) -> int:
    """Work until SIGTERM."""
    ends: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ends.append(number))
    spool = Spool(Path(words[0]))
    spool.jobs.mkdir(parents=True, exist_ok=True)
    worker = Worker(spool, int(words[1]) if len(words) > 1 else 4)
    spool.sign()
    while not ends:
        worker.look()
        time.sleep(0.03)
    for started in worker.running.values():
        started.process.send_signal(END_NOW)
    for started in worker.running.values():
        started.process.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
