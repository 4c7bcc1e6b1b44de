"""Episodes: the model and an environment speak in turn, all episodes of a rollout side by side.

Every rank knows all episodes, and holds the environments of its own ones: those whose place it has.
What is drawn and what environments say is told to all, so that all ranks ask the engine together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from launcher.config.schema import Config
from launcher.config.schema.reinforce import GrpoConfig
from launcher.core.errors import ConfigError
from launcher.core.runtime import Ranks
from launcher.data.formats.base import BadRecord
from launcher.distributed import collectives
from launcher.rollouts.answer import ERROR, Drawn, Episode, Question
from launcher.rollouts.engine import RolloutEngine
from launcher.rollouts.environments.continuation import Continuation
from launcher.rollouts.environments.worlds import WHERE, EnvironmentFailed, Message, World, Worlds

_SIGN_OF_LIFE_S = 1.0
T = TypeVar("T")


class _Said(NamedTuple):
    """What an environment has said, as all ranks get to know it."""

    messages: list[Message] | None = None
    """None where `reset` leaves the prompt to the record, and where the episode is at its end."""
    tools: list[Message] | None = None
    error: str = ""
    tokens: tuple[int, ...] = ()
    """Token ids of the messages."""


@dataclass(slots=True)
class _Scene:
    """An episode that goes on."""

    episode: Episode
    item: Mapping[str, Any]
    world: World | None
    """On the rank whose it is."""
    tools: list[Message] | None = None
    scores: bool = False
    is_over: bool = False

    def end(self, error: str = "", *, cut: bool = False) -> None:
        """Nothing more is said."""
        self.is_over = True
        self.episode.cut = self.episode.cut or cut
        if error:
            self.episode.errors.append(ERROR + error)


class Play:
    """Has questions answered in several turns; every rank calls it alike.

    Raises `ConfigError` for an environment or a chat template that cannot be used, as far as the
    first record tells.
    """

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        tokenizer: Any,
        stops: Sequence[int],
        decoded: Callable[[Sequence[int]], str],
        alive: Callable[[], None],
    ) -> None:
        assert isinstance(config.objective, GrpoConfig)
        self._options, self._room = config.objective, config.data.max_length
        self._seed, self._ranks = config.seed, ranks
        self._decoded, self._alive = decoded, alive
        self._continuation = Continuation(tokenizer, config.data, stops)
        self._worlds = Worlds(config)
        self._scenes: list[_Scene] = []
        self.seconds = 0.0
        """Time that environments took since this was set to 0, on this rank."""

    def require(self, item: Mapping[str, Any]) -> bool:
        """`ConfigError` unless the environment begins a conversation about `item`; whether it
        scores that."""
        world = self._worlds.open(0)
        try:
            begun = world.reset(item)
            if begun.tools:
                self._continuation.require_extending(begun.tools)
            if begun.messages is not None:
                self._continuation.beginning(begun.messages, begun.tools)
        except (EnvironmentFailed, BadRecord) as error:
            raise ConfigError(
                f"{self._options.environment}: {getattr(error, 'found', error)}",
                where=WHERE,
                hint="it needs a class Environment with reset(item) and step(message), as"
                " docs/reinforce.md#several-turns says",
            ) from error
        finally:
            world.close()
        if self._options.grader is None and self._options.teacher is None and not begun.scores:
            raise ConfigError(
                f"{self._options.environment} has no score(), and there is no grader",
                where="objective.grader",
                hint="give its class a method score() that returns a number, or"
                " objective.grader=FILE.yaml",
            )
        return begun.scores

    def begin(
        self,
        asked: Sequence[tuple[Question, Mapping[str, Any]]],
        step: int,
        engine: RolloutEngine,
    ) -> None:
        """Begin an episode about each question and its item, of the rollout before `step`."""
        self._end_worlds()
        self._scenes = []
        self._worlds.require_room(-(-len(asked) // self._ranks.world_size))
        for place, (question, item) in enumerate(asked):
            world = None
            if place % self._ranks.world_size == self._ranks.rank:
                name = self._seed, step, question.draw, question.place
                world = self._worlds.open(int(np.random.SeedSequence(name).generate_state(1)[0]))
            self._scenes.append(_Scene(Episode(question), item, world))
        for place, said in self._of_all(range(len(asked)), self._begun).items():
            scene, question = self._scenes[place], self._scenes[place].episode.question
            tokens = question.tokens if said.messages is None else said.tokens
            scene.episode.question = replace(question, tokens=tokens)
            scene.episode.messages += said.messages or []
            scene.tools = said.tools
            most = self._room - self._options.max_new_tokens
            if said.error:
                scene.end(said.error)
            elif len(tokens) > most:
                scene.end(f"reset: a beginning of {len(tokens)} tokens, where {most} have room")
        self._ask(step, engine)

    def collect(self, step: int, engine: RolloutEngine) -> dict[int, Episode]:
        """This rank's episodes, by place among what was begun."""
        while asked := self._live():
            drawn = {asked[i]: own for i, own in engine.collect().items()}
            for part in collectives.gather_objects(drawn):
                for place, own in part.items():
                    self._take(self._scenes[place], own)
            for place, said in self._of_all(self._live(), self._replied).items():
                self._answer(self._scenes[place], said)
            self._ask(step, engine)
        mine = [place for place, scene in enumerate(self._scenes) if scene.world is not None]
        self._in_threads(self._closed, mine)
        return {place: self._scenes[place].episode for place in mine}

    def close(self) -> None:
        """End all environments."""
        self._end_worlds()
        self._worlds.close()

    # ---- what is asked

    def _live(self) -> list[int]:
        return [place for place, scene in enumerate(self._scenes) if not scene.is_over]

    def _ask(self, step: int, engine: RolloutEngine) -> None:
        """Have the next turn of all episodes drawn that go on."""
        questions = []
        for place in self._live():
            own = self._scenes[place].episode
            tokens = (*own.question.tokens, *own.tokens)
            questions.append(replace(own.question, tokens=tokens, turn=len(own.turns)))
        if questions:
            engine.begin(questions, step)

    def _take(self, scene: _Scene, drawn: Drawn) -> None:
        """Note a turn of the model's."""
        own = scene.episode
        own.turns.append([len(own.tokens), len(own.tokens) + len(drawn.tokens)])
        own.tokens += drawn.tokens
        own.log_probs += drawn.log_probs
        own.text = self._decoded(drawn.tokens)
        number = len(own.turns) - 1
        own.messages.append(self._continuation.said(own.text, scene.tools, number))
        if not drawn.ended:
            scene.end(cut=True)

    def _answer(self, scene: _Scene, said: _Said) -> None:
        """Note what the environment says to it."""
        own = scene.episode
        if said.error or said.messages is None:
            scene.end(said.error)
            return
        length = len(own.question.tokens) + len(own.tokens) + len(said.tokens)
        is_full = length + self._options.max_new_tokens > self._room
        if is_full or len(own.turns) == self._options.max_turns:
            scene.end(cut=True)
            return
        own.tokens += said.tokens
        own.messages += said.messages

    # ---- environments of this rank

    def _begun(self, scene: _Scene) -> _Said:
        assert scene.world is not None
        try:
            begun = scene.world.reset(scene.item)
        except EnvironmentFailed as error:
            return _Said(error=str(error))
        scene.scores = begun.scores
        return _Said(begun.messages, begun.tools)

    def _replied(self, scene: _Scene) -> _Said:
        assert scene.world is not None
        try:
            return _Said(scene.world.step(scene.episode.messages[-1]))
        except EnvironmentFailed as error:
            return _Said(error=str(error))

    def _worded(self, own: Episode, said: _Said) -> _Said:
        """The same with the tokens that these messages are behind what the episode has."""
        if said.messages is None:
            return said
        try:
            if own.turns:
                tokens = self._continuation.behind(said.messages)
            else:
                tokens = self._continuation.beginning(said.messages, said.tools)
        except BadRecord as error:
            return _Said(error=f"{'step' if own.turns else 'reset'}: {error.found}")
        return said._replace(tokens=tuple(tokens))

    def _closed(self, scene: _Scene) -> None:
        """Ask for the score, and end the environment."""
        assert scene.world is not None
        if scene.scores and not scene.episode.errors:
            try:
                scene.episode.score = scene.world.score()
            except EnvironmentFailed as error:
                scene.end(str(error))
        scene.world.close()

    def _of_all(self, places: Sequence[int], call: Callable[[_Scene], _Said]) -> dict[int, _Said]:
        """What the environments of the episodes at `places` say, on all ranks."""
        mine = [place for place in places if self._scenes[place].world is not None]
        worded = {
            place: self._worded(self._scenes[place].episode, said)
            for place, said in self._in_threads(call, mine).items()
        }
        found: dict[int, _Said] = {}
        for part in collectives.gather_objects(worded):
            found |= part
        return dict(sorted(found.items()))

    def _in_threads(self, call: Callable[[_Scene], T], places: Sequence[int]) -> dict[int, T]:
        """`call` for the episodes at `places`, as many at a time as there are to be."""
        if not places:
            return {}
        began = time.monotonic()
        with ThreadPoolExecutor(min(self._worlds.at_once, len(places)), "environment") as threads:
            futures = {place: threads.submit(call, self._scenes[place]) for place in places}
            pending = set(futures.values())
            try:
                while pending:
                    done, pending = wait(pending, _SIGN_OF_LIFE_S, FIRST_EXCEPTION)
                    for future in done:
                        future.result()
                    self._alive()
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        self.seconds += time.monotonic() - began
        return {place: future.result() for place, future in futures.items()}

    def _end_worlds(self) -> None:
        for scene in self._scenes:
            if scene.world is not None:
                scene.world.close()
