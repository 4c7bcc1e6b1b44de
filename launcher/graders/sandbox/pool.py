"""Workers that run code apart from this process, as many at a time as are wanted."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import queue
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.config.schema import GradersConfig, SandboxLevel
from launcher.core import runtime, streams
from launcher.core.errors import ConfigError

#: Seconds beyond an answer's own time after which a worker is given up.
_GRACE_S = 10.0
_START_S = 60.0
_ROOT = str(Path(__file__).resolve().parents[3])
_LINE = (
    "import sys; sys.path.insert(0, sys.argv[2]);"
    "from launcher.graders.sandbox import worker; worker.main()"
)
_HINT = (
    "allow user namespaces: sysctl user.max_user_namespaces=15000, on Ubuntu also"
    " kernel.apparmor_restrict_unprivileged_userns=0, in Docker --security-opt seccomp=unconfined"
    " --security-opt systempaths=unconfined; Linux 5.14 or newer. Or trust the code:"
    " eval.graders.sandbox=auto, of launcher grade --sandbox auto"
)


class CodeSandbox:
    """Runs jobs, each in a process of its own within `limits`; from several threads if wanted.

    Workers start with the first jobs and stay. Close it at the end, or leave it as `with` block.
    """

    def __init__(self, limits: GradersConfig) -> None:
        self.limits = limits
        self.workers = limits.workers or runtime.cpu_count()
        self._idle: queue.LifoQueue[SandboxWorker | None] = queue.LifoQueue()
        for _ in range(self.workers):
            self._idle.put(None)

    def run(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """What came of a job, one of `score`, `exit_code`, `error` (the code's own), `stopped` (by
        a limit) and `lost` (for no fault of the code); `output` is the end of what it has printed.

        A job is {source, item, sample}, {source} to see that it can be run, or {command, files}.
        Raises `ConfigError` with sandbox=strict where there are no namespaces.
        """
        worker = self._idle.get()
        try:
            worker = worker or self._start()
            found = worker.ask(job, self.limits.timeout_s + _GRACE_S)
        except OSError as error:  # the worker is gone, and its code with it
            if worker is not None:
                worker.end()
            worker, found = None, {"lost": f"its worker ended: {error}", "output": ""}
        finally:
            self._idle.put(worker)
        return found

    def level(self) -> str:
        """How much stands around the code here: `namespaces` or `limits`."""
        worker = self._idle.get()
        try:
            worker = worker or self._start()
        finally:
            self._idle.put(worker)
        return worker.level

    def _start(self) -> SandboxWorker:
        return start(self.limits)

    def close(self) -> None:
        """End the workers, once each is idle."""
        for worker in [self._idle.get() for _ in range(self.workers)]:
            if worker is not None:
                worker.end()
            self._idle.put(None)

    def __enter__(self) -> CodeSandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def start(limits: GradersConfig) -> SandboxWorker:
    """A worker at the level that `limits` ask for; `ConfigError` with sandbox=strict where there
    are no namespaces."""
    if limits.sandbox is SandboxLevel.limits:
        return SandboxWorker(limits, namespaces=False)
    try:
        return SandboxWorker(limits, namespaces=True)
    except _Refused as error:
        if limits.sandbox is SandboxLevel.strict:
            raise ConfigError(
                f"strict, and this machine has no namespaces: {error}",
                where="eval.graders.sandbox",
                hint=_HINT,
            ) from error
        _warn(str(error))
    return SandboxWorker(limits, namespaces=False)


@functools.cache
def _warn(why: str) -> None:
    """Say once what does not stand around the code."""
    streams.remark(
        f"warning: code of graders and environments runs without namespaces ({why}): network and"
        " files are open to it. docs/graders.md#the-sandbox says what to allow"
    )


class _Refused(Exception):
    """This machine does not give a process namespaces of its own."""


class SandboxWorker:
    """One process of `launcher.graders.sandbox.worker`; raises `_Refused`."""

    def __init__(self, limits: GradersConfig, *, namespaces: bool) -> None:
        self._place = tempfile.mkdtemp(prefix="launcher-sandbox-")
        start = {
            "namespaces": namespaces,
            "place": self._place,
            "folders": sorted({sys.base_prefix, sys.prefix}),
            "path": [path for path in sys.path if path.startswith((sys.prefix, sys.base_prefix))],
            "limits": {
                "timeout_s": limits.timeout_s,
                "memory_mb": limits.memory_mb,
                "file_mb": limits.file_mb,
                "processes": limits.processes,
            },
        }
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-I", "-c", _LINE, json.dumps(start), _ROOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env=_ENVIRONMENT,
            start_new_session=True,
        )
        try:
            hello = self._receive(_START_S)
        except OSError:
            self.end()
            raise
        if "refused" in hello:
            self.end()
            raise _Refused(hello["refused"])
        self.level = str(hello["level"])
        if namespaces:
            os.rmdir(self._place)  # its root is elsewhere by now

    def ask(self, job: Mapping[str, Any], within_s: float) -> dict[str, Any]:
        """The answer to a job; `OSError` if there is none."""
        self.tell(job)
        return self._receive(within_s)

    def tell(self, job: Mapping[str, Any]) -> None:
        """Hand over what is not answered; `OSError` if the worker is gone."""
        assert self._process.stdin is not None
        content = json.dumps(job).encode()
        self._process.stdin.write(len(content).to_bytes(4, "big") + content)
        self._process.stdin.flush()

    def _receive(self, within_s: float) -> dict[str, Any]:
        end = time.monotonic() + within_s
        size = int.from_bytes(self._exactly(4, end), "big")
        found: dict[str, Any] = json.loads(self._exactly(size, end))
        return found

    def _exactly(self, size: int, end: float) -> bytes:
        assert self._process.stdout is not None
        source, parts = self._process.stdout.fileno(), b""
        ready = select.poll()
        ready.register(source, select.POLLIN)
        while len(parts) < size:
            # Not select, which knows the first 1024 files of a process alone.
            if not ready.poll(1000 * max(0.0, end - time.monotonic())):
                raise TimeoutError("no answer")
            part = os.read(source, size - len(parts))
            if not part:
                raise BrokenPipeError("no answer")
            parts += part
        return parts

    def end(self) -> None:
        """End it and all that it has started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()  # it then ends what runs, and itself
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        shutil.rmtree(self._place, ignore_errors=True)


#: All that code sees of this environment: no key of anybody's is in it.
_ENVIRONMENT = {
    "PATH": f"{sys.prefix}/bin:/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",  # noqa: S108 - the sandbox's own
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
