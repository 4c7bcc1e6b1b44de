"""Asks the model in training: answers to the prompts of a rollout, with what the grader says."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from launcher.config.schema import Config, variants
from launcher.config.schema.reinforce import GrpoConfig
from launcher.core.errors import ConfigError, DataError
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.core.runtime import Ranks
from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.chat.calls import CallReader
from launcher.data.chat.turn_ends import taught
from launcher.data.pack.loader import Row
from launcher.data.pack.mixture import Order
from launcher.distributed import collectives
from launcher.evals import generation
from launcher.evals.decoding import Decoding
from launcher.evals.records import prompt_and_reference
from launcher.graders.grader import Grade
from launcher.graders.sample import Sample
from launcher.health.heartbeat import Heartbeat
from launcher.objectives.grpo.advantages import penalties
from launcher.rollouts.answer import Drawn, Episode, Question, ScoredAnswer
from launcher.rollouts.engine import RolloutContext, RolloutEngine
from launcher.rollouts.environments.play import Play
from launcher.rollouts.patience import GradingPatience

#: Replaced prompts are those of an epoch that no run reaches.
_FAR = 1 << 20


@dataclass(frozen=True, slots=True)
class Trainee:
    """The model in training, and what computes in it."""

    model: Any
    """The bare model."""
    head: Any
    """A `launcher.model.head.TargetHead`."""
    engine: Any
    objective: Any
    """A `launcher.objectives.grpo.objective.Grpo`."""
    lay_out: Callable[[list[Row]], list[Row]]
    """Cuts rows into those that the head computes, as many on every rank."""


class Asker:
    """Has prompts answered and graded; every rank asks the same."""

    def __init__(
        self,
        run: RunDir,
        config: Config,
        ranks: Ranks,
        heart: Heartbeat,
        trainee: Trainee,
        cache: TokenCache | JoinedCache,
        order: Order,
        tokenizer: Any,
        *,
        prompts: int,
        should_stop: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        """`prompts` are those of an optimizer step."""
        assert isinstance(config.objective, GrpoConfig)
        self._heart, self._options = heart, config.objective
        self._trainee, self._prompts = trainee, prompts
        self._cache, self._order, self._tokenizer = cache, order, tokenizer
        self._calls = CallReader(tokenizer)
        decoding = Decoding(
            max_new_tokens=self._options.max_new_tokens,
            temperature=self._options.temperature,
            top_p=self._options.top_p,
            seed=config.seed,
        )
        stops = generation.find_stop_tokens(
            trainee.model, tokenizer, taught(read_json(run.data), tokenizer)
        )
        if not stops:
            raise ConfigError(
                "no token ends an answer: neither tokenizer nor generation config nor data has one",
                where="model.tokenizer",
                hint="give the tokenizer an eos_token, e.g. in its tokenizer_config.json",
            )
        context = RolloutContext(
            *(run, config, ranks, heart, trainee.model, tokenizer, decoding, stops),
            should_stop=should_stop,
            say=say,
        )
        self.engine: RolloutEngine = variants.ROLLOUT_ENGINES.load(config.rollout.name)(context)
        self._is_scored = self._options.grader is not None
        self._patience = GradingPatience(
            self._options.grader_wait_s, alive=heart.again, should_stop=should_stop, say=say
        )
        self._play: Play | None = None
        if self._options.environment is not None:
            self._play = Play(config, ranks, tokenizer, stops, self._decoded, heart.again)
            first = self._item(self._asked(0, [0], 0)[0])
            scores = collectives.by_main(ranks.is_main, partial(self._play.require, first))
            self._is_scored = self._is_scored or scores
        self._questions: list[Question] = []
        self._step = self._drawn_by = 0

    def refresh(self, step: int) -> None:
        """Have what is begun from now on answered by the weights before optimizer step `step`."""
        self.engine.refresh(step)
        self._drawn_by = step

    def begin(self, step: int, places: Sequence[int], replaced: int) -> None:
        """Ask the prompts at `places` of the rollout before optimizer step `step`, which were
        `replaced` so often."""
        self._questions, self._step = self._asked(step, places, replaced), step
        if self._play is None:
            self.engine.begin(self._questions, step)
        else:
            asked = [(question, self._item(question)) for question in self._questions]
            self._play.begin(asked, step, self.engine)

    def collect(self) -> tuple[list[ScoredAnswer], float]:
        """Answers to what was begun last, on every rank; and the seconds that grading took on the
        slowest."""
        questions = self._questions
        if self._play is None:
            drawn = self.engine.collect().items()
            episodes = {i: self._of_one_turn(questions[i], own) for i, own in drawn}
        else:
            episodes = self._play.collect(self._step, self.engine)
        self._heart.beat("eval", self._step, "grading")
        began = time.monotonic()
        mine = self._graded([own for _, own in sorted(episodes.items())])
        seconds = slowest(time.monotonic() - began)
        answers = [own for part in collectives.gather_objects(mine) for own in part]
        assert len(answers) == len(questions), f"{len(answers)} of {len(questions)} were answered"
        if self._is_scored and answers and all(own.score is None for own in answers):
            grader = "grader" if self._options.grader is not None else "environment"
            raise DataError(
                f"the {grader} has no score for any of {len(answers)} answers:"
                f" {next((text for own in answers for text in own.errors), 'it does not say why')}",
                where=f"objective.{grader}",
                hint=f"mend the {grader}, or the data that it reads",
            )
        return answers, seconds

    def _asked(self, step: int, places: Sequence[int], draw: int) -> list[Question]:
        """All answers that are wanted to the prompts at `places`."""
        learned = step // self._options.passes_per_rollout * self._prompts
        base = learned + draw * _FAR * self._order.num_packs
        found = []
        for place in places:
            (record,) = self._order.pack(base + place).tolist()
            split = prompt_and_reference(*self._trainee.objective.question(self._cache, record))
            assert split is not None, "settle has refused records that ask nothing"
            prompt, reference = map(tuple, split)
            found += [
                Question(place, number, draw, record, prompt, reference)
                for number in range(self._options.group_size)
            ]
        return found

    def _of_one_turn(self, question: Question, drawn: Drawn) -> Episode:
        text = self._decoded(drawn.tokens)
        return Episode(question, drawn.tokens, drawn.log_probs, cut=not drawn.ended, text=text)

    def _item(self, question: Question) -> Mapping[str, Any]:
        """What the grader, or an environment, reads of the record that asks."""
        prompt, reference = map(self._decoded, (question.tokens, question.reference))
        found: Mapping[str, Any] = self._trainee.objective.items.item(
            question.record, prompt, reference
        )
        return found

    def _grades(self, episodes: Sequence[Episode]) -> list[Grade]:
        """What the grader says of episodes; without one the environment, else that beside it."""
        if (grader := self._trainee.objective.grader) is None:
            return [Grade(own.score) for own in episodes]
        items = [self._item(own.question) for own in episodes]
        pairs = [(item, self._sample(own, item)) for item, own in zip(items, episodes, strict=True)]
        grades = self._patience.grades(lambda: grader.grade_all(pairs, self._heart.again))
        return [
            grade
            if own.score is None
            else replace(grade, sub_scores={**grade.sub_scores, "environment": own.score})
            for own, grade in zip(episodes, grades, strict=True)
        ]

    def _sample(self, own: Episode, item: Mapping[str, Any]) -> Sample:
        if not own.turns:
            return Sample(own.text, tuple(self._calls.calls(item, own.text)))
        calls = own.messages[-1].get("tool_calls", ())
        return Sample(own.text, tuple(calls), tuple(own.messages))

    def _graded(self, episodes: Sequence[Episode]) -> list[ScoredAnswer]:
        """This rank's answers with what is said of them."""
        lengths = np.array([own.longest for own in episodes], np.int64)
        beside = penalties(lengths, self._options).tolist()
        nothing = self._options.error_score if self._is_scored else 0.0
        answers = []
        for own, grade, penalty in zip(episodes, self._grades(episodes), beside, strict=True):
            question = own.question
            known = nothing if grade.score is None else grade.score
            if not own.tokens:
                known = None
            answers.append(
                ScoredAnswer(
                    place=question.place,
                    number=question.number,
                    draw=question.draw,
                    record=question.record,
                    where=self._cache.where(question.record),
                    prompt=self._decoded(question.tokens),
                    text=own.text,
                    cut=own.cut,
                    score=grade.score,
                    reward=None if known is None else known + penalty,
                    advantage=0.0,
                    is_learned=known is not None,
                    sub_scores=dict(grade.sub_scores),
                    errors=[
                        *own.errors,
                        *(f"{error.kind}: {error.message}" for error in grade.errors),
                    ],
                    prompt_tokens=list(question.tokens),
                    tokens=own.tokens,
                    sampler_log_probs=own.log_probs,
                    weight=self._cache.weight(question.record),
                    behind=self._step - self._drawn_by,
                    turns=own.turns,
                    messages=own.messages,
                )
            )
        return answers

    def environment_s(self) -> float:
        """Seconds that environments took since this was asked last, on the slowest rank."""
        if self._play is None:
            return 0.0
        mine, self._play.seconds = self._play.seconds, 0.0
        return slowest(mine)

    def close(self) -> None:
        """End what draws the answers, and environments."""
        self.engine.close()
        if self._play is not None:
            self._play.close()

    def _decoded(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def slowest(seconds: float) -> float:
    """What the slowest rank took."""
    return float(max(collectives.gather_objects(seconds)))
