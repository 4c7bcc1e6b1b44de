"""What draws the answers of a rollout: the seam between rollouts and who computes them.

The ids that were drawn are what is learned: nothing is tokenised again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from launcher.config.schema import Config
from launcher.core.rundir import RunDir
from launcher.core.runtime import Ranks
from launcher.evals.decoding import Decoding
from launcher.health.heartbeat import Heartbeat
from launcher.rollouts.answer import Drawn, Question


@dataclass(frozen=True, slots=True)
class RolloutContext:
    """The run whose model answers."""

    run: RunDir
    config: Config
    ranks: Ranks
    heart: Heartbeat
    model: Any
    """The bare model in training."""
    tokenizer: Any
    decoding: Decoding
    stops: Sequence[int]
    """Tokens that end an answer."""
    should_stop: Callable[[], bool]
    """Whether any rank has been asked to stop; one collective."""
    say: Callable[[str], None]


class RolloutEngine(Protocol):
    """One file, one row in `variants.ROLLOUT_ENGINES`. Every rank has one, and all call its methods
    together."""

    is_ahead: bool
    """Whether the answers of the next rollout are begun before this one is learned from."""

    def refresh(self, step: int) -> None:
        """Answer from now on by the weights as they are, before optimizer step `step` (from 0)."""

    def begin(self, questions: Sequence[Question], step: int) -> None:
        """Ask `questions`, of the rollout before optimizer step `step`: all ranks pass the same.
        What is drawn depends on nothing but weights, step and each question."""

    def collect(self) -> dict[int, Drawn]:
        """This rank's share of the answers, by place among the questions that were begun last.

        Raises `launcher.evals.runner.EvaluationStopped` where the run is to stop.
        """

    def close(self) -> None:
        """End what was started; may be called twice."""
