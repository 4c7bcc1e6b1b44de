"""Environments at work, each in a process of its own within limits, as code of graders runs."""

from __future__ import annotations

import math
import resource
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from launcher.config.schema import Config
from launcher.config.schema.reinforce import GrpoConfig
from launcher.core import owncode, runtime
from launcher.core.errors import ConfigError
from launcher.graders.sandbox import pool

WHERE = "objective.environment"
_HINT = "it needs a class Environment with reset(item) and step(message)"

#: Seconds beyond a call's own time after which its worker is given up.
_GRACE_S = 10.0
#: Open files that an environment takes of its rank.
_FILES = 2
#: What a rank opens besides, in environments.
_SPARE = 256
#: Who may speak in an environment's name, behind the model and in the beginning.
_ROLES = ("user", "tool", "system", "developer")

Message = dict[str, Any]


class EnvironmentFailed(Exception):
    """An environment has raised, ended, taken too long or returned what it may not."""


class Beginning(NamedTuple):
    """What `reset` has said: messages, None where the record's own prompt is asked, and what the
    environment has besides."""

    messages: list[Message] | None
    tools: list[Message] | None
    scores: bool


@dataclass(frozen=True, slots=True)
class _Source:
    """A file of the user's and the modules that it imports from beside it: name -> text."""

    text: str
    modules: dict[str, str]

    @classmethod
    def read(cls, name: str) -> _Source:
        path = runtime.user_path(name)
        try:
            modules = {
                own: file.read_text(encoding="utf-8") for own, file in owncode.modules(path).items()
            }
            return cls(path.read_text(encoding="utf-8"), modules)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read: {error}", where=WHERE, hint=_HINT) from error


class Worlds:
    """Environments of a run on one rank. Their processes are kept for the next ones.

    Raises `ConfigError` for a file that cannot be read.
    """

    def __init__(self, config: Config) -> None:
        options = config.objective
        assert isinstance(options, GrpoConfig)
        assert options.environment is not None
        self._limits = config.eval.graders
        self._source = _Source.read(options.environment)
        self._turn_s, self._turns = options.turn_s, options.max_turns
        self.at_once = self._limits.workers or runtime.cpu_count()
        self._idle: deque[pool.SandboxWorker] = deque()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self._most = most // _FILES - _SPARE

    def require_room(self, count: int) -> None:
        """`ConfigError` where the system keeps this rank from so many at once."""
        if count > self._most:
            raise ConfigError(
                f"{count} environments on a rank need {_FILES * (count + _SPARE)} open files",
                where=WHERE,
                hint=f"more ranks, or a smaller batch.sequences: {max(1, self._most)} answers of a"
                " rollout on each at most, as `ulimit -Hn` says",
            )

    def open(self, seed: int) -> World:
        """An environment for one episode, whose `random` begins with `seed`."""
        job = {
            "source": self._source.text,
            "modules": self._source.modules,
            "seed": seed,
            "turn_s": self._turn_s,
            # reset, each step and score
            "most_s": self._turn_s * (self._turns + 2),
        }
        return World(job, self._started, self._idle.append)

    def _started(self) -> pool.SandboxWorker:
        try:
            return self._idle.popleft()
        except IndexError:
            return pool.start(self._limits)

    def close(self) -> None:
        """End the processes of all environments that are closed."""
        while self._idle:
            self._idle.pop().end()


class World:
    """The environment of one episode; after it has failed or is closed nothing can be asked."""

    def __init__(
        self,
        job: Mapping[str, Any],
        start: Callable[[], pool.SandboxWorker],
        give_back: Callable[[pool.SandboxWorker], None],
    ) -> None:
        self._job, self._start, self._give_back = job, start, give_back
        self._worker: pool.SandboxWorker | None = None
        self.seconds = 0.0
        """Time spent in it."""

    def reset(self, item: Mapping[str, Any]) -> Beginning:
        """How the conversation begins. Raises `EnvironmentFailed`, as all of these do."""
        found = self._asked({**self._job, "reset": dict(item)}, "reset")
        messages, tools = found.get("messages"), found.get("tools")
        if messages is not None:
            messages = self._messages(messages, "reset", (*_ROLES, "assistant"))
            if messages[-1]["role"] == "assistant":
                raise self._failure("reset returned messages of which the last is the assistant's")
        if tools is not None and not _are_tools(tools):
            raise self._failure("tools is no list of functions as OpenAI's API declares them")
        return Beginning(messages, tools, bool(found.get("scores")))

    def step(self, message: Message) -> list[Message] | None:
        """What it says to a message of the model; None where the conversation is at its end."""
        found = self._asked({"step": message}, "step")
        if found.get("messages") is None:
            return None
        return self._messages(found["messages"], "step", _ROLES)

    def score(self) -> float:
        """Its score of the conversation."""
        score = self._asked({"score": True}, "score").get("score")
        if not isinstance(score, int | float) or not math.isfinite(score):
            raise self._failure(f"score returned {score}, which is no number")
        return float(score)

    def close(self) -> None:
        """End all that it has started."""
        if self._worker is not None:
            try:
                self._worker.tell({"end": True})
                self._give_back(self._worker)
            except OSError:
                self._worker.end()
            self._worker = None

    def _asked(self, job: Mapping[str, Any], what: str) -> dict[str, Any]:
        began = time.monotonic()
        try:
            if self._worker is None:
                self._worker = self._start()
            found = self._worker.ask(job, self._job["turn_s"] + _GRACE_S)
        except (OSError, ValueError) as error:
            if self._worker is not None:
                self._worker.end()
                self._worker = None
            raise EnvironmentFailed(f"{what}: its process ended: {error}") from error
        finally:
            self.seconds += time.monotonic() - began
        if "turn" in found:
            turn: dict[str, Any] = found["turn"]
            return turn
        # It has ended, and its worker is free.
        self._give_back(self._worker)
        self._worker = None
        said = str(found.get("error") or found.get("stopped"))
        raise EnvironmentFailed(f"{what}: {said.encode(errors='replace').decode()}")

    def _messages(self, value: Any, what: str, roles: tuple[str, ...]) -> list[Message]:
        """What was returned, if it is messages."""
        if not isinstance(value, list) or not value:
            raise self._failure(f"{what} returned {_shown(value)}, which is no list of messages")
        for message in value:
            if not isinstance(message, dict) or not isinstance(message.get("content"), str):
                raise self._failure(
                    f"{what} returned the message {_shown(message)}, without a text as its content"
                )
            if message.get("role") not in roles:
                role = _shown(message.get("role"))
                raise self._failure(f"{what} returned a message of role {role}: {', '.join(roles)}")
        return value

    def _failure(self, found: str) -> EnvironmentFailed:
        self.close()
        return EnvironmentFailed(found)


def _are_tools(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(tool, dict)
        and isinstance(tool.get("function"), dict)
        and isinstance(tool["function"].get("name"), str)
        for tool in value
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
