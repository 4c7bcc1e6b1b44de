"""Requests that come line by line, until they are answered: what is demanded is checked, and
projects have turns."""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from launcher.core.fairness import RoundRobin
from launcher.inference.batching import Ask
from launcher.inference.constraints import Grammars, Unsatisfiable, is_demanded
from launcher.inference.requests import FAILED, Refused, Write, asks_of
from launcher.inference.speaker import Speaker


def answers_to_server() -> Write:
    """What writes lines to the server that has started this process, which comes behind it from
    now on: the server answers everyone else too, and on CPUs a model takes all that there are.

    Nothing else comes between the lines, whatever a library prints. Any thread may write.
    """
    os.nice(5)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    writing = threading.Lock()

    def write(line: dict[str, Any]) -> None:
        with writing:
            out.write(json.dumps(line) + "\n")
            out.flush()

    return write


class Inbox(ABC):
    """Takes in requests line by line, and hands them out in turn."""

    def __init__(self, longest: int, write: Write) -> None:
        """`longest`: most tokens of an answer. `write` is called by several threads."""
        self._longest, self._write = longest, write
        self._waiting: RoundRobin[dict[str, Any]] = RoundRobin()
        self._unchecked: RoundRobin[dict[str, Any]] = RoundRobin()
        """Requests that demand a form of their answers, until it is known that there is one."""
        self._changed = threading.Condition()
        self._is_over = False
        self._checked: dict[int, Grammars] = {}
        """What has made demands, by identity."""
        self._open: set[str] = set()
        self._kept: dict[str, dict[str, Any]] = {}
        """The requests that wait, by id."""

    def listen(self, lines: Iterable[str]) -> None:
        """Take in requests until there are no more; all are withdrawn then."""
        checking = threading.Thread(target=self._check, daemon=True)
        checking.start()
        for line in lines:
            request = json.loads(line)
            if "cancel" in request:
                self._open.discard(request["cancel"])
                self._withdraw(request["cancel"])
                with self._changed:
                    self._kept.pop(request["cancel"], {}).clear()  # it may be large
            elif "forget" in request:
                self._forget(request["forget"])
            else:
                self._open.add(request["id"])
                with self._changed:
                    self._kept[request["id"]] = request
                self._take_in(request)
        self._open.clear()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        checking.join()
        for grammars in self._checked.values():
            grammars.close()

    @abstractmethod
    def _speaker_of(self, request: dict[str, Any]) -> Speaker:
        """Who is asked."""

    def _grammars_of(self, request: dict[str, Any]) -> Grammars:
        """What makes its demands."""
        return self._speaker_of(request).grammars

    def _take_in(self, request: dict[str, Any]) -> None:
        """A request whose speaker is there waits for its turn, unless it was withdrawn."""
        with self._changed:
            if request:
                to = self._unchecked if is_demanded(request) else self._waiting
                to.add(request.get("project", ""), request)
                self._changed.notify_all()

    def _withdraw(self, name: str) -> None:  # noqa: B027 - most see it at the next token
        """Nobody waits for the answers of a request any more."""

    def _forget(self, model: dict[str, Any]) -> None:  # noqa: B027 - most have one, for good
        """A model is asked for no more."""

    def _asks(self, request: dict[str, Any], is_gone: Callable[[], bool]) -> list[Ask]:
        """The answers that a request wants."""
        speaker = self._speaker_of(request)
        return asks_of(request, speaker, self._longest, self._write, is_gone)

    def _check(self) -> None:
        """Make what is demanded of answers, apart from what answers: a schema may take seconds."""
        while True:
            with self._changed:
                while (request := self._unchecked.next()) is None:
                    if self._is_over:
                        return
                    self._changed.wait()
                if not request:
                    continue
                held = dict(request)
            name = str(held["id"])
            try:
                grammars = self._grammars_of(held)
                self._checked[id(grammars)] = grammars
                constraint = grammars.constraint(held)
            except Unsatisfiable as error:
                self._refuse(name, "invalid_value", str(error), error.param)
            except Exception:
                traceback.print_exc()
                self._refuse(name, "failed", FAILED)
            else:
                with self._changed:
                    if request:
                        request["constraint"] = constraint
                        self._waiting.add(request.get("project", ""), request)
                        self._changed.notify_all()

    def _next(self, *, wait: bool) -> dict[str, list[Ask]]:
        """What the next request wants, by its id; nothing if none waits or none will come."""
        while True:
            with self._changed:
                while (request := self._waiting.next()) is None:
                    if self._is_over or not wait:
                        return {}
                    self._changed.wait()
                if not request:
                    continue
                name = str(request["id"])
                del self._kept[name]

            def is_gone(name: str = name) -> bool:
                return name not in self._open

            if is_gone():
                continue
            try:
                asks = self._asks(request, is_gone)
            except Refused as error:
                self._refuse(name, error.code, str(error), error.param)
            except Exception:  # no request ends what answers the others
                traceback.print_exc()
                self._refuse(name, "failed", FAILED)
            else:
                return {name: asks}

    def _refuse(self, name: str, code: str, message: str, param: str | None = None) -> None:
        self._open.discard(name)
        with self._changed:
            self._kept.pop(name, None)
        at_fault = {"param": param} if param else {}
        self._write({"id": name, "error": message, "code": code, **at_fault})
