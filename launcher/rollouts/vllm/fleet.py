"""The servers of an attempt as rank 0 sees them: which are there, which weights they have, what
they are asked."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

from launcher import entry
from launcher.config.schema.rollout import VllmRolloutConfig
from launcher.core import processes, runtime
from launcher.core.errors import ConfigError, HangError
from launcher.model.rebuild import base_folder
from launcher.rollouts.answer import Drawn, Question
from launcher.rollouts.engine import RolloutContext
from launcher.rollouts.vllm.client import Server
from launcher.rollouts.vllm.command import command_of, gpus_of
from launcher.vllm import places
from launcher.vllm.command import BASE
from launcher.vllm.connection import GoneError
from launcher.vllm.places import ServerOrder, ServerRecord, ServerState
from launcher.vllm.threads import Threads

#: A keeper that has given no sign of life for so long is gone.
_SILENT_S = 60.0
#: Longest end of a keeper and its server.
_END_S = 30.0
#: Link to the weights that all servers have, for one that starts again.
SERVED = "served"


class Fleet:
    """The servers of an attempt as rank 0 sees them."""

    def __init__(self, context: RolloutContext, scratch: Path, first: Path) -> None:
        """`scratch` is the folder of all weights, `first` of the first."""
        assert isinstance(context.config.rollout, VllmRolloutConfig)
        self._context, self._options = context, context.config.rollout
        self._is_adapter = hasattr(context.model, "peft_config")
        self._attempt = context.heart.now.attempt
        self._folder = places.folder_of(context.run, self._attempt)
        self._count = self._options.servers * max(1, self._options.nodes)
        self._token = secrets.token_urlsafe(32)
        self._weights = first
        self._given: dict[int, tuple[str, Path]] = {}
        """Server -> which start of it was given which weights."""
        self._beats: dict[int, tuple[int, float]] = {}
        """Server -> its keeper's last sign of life, and when it came."""
        self._lost_since: dict[int, float] = {}
        self._revived: Counter[int] = Counter()
        self._threads = Threads(self._options.requests)
        self._loaders = Threads(self._count)
        self._loads: dict[int, Future[None]] = {}
        self._questions: Sequence[Question] = ()
        self._step = 0
        self._asked: dict[int, tuple[int, str, Future[Drawn]]] = {}
        """Question -> server, its start, and the answer to come."""
        self._drawn: dict[int, Drawn] = {}
        self._asleep: set[int] = set()
        self._scratch = scratch
        self._keepers: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Order the servers, and start them where no job has done so."""
        options, config = self._options, self._context.config
        for number in range(self._count):
            for ending in ("json", "stuck"):
                (self._folder / f"server-{number}.{ending}").unlink(missing_ok=True)
        base = base_folder(config.model) if self._is_adapter else self._scratch / SERVED
        gpus = gpus_of(config, options)
        places.give_order(
            self._folder,
            ServerOrder(
                command=command_of(self._context, options, base, gpus),
                environment=dict(options.environment),
                token=self._token,
                scratch=str(self._scratch),
                gpus=gpus,
                is_reached_from_afar=options.nodes > 0,
                start_s=options.start_s,
                max_restarts=options.max_restarts,
            ),
        )
        self._context.say(
            f"rollouts: {self._count} vLLM server{'s' if self._count > 1 else ''}, log"
            f" {places.log_of(self._folder, 0)}"
        )
        if not options.nodes:  # else those of the job are there already
            self._keepers = [self._keeper(number) for number in range(self._count)]

    def _keeper(self, number: int) -> subprocess.Popen[bytes]:
        module = "launcher.rollouts.vllm.keeper"
        command = entry.command(module, str(self._context.run), str(self._attempt), str(number))
        return processes.start(command, self._folder / "keeper.log", runtime.child_environment())

    # ---- weights

    def take_over(self, folder: Path) -> None:
        """Have every server answer by the weights in `folder`; `advance` tells when all do."""
        self._weights = folder
        link = folder.with_name("link")
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        link.replace(folder.with_name(SERVED))
        # A server that starts may still read those before.
        for old in sorted(folder.parent.glob("weights-*"), key=_version)[:-2]:
            shutil.rmtree(old, ignore_errors=True)

    def advance(self) -> bool:
        """Whether the servers have the weights and all that was asked is answered; brings on what
        is not. Where there are several, one that starts anew is not waited for. Raises
        `ConfigError` for a server that cannot be had, `HangError` for one that has not come
        back."""
        ready = [number for number in range(self._count) if self._is_ready(number)]
        self._take_in()
        if not ready or any(
            self._is_awaited(number) for number in {*range(self._count)} - {*ready}
        ):
            return False
        self._send(ready)
        return len(self._drawn) == len(self._questions)

    def _is_awaited(self, number: int) -> bool:
        record = self._record(number)
        return record is None or record.is_first or record.state is ServerState.ready

    def _record(self, number: int) -> ServerRecord | None:
        """What is known of a server; None where its keeper gives no sign of life."""
        keeper = self._keepers[number] if self._keepers else None
        if keeper is not None and keeper.poll() is not None:
            record = places.read(self._folder, number)
            if record is not None and record.state is ServerState.failed:
                return record
            self._revive(number)
            return None
        record = places.read(self._folder, number)
        if record is None:
            return None
        now = time.monotonic()
        beat, since = self._beats.get(number, (0, now))
        if beat != record.beat:
            since = now
        self._beats[number] = record.beat, since
        return record if now - since < _SILENT_S else None

    def _revive(self, number: int) -> None:
        """Start a keeper in the place of one that was killed, and its server with it."""
        self._revived[number] += 1
        if self._revived[number] > self._options.max_restarts:
            raise HangError(
                f"what keeps server {number} was killed {self._revived[number]} times",
                where="rollout.max_restarts",
                hint=f"{self._folder / 'keeper.log'} may say why",
            )
        (self._folder / f"server-{number}.json").unlink(missing_ok=True)
        self._keepers[number] = self._keeper(number)

    def _is_ready(self, number: int) -> bool:
        """Whether a server is there and has the weights; hands them over where it has not."""
        record = self._record(number)
        if record is not None and record.state is ServerState.failed:
            raise ConfigError(
                f"server {number} cannot be had: {record.found}",
                where="rollout",
                hint="mend rollout.python, rollout.options or rollout.memory, or rollout=local",
            )
        if record is None or record.state is not ServerState.ready:
            self._note_lost(number)
            return False
        self._lost_since.pop(number, None)
        wanted = record.start, self._weights
        if self._has(number, wanted):
            return True
        load = self._loads.pop(number, None)
        if load is None:
            server = self._server(record)
            self._loads[number] = self._loaders.submit(partial(self._load, server, number, *wanted))
        elif not load.done():
            self._loads[number] = load
        else:
            load.result()
        return self._has(number, wanted)

    def _has(self, number: int, wanted: tuple[str, Path]) -> bool:
        return self._given.get(number) == wanted and number not in self._asleep

    def _load(self, server: Server, number: int, start: str, folder: Path) -> None:
        last, had = self._given.get(number, ("", folder))
        try:
            if number in self._asleep:
                server.wake("weights")
            if self._is_adapter:
                before = had.name if last == start else None
                server.load_adapter(folder.name, str(folder), before)
            else:
                server.load_weights(str(folder))
            if number in self._asleep:
                server.wake("kv_cache")
        except GoneError:
            places.ask_for_restart(self._folder, number, start)
            return
        self._asleep.discard(number)
        self._given[number] = start, folder

    def _note_lost(self, number: int) -> None:
        """`HangError` for a server that is not there for too long."""
        self._asleep.discard(number)
        since = self._lost_since.setdefault(number, time.monotonic())
        most = 2 * self._options.start_s
        if time.monotonic() - since > most:
            raise HangError(
                f"server {number} has not been there for {most} s",
                where="rollout.start_s",
                hint=f"its log {places.log_of(self._folder, number)} may say why",
            )

    # ---- answers

    def ask(self, questions: Sequence[Question], step: int) -> None:
        """Begin with the answers of the rollout before optimizer step `step`."""
        self._questions, self._step = questions, step
        self._asked, self._drawn = {}, {}
        self._send(list(range(self._count)))

    def _send(self, ready: Sequence[int]) -> None:
        """Ask what is neither asked nor answered, the servers in turn."""
        left = self._questions and {*range(len(self._questions))} - {*self._drawn, *self._asked}
        if not left:
            return
        context = self._context
        model = self._weights.name if self._is_adapter else BASE
        records = {number: self._record(number) for number in ready}
        for i in sorted(left):
            number = ready[i % len(ready)]
            record = records[number]
            if record is None or not self._has(number, (record.start, self._weights)):
                continue
            server = self._server(record)
            ask = partial(server.answer, self._questions[i], self._step, model)
            ask = partial(ask, decoding=context.decoding, stops=context.stops)
            self._asked[i] = number, record.start, self._threads.submit(ask)

    def _take_in(self) -> None:
        """The answers that have come; those of a server that is gone are asked again."""
        for i, (number, start, answer) in list(self._asked.items()):
            if not answer.done():
                continue
            del self._asked[i]
            try:
                self._drawn[i] = answer.result()
            except GoneError:
                if self._given.get(number, ("", None))[0] == start:
                    del self._given[number]
                    places.ask_for_restart(self._folder, number, start)

    def taken(self) -> list[Drawn]:
        """All answers, in the order of the questions."""
        drawn = [self._drawn[i] for i in range(len(self._questions))]
        self._questions, self._drawn = (), {}
        if self._options.sleep:
            for number in range(self._count):
                self._put_to_sleep(number)
        return drawn

    def _server(self, record: ServerRecord) -> Server:
        token = places.token_of(self._token, record.start)
        return Server(record.url, token, self._options.answer_s)

    def _put_to_sleep(self, number: int) -> None:
        record = self._record(number)
        if record is None or record.state is not ServerState.ready:
            return
        server = self._server(record)
        try:
            server.sleep(keeps_weights=self._is_adapter)
        except GoneError:
            places.ask_for_restart(self._folder, number, record.start)
            return
        self._asleep.add(number)
        if not self._is_adapter:
            self._given.pop(number, None)

    def close(self) -> None:
        """End the servers: those of other nodes see that they are not wanted any more."""
        places.withdraw_order(self._folder)
        self._threads.close()
        self._loaders.close()
        for keeper in self._keepers:
            keeper.terminate()
        for keeper in self._keepers:
            try:
                keeper.wait(_END_S)
            except subprocess.TimeoutExpired:
                keeper.kill()  # its server gets SIGTERM by that
                keeper.wait()


def _version(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])
