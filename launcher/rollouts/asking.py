"""Asks the model in training: answers to the prompts of a rollout, with what the grader says."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from launcher.config.schema import Config
from launcher.config.schema.reinforce import GrpoConfig
from launcher.core.errors import ConfigError, DataError
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.core.runtime import Ranks
from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.chat.turn_ends import taught
from launcher.data.pack.loader import Row
from launcher.data.pack.mixture import Order
from launcher.distributed import collectives, gathered
from launcher.evals import generation
from launcher.evals.decoding import Decoding
from launcher.evals.records import prompt_and_reference
from launcher.graders.sample import Sample
from launcher.health.heartbeat import Heartbeat
from launcher.objectives.grpo.advantages import penalties
from launcher.objectives.grpo.grading import WHERE
from launcher.rollouts.answer import Question, ScoredAnswer
from launcher.rollouts.sampling import Drawn, draw

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
        self._config, self._ranks, self._heart = config, ranks, heart
        self._options, self._trainee, self._prompts = config.objective, trainee, prompts
        self._cache, self._order, self._tokenizer = cache, order, tokenizer
        self._should_stop, self._say = should_stop, say
        self._decoding = Decoding(
            max_new_tokens=self._options.max_new_tokens,
            temperature=self._options.temperature,
            top_p=self._options.top_p,
            seed=config.seed,
        )
        self._stops = generation.find_stop_tokens(
            trainee.model, tokenizer, taught(read_json(run.data), tokenizer)
        )
        if not self._stops:
            raise ConfigError(
                "no token ends an answer: neither tokenizer nor generation config nor data has one",
                where="model.tokenizer",
                hint="give the tokenizer an eos_token, e.g. in its tokenizer_config.json",
            )
        self._said: set[str] = set()

    def ask(
        self, step: int, places: Sequence[int], replaced: int
    ) -> tuple[list[ScoredAnswer], float]:
        """Answers to the prompts at `places` of the rollout before optimizer step `step`, which
        were `replaced` so often, on every rank; and the seconds that grading took on the
        slowest."""
        questions = self._questions(step, places, replaced)
        with gathered.for_generation(
            self._trainee.model, self._config, self._ranks, self._once
        ) as lockstep:
            drawn = draw(
                questions,
                self._trainee.model,
                self._tokenizer,
                self._decoding,
                step,
                stops=self._stops,
                batch_tokens=self._config.eval.batch_tokens,
                rank=self._ranks.rank,
                world_size=self._ranks.world_size,
                lockstep=lockstep,
                should_stop=self._should_stop,
            )
        self._heart.beat("eval", step, "grading")
        began = time.monotonic()
        mine = self._graded([(questions[i], own) for i, own in sorted(drawn.items())])
        seconds = slowest(time.monotonic() - began)
        answers = [own for part in collectives.gather_objects(mine) for own in part]
        assert len(answers) == len(questions), f"{len(answers)} of {len(questions)} were answered"
        if answers and all(own.score is None for own in answers):
            raise DataError(
                f"the grader has no score for any of {len(answers)} answers:"
                f" {next((text for own in answers for text in own.errors), 'it does not say why')}",
                where=WHERE,
                hint="mend the grader, or the data that it reads",
            )
        return answers, seconds

    def _questions(self, step: int, places: Sequence[int], draw: int) -> list[Question]:
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

    def _once(self, text: str) -> None:
        """Say how weights are gathered, for the first rollout alone."""
        if not self._said:
            self._say(text)
        self._said.add(text)

    def _graded(self, drawn: Sequence[tuple[Question, Drawn]]) -> list[ScoredAnswer]:
        """This rank's answers with what the grader says of them."""
        objective = self._trainee.objective
        texts = [self._decoded(own.tokens) for _, own in drawn]
        prompts = [self._decoded(question.tokens) for question, _ in drawn]
        pairs = [
            (objective.items.item(q.record, prompt, self._decoded(q.reference)), Sample(text))
            for (q, _), prompt, text in zip(drawn, prompts, texts, strict=True)
        ]
        grades = objective.grader.grade_all(pairs, self._heart.again)
        lengths = np.array([len(own.tokens) for _, own in drawn], np.int64)
        beside = penalties(lengths, self._options).tolist()
        answers = []
        for (question, own), prompt, text, grade, penalty in zip(
            drawn, prompts, texts, grades, beside, strict=True
        ):
            known = self._options.error_score if grade.score is None else grade.score
            answers.append(
                ScoredAnswer(
                    place=question.place,
                    number=question.number,
                    draw=question.draw,
                    record=question.record,
                    where=self._cache.where(question.record),
                    prompt=prompt,
                    text=text,
                    cut=not own.ended,
                    score=grade.score,
                    reward=None if known is None else known + penalty,
                    advantage=0.0,
                    is_learned=known is not None,
                    sub_scores=dict(grade.sub_scores),
                    errors=[f"{error.kind}: {error.message}" for error in grade.errors],
                    prompt_tokens=list(question.tokens),
                    tokens=own.tokens,
                    sampler_log_probs=own.log_probs,
                    weight=self._cache.weight(question.record),
                )
            )
        return answers

    def _decoded(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


def slowest(seconds: float) -> float:
    """What the slowest rank took."""
    return float(max(collectives.gather_objects(seconds)))
