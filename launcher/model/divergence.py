"""How far a student's distribution over tokens lies from a teacher's, by parts of the targets.

With logits z of the student and z' of the teacher, q = softmax(z / T), p = softmax(z' / T):

forward  KL(p || q) = sum p (log p - log q)
reverse  KL(q || p) = sum q (log q - log p)
jsd      b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q

all in nats and not negative. Of a teacher of which only the k most likely tokens are known, both
distributions are first summed over the same k + 1 groups: each of these tokens by itself, and all
others together. Summing makes no divergence larger, so what is found is a lower bound of that over
all tokens, and the same if k is all of them.

Tokens beyond the tokenizer, rows that fill up an embedding, are left out of both distributions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from launcher.config.schema.distill import Divergence


class Measure:
    """Which divergence, at which temperature; `beta` is the teacher's weight in jsd's mixture."""

    def __init__(self, kind: Divergence, temperature: float = 1.0, beta: float = 0.5) -> None:
        self.temperature = temperature
        self._kind, self._beta = kind, beta

    @classmethod
    def of(cls, kind: Divergence, temperature: float, beta: float | None) -> Measure:
        """The same by options, whose `beta` may be null."""
        return cls(kind, temperature, 0.5 if beta is None else beta)

    def __call__(self, log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """Divergence of each line of log-probabilities [t, groups]: fp32 [t]; and q times its
        derivative by q, [t, groups], up to a multiple of q."""
        p, q = log_p.exp(), log_q.exp()
        if self._kind is Divergence.forward:
            return _mean(p, log_p - log_q).sum(-1), p.neg_()
        if self._kind is Divergence.reverse:
            own = _mean(q, log_q - log_p)
            return own.sum(-1), own
        shares = math.log(self._beta), math.log1p(-self._beta)
        log_m = torch.logaddexp(log_p + shares[0], log_q + shares[1])
        own = _mean(q, log_q - log_m).mul_(1 - self._beta)
        return self._beta * _mean(p, log_p - log_m).sum(-1) + own.sum(-1), own


def _mean(chances: Tensor, values: Tensor) -> Tensor:
    """Their product, 0 where the chance is: nothing is infinite there."""
    return torch.where(chances > 0, chances * values, 0.0)


class Teacher(Protocol):
    """What is known of a teacher's distribution at each target of a row."""

    def against(self, logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Divergence at the targets `part`, fp32 [t], from a student with fp32 `logits` [t, V], and
        its gradient by these, [t, V]."""
        ...

    def far(self, logits: Tensor, part: slice) -> Tensor:
        """The divergence alone."""
        ...


class WholeTeacher:
    """All of it: `logits_of` gives the teacher's logits [t, at least `size`] of a part of the
    targets, of which the first `size` are compared."""

    def __init__(self, logits_of: Callable[[slice], Tensor], size: int, measure: Measure) -> None:
        self._logits_of, self._size, self._measure = logits_of, size, measure

    def against(self, logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """See `Teacher`."""
        log_p, log_q = self._both(logits, part)
        found, own = self._measure(log_p, log_q)
        del log_p
        own -= log_q.exp_().mul_(own.sum(-1, keepdim=True))
        return found, _widened(own.div_(self._measure.temperature), logits)

    def far(self, logits: Tensor, part: slice) -> Tensor:
        """See `Teacher`."""
        return self._measure(*self._both(logits, part))[0]

    def _both(self, logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Log-probabilities of teacher and student, each [t, size]."""
        heat = self._measure.temperature
        log_p = (self._logits_of(part)[:, : self._size].float() / heat).log_softmax(-1)
        return log_p, (logits[:, : self._size] / heat).log_softmax(-1)


class TopTeacher:
    """The `tokens` [targets, k] that it holds most likely, different ones, and the `log_probs`
    fp32 [targets, k + 1] of these and of all others together, at the measure's temperature."""

    def __init__(self, tokens: Tensor, log_probs: Tensor, size: int, measure: Measure) -> None:
        self._tokens, self._log_probs = tokens, log_probs
        self._size, self._measure = size, measure

    def against(self, logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """See `Teacher`."""
        tokens = self._tokens[part].long()
        cool = logits[:, : self._size] / self._measure.temperature
        norm, others, rest, log_q = self._grouped(cool, tokens)
        found, own = self._measure(self._log_probs[part], log_q)
        # A token of the rest has its share of what the rest is to lose.
        lowest = torch.finfo(rest.dtype).min  # nothing is in the rest: no share of it is NaN
        gradient = others.sub_(rest.clamp_(min=lowest)).exp_().mul_(own[:, -1:])
        gradient.scatter_add_(1, tokens, own[:, :-1])
        gradient -= cool.sub_(norm).exp_().mul_(own.sum(-1, keepdim=True))
        return found, _widened(gradient.div_(self._measure.temperature), logits)

    def far(self, logits: Tensor, part: slice) -> Tensor:
        """See `Teacher`."""
        cool = logits[:, : self._size] / self._measure.temperature
        *_, log_q = self._grouped(cool, self._tokens[part].long())
        return self._measure(self._log_probs[part], log_q)[0]

    @staticmethod
    def _grouped(cool: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of logits at the temperature: their log-sum [t, 1], those of all other tokens [t, size],
        the log-sum of these [t, 1], and the log-probabilities of the groups, [t, k + 1]."""
        norm = cool.logsumexp(-1, keepdim=True)
        others = cool.scatter(1, tokens, -math.inf)
        rest = others.logsumexp(-1, keepdim=True)
        return norm, others, rest, torch.cat([cool.gather(1, tokens), rest], 1) - norm


def _widened(gradient: Tensor, logits: Tensor) -> Tensor:
    """As wide as `logits`: those behind have no part in the divergence."""
    missing = logits.shape[-1] - gradient.shape[-1]
    return torch.nn.functional.pad(gradient, (0, missing)) if missing else gradient


def most_likely(logits: Tensor, count: int, size: int, temperature: float) -> tuple[Tensor, Tensor]:
    """What `TopTeacher` knows of `logits` [t, at least `size`], tokens int32 [t, count] and
    log-probabilities fp32 [t, count + 1]."""
    cool = logits[:, :size].float() / temperature
    norm = cool.logsumexp(-1, keepdim=True)
    found, tokens = cool.topk(count, -1)
    rest = cool.scatter_(1, tokens, -math.inf).logsumexp(-1, keepdim=True)
    return tokens.int(), torch.cat([found, rest], 1) - norm
