"""`python -m launcher.vllm.keeper FOLDER NUMBER`: one server, kept alive.

Waits for the order in the folder, starts the server, again where it dies or is stuck, and ends with
all its processes when it is told to, when the order is withdrawn, or when whoever started it is
gone. NUMBER is the server's among all. A server that is asked from this host alone listens at a
path in a folder of this user's; another at a port, and is shown the token only when it has proved
that it knows it.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from launcher.core import processes
from launcher.core.errors import LauncherError
from launcher.core.files import read_json, write_json
from launcher.core.runtime import environment_without_ranks
from launcher.vllm import places
from launcher.vllm.connection import GoneError, RefusedError, ServerConnection
from launcher.vllm.inside import launcher_door
from launcher.vllm.places import ServerOrder, ServerRecord, ServerState

_POLL_S = 0.2
#: Time between two signs of life.
_BEAT_S = 5.0
#: Time for a server to end by itself.
_GRACE_S = 10.0
#: Time for one that was killed to be gone.
_KILLED_S = 5.0
_HEALTH_S = 5.0
#: A server that has answered for so long may die as often as a new one.
_STEADY_S = 600.0
#: Lines of a log that are shown.
_SHOWN = 6
_ERROR = re.compile(r"\b\w*(?:Error|Exception): .{0,300}|error[:,] .{0,300}")
#: Endpoints for weights and adapters, which vLLM opens on wish.
_SWITCHES = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}
_INSIDE = Path(__file__).parent / "inside"
_DOOR = "launcher-vllm-"
#: Longest path that a socket may have, and a folder where it is short.
_LONGEST_PATH, _SHORT = 100, "/tmp"  # noqa: S108 - a folder with a random name is made in it


class Keeper:
    """Use once, in the main thread."""

    def __init__(self, folder: Path, number: int, place: int) -> None:
        """`number` is the server's among all, `place` among those of its host."""
        self._folder, self._number, self._place = folder, number, place
        self._stop: bool = False
        self._start = ""
        self._is_first = True
        self._beat = 0
        self._parent = os.getppid()
        self._url = ""
        self._door: Path | None = None
        """Folder of the path that the server listens at."""
        self._has_proved = False
        self._left = folder / f"server-{number}.left"
        self._log = places.log_of(folder, number)
        self._log_began = 0

    def serve(self) -> int:
        """Until the server is not wanted any more, 0, or cannot be had, 1."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)
        # A scheduler's warning to the ranks, which comes to all processes of a job.
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        processes.adopt_orphans()
        order = self._await_order()
        if order is None:
            return 0
        self._end_left()
        try:
            code = self._keep(order)
        finally:
            if self._door is not None:
                shutil.rmtree(self._door, ignore_errors=True)
            self._left.unlink(missing_ok=True)
        if os.getppid() != self._parent:  # who wanted it is gone, and cannot clean up itself
            places.withdraw_order(self._folder)
        if places.is_withdrawn(self._folder):
            shutil.rmtree(order.scratch, ignore_errors=True)
        return code

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._stop = True

    def _await_order(self) -> ServerOrder | None:
        while not self._stop:
            if order := places.read_order(self._folder):
                return order
            time.sleep(_POLL_S)
        return None

    def _keep(self, order: ServerOrder) -> int:
        deaths = 0
        while not self._stop:
            self._start = secrets.token_hex(8)
            ready_at, found = self._watch(order)
            if not found:
                break
            deaths = 1 if ready_at and time.monotonic() - ready_at > _STEADY_S else deaths + 1
            words = self._last_words()
            # Somebody else may have taken a port meanwhile.
            never = self._is_first and not ready_at and "already in use" not in words
            self._is_first = False
            if never or deaths > order.max_restarts:
                self._say(ServerState.failed, found=f"{found}; {words}")
                return 1
            print(f"server {self._number}: {found}; it is started again", flush=True)
        return 0

    def _watch(self, order: ServerOrder) -> tuple[float, str]:
        """One server from start to end: when it was ready, 0 if never, and how it ended."""
        command = [*order.command, *self._listens(order)]
        self._has_proved = False
        self._log_began = self._log.stat().st_size if self._log.exists() else 0
        server = processes.start(command, self._log, self._environment(order))
        self._note_left(server.pid)
        began, ready_at, said_at = time.monotonic(), 0.0, 0.0
        try:
            while not self._stop:
                code = server.poll()
                if code is not None:
                    return ready_at, f"it has ended with exit code {code}"
                if not ready_at and self._is_healthy(order):
                    ready_at, said_at = time.monotonic(), 0.0
                if time.monotonic() - said_at > _BEAT_S:
                    said_at = time.monotonic()
                    state = ServerState.ready if ready_at else ServerState.starting
                    self._say(state, pid=server.pid)
                if not ready_at and time.monotonic() - began > order.start_s:
                    return 0.0, f"it is not there after {order.start_s:g} s (start_s)"
                if places.is_stuck(self._folder, self._number, self._start):
                    return ready_at, "it has answered no more"
                if places.is_withdrawn(self._folder):
                    self._stop = True
                time.sleep(_POLL_S)
        finally:
            _end(server)
        return ready_at, ""

    def _listens(self, order: ServerOrder) -> list[str]:
        """Where the next server is to listen, as it is told."""
        if order.is_reached_from_afar:
            host = socket.gethostname()
            port = _open_port(host)
            self._url = f"http://{host}:{port}"
            return ["--host", host, "--port", str(port)]
        if self._door is None:
            self._door = _new_door()
        path = self._door / "server"
        path.unlink(missing_ok=True)
        self._url = f"unix:{path}"
        return ["--uds", str(path)]

    def _note_left(self, pid: int) -> None:
        left = {
            "session": pid,
            "since": processes.start_tick(pid),
            "space": processes.space(),
            "door": str(self._door or ""),
        }
        with contextlib.suppress(LauncherError, OSError):
            write_json(self._left, left, durable=False)

    def _end_left(self) -> None:
        """End the server of a keeper that was killed: it may be deaf, and holds its memory."""
        left = read_json(self._left)
        if not isinstance(left, dict) or left["space"] != processes.space():
            return
        processes.kill_session(left["session"], left["since"])
        if Path(left["door"]).name.startswith(_DOOR):
            shutil.rmtree(left["door"], ignore_errors=True)

    def _environment(self, order: ServerOrder) -> dict[str, str]:
        found = {**environment_without_ranks(), **order.environment}
        for name in ("VIRTUAL_ENV", "PYTHONHOME", "OMP_NUM_THREADS"):
            if name not in order.environment:
                found.pop(name, None)
        if order.gpus:
            found["CUDA_VISIBLE_DEVICES"] = order.gpus[self._place]
        own = {"LAUNCHER_VLLM_TOKEN": self._token(order), "PYTHONPATH": str(_INSIDE)}
        return {**found, **own, **_SWITCHES}

    def _is_healthy(self, order: ServerOrder) -> bool:
        """Whether the server answers, and not somebody who was at its port before it."""
        token = self._token(order)
        connection = ServerConnection(self._url, token, _HEALTH_S)
        try:
            if not self._has_proved:
                nonce = secrets.token_hex(16)
                found = connection.answer_to(f"{launcher_door.PROOF}{nonce}")
                if not hmac.compare_digest(found, launcher_door.proof_of(token, nonce)):
                    return False
                self._has_proved = True
            connection.get("/health")
        except (GoneError, RefusedError):
            return False
        return True

    def _token(self, order: ServerOrder) -> str:
        return places.token_of(order.token, self._start)

    def _say(self, state: ServerState, *, pid: int = 0, found: str = "") -> None:
        self._beat += 1
        record = ServerRecord(
            state=state,
            start=self._start,
            is_first=self._is_first,
            url=self._url,
            pid=pid,
            found=found,
            beat=self._beat,
        )
        with contextlib.suppress(
            LauncherError, OSError
        ):  # a disk that is full now may not be later
            places.note(self._folder, self._number, record)

    def _last_words(self) -> str:
        """What the server has said of its last start that tells most: its first errors, which the
        others follow from, else its end."""
        with open(self._log, "rb") as file:
            file.seek(self._log_began)
            lines = file.read().decode(errors="replace").splitlines()
        errors = dict.fromkeys(found[0] for line in lines if (found := _ERROR.search(line)))
        shown = [*errors][:_SHOWN] or lines[-_SHOWN:]
        return f"{self._log} says:\n" + "\n".join(f"    {line}" for line in shown)


def _end(server: subprocess.Popen[bytes]) -> None:
    """End a server and whatever it has started."""
    server.terminate()
    end = time.monotonic() + _GRACE_S
    while processes.descendants(os.getpid()) and time.monotonic() < end:
        server.poll()
        time.sleep(_POLL_S / 2)
    processes.kill_descendants(_KILLED_S)
    with contextlib.suppress(subprocess.TimeoutExpired):  # the kernel may hold one for ever
        server.wait(_KILLED_S)


def _new_door() -> Path:
    """A folder of this user's alone, whose paths are short enough for a socket."""
    usual = tempfile.gettempdir()
    is_short = len(os.fsencode(usual)) + len(_DOOR) + 20 < _LONGEST_PATH
    return Path(tempfile.mkdtemp(prefix=_DOOR, dir=usual if is_short else _SHORT))


def _open_port(host: str) -> int:
    with socket.create_server((host, 0)) as listening:
        return int(listening.getsockname()[1])


def main(argv: list[str]) -> int:
    """The exit code of `Keeper.serve`."""
    number = int(argv[1])
    return Keeper(Path(argv[0]), number, number).serve()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
