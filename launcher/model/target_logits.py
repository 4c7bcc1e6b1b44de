"""What is made of the logits of targets, by chunks of the positions: losses, log-probabilities, and
the gradients of both, of a linear head or of given logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from launcher.model import products

if TYPE_CHECKING:
    from launcher.model.divergence import Teacher

#: Elements of one fp32 chunk of logits: 4 MB on CPU (stays near the cache), 512 MB on a GPU.
CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}
#: Rows of a tile of a GPU's matrix product.
_TILE = 128


class Criterion(Protocol):
    """A loss of logits, a part of the targets at a time."""

    def __call__(self, logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """Loss sum of the targets `part` by their fp32 logits [t, V], a scalar, and its gradient
        [t, V]. It leaves the logits as they are. Called for each part in order, and once more if
        the model turns out to change its logits."""
        ...


class CrossEntropy:
    """The (weighted) cross entropy of the targets, with label smoothing; a `Criterion`."""

    def __init__(self, targets: Tensor, smoothing: float, weights: Tensor | None) -> None:
        self._targets, self._smoothing, self._weights = targets, smoothing, weights

    def __call__(self, logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """See `Criterion`."""
        weights = None if self._weights is None else self._weights[part]
        return loss_and_gradient(logits, self._targets[part], self._smoothing, weights)


class Within:
    """A `Criterion` of some of the targets that another one is of."""

    def __init__(self, criterion: Criterion, part: slice) -> None:
        self._criterion, self._first, self._last = criterion, part.start, part.stop

    def __call__(self, logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """See `Criterion`."""
        first = self._first + part.start
        return self._criterion(logits, slice(first, min(first + len(logits), self._last)))


class Scores:
    """What is scored of the targets, from their logits by parts."""

    def __init__(self, targets: Tensor) -> None:
        self._targets = targets
        self.losses = targets.new_empty(len(targets), dtype=torch.float32)
        """Cross entropy in nats: fp32 [T]."""
        self.correct = torch.empty_like(targets, dtype=torch.bool)
        """Whether the target is the first choice: bool [T]."""

    def __call__(self, logits: Tensor, part: slice) -> None:
        """Take in the fp32 logits [t, V] of the targets `part`."""
        targets = self._targets[part]
        self.losses[part] = nn.functional.cross_entropy(logits, targets, reduction="none")
        self.correct[part] = logits.argmax(-1) == targets


class Distributions(NamedTuple):
    """What is read of the distributions at the targets: fp32 [targets] each, with gradients."""

    log_probs: Tensor
    """Log-probability of the target."""
    entropies: Tensor
    """In nats."""
    divergences: Tensor | None = None
    """From a teacher's, in nats, if there is one."""


@dataclass(frozen=True, slots=True)
class Reading:
    """How log-probabilities are read from logits."""

    temperature: float = 1.0
    """What logits are divided by."""
    entropies: bool = False
    """Whether the entropy of each distribution is wanted too."""
    teacher: Teacher | None = None
    """What the divergence of each distribution is wanted from."""
    counts: bool = False
    """Whether first choices that are right are counted."""


def chunk_rows(vocab: int, device: torch.device) -> int:
    """Rows of a chunk; on a GPU whole tiles of its matrix products, if it is that many."""
    rows = max(1, CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cuda"]) // vocab)
    return rows if device.type == "cpu" or rows < _TILE else rows - rows % _TILE


@cache
def _sums_wide(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a product of 16-bit matrices can be added to a matrix of fp32 in one kernel there.

    torch has an operator for it on CUDA, which has changed what it takes: tried once.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return False
    ones = torch.ones(_TILE, _TILE, dtype=dtype, device=device)
    total = torch.full((_TILE, _TILE), 2.0**-9, device=device)  # lost in 16 bits
    try:
        torch.addmm(total, ones.t(), ones, torch.float32, out=total)
    except (RuntimeError, TypeError):
        return False
    return bool((total == _TILE + 2.0**-9).all())


def loss_and_gradient(
    logits: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Summed cross entropy of fp32 `logits` [t, V], and its gradient [t, V] (reuses one buffer)."""
    log_p = torch.log_softmax(logits, dim=-1)
    picked = targets.unsqueeze(1)
    losses = -log_p.gather(1, picked).squeeze(1)
    if smoothing:
        losses = (1 - smoothing) * losses - smoothing * log_p.mean(-1)
    loss = losses.sum() if weights is None else losses @ weights
    gradient = log_p.exp_()
    if smoothing:
        gradient -= smoothing / logits.shape[-1]
    gradient.scatter_add_(1, picked, gradient.new_full((1, 1), smoothing - 1).expand_as(picked))
    if weights is not None:
        gradient *= weights.unsqueeze(1)
    return loss, gradient


def _hits(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits.argmax(-1) == targets).sum()


class _Gradients:
    """Gradients of a linear head, formed chunk by chunk of the positions; None for what needs none.

    Those of weight and bias are summed in fp32.
    """

    def __init__(self, ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> None:
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        self._of = hidden, weight
        self.hidden = torch.empty_like(hidden) if need_hidden else None
        self.weight = torch.zeros_like(weight, dtype=torch.float32) if need_weight else None
        self.bias = (
            None if bias is None or not need_bias else torch.zeros_like(bias, dtype=torch.float32)
        )

    def add(self, part: slice, gradient: Tensor) -> None:
        """Take in the gradient of the logits [T, V] in fp32 at the positions `part`."""
        hidden, weight = self._of
        if self.bias is not None:
            self.bias += gradient.sum(0)
        gradient = gradient.to(weight.dtype)
        if self.hidden is not None:
            products.write(self.hidden[part], gradient, weight)
        if self.weight is not None:
            if self.weight.dtype == gradient.dtype:
                self.weight.addmm_(gradient.t(), hidden[part])
            elif _sums_wide(hidden.device, gradient.dtype):
                operands = (self.weight, gradient.t(), hidden[part])
                torch.addmm(*operands, torch.float32, out=self.weight)
            else:
                self.weight += gradient.t() @ hidden[part]


class HeadLoss(torch.autograd.Function):
    """Linear head and a criterion; both gradients are formed in forward, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        criterion: Criterion,
        counts: bool,
    ) -> tuple[Tensor, Tensor | None]:
        gradients = _Gradients(ctx, hidden, weight, bias)
        total = hidden.new_zeros((), dtype=torch.float32)
        hits = targets.new_zeros(()) if counts else None
        size = chunk_rows(weight.shape[0], hidden.device)
        for start in range(0, hidden.shape[0], size):
            part = slice(start, start + size)
            logits = products.linear(hidden[part], weight, bias).float()
            if hits is not None:
                hits += _hits(logits, targets[part])
            loss, gradient = criterion(logits, part)
            total += loss
            gradients.add(part, gradient)
            del logits, gradient  # or they would live while the next ones are made
        ctx.save_for_backward(gradients.hidden, gradients.weight, gradients.bias)
        ctx.dtypes = (weight.dtype, None if bias is None else bias.dtype)
        if hits is not None:
            ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0]
        hidden, weight, bias = ctx.saved_tensors
        return (
            None if hidden is None else hidden.mul_(scale.to(hidden.dtype)),
            None if weight is None else weight.mul_(scale).to(ctx.dtypes[0]),
            None if bias is None else bias.mul_(scale).to(ctx.dtypes[1]),
            None,
            None,
            None,
        )


class _Read:
    """What is read of the targets from their logits, by parts."""

    def __init__(self, like: Tensor, targets: Tensor, reading: Reading) -> None:
        self._targets, self._reading = targets, reading
        self.norms = like.new_empty(len(targets), dtype=torch.float32)
        """Logarithms of the summed exponentials."""
        self.log_probs = torch.empty_like(self.norms)
        self.entropies = torch.empty_like(self.norms) if reading.entropies else None
        self.divergences = None if reading.teacher is None else torch.empty_like(self.norms)
        self.hits = targets.new_zeros(()) if reading.counts else None

    def add(self, logits: Tensor, part: slice) -> None:
        """Take in the fp32 logits [t, V] of the targets `part`, which are no longer theirs then."""
        targets = self._targets[part]
        if self.hits is not None:
            self.hits += _hits(logits, targets)
        if self.divergences is not None:
            assert self._reading.teacher is not None
            self.divergences[part] = self._reading.teacher.far(logits, part)
        if self._reading.temperature != 1:
            logits /= self._reading.temperature
        norms = logits.logsumexp(-1)
        self.norms[part] = norms
        self.log_probs[part] = logits.gather(1, targets.unsqueeze(1)).squeeze(1) - norms
        if self.entropies is not None:
            logits -= norms.unsqueeze(1)
            self.entropies[part] = -(logits.exp() * logits).sum(-1)

    def out(self, ctx: Any) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """What a function of autograd gives."""
        ctx.set_materialize_grads(False)
        ctx.reading = self._reading
        if self.hits is not None:
            ctx.mark_non_differentiable(self.hits)
        return self.log_probs, self.entropies, self.divergences, self.hits


class HeadLogProbs(torch.autograd.Function):
    """Linear head and log-probabilities of the targets; backward works the logits out again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        reading: Reading,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        read = _Read(hidden, targets, reading)
        size = chunk_rows(weight.shape[0], hidden.device)
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            read.add(products.linear(hidden[part], weight, bias).float(), part)
        ctx.save_for_backward(hidden, weight, bias, targets, read.norms)
        return read.out(ctx)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, norms = ctx.saved_tensors
        gradients = _Gradients(ctx, hidden, weight, bias)
        size = chunk_rows(weight.shape[0], hidden.device)
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = products.linear(hidden[part], weight, bias).float()
            gradient = _read_again(logits, part, targets, norms, ctx.reading, grads)
            gradients.add(part, gradient)
            del logits, gradient
        return (
            gradients.hidden,
            None if gradients.weight is None else gradients.weight.to(weight.dtype),
            None if gradients.bias is None else gradients.bias.to(bias.dtype),
            None,
            None,
        )


class LogitsLogProbs(torch.autograd.Function):
    """Log-probabilities of targets from given logits [T, V]; fp32 exists for one chunk at a
    time."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, reading: Reading
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        read = _Read(logits, targets, reading)
        size = chunk_rows(logits.shape[-1], logits.device)
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            read.add(logits[part].to(torch.float32, copy=True), part)
        ctx.save_for_backward(logits, targets, read.norms)
        return read.out(ctx)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, targets, norms = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        size = chunk_rows(logits.shape[-1], logits.device)
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            own = logits[part].float()
            gradient[part] = _read_again(own, part, targets, norms, ctx.reading, grads)
        return gradient, None, None


def _reading_gradient(
    log_p: Tensor,
    shares: Tensor,
    targets: Tensor,
    temperature: float,
    of_log_probs: Tensor | None,
    of_entropies: Tensor | None,
) -> Tensor:
    """What gradients [t] of the log-probabilities of `targets` and of the entropies are for fp32
    logits [t, V]; it takes the memory of `shares`, the probabilities that `log_p` are the
    logarithms of."""
    gradient = shares
    if of_entropies is not None:
        # d entropy / d logit = -p (log p + entropy)
        entropies = -(gradient * log_p).sum(-1, keepdim=True)
        towards = (log_p + entropies).mul_(gradient).mul_(-of_entropies.unsqueeze(1))
    if of_log_probs is None:
        gradient.zero_()
    else:
        gradient.neg_()
        picked = targets.unsqueeze(1)
        gradient.scatter_add_(1, picked, gradient.new_ones((1, 1)).expand_as(picked))
        gradient.mul_(of_log_probs.unsqueeze(1))
    if of_entropies is not None:
        gradient += towards
        del towards
    if temperature != 1:
        gradient.div_(temperature)
    return gradient


def _read_again(
    logits: Tensor,
    part: slice,
    targets: Tensor,
    norms: Tensor,
    reading: Reading,
    grads: tuple[Tensor | None, ...],
) -> Tensor:
    """What gradients [T] of the targets' log-probabilities, of the entropies and of the divergences
    from a teacher are for fp32 `logits` [t, V] of a part of the targets; `norms` [T] are the
    logarithms of their summed exponentials."""
    of_log_probs, of_entropies, far = (None if grad is None else grad[part] for grad in grads[:3])
    log_p = logits if reading.temperature == 1 else logits / reading.temperature
    log_p = log_p - norms[part].unsqueeze(1)
    shares = log_p.exp_() if of_entropies is None else log_p.exp()
    gradient = _reading_gradient(
        log_p, shares, targets[part], reading.temperature, of_log_probs, of_entropies
    )
    if far is not None:
        assert reading.teacher is not None
        gradient += reading.teacher.against(logits, part)[1].mul_(far.unsqueeze(1))
    return gradient


class TokenLoss:
    """A loss of each target by what is read of its distribution; a `Criterion`.

    Where the loss of all is the sum of what it is by parts, the logits need not be worked out
    twice, as they are for `LogitsLogProbs`, and a teacher is asked once.
    """

    def __init__(
        self,
        targets: Tensor,
        reading: Reading,
        judge: Callable[[Distributions, slice], Tensor],
    ) -> None:
        """`judge` gives the loss, a scalar with gradients, of the targets of a slice by their
        distributions."""
        self._targets, self._reading, self._judge = targets, reading, judge
        count = 2 if reading.teacher is None else 3
        empty = torch.empty(count, len(targets), dtype=torch.float32, device=targets.device)
        self.found = Distributions(*empty)
        """What was read of all targets, without gradients."""

    def __call__(self, logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """See `Criterion`."""
        reading = self._reading
        far = towards = None
        if reading.teacher is not None:
            far, towards = reading.teacher.against(logits, part)
        log_p = logits if reading.temperature == 1 else logits / reading.temperature
        log_p = log_p.log_softmax(-1)
        shares = log_p.exp()
        log_probs = log_p.gather(1, self._targets[part].unsqueeze(1)).squeeze(1)
        entropies = -torch.einsum("tv,tv->t", shares, log_p)  # without one more [t, V]
        found = Distributions(log_probs, entropies, far)
        for known, own in zip(self.found, found, strict=True):
            if known is not None and own is not None:
                known[part] = own
        leaves = [own.requires_grad_() for own in found if own is not None]
        with torch.enable_grad():
            loss = self._judge(found, part)
        of_log_probs, of_entropies, *of_far = torch.autograd.grad(loss, leaves, allow_unused=True)
        gradient = _reading_gradient(
            log_p, shares, self._targets[part], reading.temperature, of_log_probs, of_entropies
        )
        if towards is not None and of_far[0] is not None:
            gradient += towards.mul_(of_far[0].unsqueeze(1))
        return loss.detach(), gradient


class LogitsLoss(torch.autograd.Function):
    """A criterion of given logits [T, V]; fp32 exists for one chunk at a time."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, criterion: Criterion, counts: bool
    ) -> tuple[Tensor, Tensor | None]:
        gradient = torch.empty_like(logits)
        total = logits.new_zeros((), dtype=torch.float32)
        hits = _hits(logits, targets) if counts else None
        size = chunk_rows(logits.shape[-1], logits.device)
        for start in range(0, logits.shape[0], size):
            part = slice(start, start + size)
            loss, grad = criterion(logits[part].float(), part)
            total += loss
            gradient[part] = grad
            del grad
        ctx.save_for_backward(gradient)
        if hits is not None:
            ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(grads[0].to(gradient.dtype)), None, None, None
