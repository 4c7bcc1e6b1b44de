"""A rank without torch: behaves towards the run folder and signals as `launcher.train` does.

`python -m stand_in RUN --attempt N`. What it does is read from stand_in.json in the run folder:
`steps`, `step_s`, and `die`: {"rank", "step", "signal" or "code"}.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time

from launcher.core import runtime
from launcher.core.console import metrics_line
from launcher.core.errors import ExitCode, StorageError
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir, State


def main(argv: list[str]) -> int:
    run, attempt, ranks = RunDir(argv[0]), int(argv[2]), runtime.ranks()
    script = read_json(run.path / "stand_in.json", {})
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    log = os.open(run.log(attempt, ranks.rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    with contextlib.ExitStack() as resources:
        if ranks.is_main:
            try:
                resources.enter_context(run.lock())
            except StorageError as error:
                print(error, file=sys.stderr)
                return error.exit_code
        return _steps(run, attempt, ranks, script, stop)


def _steps(run, attempt, ranks, script, stop) -> int:
    steps = script.get("steps", 5)
    (run.path / "threads").write_text(os.environ["OMP_NUM_THREADS"])
    first = (read_json(run.path / "saved.json") or {"step": 0})["step"]
    if ranks.is_main:
        run.set_status(State.running, attempt=attempt, steps=steps, step=first)
    for step in range(first + 1, steps + 1):
        _beat(run, ranks, step)
        die = script.get("die", {})
        if die.get("rank") == ranks.rank and die["step"] == step and attempt == 1:
            if "signal" in die:
                os.kill(os.getpid(), die["signal"])
            if "code" in die:
                return die["code"]
        if ranks.is_main:
            record = {"kind": "train", "step": step, "loss": 1 / step, "step_time_s": 0.1}
            with run.metrics.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(metrics_line(record, steps), flush=True)
        time.sleep(script.get("step_s", 0.02))
        if stop and not script.get("deaf"):
            if ranks.is_main:
                write_json(run.path / "saved.json", {"step": step})
                code = int(ExitCode.preempted)
                run.set_status(State.preempted, reason="SIGTERM", exit_code=code, step=step)
            return ExitCode.preempted
    if ranks.is_main:
        run.set_status(State.succeeded, exit_code=0, step=steps)
    return 0


def _beat(run: RunDir, ranks: runtime.Ranks, step: int) -> None:
    beat = {"rank": ranks.rank, "host": ranks.host, "pid": os.getpid(), "phase": "step"}
    write_json(run.heartbeat(ranks.rank), {**beat, "step": step, "time": time.time()})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
