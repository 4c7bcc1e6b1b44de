"""What is to be launched, what a back end makes of it, and what every back end can do."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from launcher.config.schema.launch import ClusterConfig, LaunchConfig
from launcher.core.errors import Problem
from launcher.core.files import read_json
from launcher.core.rundir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchSpec:
    """One attempt of one run, the same for every back end."""

    run: Path
    """The run folder, absolute."""
    attempt: int
    """Number of the attempt, from 1."""
    python: str
    """Interpreter of the ranks."""
    cwd: Path
    """Where the user typed the command: relative paths of the config start here."""
    options: LaunchConfig
    """The `launch` section, of the back end's own class."""
    cluster: ClusterConfig
    """The `cluster` section."""
    nodes: int
    """Nodes that its ranks run on."""
    processes: int
    """Ranks on each node."""
    threads: int
    """Compute threads of each rank."""
    servers: tuple[int, int] = (0, 0)
    """Further nodes, which answer and do not train, and servers on each of them."""
    module: str = "launcher.train"
    """Module that each rank runs as `python -m MODULE RUN --attempt N`."""
    server_module: str = "launcher.rollouts.vllm.keeper"
    """Module that keeps a server, as `python -m MODULE RUN ATTEMPT NUMBER PLACE`."""
    prepare_module: str = "launcher.data.prepare"
    """Module that prepares the data as `python -m MODULE RUN`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables set for the ranks besides those of the back end."""
    folders: tuple[Path, ...] = ()
    """Folders besides run and cwd that the ranks read or write: a container must show them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """What happens on one node of an attempt whose nodes we start ourselves."""

    host: str
    """The node as the user named it; empty where any host may take the place."""
    slots: tuple[int, ...]
    """Device of each rank."""
    command: tuple[str, ...]
    """Command of torch's agent on the node, or of each of its ranks."""
    start: tuple[str, ...] = ()
    """Command that brings the node in from here; empty if another does, or a person."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        lists = {name: list(getattr(self, name)) for name in ("slots", "command", "start")}
        return {"host": self.host, **lists}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> NodePlan:
        """What `to_json` wrote."""
        lists = {name: tuple(raw[name]) for name in ("slots", "command", "start")}
        return cls(host=raw["host"], **lists)

    def describe(self) -> str:
        """A line for people on what is started where."""
        place = f"on {self.host}" if self.host else "on any host, by `launcher join`"
        count = f"{len(self.slots)} rank{'s' if len(self.slots) > 1 else ''}"
        lines = [f"# {count} {place}: {shlex.join(self.command)}"]
        return "\n".join([*lines, *([shlex.join(self.start)] if self.start else [])])


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """All that `submit` will do, as plain data; made without any effect."""

    backend: str
    run: Path
    attempt: int
    cwd: Path
    prepare: tuple[str, ...]
    """Command that prepares the data, before any rank starts."""
    command: tuple[str, ...]
    """Command that starts the ranks."""
    environment: Mapping[str, str]
    """Changes to the environment of both commands."""
    processes: int
    """Ranks that the command starts; more than one means through an agent."""
    log: Path
    """What the starting command itself says; ranks have their own logs."""
    script: str | None = None
    """Text of the batch script that is submitted, where there is one."""
    prepare_script: str | None = None
    """Text of the batch script of a preparation in a job of its own."""
    requeues: int = 0
    """Times that a batch job may be started again."""
    context: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What the attempt asks of its queue, beside its own run; not kept in JSON."""
    handed_over: tuple[str, str] = field(default=("", ""), compare=False)
    """For people: the commands that take `prepare_script` and `script`; not kept in JSON."""
    nodes: tuple[NodePlan, ...] = ()
    """Nodes that `command` looks after; none where all ranks are its own children."""
    join_timeout_s: float = 120.0
    """Longest wait for all nodes to join, and for a sign of life of a node."""

    def describe(self) -> str:
        """What `submit` would do, for people: batch scripts, or commands as a shell takes them."""
        if self.script is not None:
            parts = []
            if self.prepare_script is not None:
                parts.append(f"# {self.handed_over[0]}\n{self.prepare_script}")
            parts.append(f"# {self.handed_over[1]}\n{self.script}")
            return "\n".join(parts)
        lines = [f"cd {shlex.quote(str(self.cwd))}"]
        lines += [f"export {key}={shlex.quote(value)}" for key, value in self.environment.items()]
        nodes = map(NodePlan.describe, self.nodes)
        return "\n".join([*lines, shlex.join(self.prepare), shlex.join(self.command), *nodes])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them back."""
        return {
            "backend": self.backend,
            "run": str(self.run),
            "attempt": self.attempt,
            "cwd": str(self.cwd),
            "prepare": list(self.prepare),
            "command": list(self.command),
            "environment": dict(self.environment),
            "processes": self.processes,
            "log": str(self.log),
            "script": self.script,
            "prepare_script": self.prepare_script,
            "nodes": [node.to_json() for node in self.nodes],
            "join_timeout_s": self.join_timeout_s,
            "requeues": self.requeues,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> LaunchPlan:
        """The plan that `to_json` wrote."""
        return cls(
            backend=raw["backend"],
            run=Path(raw["run"]),
            attempt=raw["attempt"],
            cwd=Path(raw["cwd"]),
            prepare=tuple(raw["prepare"]),
            command=tuple(raw["command"]),
            environment=dict(raw["environment"]),
            processes=raw["processes"],
            log=Path(raw["log"]),
            script=raw.get("script"),
            prepare_script=raw.get("prepare_script"),
            nodes=tuple(map(NodePlan.from_json, raw.get("nodes", ()))),
            join_timeout_s=raw.get("join_timeout_s", 120.0),
            requeues=raw.get("requeues", 0),
        )


class AttemptState(Enum):
    """What a back end knows about an attempt, whatever the run folder says."""

    queued = "queued"
    running = "running"
    gone = "gone"
    unknown = "unknown"


class Backend(Protocol):
    """A launch back end: one file, one row in `variants.LAUNCHERS`."""

    outlives_follower: bool
    """Whether the attempt goes on when the process that follows it goes away."""

    def plan(self, spec: LaunchSpec) -> LaunchPlan:
        """What would be done; pure."""

    def check(self, spec: LaunchSpec) -> list[Problem]:
        """What would be refused, or could never start; asks, and changes nothing."""

    def submit(self, plan: LaunchPlan, *, attached: bool) -> str:
        """Start the ranks and return an id of them. What is attached ends with this process."""

    def status(self, run: RunDir, attempt: int) -> AttemptState:
        """Whether this attempt waits, runs or is gone."""

    def logs(self, run: RunDir, attempt: int) -> list[Path]:
        """Files that tell the story of the attempt, in reading order, rank 0 last."""

    def cancel(self, run: RunDir, attempt: int, *, now: bool) -> None:
        """Ask it to stop: with a checkpoint, or `now` without. Returns at once."""


def number_in(raw: Mapping[str, Any]) -> str | None:
    """Id of the queue job of an attempt, from the content of its job file.

    The tasks of an array have one number together, which stands in the folder of the array.
    """
    if raw.get("job") is None and raw.get("array"):
        folder, index = raw["array"]
        shared = read_json(Path(folder, "job.json"), {})
        return f"{shared['job']}_{index}" if "job" in shared else None
    return raw.get("job")


def is_queued(raw: Mapping[str, Any]) -> bool:
    """Whether the content of a job file is the note of a back end with a queue."""
    return not raw.keys().isdisjoint(("base", "job", "array"))


def open_file(run: RunDir, attempt: int) -> Path:
    """There until a queue job has said whether a failed attempt is followed by another."""
    return run.attempt(attempt) / "open"


def job_file(run: RunDir, attempt: int) -> Path:
    """The submitted plan of an attempt."""
    return run.attempt(attempt) / "job.json"


def backend_name(run: RunDir, attempt: int) -> str | None:
    """Back end of an attempt; None if the ranks were started directly (torchrun, deepspeed)."""
    raw = read_json(job_file(run, attempt))
    return raw["backend"] if isinstance(raw, dict) and "backend" in raw else None
