"""Kahneman-Tversky optimisation: answers of which each is known to be good or bad, without pairs.

With g the sum of an answer's log-probabilities less that under the reference (the model before
training), s the logistic function and z the baseline, the loss of an answer is

good   desirable_weight * (1 - s(beta * (g - z)))
bad    undesirable_weight * (1 - s(beta * (z - g)))

(Ethayarajh et al. 2024, arXiv:2402.01306, eq. 8). z stands for the divergence from the reference:
the mean of g over mismatched answers, each behind the prompt of another, of the *global* batch, and
no less than 0; no gradient goes through it. A reward is beta * g. The loss of a batch is the mean
over its answers.

A mismatched answer is that of a record shortly before with another prompt; it lies beside the
record's own one in its pack, and is not trained on.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from launcher.config.schema import Config
from launcher.config.schema.preference import KtoConfig
from launcher.core.errors import DataError
from launcher.data.cache import Column, JoinedCache, TokenCache
from launcher.data.chat.masking import ChatOptions
from launcher.data.formats.base import Unpaired
from launcher.data.formats.learned import examples_for
from launcher.evals.metric import Metric
from launcher.evals.records import LossRecord, Results
from launcher.objectives.base import LossSum, Objective, Records
from launcher.objectives.preference import drift, verdicts
from launcher.objectives.preference.encoder import VERDICT, VerdictEncoder
from launcher.objectives.preference.pairs import REFERENCE, sums_of, tokens_of
from launcher.objectives.preference.verdicts import VerdictRecord, verdict_records

if TYPE_CHECKING:
    from torch import Tensor

    from launcher.data.pack.loader import Row

#: Name of the baseline among what is summed over the global batch.
BASELINE = "baseline"


class Verdicts(NamedTuple):
    """The answers of a row, each fp32 [answers]."""

    log_probs: Tensor
    """Sums over the answers' tokens, in nats."""
    tokens: Tensor
    reference: Tensor
    """The same sums of the model before training."""
    good: Tensor
    """1 for a good answer, 0 for a bad one."""

    @property
    def gains(self) -> Tensor:
        """Log-ratios to the reference."""
        return self.log_probs - self.reference


class Kto(Objective):
    """Loss per answer, against the reference."""

    options: KtoConfig
    columns: ClassVar[Sequence[Column]] = (Column(VERDICT),)
    documents: ClassVar[Sequence[str]] = ("answer", "mismatched")
    reference: ClassVar[Sequence[Column]] = (Column(REFERENCE),)
    held_out_reference: ClassVar[Sequence[Column]] = (*reference, *drift.COLUMNS)

    # ---- from example to documents

    def encoder(self, tokenizer: Any, chat: ChatOptions) -> VerdictEncoder:
        """The answer, and another one, behind the prompt."""
        return VerdictEncoder(tokenizer, chat)

    def question(
        self, cache: TokenCache | JoinedCache, record: int
    ) -> tuple[Sequence[int], Sequence[int]]:
        """That of the record's own answer."""
        tokens, targets = cache.record(record)
        end = cache.documents(record)[0]
        return tokens[:end].tolist(), targets[:end].tolist()

    def settle(
        self,
        config: Config,
        train: TokenCache | JoinedCache,
        held_out: TokenCache | JoinedCache | None,
    ) -> None:
        """`DataError` for answers that are all good, or all bad: they say nothing of a
        difference."""
        _require_both_kinds(bool(train.column(VERDICT, i)[0]) for i in range(len(train)))

    def foresee(self, config: Config, records: Records) -> None:
        """The same."""
        made = (
            one
            for _, example in records("train")
            for one in examples_for(example, self.options, config.data.ranked)
        )
        _require_both_kinds(one.label for one in made if isinstance(one, Unpaired))

    # ---- learning

    def refer(self, head: Any, caller: Any, row: Row) -> Mapping[str, Tensor]:
        """Sums of the log-probabilities of each document's answer, fp32 [documents]."""
        return {REFERENCE: sums_of(head.log_probs(caller, row), row)}

    def refer_held_out(self, head: Any, caller: Any, row: Row) -> Mapping[str, Tensor]:
        """The same, and what is kept to see how far the model goes."""
        log_probs, kept = drift.of_reference(head, caller, row)
        return {REFERENCE: sums_of(log_probs, row), **kept}

    def weight(self, row: Row) -> float:
        """Number of answers, each counted with its weight."""
        weights = row.record_weights
        return float(len(row.records) if weights is None else weights.sum())

    def over_batch(self, head: Any, caller: Any, row: Row) -> Mapping[str, tuple[Any, Any]]:
        """The gains of mismatched answers, for the baseline."""
        others = row.every(2, 1)
        gains = _answers(others, head.log_probs(caller, others)).gains
        weights = row.record_weights
        total = gains.sum() if weights is None else gains @ weights
        return {BASELINE: (total, self.weight(row))}

    def loss(self, head: Any, caller: Any, row: Row) -> LossSum:
        """Sum of the losses of the row's answers, by the baseline of the global batch."""
        own = row.every(2)
        found = _answers(own, head.log_probs(caller, own))
        baseline = self._baseline(self.batch.get(BASELINE, 0.0))
        losses = self.judge_answers(found, baseline)
        total = losses.sum() if row.record_weights is None else losses @ row.record_weights
        return LossSum(total, self._logged(found, baseline))

    def judge_answers(self, found: Verdicts, baseline: float) -> Tensor:
        """Losses of answers, fp32 [answers] with gradients."""
        options = self.options
        lead = options.beta * (found.gains - baseline)
        good = options.desirable_weight * (1 - lead.sigmoid())
        bad = options.undesirable_weight * (1 - (-lead).sigmoid())
        return good * found.good + bad * (1 - found.good)

    @staticmethod
    def _baseline(mean: float) -> float:
        """A divergence is no less than 0, whatever an estimate of it is."""
        return max(0.0, mean)

    def _logged(self, found: Verdicts, baseline: float) -> dict[str, tuple[Any, Any]]:
        """Numerators and denominators of what is logged beside the loss."""
        rewards, good = self.options.beta * found.gains.detach(), found.good
        right = ((rewards > 0) == (good > 0)).logical_and(rewards != 0).sum()
        right = right + 0.5 * (rewards == 0).sum()
        return {
            "verdict_accuracy": (right, len(good)),
            "reward_good": (rewards @ good, good.sum()),
            "reward_bad": (rewards @ (1 - good), (1 - good).sum()),
            "baseline": (baseline * len(good), len(good)),
        }

    # ---- held-out records

    def score(
        self,
        head: Any,
        caller: Any,
        rows: Iterable[tuple[Row | None, Sequence[int]]],
        should_stop: Callable[[], bool] | None,
    ) -> dict[str, list[Any]]:
        """Each answer; losses follow in `judge`, which knows the baseline of all."""
        import torch

        from launcher.evals.runner import computed

        records: list[VerdictRecord] = []
        for row, ids in computed(rows, should_stop):
            with torch.no_grad():
                log_probs, far = drift.of_model(head, caller, row)
                both = _answers(row, log_probs)
            base = both.log_probs if self.is_base else both.reference
            columns = (both.log_probs, base, both.tokens, both.good)
            sums, reference, tokens, good = (values.view(-1, 2).tolist() for values in columns)
            gone = None if far is None else sums_of(far, row)[::2].tolist()
            records += [
                VerdictRecord(
                    id=record,
                    is_good=good[i][0] > 0,
                    reward=self.options.beta * (sums[i][0] - reference[i][0]),
                    log_prob=sums[i][0],
                    reference=reference[i][0],
                    tokens=int(tokens[i][0]),
                    mismatched=sums[i][1] - reference[i][1],
                    divergence=math.nan if gone is None else gone[i],
                )
                for i, record in enumerate(ids)
            ]
        return {"verdicts": records}

    def judge(self, results: Results) -> None:
        """The loss of each answer, by the baseline of all of them."""
        import torch

        records = verdict_records(results)
        if not records:
            return

        def values(name: str) -> Tensor:
            found = [float(getattr(record, name)) for record in records]
            return torch.tensor(found, dtype=torch.float64)

        found = Verdicts(*map(values, ("log_prob", "tokens", "reference", "is_good")))
        baseline = self._baseline(float(values("mismatched").mean()))
        losses = self.judge_answers(found, baseline).tolist()
        results.passes["loss"] = [
            LossRecord(record.id, loss, 1, int(record.rightness == 1))
            for record, loss in zip(records, losses, strict=True)
        ]

    def about(self, results: Results) -> dict[str, Any]:
        """Means over the held-out answers."""
        return {"verdicts": verdicts.means(verdict_records(results))}

    def about_comparison(
        self, results: Results, metrics: Sequence[Metric[Any]]
    ) -> tuple[dict[str, Any], list[str]]:
        """The same, with a warning where good answers have become less likely."""
        return self.about(results), verdicts.warnings(verdict_records(results))

    def sections(self, results: Results, about: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What became of good and bad answers."""
        records = verdict_records(results)
        return [verdicts.section(records)] if records else []

    def lines(
        self,
        base: Results | None,
        tuned: Results,
        metrics: Sequence[Metric[Any]],
        where: Callable[[int], str],
        text: Callable[[int], str],
    ) -> list[dict[str, Any]]:
        """The generated answers where there are any; else each answer with its reward."""
        found = super().lines(base, tuned, metrics, where, text)
        return found or verdicts.lines(base, tuned, where, text)


def _require_both_kinds(good: Iterable[bool]) -> None:
    """`DataError` where answers are all good, or all bad."""
    found = Counter(good)
    if len(found) == 1:
        ((is_good, number),) = found.items()
        raise DataError(
            f"all {number:,} answers are {'good' if is_good else 'bad'}: there is nothing to tell"
            " apart",
            where="data.train",
            hint="add answers of the other kind; good ones alone are learned with objective=sft",
        )


def _answers(row: Row, log_probs: Tensor) -> Verdicts:
    """The documents of a row, by what is found at each target."""
    sums = sums_of(log_probs, row)
    return Verdicts(sums, tokens_of(row, sums), row.columns[REFERENCE], row.columns[VERDICT])
