"""How far the model has gone from the one before training, over held-out answers.

At each token of an answer this is KL(q || p) in nats, q of the model and p of the reference, over
the whole vocabulary: where the data's answers lead, not where the model's own would. With r = q / p
it is the sum over all tokens of p (r log r - r + 1), of which no term is below 0. The reference's
`TOP` likeliest tokens are taken as they are; for all others stand `DRAWN` of them, drawn by p, so
that the mean over many tokens is right and does not need p as a whole (k3 of Schulman 2020,
"Approximating KL Divergence", with the likeliest tokens counted and not drawn).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from launcher.data.cache import Column, Per
from launcher.evals.metric import Floats, Ratio

if TYPE_CHECKING:
    from torch import Tensor

    from launcher.data.pack.loader import Row

#: Tokens of the reference that are kept at each target, and what all others have: 196 bytes.
TOP, DRAWN = 16, 8
_TOKENS, _LOG_PROBS = "reference_tokens", "reference_log_probs"
COLUMNS = (
    Column(_TOKENS, Per.target, "int32", TOP + DRAWN),
    Column(_LOG_PROBS, Per.target, "float32", TOP + DRAWN + 1),
)
#: Fractional part of the golden ratio, and one like it: their multiples fill [0, 1) evenly.
_GOLDEN, _PLASTIC = 0.6180339887498949, 0.7548776662466927


def of_reference(head: Any, caller: Any, row: Row) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Log-probability of each target, fp32 [T], and `COLUMNS`, by the model before training."""
    from launcher.model.target_logits import Scores

    found, count = Scores(row.targets), len(row.targets)
    tokens = row.targets.new_empty((count, TOP + DRAWN)).int()
    log_probs = found.losses.new_empty((count, TOP + DRAWN + 1))
    # Where a draw falls depends on the token and its place alone, not on the cut.
    places = row.position_ids[row.target_index].double()
    shifts = (places * _GOLDEN + row.targets.double() * _PLASTIC) % 1.0

    def see(logits: Tensor, part: slice) -> None:
        found(logits, part)
        tokens[part], log_probs[part] = _kept(logits.log_softmax(-1), shifts[part])

    head.see(caller, row, see)
    return -found.losses, {_TOKENS: tokens, _LOG_PROBS: log_probs}


def _kept(log_p: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Of log-probabilities [t, V] the likeliest tokens and some of the others, drawn at even
    distances from `shifts` [t] on, [t, TOP + DRAWN]; and their log-probabilities with that of all
    others together, [t, TOP + DRAWN + 1]."""
    import torch

    # Of few tokens the first one stands for those that there are not.
    missing = max(0, TOP - log_p.shape[-1])
    top = torch.nn.functional.pad(log_p.topk(TOP - missing, -1).indices, (0, missing))
    sums = log_p.exp().scatter_(1, top, 0.0).cumsum(-1)
    steps = torch.arange(DRAWN, device=log_p.device, dtype=shifts.dtype)
    points = (steps + shifts[:, None]) / DRAWN * sums[:, -1:].double()
    drawn = torch.searchsorted(sums, points.to(sums.dtype), right=True)
    tokens = torch.cat([top, drawn.clamp(max=log_p.shape[-1] - 1)], 1)
    found = log_p.gather(1, tokens)
    found[:, TOP - missing : TOP] = -torch.inf
    return tokens.int(), torch.cat([found, sums[:, -1:].log()], 1)


def of_model(head: Any, caller: Any, row: Row) -> tuple[Tensor, Tensor | None]:
    """The same log-probabilities by the model that is scored, and how far it has gone at each
    target, fp32 [T]; None where nothing is kept of the reference."""
    from launcher.model.target_logits import Scores

    found = Scores(row.targets)
    if _TOKENS not in row.columns:
        head.see(caller, row, found)
        return -found.losses, None
    far = found.losses.new_empty(len(row.targets))
    tokens = row.columns[_TOKENS].view(-1, TOP + DRAWN).long()
    log_p = row.columns[_LOG_PROBS].view(-1, TOP + DRAWN + 1)

    def see(logits: Tensor, part: slice) -> None:
        found(logits, part)
        own = logits.gather(1, tokens[part]) - logits.logsumexp(-1, keepdim=True)
        far[part] = _divergence(log_p[part], own)

    head.see(caller, row, see)
    return -found.losses, far


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q || p) [t] by what is kept of p, [t, TOP + DRAWN + 1], and the log-probabilities of the
    same tokens in q, [t, TOP + DRAWN]."""
    import torch

    p, others = log_p[:, :TOP].exp(), log_p[:, -1].exp()
    ahead = log_q - log_p[:, :-1]
    terms = ahead.exp() * ahead - ahead.expm1()
    terms = terms.masked_fill(log_q.isneginf(), 1.0)
    counted = torch.where(p > 0, p * terms[:, :TOP], 0.0).sum(-1)
    return counted + torch.where(others > 0, others * terms[:, TOP:].mean(-1), 0.0)


class Drifted(Protocol):
    """A held-out record with an answer, or two."""

    @property
    def id(self) -> int: ...

    @property
    def task(self) -> Any: ...

    @property
    def divergence(self) -> float:
        """Summed over the tokens of the answers, in nats; NaN where it is not known."""

    @property
    def tokens(self) -> int | Sequence[int]:
        """How many these are, or how many of each."""


class ReferenceKl(Ratio[Drifted]):
    """Mean divergence from the model before training, in nats a token of the answers. To learn is
    to move, so it has no part in whether a model is better."""

    name = "reference_kl"
    higher_is_better = False
    decides = False

    def values(self, records: Sequence[Drifted]) -> tuple[Floats, Floats]:
        """Divergence and tokens of each record; none where nothing is known of the reference."""
        return _sums(records)


def _sums(records: Sequence[Drifted]) -> tuple[Floats, Floats]:
    far = np.array([record.divergence for record in records], np.float64)
    if not np.isfinite(far).any():
        return np.zeros(len(records)), np.zeros(len(records))
    return far, np.array([np.sum(one.tokens) for one in records], np.float64)


def sentence(records: Sequence[Drifted]) -> list[dict[str, str]]:
    """A block of the report: how far the model has gone; none where it is not known."""
    far, tokens = _sums(records)
    if not tokens.sum():
        return []
    mean = far.sum() / tokens.sum()
    text = f"Over these answers the model is {mean:.4f} nats a token from the one before training."
    return [{"text": text}]
