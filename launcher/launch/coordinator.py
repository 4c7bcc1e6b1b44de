"""Brings the nodes of a job in, starts their ranks together, and sees that all end together.

`python -m launcher.launch.coordinator RUN ATTEMPT`, a child of the supervisor. SIGTERM asks the
ranks for a checkpoint and a clean stop. Exit code 0 is an end without a failed rank.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from launcher.config.compose import compose
from launcher.core import processes
from launcher.core.errors import ExitCode, HangError, LauncherError
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir, State
from launcher.core.runtime import forwarded_secrets
from launcher.launch import nodes, outcome
from launcher.launch.nodes import NodeRecord, NodeState, Phase
from launcher.launch.spec import LaunchPlan, job_file

_POLL_S = 0.1
#: Time for the other nodes to end by themselves, or to say why, after one has failed.
_GRACE_S = 15.0
#: Time for a node's last word to reach this host through the shared file system.
_LAST_WORD_S = 5.0
#: Exit code by which ssh, and pdsh after it, says that there was no connection: nothing has run.
_NO_CONNECTION = 255
#: Seconds after each refused connection before the next is tried.
_AGAIN_S = (2.0, 5.0, 10.0)
_BY_PDSH = re.compile(r"^pdsh@\S+: \S+: ssh exited with exit code \d+$")


class Coordinator:
    """One attempt on several nodes."""

    def __init__(self, run: RunDir, plan: LaunchPlan) -> None:
        self._run, self._plan = run, plan
        self._control = nodes.Writer(nodes.control_file(run, plan.attempt))
        self._watches = [
            nodes.Watch(nodes.node_file(run, plan.attempt, number), plan.join_timeout_s)
            for number in range(len(plan.nodes))
        ]
        self._starters: dict[int, subprocess.Popen[bytes]] = {}
        self._starters_ended: dict[int, float] = {}
        self._refused: dict[int, int] = {}
        self._stop = False

    def serve(self) -> int:
        """From the first node's start to the last one's end; returns the exit code.

        Raises `HangError` naming the hosts that do not join or are lost.
        """
        signal.signal(signal.SIGTERM, self._note)
        self._say(Phase.join)
        self._start()
        self._await_all()
        if self._stop:
            return ExitCode.preempted
        return self._await_end()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    def _say(self, phase: Phase) -> None:
        first = (
            nodes.read_node(self._run, self._plan.attempt, 0) if phase is not Phase.join else None
        )
        self._control.write(phase=phase.value, code=None, port=first.port if first else None)

    def _start(self) -> None:
        for number, node in enumerate(self._plan.nodes):
            if node.start:
                self._bring_in(number)

    def _bring_in(self, number: int) -> None:
        with open(self._starter_log(number), "wb") as output:
            starter = subprocess.Popen(  # noqa: S603 - the command of our own plan
                self._plan.nodes[number].start,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                preexec_fn=processes.end_with_parent(),
            )
        self._starters[number] = starter
        self._starters_ended.pop(number, None)
        assert starter.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            # Stays open: its end tells the node that we are gone.
            secrets = forwarded_secrets(*self._key_variables())
            starter.stdin.write(json.dumps(secrets).encode() + b"\n")
            starter.stdin.flush()

    def _key_variables(self) -> list[str]:
        """Variables that the config says hold keys."""
        if not self._run.exists():
            return []
        return compose.load(self._run.config, runs_code=False).eval.key_variables

    def _starter_log(self, number: int) -> Path:
        return self._run.attempt(self._plan.attempt) / f"start-{number}.log"

    # ---- joining

    def _await_all(self) -> None:
        waiting_since, told = time.monotonic(), False
        count = len(self._plan.nodes)
        while not self._stop:
            self._say(Phase.join)
            joined = {
                n: r
                for n in range(count)
                if (r := self._record(n)) and r.state is not NodeState.ended
            }
            if len(joined) == count:
                return
            waited = time.monotonic() - waiting_since
            if not told and waited > 1.0:
                told = True
                self._tell_what_is_missing(count - len(joined))
            self._refuse_unreachable(joined)
            if waited > self._plan.join_timeout_s:
                raise self._not_joined(joined)
            time.sleep(_POLL_S)

    def _record(self, number: int) -> NodeRecord | None:
        self._watches[number].read()
        return nodes.read_node(self._run, self._plan.attempt, number)

    def _tell_what_is_missing(self, missing: int) -> None:
        if any(not node.host for node in self._plan.nodes):
            count = f"{missing} more node{'s' if missing > 1 else ''}"
            print(f"waiting for {count}; on each: launcher join {self._run}", flush=True)

    def _refuse_unreachable(self, joined: dict[int, NodeRecord]) -> None:
        """Raise if a command that brings nodes in has ended without them."""
        for number, starter in list(self._starters.items()):
            if starter.poll() is not None and number not in joined and not self._late(number):
                text = self._starter_log(number).read_text(encoding="utf-8", errors="replace")
                said = _last_line(text)
                if not self._begins_again(number, said):
                    raise _unreachable(self._plan.nodes[number].host, said)
                return

    def _begins_again(self, number: int, said: str) -> bool:
        """Connect once more to a host that has refused a connection, a few times and ever later."""
        tried = self._refused.get(number, 0)
        is_remote = not {"ssh", "pdsh"}.isdisjoint(self._plan.nodes[number].start)
        if not is_remote or self._starters[number].returncode != _NO_CONNECTION:
            return False
        if tried == len(_AGAIN_S) or self._stop:
            return False
        if time.monotonic() - self._starters_ended[number] < _AGAIN_S[tried]:
            return True
        self._refused[number] = tried + 1
        print(f"{self._plan.nodes[number].host}: {said}; trying again", flush=True)
        self._bring_in(number)
        return True

    def _late(self, number: int) -> bool:
        """Whether what a node wrote before its end may still be on its way."""
        since = self._starters_ended.setdefault(number, time.monotonic())
        return time.monotonic() - since < (
            _LAST_WORD_S if self._starters[number].returncode == 0 else 1.0
        )

    def _not_joined(self, joined: dict[int, NodeRecord]) -> HangError:
        missing = [n for n in range(len(self._plan.nodes)) if n not in joined]
        names = ", ".join(self._plan.nodes[n].host or f"node {n}" for n in missing)
        table = [f"  node {n}  host {record.host}" for n, record in joined.items()]
        return HangError(
            f"after {self._plan.join_timeout_s:.0f} s {len(missing)} of {len(self._plan.nodes)}"
            f" nodes have not joined: {names}\n" + "\n".join(["joined:", *table]),
            where="launch.join_timeout_s",
            hint="see that these hosts are up and see the run folder"
            + (
                ""
                if self._plan.nodes[missing[0]].host
                else f"; run there: launcher join {self._run}"
            ),
        )

    # ---- running

    def _await_end(self) -> int:
        failed_at, seen, deaths = 0.0, set[int](), list[outcome.Death]()
        while True:
            self._say(Phase.stop if self._stop else Phase.run)
            records = [self._record(number) for number in range(len(self._plan.nodes))]
            for number, record in enumerate(records):
                if record is None or record.state is not NodeState.ended:
                    self._refuse_lost(number, record)
                elif number not in seen:
                    seen.add(number)
                    if record.death:
                        deaths.append(record.death)
                        self._write(deaths)
                    if record.code:
                        failed_at = failed_at or time.monotonic()
            if len(seen) == len(records):
                codes = [record.code for record in records if record and record.code]
                return abs(codes[0]) if codes else 0
            if failed_at and time.monotonic() - failed_at > _GRACE_S:
                return int(ExitCode.internal)  # the supervisor has the other nodes end
            time.sleep(_POLL_S)

    def _write(self, deaths: list[outcome.Death]) -> None:
        file = outcome.deaths_file(self._run, self._plan.attempt)
        write_json(file, [asdict(death) for death in deaths])

    def _refuse_lost(self, number: int, record: NodeRecord | None) -> None:
        starter, node = self._starters.get(number), self._plan.nodes[number]
        cut = starter is not None and starter.poll() is not None
        if cut and not self._late(number):
            why = "its connection ended"
        elif self._watches[number].is_lost:
            why = f"it has given no sign of life for {self._plan.join_timeout_s:.0f} s"
        else:
            return
        host = node.host or (record.host if record else f"node {number}")
        raise HangError(
            f"host {host} is lost: {why}",
            where="launch",
            hint=f"see that it is up, then {self._run.command('resume', anywhere=True)}"
            + ("; launch.exclude leaves a host out" if self._plan.backend == "deepspeed" else ""),
        )


def _last_line(text: str) -> str:
    """What the command that brings a node in has said last; pdsh adds that ssh has failed."""
    lines = [line for line in text.strip().splitlines() if not _BY_PDSH.match(line)]
    return lines[-1] if lines else "it ended without a word"


def _unreachable(host: str, said: str) -> HangError:
    return HangError(
        f"host {host} cannot be used: {said}",
        where="launch.hostfile",
        hint=f"`ssh {host} true` must work without a password, and the host must see the run"
        " folder and the interpreter under the same paths",
    )


def main(argv: list[str]) -> int:
    """Coordinate one attempt; what ranks have not written about its end is written here."""
    run, attempt = RunDir(argv[0]), int(argv[1])
    plan = LaunchPlan.from_json(read_json(job_file(run, attempt)))
    try:
        return int(Coordinator(run, plan).serve())
    except LauncherError as error:
        print(f"{type(error).__name__}: {error}", flush=True)
        # Ranks may have written already that they lost each other: this is why.
        run.set_status(State.failed, attempt=attempt, reason=str(error), exit_code=error.exit_code)
        return int(error.exit_code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
