"""What objectives over pairs of answers share: from record to report, all but the loss."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from launcher.config.schema import Config
from launcher.core.errors import ConfigError
from launcher.data.cache import Column, JoinedCache, TokenCache
from launcher.data.chat.masking import ChatOptions
from launcher.data.formats.base import Preference
from launcher.data.formats.learned import examples_for
from launcher.evals.metric import Metric
from launcher.evals.records import LossRecord, Results
from launcher.objectives.base import LossSum, Objective, Records
from launcher.objectives.preference import drift, outcome
from launcher.objectives.preference.encoder import MARGIN, PairEncoder
from launcher.objectives.preference.records import PairRecord, Rewarded, pair_records

if TYPE_CHECKING:
    from torch import Tensor

    from launcher.data.pack.loader import Row

#: Column of the sums of log-probabilities that the model before training gives to the answers.
REFERENCE = "reference"


class Answers(NamedTuple):
    """The pairs of a row, each fp32 [pairs, 2]: the chosen answer first."""

    log_probs: Tensor
    """Sums over the answers' tokens, in nats, with gradients."""
    tokens: Tensor
    reference: Tensor | None
    """The same sums of the model before training."""
    margins: Tensor
    """fp32 [pairs]: differences of both ratings."""
    drift: Tensor | None = None
    """Sums of the divergence from the reference over the answers' tokens, where it is known."""

    @property
    def gains(self) -> Tensor:
        """Log-ratios to the reference."""
        assert self.reference is not None
        return self.log_probs - self.reference


class Judged(NamedTuple):
    """What a loss makes of `Answers`."""

    losses: Tensor
    """fp32 [pairs], with gradients."""
    rewards: Tensor
    """fp32 [pairs, 2]: what is compared of both answers."""


class PairTask(Objective):
    """What concerns pairs of answers, whatever is computed of them."""

    columns: ClassVar[Sequence[Column]] = (Column(MARGIN),)
    documents: ClassVar[Sequence[str]] = ("chosen", "rejected")

    # ---- from example to documents

    def encoder(self, tokenizer: Any, chat: ChatOptions) -> PairEncoder:
        """Both answers, each behind the prompt."""
        return PairEncoder(tokenizer, chat)

    # ---- what is known once the data is

    @property
    def margin_weight(self) -> float:
        """Weight of the difference of both ratings in the loss; 0 where it has no part in it."""
        return 0.0

    def settle(
        self,
        config: Config,
        train: TokenCache | JoinedCache,
        held_out: TokenCache | JoinedCache | None,
    ) -> None:
        """`ConfigError` for margins where no record of the training data is rated."""
        self._require_ratings(float(train.column(MARGIN, i)[0]) for i in range(len(train)))

    def foresee(self, config: Config, records: Records) -> None:
        """The same, where ratings have a part in the loss."""
        if self.margin_weight:
            made = (
                pair
                for _, example in records("train")
                for pair in examples_for(example, self.options, config.data.ranked)
            )
            self._require_ratings(p.margin or 0.0 for p in made if isinstance(p, Preference))

    def _require_ratings(self, margins: Iterable[float]) -> None:
        if self.margin_weight and not any(margins):
            raise ConfigError(
                f"{self.margin_weight:g}, and no pair of the training data is rated",
                where="objective.margin_weight",
                hint="objective.margin_weight=0, or give the records a margin; one of another name"
                " is mapped with data.columns.margin=COLUMN",
            )

    # ---- learning

    def weight(self, row: Row) -> float:
        """Number of pairs, each counted with its weight."""
        weights = row.record_weights
        return float(len(row.records) if weights is None else weights.sum())

    # ---- held-out records

    @abstractmethod
    def judged(
        self, head: Any, caller: Any, row: Row, ids: Sequence[int]
    ) -> tuple[list[float], Sequence[Rewarded]]:
        """Loss and record of each pair of a row; `ids` are those of its records, or none of a row
        that does not count."""

    def score(
        self,
        head: Any,
        caller: Any,
        rows: Iterable[tuple[Row | None, Sequence[int]]],
        should_stop: Callable[[], bool] | None,
    ) -> dict[str, list[Any]]:
        """The loss of each pair, and both answers."""
        import torch

        from launcher.evals.runner import computed

        losses: list[LossRecord] = []
        pairs: list[Rewarded] = []
        for row, ids in computed(rows, should_stop):
            with torch.no_grad():
                nats, found = self.judged(head, caller, row, ids)
            pairs += found
            losses += [
                LossRecord(pair.id, loss, 1, int(pair.is_right))
                for pair, loss in zip(found, nats, strict=False)
            ]
        return {"loss": losses, "pairs": pairs}

    def lines(
        self,
        base: Results | None,
        tuned: Results,
        metrics: Sequence[Metric[Any]],
        where: Callable[[int], str],
        text: Callable[[int], str],
    ) -> list[dict[str, Any]]:
        """The generated answers where there are any; else each pair with what it is rewarded."""
        found = super().lines(base, tuned, metrics, where, text)
        return found or outcome.lines(base, tuned, where, text)


class Pairs(PairTask):
    """Loss per pair. A subclass says what the loss is (`judge_pairs`), and by `reference` whether
    the model before training has part in it."""

    @abstractmethod
    def judge_pairs(self, answers: Answers) -> Judged:
        """Losses and rewards of pairs."""

    def question(
        self, cache: TokenCache | JoinedCache, record: int
    ) -> tuple[Sequence[int], Sequence[int]]:
        """That of the chosen answer."""
        tokens, targets = cache.record(record)
        end = cache.documents(record)[0]
        return tokens[:end].tolist(), targets[:end].tolist()

    # ---- learning

    def refer(self, head: Any, caller: Any, row: Row) -> Mapping[str, Tensor]:
        """Sums of the log-probabilities of each answer's tokens, fp32 [documents]."""
        return {REFERENCE: sums_of(head.log_probs(caller, row), row)}

    def refer_held_out(self, head: Any, caller: Any, row: Row) -> Mapping[str, Tensor]:
        """The same, and what is kept to see how far the model goes."""
        log_probs, kept = drift.of_reference(head, caller, row)
        return {REFERENCE: sums_of(log_probs, row), **kept}

    def loss(self, head: Any, caller: Any, row: Row) -> LossSum:
        """Sum of the losses of the row's pairs; beside it the means by which people follow it."""
        answers = self._answers(row, head.log_probs(caller, row))
        losses, rewards = self.judge_pairs(answers)
        total = losses.sum() if row.record_weights is None else losses @ row.record_weights
        return LossSum(total, _logged(answers, rewards.detach()))

    def _answers(self, row: Row, log_probs: Tensor, far: Tensor | None = None) -> Answers:
        """The pairs of a row, by what is found at each target."""
        sums = sums_of(log_probs, row)
        reference = sums.detach() if self.is_base else row.columns.get(REFERENCE)
        return Answers(
            sums.view(-1, 2),
            tokens_of(row, sums).view(-1, 2),
            reference.view(-1, 2) if self.reference and reference is not None else None,
            row.columns[MARGIN].view(-1, 2)[:, 0],
            None if far is None else sums_of(far, row).view(-1, 2),
        )

    # ---- held-out records

    def judged(
        self, head: Any, caller: Any, row: Row, ids: Sequence[int]
    ) -> tuple[list[float], Sequence[Rewarded]]:
        """Loss and record of each pair."""
        answers = self._answers(row, *drift.of_model(head, caller, row))
        losses, rewards = self.judge_pairs(answers)
        sums, given = _rounded(answers.log_probs), rewards.tolist()
        tokens = answers.tokens.long().tolist()
        reference = None if answers.reference is None else _rounded(answers.reference)
        far = None if answers.drift is None else answers.drift.sum(1).tolist()
        return losses.tolist(), [
            PairRecord(
                id=record,
                chosen=sums[i][0],
                rejected=sums[i][1],
                reward_chosen=given[i][0],
                reward_rejected=given[i][1],
                tokens=tokens[i],
                reference=None if reference is None else reference[i],
                divergence=math.nan if far is None else far[i],
            )
            for i, record in enumerate(ids)
        ]

    def about(self, results: Results) -> dict[str, Any]:
        """Means over the held-out pairs."""
        return {"preferences": outcome.means(pair_records(results))}

    def about_comparison(
        self, results: Results, metrics: Sequence[Metric[Any]]
    ) -> tuple[dict[str, Any], list[str]]:
        """The same, with a warning where the chosen answers have become less likely."""
        return self.about(results), outcome.warnings(pair_records(results))

    def sections(self, results: Results, about: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What became of both answers."""
        records = pair_records(results)
        return [outcome.section(records)] if records else []


def _rounded(pairs: Tensor) -> list[list[float]]:
    """As results are stored, so that a base is its own reference there too."""
    return [[round(value, 6) for value in pair] for pair in pairs.tolist()]


def sums_of(log_probs: Tensor, row: Row) -> Tensor:
    """Those of each document's targets added up: fp32 [documents]."""
    zeros = log_probs.new_zeros(len(row.document_starts) - 1)
    return zeros.index_add(0, row.document_of_targets(), log_probs)


def tokens_of(row: Row, sums: Tensor) -> Tensor:
    """Targets of each document, like `sums`."""
    return row.document_of_targets().bincount(minlength=len(sums)).to(sums.dtype)


def _logged(answers: Answers, rewards: Tensor) -> dict[str, tuple[Any, Any]]:
    """Numerators and denominators of what is logged beside the loss."""
    sums, tokens = answers.log_probs.detach().sum(0), answers.tokens.sum(0)
    logged = {
        **logged_of(rewards),
        "log_prob_chosen": (sums[0], tokens[0]),
        "log_prob_rejected": (sums[1], tokens[1]),
    }
    if answers.reference is not None:
        changes = answers.gains.detach().sum(0)
        logged["chosen_change"] = (changes[0], tokens[0])
        logged["rejected_change"] = (changes[1], tokens[1])
    return logged


def logged_of(rewards: Tensor) -> dict[str, tuple[Any, Any]]:
    """Numerators and denominators of what is logged of rewards, [pairs, 2] without gradients."""
    count = len(rewards)
    chosen, rejected = rewards.unbind(1)
    right = (chosen > rejected).sum() + 0.5 * (chosen == rejected).sum()
    return {
        "preference_accuracy": (right, count),
        "reward_margin": ((chosen - rejected).sum(), count),
        "reward_chosen": (chosen.sum(), count),
        "reward_rejected": (rejected.sum(), count),
    }
