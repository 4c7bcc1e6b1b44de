"""What the forked process does that runs code of others: first it gives up all it can, then it runs
the code, and tells what came of it. Standard library only."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

from launcher.graders.sandbox import system

#: The file descriptor for the result; output goes where output goes.
RESULT = 3
_MIB = 1 << 20
_OPEN_FILES = 128
_LONGEST_MESSAGE = 2_000
#: Most bytes of a result.
LARGEST_RESULT = 1 << 16


def run(job: Mapping[str, Any], limits: Mapping[str, Any], user: int | None) -> NoReturn:
    """Run the job in this process, of which nothing is left afterwards."""
    try:
        give_up(limits, user)
        found = _tests(job) if "command" in job else _grade(job)
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        tell(found)
    finally:
        os._exit(0)


def give_up(limits: Mapping[str, Any], user: int | None) -> None:
    """Let this process have no more than `limits`, and the rights of `user`."""
    _limit(limits)
    _become(user)


def _limit(limits: Mapping[str, Any]) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    bounds = {
        resource.RLIMIT_CPU: int(limits["timeout_s"]) + 2,
        resource.RLIMIT_AS: 2 * limits["memory_mb"] * _MIB,
        resource.RLIMIT_FSIZE: limits["file_mb"] * _MIB,
        resource.RLIMIT_NOFILE: _OPEN_FILES,
        resource.RLIMIT_NPROC: limits["most_processes"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
    }
    for kind, bound in bounds.items():
        highest = resource.getrlimit(kind)[1]
        bound = bound if highest == resource.RLIM_INFINITY else min(bound, highest)
        resource.setrlimit(kind, (bound, bound))


def _become(user: int | None) -> None:
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    system.give_up_privileges()


def _grade(job: Mapping[str, Any]) -> dict[str, Any]:
    """The number that `grade(sample, item)` of the source returns; 0 if there is no sample."""
    random.seed(0)  # forks of one process would else share a seed that nobody knows
    try:
        names: dict[str, Any] = {"__name__": "grader"}
        exec(compile(job["source"], "grader.py", "exec"), names)  # noqa: S102 - for this we are here
        grade = names["grade"]
        score = grade(job["sample"], job["item"]) if "sample" in job else 0.0
        if isinstance(score, str | bytes):
            raise TypeError(f"grade returned {score[:100]!r}, which is no number")
        return {"score": float(score)}
    except BaseException as error:
        return {"error": told(error, "grader.py")}


def told(error: BaseException, file: str) -> str:
    """The error and its line in `file`; its own text may be code that fails too."""
    try:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if os.path.basename(frame.filename) == file
        ]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    except BaseException:
        line, text = None, "an error whose text cannot be had"
    where = f"line {line}: " if line else ""
    return f"{where}{type(error).__name__}: {text}"[:_LONGEST_MESSAGE]


def _tests(job: Mapping[str, Any]) -> dict[str, Any]:
    """The exit code of a command, in a folder with the job's files."""
    try:
        for name, text in job["files"].items():
            os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
            with open(name, "w", encoding="utf-8", errors="replace") as file:
                file.write(text)
        return {"exit_code": subprocess.call(job["command"])}  # noqa: S603 - for this we are here
    except OSError as error:
        return {"error": f"{error.filename or job['command'][0]}: {error.strerror}"}


def tell(found: Mapping[str, Any]) -> None:
    """Say what came of it."""
    content = json.dumps(found).encode()
    os.write(RESULT, len(content).to_bytes(4, "big") + content)


def keep_open(result: int, output: int, source: int | None = None) -> None:
    """Close all files but these, which get their places; standard input is `source`, or empty."""
    nothing = os.open(os.devnull, os.O_RDONLY) if source is None else source
    # Above their places first, since one may lie in the place of another.
    above = [fcntl.fcntl(one, fcntl.F_DUPFD, RESULT + 1) for one in (nothing, output, result)]
    for place, one in enumerate((above[0], above[1], above[1], above[2])):
        os.dup2(one, place, inheritable=place != RESULT)
    os.closerange(RESULT + 1, os.sysconf("SC_OPEN_MAX"))
