"""`python -m launcher.inference.vllm.worker`: models of one base, and a server of vLLM.

It speaks as `launcher.inference.worker` does. Before all, a line on stdin says what it is to be:
`{model, is_shared, folder, max_tokens, vllm}`, with `model` as `launcher.inference.vllm.opening`
has it, `folder` of its own, and `vllm` the site's settings. A request names its own `model`, one of
the same base where `is_shared`, and `{forget: model}` is for one that is no more.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.core.errors import LauncherError
from launcher.core.fairness import RoundRobin
from launcher.data.tokenizer import load_tokenizer
from launcher.inference.batching import Ask
from launcher.inference.command import exit_code_of, note
from launcher.inference.constraints import Grammars
from launcher.inference.inbox import Inbox, answers_to_server
from launcher.inference.requests import FAILED, Refused, Write
from launcher.inference.speaker import Speaker, quiet
from launcher.inference.vllm import opening
from launcher.inference.vllm.opening import Origin
from launcher.inference.vllm.relay import Relay
from launcher.inference.vllm.server import WatchedServer
from launcher.model.rebuild import base_folder
from launcher.vllm.command import command, lora_room
from launcher.vllm.connection import GoneError
from launcher.vllm.places import ServerOrder

_POLL_S = 0.2
#: Memory for keys and values of a server on CPUs, unless the site says another.
_CPU_KEYS_GIB = "4"


@dataclass(frozen=True, slots=True)
class Served:
    """A model that can be asked, and its adapter's name and folder if it is one."""

    speaker: Speaker
    grammars: Grammars
    adapter: tuple[str, Path] | None = None


@dataclass(slots=True)
class _Model:
    """A model as it is asked for."""

    served: Served | None = None
    waiting: list[dict[str, Any]] = field(default_factory=list)
    """Requests until it is open."""
    users: int = 0
    is_forgotten: bool = False


class Relaying(Inbox):
    """Answers by a server, as many at a time as it is to be asked for."""

    def __init__(
        self,
        server: WatchedServer,
        opened: Callable[[dict[str, Any]], Served],
        longest: int,
        most: int,
        write: Write,
    ) -> None:
        """`opened` makes what a request's `model` stands for ready; `most`: answers at a time."""
        super().__init__(longest, write)
        self._server, self._open_model = server, opened
        self._slots = threading.BoundedSemaphore(most)
        self._models: dict[str, _Model] = {}
        self._to_open: RoundRobin[tuple[str, dict[str, Any]]] = RoundRobin()
        """Models that nobody has asked for before; one is opened at a time, projects in turn."""
        self._broken: BaseException | None = None
        self._model_of: dict[str, tuple[str, str]] = {}
        """Request -> its model and who asks, until it is answered."""
        self._relays: dict[str, list[Relay]] = {}
        """Request -> its answers that are waited for."""

    @property
    def is_over(self) -> bool:
        """Whether there will be no more requests."""
        return self._is_over

    def start(self, lines: Iterable[str]) -> None:
        """Take in requests by a thread of its own."""
        self._start(self._open_all)
        self._start(self.listen, lines)

    def begin(self) -> None:
        """Answer by a thread of its own."""
        self._start(self.work)

    def check(self) -> None:
        """Raises what has ended one of the threads: nobody does its work then."""
        if self._broken is not None:
            raise self._broken

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        def run() -> None:
            try:
                work(*arguments)
            except BaseException as error:
                self._broken = error

        threading.Thread(target=run, daemon=True).start()

    def _speaker_of(self, request: dict[str, Any]) -> Speaker:
        return self._served(request).speaker

    def _grammars_of(self, request: dict[str, Any]) -> Grammars:
        return self._served(request).grammars

    def _served(self, request: dict[str, Any]) -> Served:
        served = self._models[opening.key_of(request["model"])].served
        assert served is not None
        return served

    def _take_in(self, request: dict[str, Any]) -> None:
        key = opening.key_of(request["model"])
        with self._changed:
            known = key in self._models
            model = self._models.setdefault(key, _Model())
            model.is_forgotten = False
            if model.served is None:
                model.waiting.append(request)
            else:
                super()._take_in(request)
            if not known:
                self._to_open.add(request.get("project", ""), (key, request["model"]))
                self._changed.notify_all()

    def _open_all(self) -> None:
        while True:
            with self._changed:
                while (found := self._to_open.next()) is None:
                    if self._is_over:
                        return
                    self._changed.wait()
            self._open_one(*found)

    def _open_one(self, key: str, raw: dict[str, Any]) -> None:
        code, message, param = "failed", FAILED, None
        try:
            served = self._open_model(raw)
        except Refused as error:
            code, message, param = error.code, str(error), error.param
        except LauncherError as error:
            note(str(error))
        except Exception:
            traceback.print_exc()
        else:
            with self._changed:
                model = self._models[key]
                model.served, waiting = served, model.waiting
                model.waiting = []
                for request in waiting:
                    super()._take_in(request)
            return
        with self._changed:
            waiting = self._models.pop(key).waiting
            names = [str(request["id"]) for request in waiting if request]
        for name in names:
            self._refuse(name, code, message, param)

    def _asks(self, request: dict[str, Any], is_gone: Callable[[], bool]) -> list[Ask]:
        asks = super()._asks(request, is_gone)
        key = opening.key_of(request["model"])
        with self._changed:
            self._model_of[request["id"]] = key, request.get("project", "")
            self._models[key].users += 1
        return asks

    def work(self) -> None:
        """Have all answered until `listen` has come to its end."""
        while batch := self._next(wait=True):
            for name, asks in batch.items():
                self._write({"id": name, "begun": True})
                left = [len(asks)]
                for ask in asks:
                    self._slots.acquire()
                    threading.Thread(
                        target=self._answer, args=(name, ask, left), daemon=True
                    ).start()

    def _answer(self, name: str, ask: Ask, left: list[int]) -> None:
        key, project = self._model_of[name]
        served = self._models[key].served
        assert served is not None
        try:
            relay = Relay(ask, served.speaker, self._server, served.adapter, project)
            with self._changed:
                self._relays.setdefault(name, []).append(relay)
            if not ask.is_gone():
                relay.answer()
        except Refused as error:
            self._refuse(name, error.code, str(error), error.param)
        except GoneError as error:
            note(f"an answer is lost: {error}")
            self._refuse(name, "failed", FAILED)
        except Exception:
            traceback.print_exc()
            self._refuse(name, "failed", FAILED)
        finally:
            self._slots.release()
            with self._changed:
                left[0] -= 1
                is_last = not left[0]
                if is_last:
                    self._relays.pop(name, None)
                    self._open.discard(name)
                    del self._model_of[name]
                    self._models[key].users -= 1
            if is_last:
                self._drop(key)

    def _withdraw(self, name: str) -> None:
        with self._changed:
            relays = [*self._relays.get(name, ())]
        for relay in relays:
            relay.withdraw()

    def _forget(self, raw: dict[str, Any]) -> None:
        with self._changed:
            key = opening.key_of(raw)
            model = self._models.get(key)
            if model is None or model.served is None:
                return
            model.is_forgotten = True
        self._drop(key)

    def _drop(self, key: str) -> None:
        """Nothing is kept of a forgotten model that nobody waits for any more."""
        with self._changed:
            model = self._models.get(key)
            if model is None or not model.is_forgotten or model.users or model.served is None:
                return
            if any(one and opening.key_of(one["model"]) == key for one in self._kept.values()):
                return
            del self._models[key]
        if model.served.adapter is not None:
            self._server.drop_adapter(*model.served.adapter)


def _order(settings: dict[str, Any], folder: Path, words: list[str]) -> ServerOrder:
    own = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if not any(word.startswith("--kv-cache-memory") for word in settings["options"]):
        # Else it takes its share of the host's memory.
        own["VLLM_CPU_KVCACHE_SPACE"] = _CPU_KEYS_GIB
    return ServerOrder(
        command=(*words, *settings["options"]),
        environment={**own, **settings["environment"]},
        token=secrets.token_urlsafe(32),
        scratch=str(folder),
        gpus=(),
        is_reached_from_afar=False,
        start_s=settings["start_s"],
        max_restarts=settings["max_restarts"],
    )


def words_of(
    settings: dict[str, Any], model: Path, tokenizer: Path, dtype: str, *, is_shared: bool
) -> list[str]:
    """The command of the server, but for the site's own options."""
    words = command(settings["python"], model, dtype)
    words += ["--tokenizer", str(tokenizer)]
    # As for the model in a process: what the model itself says, and grammars of one library.
    words += ["--logprobs-mode", "raw_logprobs", "--max-logprobs", "20"]
    words += ["--structured-outputs-config", json.dumps({"backend": "guidance"})]
    if settings["memory"] is not None:
        words += ["--gpu-memory-utilization", f"{settings['memory']:g}"]
    if is_shared:
        room = lora_room(settings["lora_rank"])
        words += ["--enable-lora", "--max-lora-rank", str(room)]
        words += ["--max-loras", str(settings["adapters"])]
    return words


class Opening:
    """Makes models of one server ready."""

    def __init__(self, first: dict[str, Any], folder: Path, *, is_shared: bool) -> None:
        """`first`: the model that it is started for."""
        origin = Origin.of(first)
        config = origin.config()
        self._folder, self._is_shared = folder, is_shared
        if is_shared:
            self.weights = base_folder(config.model)
        else:
            self.weights = opening.own_folder(origin, folder)
        self.tokenizer = folder / "tokenizer"
        load_tokenizer(config.model).save_pretrained(self.tokenizer)
        self.dtype = opening.dtype_of(origin, is_shared=is_shared)
        self.trusts = config.model.trust_remote_code
        self.positions: int | None = None
        """Tokens that there is room for in the server."""
        self._grammars: dict[Any, Grammars] = {}
        """Those of models that have all in common: each has a process that checks schemas."""

    def __call__(self, raw: dict[str, Any]) -> Served:
        """What can be asked of a model. Raises `ConfigError` and its kind."""
        origin = Origin.of(raw)
        adapter = trained = None
        if self._is_shared and origin.run is not None:
            trained = opening.adapter_folder(origin, self._folder)
            adapter = opening.name_of(origin), trained
        speaker = opening.speaker(origin, self.weights, trained)
        own = speaker.tokenizer
        alike = (own.backend_tokenizer.to_str(), own.chat_template, *speaker.stop_tokens)
        grammars = self._grammars.setdefault(alike, speaker.grammars)
        return Served(replace(speaker, room=self.positions), grammars, adapter)


def main() -> int:
    """Exit code of `launcher.core.errors.ExitCode`; what went wrong is said on stderr."""
    write = answers_to_server()

    def work() -> None:
        quiet()
        asked = json.loads(sys.stdin.readline() or "null")
        if asked is None:
            return
        settings, folder = asked["vllm"], Path(asked["folder"])
        opened = Opening(asked["model"], folder, is_shared=asked["is_shared"])
        words = words_of(
            settings, opened.weights, opened.tokenizer, opened.dtype, is_shared=asked["is_shared"]
        )
        words += ["--trust-remote-code"] if opened.trusts else []
        server = WatchedServer(folder, _order(settings, folder, words), settings["answer_s"])
        relaying = Relaying(server, opened, asked["max_tokens"], settings["requests"], write)
        relaying.start(sys.stdin)
        try:
            server.start()
            has_begun = False
            while not relaying.is_over:
                relaying.check()
                server.watch()
                if server.is_ready and not has_begun:
                    with contextlib.suppress(GoneError):  # what becomes of it is seen by `watch`
                        opened.positions = server.longest()
                        write({"ready": True})
                        relaying.begin()
                        has_begun = True
                time.sleep(_POLL_S)
        finally:
            server.close()

    return exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main())
