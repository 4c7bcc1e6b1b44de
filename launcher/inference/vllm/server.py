"""The one server of this process: started, watched, asked and ended."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from launcher import entry
from launcher.core import processes, runtime
from launcher.core.errors import ConfigError
from launcher.inference.requests import Refused
from launcher.vllm import places
from launcher.vllm.command import BASE
from launcher.vllm.connection import FailedError, GoneError, RefusedError, ServerConnection
from launcher.vllm.places import ServerOrder, ServerRecord, ServerState

#: Longest end of the keeper and its server.
_END_S = 15.0
_HEALTH_S = 10.0
#: Longest draw of one token, where no other has come for as long as `_HEARD_S`.
_PROBE_S, _HEARD_S = 60.0, 30.0
#: A keeper that has given no sign of life for so long is stuck.
_SILENT_S = 60.0
#: A server that has been there for so long may lose its keeper as often as a new one.
_STEADY_S = 600.0
_POLL_S = 1.0
#: What vLLM says of adapters that it has no use for; what else fails may not be their fault.
_UNFIT = re.compile(
    "max_lora_rank|target modules|not (yet )?support|only support|[Uu]nsupported|vocabulary size"
)


class WatchedServer:
    """A server by what `order` says; `start`, `watch` and `close` are called by the main thread,
    the others by any."""

    def __init__(self, folder: Path, order: ServerOrder, answer_s: float) -> None:
        """`folder` has its files; it goes with the server. `answer_s`: longest silence of it."""
        self._folder, self._order, self._answer_s = folder, order, answer_s
        self._keeper: subprocess.Popen[bytes] | None = None
        self._revived = 0
        self._ready: ServerRecord | None = None
        self._lost = ""
        """Start of the server that is to be started again, whatever is still told of it."""
        self._is_over = False
        self._changed = threading.Condition()
        self._loaded: dict[str, str] = {}
        """Adapter -> the server's start that has it."""
        self._loading: dict[str, threading.Lock] = {}
        self._heard_at = 0.0
        """When it has sent anything of an answer."""
        self._probing = threading.Lock()
        self._beat = (0, time.monotonic())
        """Its keeper's last sign of life, and when it came."""
        self._since = time.monotonic()
        """Since when it is there, or is not."""

    def start(self) -> None:
        """Have it started."""
        places.give_order(self._folder, self._order)
        self._begin()

    def _begin(self) -> None:
        command = entry.command("launcher.vllm.keeper", str(self._folder), "0")
        log = self._folder / "keeper.log"
        self._keeper = processes.start(command, log, runtime.environment_without_ranks())
        self._beat = (0, time.monotonic())

    def watch(self) -> None:
        """One look at it. Raises `ConfigError` if it cannot be had."""
        record = places.read(self._folder, 0)
        assert self._keeper is not None
        if self._keeper.poll() is not None:
            if record is not None and record.state is ServerState.failed:
                raise _lost(record.found)
            self._revived += 1
            if self._revived > self._order.max_restarts:
                raise _lost(f"what keeps it was killed {self._revived} times")
            (self._folder / "server-0.json").unlink(missing_ok=True)
            record = None
            self._begin()
        self._look_after_keeper(record)
        if record is not None:
            is_well = record.state is ServerState.ready and record.start != self._lost
            record = record if is_well else None
        with self._changed:
            if record is None or self._ready is None or record.start != self._ready.start:
                if (record is None) is not (self._ready is None):
                    self._since = time.monotonic()
                self._ready = record
                self._changed.notify_all()
        self._look_at_time()

    def _look_after_keeper(self, record: ServerRecord | None) -> None:
        """End a keeper that is stuck, unless its server needs none at present."""
        assert self._keeper is not None
        now = time.monotonic()
        if record is not None and record.beat != self._beat[0]:
            self._beat = record.beat, now
        if now - self._beat[1] < _SILENT_S:
            return
        if self._ready is not None and self._is_healthy(self._ready):
            self._beat = self._beat[0], now  # its words are lost, as on a full disk
            return
        self._keeper.kill()  # its server gets SIGTERM by that
        self._keeper.wait()

    def _look_at_time(self) -> None:
        past_s = time.monotonic() - self._since
        if self._ready is not None:
            self._revived = 0 if past_s > _STEADY_S else self._revived
        elif past_s > 2 * self._order.start_s + _SILENT_S:
            raise _lost(f"it has not been there for {past_s:.0f} s")

    @property
    def is_ready(self) -> bool:
        """Whether it can be asked."""
        return self._ready is not None

    def reach(self, is_gone: Callable[[], bool]) -> tuple[str, ServerConnection]:
        """Which start of it answers, and the way to it; waits for it to be there. Raises
        `GoneError` at the end, or when who waits `is_gone`."""
        with self._changed:
            while self._ready is None:
                if self._is_over:
                    raise GoneError("it is at its end")
                if is_gone():
                    raise GoneError("nobody waits for the answer")
                self._changed.wait(_POLL_S)
            record = self._ready
        return record.start, self._connection(record, self._answer_s)

    def _connection(self, record: ServerRecord, timeout_s: float) -> ServerConnection:
        token = places.token_of(self._order.token, record.start)
        return ServerConnection(record.url, token, timeout_s)

    def heard(self) -> None:
        """It has sent something of an answer."""
        self._heard_at = time.monotonic()

    def lost(self, start: str) -> None:
        """It has not answered: unless it is well after all, it is started again."""
        with self._probing:
            record = self._ready
            if record is None or record.start != start or self._is_well(record):
                return
            places.ask_for_restart(self._folder, 0, start)
            with self._changed:
                self._lost = start
                if self._ready is record:
                    self._ready, self._since = None, time.monotonic()

    def _is_healthy(self, record: ServerRecord) -> bool:
        try:
            self._connection(record, _HEALTH_S).get("/health")
        except (GoneError, RefusedError):
            return False
        return True

    def _is_well(self, record: ServerRecord) -> bool:
        """Whether it draws tokens, which one whose engine hangs does not: it says that it is
        well."""
        if not self._is_healthy(record):
            return False
        if time.monotonic() - self._heard_at < min(_HEARD_S, self._answer_s / 2):
            return True
        body = {"model": BASE, "prompt": [0], "max_tokens": 1, "temperature": 0.0}
        body |= {"seed": 0, "stop_token_ids": []}
        try:
            self._connection(record, _PROBE_S).post("/v1/completions", body)
        except RefusedError:
            return True
        except GoneError:
            return False
        return True

    def longest(self) -> int | None:
        """Tokens that prompt and answer may have together, as it says itself. Raises `GoneError`
        and `RefusedError`."""
        record = self._ready
        if record is None:
            raise GoneError("it is not there")
        (base, *_) = self._connection(record, _HEALTH_S).get("/v1/models")["data"]
        found: int | None = base.get("max_model_len")
        return found

    def take_adapter(
        self, start: str, connection: ServerConnection, name: str, folder: Path
    ) -> None:
        """Have it answer as `name` by the adapter in `folder`. Raises `GoneError`, and `Refused` if
        it has no use for the adapter."""
        with self._lock_of(name):
            if self._loaded.get(name) == start:
                return
            asked = {"lora_name": name, "lora_path": str(folder)}
            try:
                connection.post("/v1/load_lora_adapter", asked)
            except (FailedError, RefusedError) as error:
                listed = connection.get("/v1/models")["data"]
                if name not in [one["id"] for one in listed]:  # else it was loaded, and not told
                    raise _unfit(error) from error
            self._loaded[name] = start

    def drop_adapter(self, name: str, folder: Path) -> None:
        """Have it forget an adapter that nobody asks for any more, and remove its folder if it was
        made for the server; waits for nothing."""
        threading.Thread(target=self._drop, args=(name, folder), daemon=True).start()

    def _drop(self, name: str, folder: Path) -> None:
        with self._lock_of(name):
            if self._folder in folder.parents:
                shutil.rmtree(folder, ignore_errors=True)
            record = self._ready
            if record is None or self._loaded.pop(name, None) != record.start:
                return
            try:
                connection = self._connection(record, _HEALTH_S)
                connection.post("/v1/unload_lora_adapter", {"lora_name": name})
            except (GoneError, RefusedError):
                return  # it goes with the server

    def _lock_of(self, name: str) -> threading.Lock:
        with self._changed:
            return self._loading.setdefault(name, threading.Lock())

    def close(self) -> None:
        """End it and its keeper."""
        with self._changed:
            self._is_over, self._ready = True, None
            self._changed.notify_all()
        places.withdraw_order(self._folder)
        if self._keeper is None:
            return
        self._keeper.terminate()
        try:
            self._keeper.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._keeper.kill()  # its server gets SIGTERM by that
            self._keeper.wait()


def _unfit(error: FailedError | RefusedError) -> Exception:
    """What is said of an adapter that it has not loaded."""
    if _UNFIT.search(str(error)):
        return Refused(
            "model_not_supported",
            "This model's adapter is of a kind that this server cannot answer with.",
            "model",
        )
    return error if isinstance(error, FailedError) else GoneError(str(error))


def _lost(found: str) -> ConfigError:
    hint = "mend chat.vllm.python, chat.vllm.options or chat.vllm.memory, or chat.answers: local"
    return ConfigError(f"vLLM cannot be had: {found}", where="serve.yaml: chat.vllm", hint=hint)
