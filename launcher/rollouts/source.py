"""Rollouts: the model in training answers, by a `launcher.rollouts.engine.RolloutEngine`.

A `launcher.data.pack.loader.RowSource`: the rows of a step are those of the rollout that it belongs
to, each of `updates_per_rollout` steps taking other prompts of it, and that in each of
`passes_per_rollout` passes. A rollout depends on weights,
seed and the step at which it begins; it is kept before it is learned from, and taken from there by
a run that goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from launcher.config.derive.plan import Plan
from launcher.config.schema import Config
from launcher.config.schema.reinforce import CutAnswers, GrpoConfig
from launcher.core.errors import DataError
from launcher.core.rundir import RunDir
from launcher.core.runtime import Ranks
from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.pack.loader import Row
from launcher.data.pack.mixture import Order
from launcher.distributed import collectives
from launcher.health.heartbeat import Heartbeat
from launcher.objectives.grpo.advantages import advantages, without_spread
from launcher.objectives.grpo.grading import WHERE
from launcher.rollouts.answer import ScoredAnswer
from launcher.rollouts.asking import Asker, Trainee, slowest
from launcher.rollouts.dealing import KEY, rows_of_rank
from launcher.rollouts.journal import RolloutJournal
from launcher.rollouts.tally import Sums, rewards_of, tally


class Rollouts:
    """The rows of a run whose model answers; every rank asks for the same steps."""

    def __init__(
        self,
        run: RunDir,
        config: Config,
        plan: Plan,
        ranks: Ranks,
        device: torch.device,
        heart: Heartbeat,
        trainee: Trainee,
        cache: TokenCache | JoinedCache,
        order: Order,
        tokenizer: Any,
        *,
        should_stop: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        assert isinstance(config.objective, GrpoConfig)
        self._options, self._packing = config.objective, config.data.packing
        self._plan, self._ranks, self._device = plan, ranks, device
        self._heart, self._trainee = heart, trainee
        self._prompts = plan.global_sequences // self._options.group_size
        """Prompts of an optimizer step."""
        self._count = self._prompts * self._options.updates_per_rollout
        updates = self._options.updates_per_rollout
        self._journal = RolloutJournal(run, plan.global_sequences * updates)
        self._asker = Asker(
            *(run, config, ranks, heart, trainee, cache, order, tokenizer),
            prompts=self._prompts,
            should_stop=should_stop,
            say=say,
        )
        self._begun: int | None = None
        self._ahead: int | None = None
        """The rollout that is asked for already."""
        self._answers: list[ScoredAnswer] = []
        self.sums: Sums = {}
        """What is logged of the rollout that the last step has begun, numerators and denominators,
        on all ranks alike."""

    def step(self, step: int) -> list[Row]:
        """This rank's rows of optimizer step `step` (from 0)."""
        first = step - step % self._options.steps_per_rollout
        if self._begun != first:
            state = torch.random.get_rng_state()
            self._answers = self._rollout(first)
            torch.random.set_rng_state(state)
            self._begun = first
        if step != first:
            self.sums = {}
        answers = self._learned((step - first) % self._options.updates_per_rollout)
        if not answers:
            raise DataError(
                f"no answer of step {step + 1} can be learned from: {self._left_out()}",
                where=str(self._journal.path(first)),
                hint="objective.cut_answers=keep learns from cut ones, a larger"
                " objective.max_new_tokens has fewer",
            )
        return self._rows(answers)

    def _learned(self, update: int) -> list[ScoredAnswer]:
        """The answers that an update of the rollout learns from."""
        places = range(update * self._prompts, (update + 1) * self._prompts)
        return [own for own in self._answers if own.place in places and own.is_learned]

    def _left_out(self) -> str:
        cut = sum(own.cut for own in self._answers)
        failed = sum(own.score is None for own in self._answers)
        return f"{cut} of {len(self._answers)} are cut, {failed} have no score"

    def _rows(self, answers: Sequence[ScoredAnswer]) -> list[Row]:
        return rows_of_rank(
            *(answers, self._trainee.objective, self._plan, self._ranks.rank),
            packing=self._packing,
            shares=self._trainee.head.shares,
        )

    # ---- one rollout

    def _rollout(self, step: int) -> list[ScoredAnswer]:
        """The answers of the rollout that begins before optimizer step `step`."""
        self._heart.beat("eval", step, "rollout")
        kept = self._on_main(lambda: self._journal.read(step))
        if kept is not None:
            answers: list[ScoredAnswer] = kept
            self.sums = tally(answers, self._options.group_size)
        else:
            answers = self._made(step)
            self._on_main(lambda: self._journal.write(step, answers))
        self._require_differing(step)
        if self._asker.engine.is_ahead:
            behind = float(sum(own.behind for own in answers))
            self.sums["behind"] = behind, float(len(answers))
            self._begin_next(step)
        self._heart.beat("step", step, "batch")
        return answers

    def _begin_next(self, step: int) -> None:
        """Have the next rollout drawn while that before optimizer step `step` is learned from."""
        following = step + self._options.steps_per_rollout
        assert self._plan.steps is not None
        is_kept = self._on_main(lambda: self._journal.path(following).exists())
        if following < self._plan.steps and not is_kept:
            self._asker.refresh(step)
            self._asker.begin(following, range(self._count), 0)
            self._ahead = following

    def close(self) -> None:
        """End what draws the answers."""
        self._asker.close()

    def _on_main(self, call: Callable[[], Any]) -> Any:
        return collectives.by_main(self._ranks.is_main, call)

    def _made(self, step: int) -> list[ScoredAnswer]:
        """The same, drawn, scored and judged."""
        began = time.monotonic()
        count = self._count
        found: dict[tuple[int, int], ScoredAnswer] = {}
        pending = list(range(count))
        grading = redrawn = 0.0
        if self._ahead != step:
            self._asker.refresh(step)
            self._asker.begin(step, pending, 0)
        for number in range(self._options.max_redraws + 1):
            if number:
                self._asker.begin(step, pending, number)
            answers, seconds = self._asker.collect()
            grading += seconds
            found |= {own.key: own for own in answers}
            flat = without_spread(self._rewards([found[key] for key in self._keys(pending)]))
            pending = [place for place, is_flat in zip(pending, flat, strict=True) if is_flat]
            if not pending or number == self._options.max_redraws:
                break
            redrawn += len(pending)
        answers = self._judged([found[key] for key in self._keys(range(count))])
        self._note_log_probs(answers)
        self.sums = {
            **tally(answers, self._options.group_size),
            "redrawn_groups": (redrawn, float(count)),
            "grading_s": (grading, 1.0),
            "rollout_s": (slowest(time.monotonic() - began), 1.0),
        }
        if self._options.environment is not None:
            self.sums["environment_s"] = self._asker.environment_s(), 1.0
        return answers

    def _keys(self, places: Iterable[int]) -> list[tuple[int, int]]:
        """Those of all answers to the prompts at `places`."""
        return [(place, i) for place in places for i in range(self._options.group_size)]

    def _rewards(self, answers: Sequence[ScoredAnswer]) -> NDArray[np.float64]:
        return rewards_of(answers, self._options.group_size)

    def _judged(self, answers: Sequence[ScoredAnswer]) -> list[ScoredAnswer]:
        """All answers in order, with their advantages."""
        values = advantages(self._rewards(answers), self._options).ravel().tolist()
        filters = self._options.cut_answers is CutAnswers.filter
        return [
            replace(
                own,
                advantage=advantage,
                is_learned=own.is_learned and not (filters and own.cut),
            )
            for own, advantage in zip(answers, values, strict=True)
        ]

    def _note_log_probs(self, answers: list[ScoredAnswer]) -> None:
        """Work out, for all updates of the rollout, what the model makes of the answers now, if it
        is asked again later, and what the teacher does, if it is asked of what was drawn."""
        objective, trainee = self._trainee.objective, self._trainee
        # What is not learned needs none, but rows have all or none.
        if self._options.steps_per_rollout > 1:
            trainee.engine.eval()
            try:
                own = partial(objective.old_log_probs, trainee.head, trainee.engine)
                known = self._by_answer(answers, own)
            finally:
                trainee.engine.train()
            for one in answers:
                one.log_probs = known.get(one.key, one.sampler_log_probs)
        if self._options.asks_of_drawn:
            known = self._by_answer(answers, objective.teacher_log_probs)
            for one in answers:
                one.teacher_log_probs = known.get(one.key, one.sampler_log_probs)

    @torch.no_grad()
    def _by_answer(
        self, answers: Sequence[ScoredAnswer], ask: Callable[[Row], torch.Tensor]
    ) -> dict[tuple[int, int], list[float]]:
        """What `ask` makes of each token of each answer that is learned, on all ranks; it gives
        numbers by target of a row, fp32 [targets]."""
        mine: dict[tuple[int, int], list[float]] = {}
        for update in range(self._options.updates_per_rollout):
            places = range(update * self._prompts, (update + 1) * self._prompts)
            own = [one for one in answers if one.place in places and one.is_learned]
            for row in self._trainee.lay_out(self._rows(own)) if own else ():
                self._heart.again()
                values = ask(row := row.to(self._device))
                is_idle = row.record_weights is not None and not row.record_weights.any()
                if row.is_filler or is_idle:
                    continue
                counts = torch.bincount(row.document_of_targets()).tolist()
                parts = torch.split(values.cpu(), counts)
                for key, part in zip(row.columns[KEY].tolist(), parts, strict=True):
                    mine[tuple(key)] = part.tolist()
        known: dict[tuple[int, int], list[float]] = {}
        for part in collectives.gather_objects(mine):
            known |= part
        return known

    # ---- what is told of it

    def _require_differing(self, step: int) -> None:
        """`DataError` if all answers of the run's first rollouts have one score."""
        most = self._options.constant_rollouts
        if (
            most is None
            or self._options.teacher is not None
            or step != (most - 1) * self._options.steps_per_rollout
        ):
            return
        scores = self._on_main(lambda: self._scores_so_far(step))
        if len(scores) == 1:
            raise DataError(
                f"all answers of the first {most} rollouts score {scores[0]:g}: nothing can be"
                " learned from them",
                where=WHERE if self._options.grader is not None else "objective.environment",
                hint="read some in the folder rollouts of the run: an easier task, a better start,"
                " a higher objective.temperature or another grader may tell them apart",
            )

    def _scores_so_far(self, step: int) -> list[float]:
        found: set[float | None] = set()
        for first in range(0, step + 1, self._options.steps_per_rollout):
            found |= {own.score for own in self._journal.read(first) or ()}
        return sorted(score for score in found if score is not None)
