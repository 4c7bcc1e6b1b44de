"""Processes that grade for clients: a few at a time, projects in turn, none for longer than a
request may take."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import select
import subprocess
import threading
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

from launcher import entry
from launcher.core.errors import LauncherError
from launcher.core.fairness import TurnThreads
from launcher.core.processes import end_with_parent
from launcher.serve.http.failure import ApiError
from launcher.serve.site import Site

#: Requests of a project that wait; one more is refused.
_MOST_WAITING = 100
_START_S = 30.0


class Grading:
    """The processes of a server. Close it at its end."""

    def __init__(self, site: Site) -> None:
        self._settings = json.dumps(
            {
                "judges": {name: asdict(judge) for name, judge in site.judges.items()},
                "graders": asdict(site.graders),
            }
        )
        self._longest_s = site.graders.request_s
        # Whose graders are slow keeps no other project from having its own checked.
        most = max(1, site.graders.at_once - 1)
        self._threads = TurnThreads(site.graders.at_once, "grading", most, _project_of)
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._waiting: Counter[str] = Counter()

    async def require_sound(
        self, project_id: str, grader: dict[str, Any], where: str, *, is_criterion: bool = False
    ) -> list[list[str | int]]:
        """What the templates of a grader read, each as its root and the steps from there.

        `ApiError` 400 with all that is wrong with it, `where` it stands in the body; `is_criterion`
        says whether it is to be one of an eval.
        """
        request = {"grader": grader, "where": where, "is_criterion": is_criterion}
        found: list[list[str | int]] = (await self._ask(project_id, request))["reads"]
        return found

    async def run(
        self,
        project_id: str,
        grader: dict[str, Any],
        item: dict[str, Any],
        sample: str | dict[str, Any],
        *,
        is_criterion: bool = False,
    ) -> dict[str, Any]:
        """What a grader says of an answer; `ApiError` 400 as `require_sound`."""
        request = {"grader": grader, "where": "grader", "is_criterion": is_criterion}
        return await self._ask(project_id, {**request, "item": item, "sample": sample})

    async def misfits(
        self, project_id: str, schema: dict[str, Any], items: list[dict[str, Any]], where: str
    ) -> list[str]:
        """Of each item what does not fit a JSON Schema, empty where it fits; `ApiError` 400 with
        what is wrong with the schema, `where` it stands in the body."""
        request = {"schema": schema, "where": where, "items": items}
        found: list[str] = (await self._ask(project_id, request))["misfits"]
        return found

    async def _ask(self, project_id: str, request: dict[str, Any]) -> dict[str, Any]:
        if self._waiting[project_id] >= _MOST_WAITING:
            found = f"{_MOST_WAITING} requests of this project wait for a grader already."
            headers = {"Retry-After": "5"}
            raise ApiError(429, found, code="rate_limit_exceeded", headers=headers)
        answers: list[dict[str, Any]] = []
        self._waiting[project_id] += 1
        try:
            work = self._threads.submit(project_id, lambda: answers.append(self._answer(request)))
            await asyncio.wrap_future(work)
        finally:
            self._waiting[project_id] -= 1
        answer = answers[0]
        if "site" in answer:
            raise LauncherError(answer["site"])
        if "problems" in answer:
            code = "invalid_schema" if "schema" in request else "invalid_grader"
            raise _refused(answer["problems"], code)
        return answer

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        start = time.monotonic()
        process = self._idle_one()
        if process is not None:
            try:
                return self._asked(process, request, self._longest_s)
            except TimeoutError:
                return _late(request, time.monotonic() - start)
            except (OSError, ValueError):
                pass  # it may have been broken before: who asks has not to answer for that
        left_s = self._longest_s - (time.monotonic() - start)
        try:
            return self._asked(self._new_one(), request, left_s)
        except (OSError, ValueError) as error:
            if isinstance(error, TimeoutError) or "sample" in request:
                return _late(request, time.monotonic() - start)
            hint = "its source, its templates or its schema may be too deep"
            return {"problems": [[request["where"], "it cannot be read", hint]]}

    def _asked(self, process: _Process, request: dict[str, Any], within_s: float) -> dict[str, Any]:
        """Its answer; it ends if there is none."""
        try:
            found = process.ask(request, within_s)
        except (OSError, ValueError):
            self._end(process)
            raise
        with self._lock:
            self._idle.append(process)
        return found

    def _idle_one(self) -> _Process | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _new_one(self) -> _Process:
        try:
            process = _Process(self._settings)
        except OSError as error:
            raise LauncherError(f"no process for graders could be started: {error}") from error
        with self._lock:
            self._all.add(process)
        return process

    def _end(self, process: _Process) -> None:
        process.end()
        with self._lock:
            self._all.discard(process)

    def close(self) -> None:
        """End all, also what is under way."""
        self._threads.close()
        with self._lock:
            left, self._all, self._idle = self._all, set(), []
        for process in left:
            process.end()


def _refused(problems: list[list[str]], code: str) -> ApiError:
    said = [f"{where}: {found}" + (f" ({hint})" if hint else "") for where, found, hint in problems]
    return ApiError(400, "; ".join(said)[:2000], param=problems[0][0], code=code)


def _late(request: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What is said of a grader that its time, or its memory, was not enough for."""
    if "sample" not in request:
        return {"problems": [[request["where"], "it cannot be read in time", ""]]}
    error = ["other_error", "the grader has used up its time or its memory"]
    return {
        **{"score": None, "errors": [error], "sub_scores": {}, "seconds": seconds},
        **{"usage": {}, "model": None, "is_late": True, "reply": None},
    }


def turn_of_evals(project_id: str) -> str:
    """A turn of their own for runs of evals: what people of the project ask for does not wait
    behind them. Both together have no more processes than one project may."""
    return f"{project_id} evals"


def _project_of(turn: str) -> str:
    return turn.partition(" ")[0]


class _Process:
    """One process of `launcher.serve.grading.worker`, asked by one thread at a time."""

    def __init__(self, settings: str) -> None:
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            entry.command("launcher.serve.grading.worker"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Of a thread of `TurnThreads`, which lives as long as these processes do.
            preexec_fn=end_with_parent(),
        )
        try:
            self._say(settings)
            self._line(time.monotonic() + _START_S)
        except OSError:
            self.end()
            raise

    def ask(self, request: dict[str, Any], within_s: float) -> dict[str, Any]:
        """The answer; `OSError` if there is none, `TimeoutError` if not in time."""
        end = time.monotonic() + within_s
        self._say(json.dumps(request))
        found: dict[str, Any] = json.loads(self._line(end))
        return found

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def _line(self, end: float) -> bytes:
        assert self._process.stdout is not None
        source, parts = self._process.stdout.fileno(), b""
        ready = select.poll()
        ready.register(source, select.POLLIN)
        while not parts.endswith(b"\n"):
            if not ready.poll(1000 * max(0.0, end - time.monotonic())):
                raise TimeoutError("no answer")
            part = os.read(source, 1 << 16)
            if not part:
                raise BrokenPipeError("it has ended")
            parts += part
        return parts

    def end(self) -> None:
        """End it at once."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.stdout.close()
