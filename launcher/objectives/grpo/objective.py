"""Group relative policy optimisation and its kin: answers of the model itself, made likelier by as
much as a grader scores them better than others (`launcher.objectives.grpo.loss` has the formulas).

A row's documents are prompts with an answer each; its targets are the tokens of the answers as they
were drawn. A prepared record, whose answer nobody has drawn, is an answer of advantage 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from launcher.config.schema import Config, ModelConfig
from launcher.config.schema.reinforce import GrpoConfig, PolicyLoss
from launcher.core.errors import ConfigError, DataError
from launcher.data.cache import Column, JoinedCache, Per, TokenCache
from launcher.evals.records import prompt_and_reference
from launcher.graders.grader import Grader
from launcher.objectives.base import LossSum, Objective
from launcher.objectives.grpo.grading import grader_of
from launcher.objectives.grpo.items import Items

if TYPE_CHECKING:
    import torch

    from launcher.data.pack.loader import Row
    from launcher.model.head import Head, TargetHead
    from launcher.objectives.grpo.loss import AnswerTokens

#: Columns of a row of answers.
ADVANTAGE, SAMPLER, OLD, REFERENCE = "advantage", "sampler", "old", "reference_log_probs"
COLUMNS = {
    column.name: column
    for column in (Column(ADVANTAGE), Column(SAMPLER, Per.target), Column(OLD, Per.target))
}
#: Records that are shown of those that lack what the grader reads.
_SHOWN = 5
#: Losses that are a mean over the tokens of the batch.
_OVER_TOKENS = (PolicyLoss.dapo, PolicyLoss.cispo)
#: What is logged of the distance between trainer and sampler.
GAP = "sampler_gap"


class _Base(NamedTuple):
    """What is needed to load the model before training."""

    model: ModelConfig
    max_length: int


class Grpo(Objective):
    """Loss of sampled answers by their advantages."""

    options: GrpoConfig

    def __init__(self, options: GrpoConfig) -> None:
        super().__init__(options)
        self._grader: Grader | None = None
        self._items: Items | None = None
        self._base: _Base | None = None
        self._reference: TargetHead | None = None

    @property
    def grader(self) -> Grader:
        """What scores answers, once the data is settled."""
        assert self._grader is not None
        return self._grader

    @property
    def items(self) -> Items:
        """The records of the training data as the grader reads them, once the data is settled."""
        assert self._items is not None
        return self._items

    # ---- what is known once the data is

    def settle(
        self,
        config: Config,
        train: TokenCache | JoinedCache,
        held_out: TokenCache | JoinedCache | None,
    ) -> None:
        """The grader, and what it reads of the data. `ConfigError` for a grader that cannot be had,
        `DataError` for records that lack what it reads, and for prompts that leave no room for an
        answer, or ask nothing."""
        self._grader, self._items = grader_of(config), Items(config, train)
        if lacking := [*islice(self._grader.check(self._items), _SHOWN)]:
            raise DataError(lacking)
        if self.options.copies_model(config):
            self._base = _Base(config.model, config.data.max_length)
        room = config.data.max_length - self.options.max_new_tokens
        found = [prompt_length(self, train, i) for i in range(len(train))]
        empty = [i for i, length in enumerate(found) if not length]
        if empty:
            raise DataError(
                f"{len(empty):,} of {len(train):,} records ask nothing: there is no text before"
                " their answer",
                where=train.where(empty[0]),
                hint="give each record a prompt, or leave it out",
            )
        longer = [i for i, length in enumerate(found) if length > room]
        if longer:
            longest = max(found)
            raise DataError(
                f"{len(longer):,} of {len(train):,} prompts have more than the {room} tokens that"
                f" objective.max_new_tokens={self.options.max_new_tokens} leaves of"
                f" data.max_length={config.data.max_length}; the longest has {longest}",
                where=train.where(longer[0]),
                hint=f"data.max_length={longest + self.options.max_new_tokens}, or a smaller"
                " objective.max_new_tokens",
            )

    # ---- the models

    def head(self, model: Any, *, counts_hits: bool = False) -> Head:
        """What computes in the model; where all weights are trained and a reference is asked for,
        a copy of the model before training is loaded beside it."""
        if self._base is not None and self._reference is None:
            self._reference = _frozen(self._base, model)
        return super().head(model, counts_hits=counts_hits)

    def companions(self, device: torch.device) -> list[tuple[Head, Any]]:
        """The model before training, on `device`, where it is a second one."""
        if self._reference is None:
            return []
        self._reference.model.to(device)
        return [(self._reference, self._reference.model)]

    # ---- learning

    def old_log_probs(self, head: TargetHead, caller: Any, row: Row) -> torch.Tensor:
        """Log-probabilities of the row's targets by the model as it is: fp32 [targets]."""
        return head.log_probs_and_entropies(caller, row, self.options.temperature)[0]

    def weight(self, row: Row) -> float:
        """What the loss is a mean over: answers, their tokens, or the tokens that they may have;
        each counted with the weight of its record."""
        if self.options.loss in _OVER_TOKENS:
            return super().weight(row)
        weights = row.record_weights
        answers = float(len(row.records) if weights is None else weights.sum())
        if self.options.loss is PolicyLoss.dr_grpo:
            return answers * self.options.max_new_tokens
        return answers

    def over_batch(self, head: Any, caller: Any, row: Row) -> Mapping[str, tuple[Any, Any]]:
        """Notes in the row what the reference makes of its tokens."""
        if self.options.beta:
            asked, own = head, caller
            if self._reference is not None:
                asked, own = self._reference, self._reference.model
            off = head.model.disable_adapter() if self._reference is None else nullcontext()
            with off:
                row.columns[REFERENCE] = self.old_log_probs(asked, own, row)
            row.by_target |= {REFERENCE}
        return {}

    def loss(self, head: Any, caller: Any, row: Row) -> LossSum:
        """Loss sum of the row's answers, and what is logged of them."""
        from launcher.objectives.grpo.loss import judge

        answers = self._answers(head, caller, row)
        judged = judge(answers, self.options)
        sums = {
            "entropy": (judged.entropy, judged.tokens),
            "clip_share": (judged.clipped, judged.tokens),
            GAP: (judged.gap, judged.tokens),
        }
        if answers.reference is not None:
            sums["kl"] = (judged.divergence, judged.tokens)
        return LossSum(judged.total, sums)

    def _answers(self, head: TargetHead, caller: Any, row: Row) -> AnswerTokens:
        import torch

        from launcher.objectives.grpo.loss import AnswerTokens

        log_probs, entropies = head.log_probs_and_entropies(caller, row, self.options.temperature)
        documents = row.document_of_targets()
        count = len(row.document_starts) - 1
        ones = log_probs.new_ones(count)
        old = row.columns.get(OLD, log_probs.detach())
        return AnswerTokens(
            log_probs=log_probs,
            entropies=entropies,
            old=old,
            sampler=row.columns.get(SAMPLER, old),
            reference=row.columns.get(REFERENCE),
            documents=documents,
            lengths=torch.bincount(documents, minlength=count).to(log_probs.dtype),
            advantages=row.columns.get(ADVANTAGE, ones),
            weights=ones if row.record_weights is None else row.record_weights,
        )

    def require_sound(self, sums: Mapping[str, tuple[float, float]]) -> None:
        """`ConfigError` where what trains is too far from what has drawn the answers."""
        gap, tokens = sums.get(GAP, (0.0, 0.0))
        most = self.options.max_sampler_gap
        if tokens and not gap / tokens <= most:
            raise ConfigError(
                f"the sampler's log-probabilities are {gap / tokens:.3g} nats a token from the"
                " trainer's, in the mean: the answers are not those of the model in training",
                where="objective.max_sampler_gap",
                hint="dropout (peft.dropout=0), 16-bit weights (model.dtype=fp32), or an attention"
                f" that differs (model.attention=sdpa); or objective.max_sampler_gap={2 * most:g}",
            )


def prompt_length(objective: Objective, cache: TokenCache | JoinedCache, record: int) -> int:
    """Tokens of what a record asks; 0 if it asks nothing."""
    split = prompt_and_reference(*objective.question(cache, record))
    return len(split[0]) if split else 0


def _frozen(base: _Base, student: Any) -> TargetHead:
    """The model before training in the number format and with the attention of `student`."""
    from launcher.model.head import TargetHead
    from launcher.model.load import load_frozen

    return TargetHead(load_frozen(base.model, student, base.max_length))
