"""Distillation: cross entropy on the targets, mixed with a divergence from a teacher.

With q the student's and p the teacher's distribution over the tokens at a target, both from logits
divided by the temperature T, and y the target itself:

loss = (1 - alpha) (-log q_1(y)) + alpha T^2 D(p, q), summed over the targets

q_1 is q at T = 1. D is in nats, never negative, and 0 where both are the same:

forward  KL(p || q): the student must give weight to all that the teacher does (Hinton et al. 2015,
         arXiv:1503.02531, whose T^2 keeps the gradient's size)
reverse  KL(q || p): it must give none to what the teacher thinks unlikely (MiniLLM, Gu et al. 2023,
         arXiv:2306.08543; here on the texts of the data, not on the student's own)
jsd      beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q (GKD, Agarwal et al.
         2023, arXiv:2306.13649): between both, forward for beta near 0, reverse near 1, bounded

With `top_k` D is that of the k tokens that the teacher thinks likeliest at the target and of all
others as one: a lower bound of the above (`launcher.model.divergence`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from launcher.config.schema.distill import DistillConfig
from launcher.data.cache import Column, Per
from launcher.objectives.base import LossSum, Objective
from launcher.objectives.distill.records import DivergenceRecord
from launcher.objectives.teacher import Taught, load
from launcher.objectives.text import TextObjective

if TYPE_CHECKING:
    import torch

    from launcher.data.pack.loader import Row
    from launcher.model.divergence import Measure, Teacher
    from launcher.model.head import TargetHead


#: Columns of what is kept of a teacher.
TOKENS, LOG_PROBS = "teacher_tokens", "teacher_log_probs"


class Distill(Taught):
    """Cross entropy mixed with a divergence from the teacher, per target token."""

    options: DistillConfig
    asks = "the teacher"

    # ---- from example to documents

    @property
    def expects_context(self) -> bool:  # type: ignore[override]
        """Not where all tokens are learned."""
        return not self.options.all_tokens

    def turn_ends(self, format_name: str, tokenizer: Any) -> dict[str, list[int]] | None:
        """As of plain text where all tokens are learned."""
        if not self.options.all_tokens:
            return None
        return TextObjective(self.options).turn_ends(format_name, tokenizer)

    # ---- what is known once the data is

    def apart(self, other: Objective) -> Collection[str]:
        """The divergence, where it is from another teacher or measured otherwise."""
        if isinstance(other, Distill) and self._measured() == other._measured():
            return ()
        return ("divergence",)

    def _measured(self) -> list[Any]:
        options = self.options
        how = [options.divergence, options.temperature, options.beta, options.top_k]
        named = options.teacher, options.teacher_revision
        return [*how, *(self.facts.files or named)]

    # ---- the models

    @property
    def reference(self) -> Sequence[Column]:  # type: ignore[override]
        """The teacher's likeliest tokens at each target, and the log-probabilities of these and of
        all others together."""
        count = self.options.top_k
        if count is None:
            return ()
        return (
            Column(TOKENS, Per.target, "int32", count),
            Column(LOG_PROBS, Per.target, "float32", count + 1),
        )

    @property
    def referent_identity(self) -> Sequence[Any] | None:
        """The teacher is asked, where it does not run beside the student."""
        if self.options.top_k is None:
            return None
        named = (
            [] if self.facts.is_folder else [self.options.teacher, self.options.teacher_revision]
        )
        return [self.facts.tokens, self.options.temperature, *named]

    def referent(self, student: Any, device: torch.device) -> tuple[TargetHead, Any]:
        """The teacher."""
        asked = load(self.options, self.facts, student)
        return asked, asked.model.to(device)

    def refer(self, head: TargetHead, caller: Any, row: Row) -> Mapping[str, torch.Tensor]:
        """What is kept of the teacher's distribution at the row's targets."""
        import torch

        from launcher.model.divergence import most_likely

        assert self.options.top_k is not None
        count, number = self.options.top_k, len(row.targets)
        tokens = row.targets.new_empty((number, count), dtype=torch.int32)
        log_probs = row.targets.new_empty((number, count + 1), dtype=torch.float32)

        def see(logits: torch.Tensor, part: slice) -> None:
            heat = self.options.temperature
            tokens[part], log_probs[part] = most_likely(logits, count, self.facts.tokens, heat)

        head.see(caller, row, see)
        return {TOKENS: tokens, LOG_PROBS: log_probs}

    # ---- learning

    def loss(self, head: TargetHead, caller: Any, row: Row) -> LossSum:
        """The mixture, summed over the row's targets; logged are its parts."""
        from launcher.objectives.distill.loss import Mixture

        mixture = Mixture(
            row.targets,
            row.weights,
            self._of(row),
            share=self.options.alpha,
            temperature=self.options.temperature,
        )
        total = head.learn(caller, row, mixture)
        data, divergence = mixture.sums
        weight = self.weight(row)
        return LossSum(total, {"cross_entropy": (data, weight), "divergence": (divergence, weight)})

    def _of(self, row: Row) -> Teacher:
        """What the teacher says of the row's targets."""
        from launcher.model.divergence import TopTeacher

        if (count := self.options.top_k) is not None:
            number = len(row.targets)
            return TopTeacher(
                row.columns[TOKENS].reshape(number, count),
                row.columns[LOG_PROBS].reshape(number, count + 1),
                self.facts.tokens,
                self._measure(),
            )
        return self.whole_teacher(row, self._measure())

    def _measure(self) -> Measure:
        from launcher.model.divergence import Measure

        return Measure.of(self.options.divergence, self.options.temperature, self.options.beta)

    # ---- held-out records

    def score(
        self,
        head: TargetHead,
        caller: Any,
        rows: Iterable[tuple[Row | None, Sequence[int]]],
        should_stop: Callable[[], bool] | None,
    ) -> dict[str, list[Any]]:
        """Cross entropy and divergence of the records."""
        from launcher.evals import runner

        losses, divergences = [], []
        for row, ids in runner.computed(rows, should_stop):
            loss, correct, far = self._scored(head, caller, row)
            pair = (row, ids)
            losses += runner.loss_records([pair], partial(_second, other=(loss, correct)))
            summed = runner.loss_records([pair], partial(_second, other=(far, correct)))
            divergences += [DivergenceRecord(one.id, one.loss_sum, one.targets) for one in summed]
        return {"loss": losses, "divergence": divergences}

    def _scored(
        self, head: TargetHead, caller: Any, row: Row
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of each target cross entropy and divergence in nats, fp32 [T], and between them whether
        it is the first choice, bool [T]."""
        from launcher.model.target_logits import Scores

        found, known = Scores(row.targets), self._of(row)
        far = found.losses.clone()

        def see(logits: torch.Tensor, part: slice) -> None:
            found(logits, part)
            far[part] = known.far(logits, part)

        head.see(caller, row, see)
        return found.losses, found.correct, far


def _second(_: Any, other: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """What has been scored already."""
    return other
