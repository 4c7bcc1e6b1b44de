"""The process that code is forked from: warm, so that code starts within milliseconds, and the
first one of its namespaces, so that its word ends all that the code has started.

It reads jobs from standard input and writes what came of them to standard output, each as JSON
behind its length. Standard library only.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launcher.core import processes
from launcher.graders.sandbox import code, episode, namespaces, system

#: Libraries that take long to import are imported before the fork, once a source does so.
_SLOW = re.compile(r"^\s*(?:import|from)\s+(numpy|rapidfuzz|sympy)\b", re.MULTILINE)
_KEPT_OUTPUT = 8 << 10
#: Seconds between two looks at memory and processes.
_WATCH_S = 0.05
#: Without namespaces root has each worker's code run under a user of its own, from this number on.
_USERS, _NOBODY = 1_900_000_000, 65534


def main() -> None:
    """Serve the parent until it closes the pipe."""
    start = json.loads(sys.argv[1])
    sys.path[:] = start["path"]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # that of a terminal is for the parent
    try:
        worker = _Namespaced(start) if start["namespaces"] else _Limited(start)
    except OSError as error:
        _send({"refused": str(error.strerror or error)})
        return
    _send({"level": "namespaces" if start["namespaces"] else "limits"})
    while (job := _receive()) is not None:
        for name in _SLOW.findall(job.get("source", "")):
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        if "reset" in job:
            worker.play(job)
        else:
            _send(worker.run(job))


class _Limited:
    """Runs code as a process of limited means, which else is one like all others."""

    def __init__(self, start: Mapping[str, Any]) -> None:
        self._limits = start["limits"]
        self._place = Path(start["place"])
        self._user: int | None = None
        self._owns_user = False
        self._prepare(start)
        system.close_to_others()

    def _prepare(self, start: Mapping[str, Any]) -> None:
        processes.adopt_orphans()
        if os.geteuid() == 0:
            own = _USERS + os.getpid()
            self._user = next(filter(_can_become, (own, _NOBODY)), None)
            self._owns_user = self._user == own
            self._place.chmod(0o711)

    def _most_processes(self) -> int:
        """How many the kernel is to allow the user, whose other ones count too."""
        if self._user is not None:
            return int(self._limits["processes"])
        return int(self._limits["processes"]) + _tasks_of(os.getuid())

    def _renew(self) -> None:
        """Go to an empty folder for the next code."""
        work = self._place / "work"
        os.chdir("/")
        if work.exists():
            for folder, _, _ in os.walk(work):
                with contextlib.suppress(OSError):
                    os.chmod(folder, 0o700)
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(mode=0o700, exist_ok=True)
        if self._user is not None:
            os.chown(work, self._user, self._user)
        os.chdir(work)

    def _end_all(self) -> None:
        """End whatever the code has started, however it tries to go on."""
        if self._owns_user:
            child = os.fork()
            if not child:
                with contextlib.suppress(OSError):
                    os.setresuid(*[self._user or 0] * 3)
                    os.kill(-1, signal.SIGKILL)
                os._exit(0)
        processes.kill_descendants()
        _reap()

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """What came of one job, with the end of what it printed."""
        self._renew()
        (result, tell), (output, say) = os.pipe(), os.pipe()
        bounds = {**self._limits, "most_processes": self._most_processes()}
        child = os.fork()
        if not child:
            code.keep_open(tell, say)
            code.run(job, bounds, self._user)
        os.close(tell)
        os.close(say)
        try:
            watch = _Watch(child, result, output, self._limits)
            found = watch.result()
        finally:
            self._end_all()
            os.close(result)
            os.close(output)
        return {**found, "output": watch.printed.decode(errors="replace")}

    def play(self, job: Mapping[str, Any]) -> None:
        """Run an environment and tell what came of each call of it, until the next job is another
        one's, or a call has failed. Between calls its processes are stopped."""
        self._renew()
        (result, tell), (output, say), (asked, ask) = os.pipe(), os.pipe(), os.pipe()
        bounds = {**self._limits, "most_processes": self._most_processes()}
        child = os.fork()
        if not child:
            code.keep_open(tell, say, asked)
            episode.run(job, {**bounds, "timeout_s": job["most_s"]}, self._user)
        for descriptor in (tell, say, asked):
            os.close(descriptor)
        watch = _Watch(child, result, output, {**self._limits, "timeout_s": job["turn_s"]})
        try:
            while True:
                found = watch.result()
                self._signal(signal.SIGSTOP)
                _send({**found, "output": watch.printed.decode(errors="replace")})
                more = _receive() if "turn" in found else None
                if not more or "end" in more:
                    return
                self._signal(signal.SIGCONT)
                watch.ask(ask, more)
        finally:
            self._end_all()
            for descriptor in (result, output, ask):
                os.close(descriptor)

    def _signal(self, number: signal.Signals) -> None:
        """Signal all that the code has started."""
        for process in processes.descendants(os.getpid()):
            processes.send(process, number)


class _Namespaced(_Limited):
    """Runs code in a world of its own."""

    def _prepare(self, start: Mapping[str, Any]) -> None:
        self._user = namespaces.enter()
        # The folders of the new root are for whoever code runs as; nothing is made outside of it.
        os.umask(0o022)
        namespaces.build(str(self._place), start["folders"])

    def _most_processes(self) -> int:
        return int(self._limits["processes"]) + 1  # this one, if all are one user's

    def _renew(self) -> None:
        os.chdir("/")
        namespaces.renew_work(self._limits["file_mb"])
        os.chdir(namespaces.WORK)

    def _end_all(self) -> None:
        self._signal(signal.SIGKILL)
        _reap()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, number)  # all but this one, as there are no others here


class _Watch:
    """Waits for a result while limits hold that the kernel does not know of."""

    def __init__(self, child: int, result: int, output: int, limits: Mapping[str, Any]) -> None:
        self._child, self._result, self._limits = child, result, limits
        self._end = time.monotonic() + limits["timeout_s"]
        self._looked = 0.0
        self._open = {0, result, output}
        self._received = b""
        self._asked, self._left = -1, b""
        self.printed = b""
        for source in (result, output):
            os.set_blocking(source, False)

    def ask(self, descriptor: int, what: Mapping[str, Any]) -> None:
        """Have the next result waited for, once `what` is written to the code."""
        self._end = time.monotonic() + self._limits["timeout_s"]
        self._received = b""
        os.set_blocking(descriptor, False)
        self._asked, self._left = descriptor, _framed(what)

    def result(self) -> dict[str, Any]:
        """The result, why there is none (`error`), or what stopped the code (`stopped`)."""
        while True:
            now = time.monotonic()
            if now > self._end:
                return {"stopped": f"it took longer than {self._limits['timeout_s']:g} s"}
            if now > self._looked + _WATCH_S:
                self._looked = now
                if found := self._excess():
                    return {"stopped": found}
            wanted = [self._asked] if self._left else []
            ready, free, _ = select.select(self._open, wanted, [], min(self._end - now, _WATCH_S))
            if free:
                self._write()
            self._read(ready)
            ended, status = (0, 0) if self._parsed() else os.waitpid(self._child, os.WNOHANG)
            if ended or self._parsed():
                self._read(self._open - {0})  # what it has said before its end
                return self._parsed() or {"error": _how(os.waitstatus_to_exitcode(status))}

    def _write(self) -> None:
        try:
            self._left = self._left[os.write(self._asked, self._left) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it has ended, which is seen elsewhere
            self._left = b""

    def _read(self, ready: Iterable[int]) -> None:
        for source in list(ready):
            if source == 0:
                raise SystemExit  # the parent is gone, or gives up
            try:
                content = os.read(source, 1 << 16)
            except BlockingIOError:
                continue
            if not content:
                self._open.discard(source)
            elif source == self._result:
                self._received = (self._received + content)[: code.LARGEST_RESULT + 5]
            else:
                self.printed = (self.printed + content)[-_KEPT_OUTPUT:]

    def _parsed(self) -> dict[str, Any]:
        """The result once it is complete; else nothing."""
        size = int.from_bytes(self._received[:4], "big")
        if len(self._received) < 4 or len(self._received) - 4 < min(size, code.LARGEST_RESULT):
            return {}
        try:
            found = _encodable(json.loads(self._received[4 : size + 4]))
            (name, value), *others = found.items()
            if not others and isinstance(value, _RESULTS[name]):
                return {name: value}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass
        return {"error": "it has written something else than a result"}

    def _excess(self) -> str:
        """Which limit is exceeded by all processes together."""
        found = processes.descendants(os.getpid())
        if len(found) > self._limits["processes"] + 1:
            return f"more than {self._limits['processes']} processes"
        if sum(map(_resident, found)) > self._limits["memory_mb"] << 20:
            return f"more than {self._limits['memory_mb']} MiB of memory"
        return ""


#: What code may tell, and of which type it is.
_RESULTS = {"score": float, "exit_code": int, "turn": dict, "error": str}


def _how(status: int) -> str:
    if status >= 0:
        return f"it ended itself with exit code {status}"
    known = -status in signal.valid_signals() and -status < signal.SIGRTMIN
    return f"it was ended by {signal.Signals(-status).name if known else f'signal {-status}'}"


def _resident(process: int) -> int:
    """Bytes of a process that are in memory; 0 if it is gone."""
    try:
        text = Path(f"/proc/{process}/statm").read_text(encoding="utf-8")
        return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _tasks_of(user: int) -> int:
    """Processes and threads of a user."""
    count = 0
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdecimal() and process.stat().st_uid == user:
                count += len(os.listdir(process / "task"))
    return count


def _can_become(user: int) -> bool:
    child = os.fork()
    if not child:
        with contextlib.suppress(OSError):
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
            os._exit(0)
        os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _encodable(value: Any) -> Any:
    """A value of JSON whose texts can be written to files: JSON may hold half a character."""
    text = json.dumps(value, ensure_ascii=False)
    return value if text.isascii() else json.loads(text.encode(errors="replace"))


def _framed(found: Mapping[str, Any]) -> bytes:
    content = json.dumps(found).encode()
    return len(content).to_bytes(4, "big") + content


def _send(found: Mapping[str, Any]) -> None:
    view = memoryview(_framed(found))
    while view:
        view = view[os.write(1, view) :]


def _receive() -> dict[str, Any] | None:
    """The next job; None once there are no more."""
    found: dict[str, Any] | None = None
    if size := _exactly(4):
        found = json.loads(_exactly(int.from_bytes(size, "big")))
    return found


def _exactly(size: int) -> bytes:
    parts = []
    while size and (part := os.read(0, min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"" if size else b"".join(parts)
