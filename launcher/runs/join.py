"""Bring this host into a run of several nodes that another host has started."""

from __future__ import annotations

import os
import time
from pathlib import Path

from launcher.core.errors import ConfigError, ExitCode, HangError
from launcher.core.files import read_json
from launcher.core.rundir import RunDir, find_run
from launcher.launch import nodes
from launcher.launch.node import Node
from launcher.launch.nodes import Phase
from launcher.launch.spec import LaunchPlan, job_file

_POLL_S = 0.2
#: How long to wait for a run that is not there yet.
_APPEAR_S = 120.0


def join(name: str, root: str, number: int | None) -> int:
    """Wait for the run's attempt, take a place among its nodes, and serve to the end.

    Returns the run's exit code. Raises `ConfigError` if the run takes no nodes in or the place is
    taken, `HangError` if no attempt begins in time.
    """
    run, plan = _await_attempt(name, root)
    number = _claim(run, plan, number)
    print(f"joined {run.name} as node {number} of {len(plan.nodes)}", flush=True)
    node = Node(run, plan, number, plan.join_timeout_s)
    os.chdir(plan.cwd)
    code = node.serve({}, lambda: False)
    if not node.has_run:
        _give_back(run, plan, number)
    if node.why:
        print(f"ended: {node.why}", flush=True)
    final = _await_code(run, plan)
    status = run.status()
    print(f"{run.name}: {status.state.value}", flush=True)
    return code or int(ExitCode.internal) if final is None else final


def _await_attempt(name: str, root: str) -> tuple[RunDir, LaunchPlan]:
    """The run and the plan of its attempt that waits for nodes."""
    end, told = time.monotonic() + _APPEAR_S, False
    while time.monotonic() < end:
        run = _find(name, root)
        attempt = max(run.attempts(), default=0) if run else 0
        raw = read_json(job_file(run, attempt)) if run else None
        if run and raw:
            plan = LaunchPlan.from_json(raw)
            _refuse_others(run, plan)
            if _waits(nodes.control_file(run, attempt)):
                return run, plan
        if not told:
            told = True
            print(f"waiting for an attempt of {name} to begin", flush=True)
        time.sleep(_POLL_S)
    raise HangError(
        f"no attempt of {name} that waits for nodes has begun in {_APPEAR_S:.0f} s",
        where="launcher join",
        hint="start it on the first host: launcher train ... launch=torchrun launch.nodes=N",
    )


def _find(name: str, root: str) -> RunDir | None:
    try:
        return find_run(name, root)
    except ConfigError:
        return None


def _refuse_others(run: RunDir, plan: LaunchPlan) -> None:
    if plan.backend != "torchrun":
        raise ConfigError(
            f"a run with launch={plan.backend} brings its nodes in itself",
            where=str(run),
            hint="hosts join by hand where a run has launch=torchrun and launch.nodes=N",
        )
    if len(plan.nodes) == 1:
        raise ConfigError(
            "the run has one node", where="launch.nodes", hint="start it with launch.nodes=N"
        )


def _waits(control: Path) -> bool:
    """Whether a coordinator waits for nodes: it lives only if it writes on."""
    before = read_json(control) or {}
    if before.get("phase") != Phase.join.value:
        return False
    time.sleep(2 * nodes.BEAT_S)
    return bool((read_json(control) or {}).get("beat") != before.get("beat"))


def _claim(run: RunDir, plan: LaunchPlan, wanted: int | None) -> int:
    """Take a node's place: creating its claim file is what makes it ours."""
    if wanted is not None and not 1 <= wanted < len(plan.nodes):
        raise ConfigError(
            f"there is no node {wanted} to join",
            where="--node-rank",
            hint=f"1 to {len(plan.nodes) - 1}; node 0 is the host that started the run",
        )
    for number in range(1, len(plan.nodes)) if wanted is None else [wanted]:
        try:
            with open(_claim_file(run, plan, number), "x", encoding="utf-8"):
                return number
        except FileExistsError:
            continue
    place = "all places are" if wanted is None else f"the place of node {wanted} is"
    raise ConfigError(
        f"{place} taken", where=str(run), hint=f"the run was started for {len(plan.nodes)} nodes"
    )


def _claim_file(run: RunDir, plan: LaunchPlan, number: int) -> Path:
    return run.attempt(plan.attempt) / f"node-{number}.claim"


def _give_back(run: RunDir, plan: LaunchPlan, number: int) -> None:
    """Another host may take the place of one that left before the start."""
    nodes.node_file(run, plan.attempt, number).unlink(missing_ok=True)
    _claim_file(run, plan, number).unlink(missing_ok=True)


def _await_code(run: RunDir, plan: LaunchPlan) -> int | None:
    """The run's exit code from its supervisor; None if that is gone."""
    control = nodes.Watch(nodes.control_file(run, plan.attempt), plan.join_timeout_s)
    while (raw := control.read()).get("phase") != Phase.end.value:
        if control.is_lost:
            return None
        time.sleep(_POLL_S)
    code = raw.get("code")
    return int(code) if isinstance(code, int) else None
