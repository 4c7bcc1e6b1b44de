"""A launch plan of one host, for tests of what is made of one."""

from __future__ import annotations

from typing import Any

from launcher.core.rundir import RunDir
from launcher.launch.spec import LaunchPlan, NodePlan


def launch_plan(run: RunDir, **changes: Any) -> LaunchPlan:
    """The plan of the first attempt of `run`, whose folder is made; `changes` are fields of it."""
    run.attempt(1).mkdir(parents=True)
    fields: dict[str, Any] = {
        "backend": "deepspeed",
        "run": run.path,
        "attempt": 1,
        "cwd": run.path.parent,
        "prepare": (),
        "command": (),
        "environment": {},
        "processes": 1,
        "log": run.attempt(1) / "agent.log",
        "nodes": (NodePlan(host="h", slots=(0,), command=("x",)),),
    }
    return LaunchPlan(**{**fields, **changes})
