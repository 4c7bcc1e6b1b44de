"""Trials in a tenth of a second: real processes under the real supervisor, but no training.

`python -m support.stub_trials control VERB ...` is the `launcher` command with trials that only
write metrics. A trial's loss is a function of `optim.lr` and the step; `optim.weight_decay` says
what goes wrong: 1 diverges, 2 meets bad data, 3 finds a full disk at its first attempt.
`LAUNCHER_STUB_STEP_S` is the length of a step.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from typing import Any

from launcher.core import registry
from launcher.core.errors import DataError, DivergedError, ExitCode, LauncherError, StorageError
from launcher.core.rundir import RunDir, State
from launcher.launch.spec import LaunchPlan, LaunchSpec

#: Launch back end -> its own row, where `control` has put another.
ROWS: dict[str, str] = {}


def __getattr__(name: str) -> Any:
    """The launch back end `name` with stubs for ranks."""
    if name not in ROWS:
        raise AttributeError(name)
    real: Any = registry.load(ROWS[name])

    class Stub(real):
        """All but the modules is the back end's own."""

        def plan(self, spec: LaunchSpec) -> LaunchPlan:
            """The real plan of other modules."""
            plan: LaunchPlan = super().plan(stubbed(spec))
            return plan

    return Stub


def stubbed(spec: LaunchSpec) -> LaunchSpec:
    """A spec whose preparation and ranks are this module."""
    module = "support.stub_trials"
    return dataclasses.replace(spec, module=module, prepare_module=module)


def loss_at(lr: float, step: int) -> float:
    """What a stub measures: best at lr = 1e-3, falling with the steps."""
    return (math.log10(lr) + 3) ** 2 + 1 / step


def trial(run: RunDir, attempt: int) -> None:
    """What a rank does, without the work."""
    from launcher.config.compose import compose

    config = compose.load(run.config)
    steps = config.train.steps or 4
    # Counts how often a trial has been run, for tests of "once".
    with open(run.path / "starts", "a") as file:
        file.write(f"{attempt}\n")
    run.set_status(State.running, attempt=attempt, steps=steps)
    for step in range(1, steps + 1):
        time.sleep(float(os.environ.get("LAUNCHER_STUB_STEP_S", "0.05")))
        if config.optim.weight_decay == 1:
            raise DivergedError("loss is nan", where=f"step {step}")
        if config.optim.weight_decay == 2:
            raise DataError("broken record", where="data.jsonl:1")
        if config.optim.weight_decay == 3 and attempt == 1:
            raise StorageError("No space left on device", where="/disk")
        line = {"kind": "eval", "step": step, "eval/loss": loss_at(config.optim.lr, step)}
        with open(run.metrics, "a") as file:
            file.write(json.dumps(line) + "\n")
    run.set_status(State.succeeded, exit_code=0, step=steps)


def main(words: list[str]) -> int:
    """`control VERB ...`, or what ranks (`RUN --attempt N`) and preparation (`RUN`) are given."""
    if words[0] == "control":
        import support.stub_trials as here  # this file is __main__
        from launcher.cli import main as launcher
        from launcher.config.schema import variants

        here.ROWS |= variants.LAUNCHERS
        variants.LAUNCHERS._rows |= {name: f"support.stub_trials:{name}" for name in here.ROWS}
        return launcher(words[1:])
    run = RunDir(words[0])
    if len(words) == 1:
        return ExitCode.ok
    try:
        trial(run, int(words[2]))
    except LauncherError as error:
        code = int(error.exit_code)
        run.set_status(State.failed, reason=str(error), exit_code=code)
        return code
    return ExitCode.ok


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
