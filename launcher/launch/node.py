"""One node of a job on several: starts its ranks when all nodes are there, and ends them.

`python -m launcher.launch.node RUN ATTEMPT NODE [--lifeline]` is what ssh or pdsh starts on a host;
`launcher join` does the same in its own process. With --lifeline the node ends at once when stdin
closes, which is how it learns that the connection or its other end is gone.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from launcher.core import processes, streams
from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from launcher.core.ranks import HOST_VARIABLE, HOSTS_VARIABLE, pick_devices
from launcher.core.rundir import RunDir
from launcher.core.runtime import environment_without_ranks
from launcher.launch import nodes, outcome
from launcher.launch.nodes import NodeState, Phase
from launcher.launch.outcome import Death
from launcher.launch.spec import LaunchPlan, job_file
from launcher.launch.torchrun import is_taken, open_port

_POLL_S = 0.1
#: Time for the other ranks of a node to end by themselves after one has failed, and for helpers
#: of the ranks (a tracker's uploader) after all have ended.
GRACE_S = 10.0


class Node:
    """The ranks of one node, from signing in to their end; use once, in the main thread."""

    def __init__(self, run: RunDir, plan: LaunchPlan, number: int, timeout_s: float) -> None:
        self._run, self._plan, self._number = run, plan, number
        self._writer = nodes.Writer(nodes.node_file(run, plan.attempt, number))
        self._control = nodes.Watch(nodes.control_file(run, plan.attempt), timeout_s)
        self._log = nodes.node_log(run, plan.attempt, number)
        self._started = time.time()
        self._ranks: list[subprocess.Popen[bytes]] = []
        self._failed: list[Death] = []
        self._stop = False
        self._why = ""
        self._own_port = _open_port(plan) if number == 0 else None
        self._port: int | None = None

    def serve(self, secrets: Mapping[str, str], is_cut: Callable[[], bool]) -> int:
        """Sign in, run the ranks, and say how they ended; returns the node's exit code.

        `secrets` are variables for the ranks besides those of the plan; when `is_cut` turns true
        all is ended at once. No process that this one started is left.
        """
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)
        processes.adopt_orphans()
        code, death = 0, None
        try:
            if self._await_start(is_cut):
                self._start(secrets)
                self._watch(is_cut)
            else:
                code = ExitCode.preempted if self._stop else ExitCode.hang
        finally:
            self._end_leftovers()
            if self._ranks:
                code, death = self._result()
            self._sign(NodeState.ended, code=int(code), death=death)
        return int(code)

    @property
    def has_run(self) -> bool:
        """Whether its ranks were started."""
        return bool(self._ranks)

    @property
    def why(self) -> str:
        """Why the node was ended from outside; empty if it was not."""
        return self._why

    def _sign(self, state: NodeState, **values: Any) -> None:
        nodes.sign(self._writer, self._started, state, port=self._own_port, **values)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._stop and number == signal.SIGINT:
            self._why = "ended at once by the user"
        self._stop = True

    def _phase(self, is_cut: Callable[[], bool]) -> Phase:
        raw = self._control.read()
        if not self._why and is_cut():
            self._why = "the connection to the launcher is gone"
        if not self._why and self._control.is_lost:
            self._why = f"no sign of life from the launcher for {self._control.timeout_s:.0f} s"
        if self._why:
            return Phase.end
        self._port = raw.get("port")
        return Phase(raw["phase"]) if "phase" in raw else Phase.join

    def _await_start(self, is_cut: Callable[[], bool]) -> bool:
        while (phase := self._phase(is_cut)) is Phase.join and not self._stop:
            self._sign(NodeState.joined)
            time.sleep(_POLL_S)
        return phase is Phase.run and not self._stop

    def _start(self, secrets: Mapping[str, str]) -> None:
        node = self._plan.nodes[self._number]
        common = {**environment_without_ranks(), **secrets, **self._plan.environment}
        if self._port is not None:
            common["MASTER_PORT"] = str(self._port)
        for place in self._places(common):
            environment = {**common, **place}
            self._ranks.append(
                processes.start(node.command, self._log, environment, cwd=self._plan.cwd)
            )

    @property
    def _has_agent(self) -> bool:
        return "torch.distributed.run" in self._plan.nodes[self._number].command

    def _places(self, common: Mapping[str, str]) -> list[dict[str, str]]:
        """Variables of each process to start: one agent, which makes them itself, or the ranks."""
        if self._has_agent:
            return [{}]
        plans, mine = self._plan.nodes, self._plan.nodes[self._number]
        first = sum(len(node.slots) for node in plans[: self._number])
        world = sum(len(node.slots) for node in plans)
        hosts = ",".join(f"{node.host}:{len(node.slots)}" for node in plans)
        return [
            {
                "RANK": str(first + local),
                "WORLD_SIZE": str(world),
                "LOCAL_RANK": str(local),
                "LOCAL_WORLD_SIZE": str(len(mine.slots)),
                HOST_VARIABLE: mine.host,
                HOSTS_VARIABLE: hosts,
                "CUDA_VISIBLE_DEVICES": pick_devices(common, mine.slots),
            }
            for local in range(len(mine.slots))
        ]

    def _watch(self, is_cut: Callable[[], bool]) -> None:
        told, failed_at = False, 0.0
        while any(rank.poll() is None for rank in self._ranks):
            self._sign(NodeState.running)
            phase = self._phase(is_cut)
            if phase is Phase.end:
                processes.kill_descendants()
            elif (self._stop or phase is Phase.stop) and not told:
                told = True
                self._tell()
            if self._note_failure():
                failed_at = failed_at or time.monotonic()
                if time.monotonic() - failed_at > GRACE_S and not self._has_agent:
                    processes.kill_descendants()
            time.sleep(_POLL_S)

    def _note_failure(self) -> bool:
        """Whether a process has failed; which did so first is noted."""
        failed = [(at, rank.returncode) for at, rank in enumerate(self._ranks) if rank.returncode]
        if failed and not self._failed:
            first = sum(len(node.slots) for node in self._plan.nodes[: self._number])
            self._failed = [Death(first + at, code) for at, code in failed]
        return bool(failed)

    def _tell(self) -> None:
        """Ask the ranks to stop; told by a signal, an agent would give them 30 s and then kill."""
        for rank in self._ranks:
            pids = processes.children(rank.pid) if self._has_agent else [rank.pid]
            for pid in pids or [rank.pid]:
                processes.send(pid, signal.SIGTERM)

    def _end_leftovers(self) -> None:
        end = time.monotonic() + (0.0 if self._why else GRACE_S)
        while processes.descendants(os.getpid()) and time.monotonic() < end:
            time.sleep(_POLL_S)
        processes.kill_descendants()
        for rank in self._ranks:
            rank.wait()

    def _result(self) -> tuple[int, Death | None]:
        codes = [rank.returncode for rank in self._ranks]
        was_ended = bool(self._why) or self._phase(lambda: False) is Phase.end
        if not any(codes) or (was_ended and not self._failed):
            return max(map(abs, codes)), None
        if self._has_agent:
            return codes[0], outcome.of_agent(
                self._log.read_text(encoding="utf-8", errors="replace")
            )
        self._note_failure()
        return self._failed[0].code, outcome.first(self._failed)


def _open_port(plan: LaunchPlan) -> int | None:
    """A port of this host, the first, for the ranks to meet at in the place of the plan's, if that
    is taken: whoever made the plan on another host could not know."""
    host, port = plan.environment.get("MASTER_ADDR"), plan.environment.get("MASTER_PORT")
    if host is None or port is None or not is_taken(host, int(port)):
        return None
    return open_port(host)


def main(argv: list[str]) -> int:
    """A node that ssh or pdsh has started."""
    run, attempt, number = RunDir(argv[0]), int(argv[1]), int(argv[2])
    has_lifeline = "--lifeline" in argv
    # Before the output is redirected: what is wrong up to here goes back through ssh.
    plan = LaunchPlan.from_json(read_json(job_file(run, attempt)))
    os.chdir(plan.cwd)
    streams.append_to(nodes.node_log(run, attempt, number))
    secrets = json.loads(sys.stdin.readline() or "{}") if has_lifeline else {}
    node = Node(run, plan, number, timeout_s=plan.join_timeout_s)
    code = node.serve(secrets, _stdin_is_closed if has_lifeline else lambda: False)
    if node.why:
        print(node.why, file=sys.stderr)
    return code if code >= 0 else 128 - code


def _stdin_is_closed() -> bool:
    """Whether the other end of stdin is gone; nothing is ever sent but the first line."""
    ready, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
