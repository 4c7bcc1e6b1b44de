"""How far the model has gone from the one before training, over held-out answers.

At each token of an answer this is KL(q || p) in nats, q of the model and p of the reference, over
the whole vocabulary but for what is kept of p: its `TOP` likeliest tokens, and all others together.
So it is a lower bound, which misses what has moved among the others alone. Of the texts it is known
where the data's answers lead, not where the model's own would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from launcher.config.schema.distill import Divergence
from launcher.data.cache import Column, Per
from launcher.evals.metric import Floats, Ratio

if TYPE_CHECKING:
    from torch import Tensor

    from launcher.data.pack.loader import Row

#: Tokens of the reference that are kept by themselves at each target: 132 bytes in all.
TOP = 16
_TOKENS, _LOG_PROBS = "reference_tokens", "reference_log_probs"
COLUMNS = (
    Column(_TOKENS, Per.target, "int32", TOP),
    Column(_LOG_PROBS, Per.target, "float32", TOP + 1),
)


def of_reference(head: Any, caller: Any, row: Row) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Log-probability of each target, fp32 [T], and `COLUMNS`, by the model before training."""
    from launcher.model.divergence import most_likely
    from launcher.model.head import Scores

    found, count = Scores(row.targets), len(row.targets)
    tokens = row.targets.new_empty((count, TOP)).int()
    log_probs = found.losses.new_empty((count, TOP + 1))

    def see(logits: Tensor, part: slice) -> None:
        found(logits, part)
        tokens[part], log_probs[part] = most_likely(logits, TOP, logits.shape[-1], 1.0)

    head.see(caller, row, see)
    return -found.losses, {_TOKENS: tokens, _LOG_PROBS: log_probs}


def of_model(head: Any, caller: Any, row: Row) -> tuple[Tensor, Tensor | None]:
    """The same log-probabilities by the model that is scored, and how far it has gone at each
    target, fp32 [T]; None where nothing is kept of the reference."""
    from launcher.model.divergence import Measure, TopTeacher
    from launcher.model.head import Scores

    found = Scores(row.targets)
    if _TOKENS not in row.columns:
        head.see(caller, row, found)
        return -found.losses, None
    far = found.losses.new_empty(len(row.targets))
    tokens = row.columns[_TOKENS].view(-1, TOP)
    log_probs = row.columns[_LOG_PROBS].view(-1, TOP + 1)

    def see(logits: Tensor, part: slice) -> None:
        found(logits, part)
        reference = TopTeacher(tokens, log_probs, logits.shape[-1], Measure(Divergence.reverse))
        far[part] = reference.far(logits, part)

    head.see(caller, row, see)
    return -found.losses, far


class Answered(Protocol):
    """A held-out record with an answer, or two."""

    @property
    def id(self) -> int: ...

    @property
    def task(self) -> Any: ...

    @property
    def divergence(self) -> float | None:
        """Summed over the tokens of the answers, in nats."""

    @property
    def tokens(self) -> int | Sequence[int]:
        """How many these are, or how many of each."""


class ReferenceKl(Ratio[Answered]):
    """Mean divergence from the model before training, in nats a token of the answers."""

    name = "reference_kl"
    higher_is_better = False

    def values(self, records: Sequence[Answered]) -> tuple[Floats, Floats]:
        """Divergence and tokens of each record; none where nothing is known of the reference."""
        return _sums(records)


def _sums(records: Sequence[Answered]) -> tuple[Floats, Floats]:
    far = [record.divergence or 0.0 for record in records]
    tokens = [0 if one.divergence is None else np.sum(one.tokens) for one in records]
    return np.array(far, np.float64), np.array(tokens, np.float64)


def sentence(records: Sequence[Answered]) -> list[dict[str, str]]:
    """A block of the report: how far the model has gone; none where it is not known."""
    far, tokens = _sums(records)
    if not tokens.sum():
        return []
    mean = far.sum() / tokens.sum()
    text = f"Over these answers the model is {mean:.4f} nats a token from the one before training."
    return [{"text": text}]
