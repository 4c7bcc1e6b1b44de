"""A reward model: a number for a whole answer, higher for the better of two.

With r the output of the head at an answer's last token, w the chosen and v the rejected answer,
the loss of a pair is

    -log s(r_w - r_v - margin_weight * (rating_w - rating_v)) + centering * (r_w + r_v)^2

s the logistic function. The first term is the model of Bradley and Terry (1952), as Ouyang et al.
2022 (arXiv:2203.02155, eq. 1) fit it, with the margin of Llama 2 (Touvron et al. 2023,
arXiv:2307.09288, eq. 2): the more the ratings differ, the further the chosen answer has to lead.
Only differences of rewards enter it; the second term puts their mean at 0, so that rewards of
different prompts can be set side by side (Eisenstein et al. 2023, arXiv:2312.09244). The loss of a
batch is the mean over its pairs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from launcher.config.schema import Config, Overlong
from launcher.config.schema.preference import RewardConfig
from launcher.core.rundir import RunDir
from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.chat.masking import ChatOptions
from launcher.data.prepare.encoding import Piece
from launcher.evals.metric import Metric
from launcher.evals.records import Results
from launcher.model.sequence_head import SequenceHead
from launcher.objectives.base import LossSum
from launcher.objectives.preference import outcome, reward_export
from launcher.objectives.preference.encoder import MARGIN, PairEncoder
from launcher.objectives.preference.pairs import PairTask, logged_of
from launcher.objectives.preference.records import RewardRecord, pair_records

if TYPE_CHECKING:
    from torch import Tensor

    from launcher.data.pack.loader import Row

#: Name of the head's output, and transformers' `problem_type` for a number that is shown as it is.
OUTPUT, PROBLEM = "reward", "regression"


class RewardEncoder(PairEncoder):
    """Both answers, each behind the prompt. What is too long loses its beginning: a reward is read
    at the end."""

    def cut(
        self, piece: Piece, max_length: int, overlong: Overlong
    ) -> tuple[list[Piece], Overlong | None]:
        """The pair within `max_length` tokens, both answers together: with `truncate` the longer
        one loses its beginning."""
        if len(piece.tokens) <= max_length or overlong is not Overlong.truncate:
            return super().cut(piece, max_length, overlong)
        kept = last_tokens(piece, max_length)
        return ([kept], overlong) if kept else ([], Overlong.drop)


def last_tokens(piece: Piece, max_length: int) -> Piece | None:
    """The documents of a piece within `max_length` together, the longest cut at their beginnings;
    None if nothing of an answer is left of one of them."""
    lengths = piece.lengths or (len(piece.tokens),)
    most = bisect_right(
        range(1, max(lengths) + 1),
        max_length,
        key=lambda limit: sum(min(length, limit) for length in lengths),
    )
    spans = [
        slice(start + length - min(length, most), start + length)
        for start, length in zip(piece.starts, lengths, strict=True)
    ]
    targets = [piece.targets[span] for span in spans]
    if not all(own[1:].any() for own in targets):
        return None
    return piece._replace(
        tokens=np.concatenate([piece.tokens[span] for span in spans]),
        targets=np.concatenate(targets),
        lengths=tuple(map(len, targets)) if piece.lengths else (),
    )


class Reward(PairTask):
    """Loss per pair, of the outputs of a head."""

    options: RewardConfig

    def __init__(self, options: RewardConfig) -> None:
        super().__init__(options)
        self._seed = 0

    def encoder(self, tokenizer: Any, chat: ChatOptions) -> RewardEncoder:
        """Both answers, each behind the prompt."""
        return RewardEncoder(tokenizer, chat)

    @property
    def margin_weight(self) -> float:
        """As asked for."""
        return self.options.margin_weight

    def turn_ends(self, format_name: str, tokenizer: Any) -> dict[str, list[int]] | None:
        """Nothing is written that could end."""
        return {}

    # ---- the model

    def settle(
        self,
        config: Config,
        train: TokenCache | JoinedCache,
        held_out: TokenCache | JoinedCache | None,
    ) -> None:
        """The seed of the head's first weights; `ConfigError` for margins where no record of the
        training data is rated."""
        self._seed = config.seed
        super().settle(config, train, held_out)

    @property
    def state(self) -> dict[str, Any] | None:
        """That seed."""
        return {"seed": self._seed}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the seed of a run."""
        self._seed = state["seed"]

    def sequence_head(self, padding: int = 0) -> SequenceHead:
        """The head with one output."""
        return SequenceHead((OUTPUT,), PROBLEM, padding, seed=self._seed)

    def describe_export(self, folder: Path, config: Config, run: RunDir | None) -> None:
        """A README with code that rewards answers as the launcher does."""
        reward_export.describe(folder, config)

    def tokens_of(self, tokenizer: Any, config: Config, text: str) -> list[int]:
        """Those of a record with one answer, as training lays it out, its beginning cut."""
        return reward_export.tokens_of(tokenizer, config, text)

    def output_line(
        self, run: RunDir, *, base: bool = False, warn: Callable[[str], None] = print
    ) -> Callable[[Tensor], str]:
        """The reward."""
        return lambda outputs: f"{float(outputs[0]):.4f}"

    # ---- learning

    def loss(self, head: Any, caller: Any, row: Row) -> LossSum:
        """Sum of the losses of the row's pairs; beside it accuracy and mean rewards."""
        rewards = self._rewards(head, caller, row)
        losses = self._losses(rewards, row)
        total = losses.sum() if row.record_weights is None else losses @ row.record_weights
        return LossSum(total, logged_of(rewards.detach()))

    def _rewards(self, head: Any, caller: Any, row: Row) -> Tensor:
        """fp32 [pairs, 2], with gradients."""
        outputs: Tensor = head.outputs(caller, row)
        return outputs.view(-1, 2)

    def _losses(self, rewards: Tensor, row: Row) -> Tensor:
        """fp32 [pairs]."""
        from torch.nn.functional import logsigmoid

        margins = row.columns[MARGIN].view(-1, 2)[:, 0]
        chosen, rejected = rewards.unbind(1)
        losses = -logsigmoid(chosen - rejected - self.margin_weight * margins)
        if self.options.centering:
            losses = losses + self.options.centering * rewards.sum(1).square()
        return losses

    # ---- held-out records

    def judged(
        self, head: Any, caller: Any, row: Row, ids: Sequence[int]
    ) -> tuple[list[float], Sequence[RewardRecord]]:
        """Loss and both rewards of each pair."""
        import torch

        rewards = self._rewards(head, caller, row)
        losses: list[float] = self._losses(rewards, row).tolist()
        counts = torch.bincount(row.document_of_targets(), minlength=rewards.numel())
        tokens = counts.view(-1, 2).tolist()
        return losses, [
            RewardRecord(record, chosen, rejected, own)
            for record, (chosen, rejected), own in zip(ids, rewards.tolist(), tokens, strict=False)
        ]

    def about(self, results: Results) -> dict[str, Any]:
        """Means over the held-out pairs."""
        return {"preferences": outcome.reward_means(pair_records(results))}

    def about_comparison(
        self, results: Results, metrics: Sequence[Metric[Any]]
    ) -> tuple[dict[str, Any], list[str]]:
        """The same."""
        return self.about(results), []

    def sections(self, results: Results, about: Mapping[str, Any]) -> list[dict[str, Any]]:
        """How both answers are rewarded."""
        records = pair_records(results)
        return [outcome.reward_section(records)] if records else []
