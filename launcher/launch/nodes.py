"""What the nodes of an attempt and their coordinator tell each other, by files of the run folder.

Each file has one writer, who writes it anew every second: a file that stands still means that its
writer is gone. Only the reader's own clock counts, so clocks of hosts may differ.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from launcher.core.files import read_json, write_json
from launcher.core.processes import alive
from launcher.core.rundir import RunDir
from launcher.launch.outcome import Death

BEAT_S = 1.0
#: Longest wait for the nodes to end once they are told; a lost host never does.
_CLOSE_S = 10.0


class Phase(Enum):
    """What the coordinator wants of the nodes."""

    join = "join"
    run = "run"
    stop = "stop"
    end = "end"


class NodeState(Enum):
    """What a node says of itself."""

    joined = "joined"
    running = "running"
    ended = "ended"


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node's file."""

    host: str
    pid: int
    started: float
    state: NodeState
    code: int | None = None
    """Exit code of the node's ranks, once they have ended."""
    death: Death | None = None
    """The rank whose end brought the node's others down."""
    port: int | None = None
    """Of the first node: where the ranks meet, if it is not the port of the plan."""
    beat: int = 0


def control_file(run: RunDir, attempt: int) -> Path:
    """The coordinator's file."""
    return run.attempt(attempt) / "control.json"


def node_file(run: RunDir, attempt: int, node: int) -> Path:
    """A node's file."""
    return run.attempt(attempt) / f"node-{node}.json"


def node_log(run: RunDir, attempt: int, node: int) -> Path:
    """What a node's helper and agent say; ranks have their own logs."""
    return run.attempt(attempt) / f"node-{node}.log"


def read_node(run: RunDir, attempt: int, node: int) -> NodeRecord | None:
    """What a node has written last; None before its first word."""
    raw = read_json(node_file(run, attempt, node))
    if not isinstance(raw, dict) or "state" not in raw:
        return None
    death = Death(**raw["death"]) if raw["death"] else None
    return NodeRecord(**{**raw, "state": NodeState(raw["state"]), "death": death})


@dataclass(slots=True)
class Writer:
    """Writes one file now and then, with a number that grows."""

    path: Path
    beat: int = 0
    _last: dict[str, Any] = field(default_factory=dict)
    _time: float = 0.0

    def write(self, **values: Any) -> None:
        """Write if the values are new or the last beat is old."""
        now = time.monotonic()
        if values == self._last and now - self._time < BEAT_S:
            return
        self.beat, self._last, self._time = self.beat + 1, values, now
        write_json(self.path, {**values, "beat": self.beat})


@dataclass(slots=True)
class Watch:
    """Notices that a file no longer changes."""

    path: Path
    timeout_s: float
    _beat: Any = None
    _since: float = field(default_factory=time.monotonic)

    def read(self) -> dict[str, Any]:
        """Content of the file, empty if there is none."""
        raw = read_json(self.path)
        raw = raw if isinstance(raw, dict) else {}
        if raw.get("beat") != self._beat:
            self._beat, self._since = raw.get("beat"), time.monotonic()
        return raw

    @property
    def is_lost(self) -> bool:
        """Whether the last change is longer ago than its writer ever needs."""
        return time.monotonic() - self._since > self.timeout_s


def sign(writer: Writer, started: float, state: NodeState, **values: Any) -> None:
    """Write a node's own record."""
    record = NodeRecord(socket.gethostname(), os.getpid(), started, state, **values)
    raw = asdict(record)
    del raw["beat"]
    writer.write(**{**raw, "state": state.value})


def close(run: RunDir, attempt: int, nodes: int) -> None:
    """The attempt is over: have the nodes end what still runs, and wait some time for that."""
    code = run.status().exit_code
    write_json(control_file(run, attempt), {"phase": Phase.end.value, "code": code, "beat": -1})
    end = time.monotonic() + _CLOSE_S
    while time.monotonic() < end and any(_is_there(run, attempt, n) for n in range(nodes)):
        time.sleep(0.05)


def _is_there(run: RunDir, attempt: int, node: int) -> bool:
    record = read_node(run, attempt, node)
    if record is None or record.state is NodeState.ended:
        return False
    return record.host != socket.gethostname() or alive(record.pid, record.started)
