"""LM head at the target positions only, in chunks: a loss, log-probabilities, or others' questions.

The model is called with `logits_to_keep` = the target positions, and its LM head is given a
forward that returns the loss itself: gradients for the hidden states and the head's weight are
formed chunk by chunk in the forward pass, so `[targets, vocab]` never exists as a whole, and it
costs no more matrix products than the plain formula. Because it runs inside the head's own
`forward`, ZeRO-3 gathers the weight as for any module.

A model that changes logits after its head (soft-capping, scaling) is noticed by the first call, as
the tensor that leaves the model is then not the one that left the head; such models take the logits
themselves, at target positions, with the cross entropy in chunks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from launcher.core.errors import ConfigError
from launcher.model import attention
from launcher.model.adapter import inner_model

#: Elements of one fp32 chunk of logits: 4 MB on CPU (stays near the cache), 512 MB on a GPU.
CHUNK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}
#: Rows of a tile of a GPU's matrix product.
_TILE = 128


class RowTensors(Protocol):
    """What the head reads of a row: `launcher.data.pack.loader.Row`, on the model's device."""

    input_ids: Tensor
    position_ids: Tensor
    document_starts: Tensor
    target_index: Tensor
    targets: Tensor
    weights: Tensor | None
    longest: int
    sharing: Any
    """None, or a `launcher.data.pack.loader.Sharing`."""


class Head(Protocol):
    """What computes of a model what an objective asks for, row by row."""

    isolates: bool
    """Whether the documents of a row lie side by side; otherwise each is padded to a line."""
    pads: bool
    """Whether documents of several lengths may be lines of one batch, where each is a line."""
    layout: str
    """How documents are kept apart, as `launcher.health.isolation` has found out."""
    inputs: ForwardInputs
    shares: bool
    """Whether what documents of a record begin with alike is computed once, where they lie side by
    side."""
    hits: Tensor | None
    """Targets of the last loss or log-probabilities that are the model's first choice:
    int64 scalar, if counted."""
    keeps_logits: bool
    """Whether memory grows with what is computed of padded lines."""
    reads_whole: bool
    """Whether what it computes of a document depends on all of it, its last token included."""
    pools: bool
    """Whether the model makes one vector of a document in a way of its own."""

    def probe(self, caller: Any, row: Any) -> Tensor:
        """Numbers in nats by which the ways to lay out documents are compared: fp32 [n, ...], no
        gradients."""
        ...

    def documents_of_probe(self, row: Any) -> Tensor:
        """int64 [n]: which document each row of `probe` is of."""
        ...


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


class _Wish(Enum):
    """What the patched head is to compute."""

    loss = "loss"
    see = "see"
    log_probs = "log_probs"
    hidden = "hidden"


@dataclass(frozen=True, slots=True)
class _Reading:
    """How log-probabilities are read from logits."""

    temperature: float = 1.0
    """What logits are divided by."""
    entropies: bool = False
    """Whether the entropy of each distribution is wanted too."""
    counts: bool = False
    """Whether first choices that are right are counted."""


@dataclass(slots=True)
class _Request:
    """What the patched head computes on its next call, and what came of it."""

    targets: Tensor
    keep: Tensor
    wish: _Wish
    criterion: Criterion | None = None
    see: Callable[[Tensor, slice], None] | None = None
    reading: _Reading = _Reading()
    result: Tensor | None = None
    entropies: Tensor | None = None
    correct: Tensor | None = None


class TargetHead:
    """Computes losses and log-probabilities of `model` at target positions; a `Head`.

    `model` is the bare transformers or peft model; `caller` is what to call for a forward (the
    DeepSpeed engine while training). With `counts_hits`, `loss` and `log_probs` also count the
    targets that are the model's first choice.
    """

    keeps_logits = True
    reads_whole = False
    pools = False

    def __init__(self, model: nn.Module, *, counts_hits: bool = False) -> None:
        self.model, self._counts_hits = model, counts_hits
        self.hits: Tensor | None = None
        self.isolates = attention.isolates(model)
        self.shares = False
        self.pads = True
        self.layout = ""
        self.inputs = ForwardInputs(model)
        self._request: _Request | None = None
        self._is_fused = False
        """Whether a call has shown that the model gives what its head gave."""
        self.head = _plain_head(model)
        if self.head is not None:
            self._plain_forward = self.head.forward
            self.head.forward = self._forward  # type: ignore[method-assign,assignment]

    def loss(self, caller: Any, row: RowTensors, smoothing: float = 0.0) -> Tensor:
        """Sum of the (weighted) cross entropy over the row's targets in nats: fp32 scalar with
        gradients."""
        return self.learn(caller, row, CrossEntropy(row.targets, smoothing, row.weights))

    def learn(self, caller: Any, row: RowTensors, criterion: Criterion) -> Tensor:
        """Sum of `criterion` over the row's targets: fp32 scalar with gradients."""
        wish = _Request(row.targets, row.target_index, _Wish.loss, criterion)
        if (request := self._fused(caller, row, wish)) is not None:
            assert request.result is not None
            self.hits = request.correct
            return request.result
        total: Tensor
        total, self.hits = _LogitsLoss.apply(
            self._logits(caller, row), row.targets, criterion, self._counts_hits
        )
        return total

    def log_probs(self, caller: Any, row: RowTensors) -> Tensor:
        """Log-probability of each of the row's targets: fp32 [targets], with gradients.

        The logits are worked out twice, chunk by chunk, and never kept.
        """
        return self._read(caller, row, _Reading(counts=self._counts_hits))[0]

    def log_probs_and_entropies(
        self, caller: Any, row: RowTensors, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each of the row's targets, and the entropy in nats of the distribution
        that it is of, by logits divided by `temperature`: both fp32 [targets], with gradients."""
        reading = _Reading(temperature, entropies=True, counts=self._counts_hits)
        found, entropies = self._read(caller, row, reading)
        assert entropies is not None
        return found, entropies

    def _read(
        self, caller: Any, row: RowTensors, reading: _Reading
    ) -> tuple[Tensor, Tensor | None]:
        wish = _Request(row.targets, row.target_index, _Wish.log_probs, reading=reading)
        if (request := self._fused(caller, row, wish)) is not None:
            assert request.result is not None
            self.hits = request.correct
            return request.result, request.entropies
        found, entropies, self.hits = _LogitsLogProbs.apply(
            self._logits(caller, row), row.targets, reading
        )
        return found, entropies

    def probe(self, caller: Any, row: RowTensors) -> Tensor:
        """Losses of the targets."""
        return self.score(caller, row)[0]

    def documents_of_probe(self, row: Any) -> Tensor:
        """Documents of the targets."""
        documents: Tensor = row.document_of_targets()
        return documents

    @torch.no_grad()
    def score(self, caller: Any, row: RowTensors) -> tuple[Tensor, Tensor]:
        """Per target, without gradients: cross entropy in nats, fp32 [T]; top-1 right, bool [T]."""
        found = Scores(row.targets)
        self.see(caller, row, found)
        return found.losses, found.correct

    @torch.no_grad()
    def see(self, caller: Any, row: RowTensors, see: Callable[[Tensor, slice], None]) -> None:
        """Show `see` the fp32 logits [t, V] of each part of the row's targets, in order and without
        gradients."""
        wish = _Request(row.targets, row.target_index, _Wish.see, see=see)
        if self._fused(caller, row, wish) is None:
            _show(self._logits(caller, row), None, see)

    @torch.no_grad()
    def logits_by_part(self, caller: Any, row: RowTensors) -> Callable[[slice], Tensor]:
        """What gives the logits [t, V] of a part of the row's targets, without gradients: whole
        they are held of models alone that change logits after the head."""
        if self.head is not None and not self._is_fused:
            self.score(caller, row)  # a scalar tells, which no model takes for logits
        wish = _Request(row.targets, row.target_index, _Wish.hidden)
        if (request := self._fused(caller, row, wish)) is not None:
            hidden, head = request.result, self.head
            assert hidden is not None
            assert head is not None
            weight = head.weight.detach()
            bias = None if head.bias is None else head.bias.detach()
            return lambda part: nn.functional.linear(hidden[part], weight, bias)
        logits = self._logits(caller, row)
        return lambda part: logits[part]

    def _fused(self, caller: Any, row: RowTensors, request: _Request) -> _Request | None:
        """What the patched head made of a forward; None, from now on, for a model that changes its
        logits."""
        if self.head is None:
            return None
        inputs, packed, request.keep = self._layout(row)
        self._request = request
        try:
            logits = self._call(caller, inputs, packed)
            if _is_same(logits, request.result):
                # What left the model: ZeRO-3 gathers weights for backward by hooks on it.
                request.result = logits
                self._is_fused = True
                return request
        except torch.OutOfMemoryError:
            raise
        except (IndexError, RuntimeError):  # it cuts or reshapes what it takes for logits
            if request.result is None or self._is_fused:
                raise
        finally:
            self._request = None
        self.head.forward = self._plain_forward  # type: ignore[method-assign]
        self.head = None
        return None

    def _logits(self, caller: Any, row: RowTensors) -> Tensor:
        """Logits [targets, vocabulary] of the model itself."""
        inputs, packed, keep = self._layout(row)
        return _select(self._call(caller, inputs, packed), keep, len(row.targets))

    def _layout(self, row: RowTensors) -> tuple[dict[str, Any], RowLayout, Tensor]:
        """Inputs of the model, how documents lie in a row if they do, and which of their positions
        are predicted from."""
        if self.isolates:
            inputs, packed = packed_inputs(row, shares=self.shares)
            keep = packed.place(row.target_index)
        else:
            inputs, packed = padded_inputs(row), RowLayout()
            keep = _kept(row, inputs["attention_mask"])
        own = self.inputs.accepted({**inputs, "logits_to_keep": keep, "use_cache": False})
        return own, packed, keep

    def _call(self, caller: Any, inputs: dict[str, Any], packed: RowLayout) -> Tensor:
        with attention.packed_row(packed.starts, packed.keys):
            logits: Tensor = caller(**inputs).logits
        return logits

    def _forward(self, hidden: Tensor) -> Tensor:
        request, head = self._request, self.head
        assert head is not None
        if request is None:
            plain: Tensor = self._plain_forward(hidden)
            return plain
        flat = _select(hidden, request.keep, len(request.targets))
        if request.wish is _Wish.log_probs:
            request.result, request.entropies, request.correct = _HeadLogProbs.apply(
                flat, head.weight, head.bias, request.targets, request.reading
            )
        elif request.wish is _Wish.see:
            assert request.see is not None
            _show(flat, head, request.see)
            request.result = flat.new_zeros(())
        elif request.wish is _Wish.hidden:
            request.result = flat
        else:
            request.result, request.correct = _HeadLoss.apply(
                *(flat, head.weight, head.bias, request.targets),
                *(request.criterion, self._counts_hits),
            )
        return request.result


def _plain_head(model: nn.Module) -> nn.Linear | None:
    """The model's LM head if it is a plain linear layer, whose matrix product we may take over."""
    head = inner_model(model).get_output_embeddings()
    saved = getattr(head, "modules_to_save", None)  # peft's wrapper for modules trained in full
    if saved is not None and "default" in saved:
        head = saved["default"]
    return head if type(head) is nn.Linear else None


class ForwardInputs:
    """What the forward of a transformers model, or of the one in a peft model, takes."""

    def __init__(self, model: Any) -> None:
        base = inner_model(model)
        parameters = inspect.signature(base.forward).parameters
        self._names = set(parameters)
        self.hands_on = True
        """Whether it is told the boundaries of documents; `packed_row` holds them in any case."""
        self._all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def accepted(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Those of `inputs` that it takes."""
        return {
            name: value
            for name, value in inputs.items()
            if (self._all or name in self._names)
            and (self.hands_on or name not in attention.BOUNDARIES)
        }

    @property
    def has_positions(self) -> bool:
        """Whether it can be told where each token lies in its document."""
        return self._all or "position_ids" in self._names


def _select(values: Tensor, keep: Tensor, count: int) -> Tensor:
    """The `count` vectors at the positions `keep`; most models have picked them already."""
    flat = values.reshape(-1, values.shape[-1])
    if len(flat) == count:
        return flat
    try:
        return flat[keep.flatten()]
    except IndexError as error:
        raise ConfigError(
            f"the model gives {len(flat)} vectors of logits, which are not those of its tokens",
            where="model.name",
            hint="it predicts otherwise than token by token: take another model",
        ) from error


def _is_same(logits: Tensor, result: Tensor | None) -> bool:
    return (
        result is not None
        and logits.shape == result.shape
        and logits.untyped_storage().data_ptr() == result.untyped_storage().data_ptr()
    )


class RowLayout(NamedTuple):
    """How documents lie in one row; in none where nothing is said."""

    starts: Tensor | None = None
    """int32 [documents + 1]: where each one's computed tokens begin."""
    keys: attention.RowKeys | None = None
    """What these attend to, if it is more than they are."""

    def place(self, index: Tensor) -> Tensor:
        """Where tokens of the row, int64 [n], stand among the computed ones."""
        return index if self.keys is None else self.keys.where[index]


def packed_inputs(row: RowTensors, *, shares: bool) -> tuple[dict[str, Any], RowLayout]:
    """One line with all documents, for attention that is told where they begin; with `shares` what
    documents of a record begin with alike stands there once."""
    sharing = row.sharing if shares else None
    ids, positions, starts, longest = (
        row.input_ids,
        row.position_ids,
        row.document_starts,
        row.longest,
    )
    packed = RowLayout(starts)
    if sharing is not None:
        packed = RowLayout(
            sharing.document_starts, attention.RowKeys(sharing.where, starts, row.longest)
        )
        ids, positions = ids[sharing.kept], positions[sharing.kept]
        starts, longest = sharing.document_starts, sharing.longest
    return {
        "input_ids": ids.unsqueeze(0),
        "position_ids": positions.unsqueeze(0),
        "cu_seq_lens_q": starts,
        "cu_seq_lens_k": starts,
        "max_length_q": longest,
        "max_length_k": longest,
    }, packed


def padded_inputs(row: RowTensors, padding: int = 0) -> dict[str, Any]:
    """One line a document, padded on the right: for attention that cannot isolate documents."""
    starts = row.document_starts.tolist()
    lengths = [end - start for start, end in zip(starts[:-1], starts[1:], strict=True)]
    shape = (len(lengths), max(lengths))
    ids = row.input_ids.new_full(shape, padding)
    mask = torch.zeros(shape, dtype=torch.long, device=ids.device)
    for i, (start, length) in enumerate(zip(starts, lengths, strict=False)):
        ids[i, :length] = row.input_ids[start : start + length]
        mask[i, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _kept(row: RowTensors, mask: Tensor) -> Tensor:
    """Which positions of the padded documents are predicted from: bool, as `mask`."""
    keep = torch.zeros_like(mask, dtype=torch.bool)
    flat = torch.zeros_like(row.input_ids, dtype=torch.bool)
    flat[row.target_index] = True
    keep[mask.bool()] = flat
    return keep


def _chunk(vocab: int, device: torch.device) -> int:
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
            torch.mm(gradient, weight, out=self.hidden[part])
        if self.weight is not None:
            if self.weight.dtype == gradient.dtype:
                self.weight.addmm_(gradient.t(), hidden[part])
            elif _sums_wide(hidden.device, gradient.dtype):
                operands = (self.weight, gradient.t(), hidden[part])
                torch.addmm(*operands, torch.float32, out=self.weight)
            else:
                self.weight += gradient.t() @ hidden[part]


class _HeadLoss(torch.autograd.Function):
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
        size = _chunk(weight.shape[0], hidden.device)
        for start in range(0, hidden.shape[0], size):
            part = slice(start, start + size)
            logits = nn.functional.linear(hidden[part], weight, bias).float()
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

    def __init__(self, like: Tensor, targets: Tensor, reading: _Reading) -> None:
        self._targets, self._reading = targets, reading
        self.norms = like.new_empty(len(targets), dtype=torch.float32)
        """Logarithms of the summed exponentials."""
        self.log_probs = torch.empty_like(self.norms)
        self.entropies = torch.empty_like(self.norms) if reading.entropies else None
        self.hits = targets.new_zeros(()) if reading.counts else None

    def add(self, logits: Tensor, part: slice) -> None:
        """Take in the fp32 logits [t, V] of the targets `part`, which are no longer theirs then."""
        targets = self._targets[part]
        if self.hits is not None:
            self.hits += _hits(logits, targets)
        if self._reading.temperature != 1:
            logits /= self._reading.temperature
        norms = logits.logsumexp(-1)
        self.norms[part] = norms
        self.log_probs[part] = logits.gather(1, targets.unsqueeze(1)).squeeze(1) - norms
        if self.entropies is not None:
            logits -= norms.unsqueeze(1)
            self.entropies[part] = -(logits.exp() * logits).sum(-1)

    def out(self, ctx: Any) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """What a function of autograd gives."""
        ctx.set_materialize_grads(False)
        ctx.reading = self._reading
        if self.hits is not None:
            ctx.mark_non_differentiable(self.hits)
        return self.log_probs, self.entropies, self.hits


class _HeadLogProbs(torch.autograd.Function):
    """Linear head and log-probabilities of the targets; backward works the logits out again."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        reading: _Reading,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        read = _Read(hidden, targets, reading)
        size = _chunk(weight.shape[0], hidden.device)
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            read.add(nn.functional.linear(hidden[part], weight, bias).float(), part)
        ctx.save_for_backward(hidden, weight, bias, targets, read.norms)
        return read.out(ctx)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, norms = ctx.saved_tensors
        gradients = _Gradients(ctx, hidden, weight, bias)
        size = _chunk(weight.shape[0], hidden.device)
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = nn.functional.linear(hidden[part], weight, bias).float()
            gradient = _reading_gradient(
                logits, targets[part], norms[part], ctx.reading, _parts(grads, part)
            )
            gradients.add(part, gradient)
            del logits, gradient
        return (
            gradients.hidden,
            None if gradients.weight is None else gradients.weight.to(weight.dtype),
            None if gradients.bias is None else gradients.bias.to(bias.dtype),
            None,
            None,
        )


class _LogitsLogProbs(torch.autograd.Function):
    """Log-probabilities of targets from given logits [T, V]; fp32 exists for one chunk at a
    time."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, reading: _Reading
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        read = _Read(logits, targets, reading)
        size = _chunk(logits.shape[-1], logits.device)
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            read.add(logits[part].to(torch.float32, copy=True), part)
        ctx.save_for_backward(logits, targets, read.norms)
        return read.out(ctx)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        logits, targets, norms = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        size = _chunk(logits.shape[-1], logits.device)
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            own = logits[part].float()
            gradient[part] = _reading_gradient(
                own, targets[part], norms[part], ctx.reading, _parts(grads, part)
            )
        return gradient, None, None


def _parts(grads: tuple[Tensor | None, ...], part: slice) -> list[Tensor | None]:
    """Gradients of the log-probabilities and of the entropies, of a part of the targets."""
    return [None if own is None else own[part] for own in grads[:2]]


def _reading_gradient(
    logits: Tensor,
    targets: Tensor,
    norms: Tensor,
    reading: _Reading,
    grads: list[Tensor | None],
) -> Tensor:
    """What gradients [t] of the targets' log-probabilities, and of the entropies, are for fp32
    `logits` [t, V]; `norms` are the logarithms of their summed exponentials."""
    heat, (of_log_probs, of_entropies) = reading.temperature, grads
    log_p = (logits if heat == 1 else logits / heat) - norms.unsqueeze(1)
    gradient = log_p.exp_() if of_entropies is None else log_p.exp()
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
    return gradient if heat == 1 else gradient.div_(heat)


class _LogitsLoss(torch.autograd.Function):
    """A criterion of given logits [T, V]; fp32 exists for one chunk at a time."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, criterion: Criterion, counts: bool
    ) -> tuple[Tensor, Tensor | None]:
        gradient = torch.empty_like(logits)
        total = logits.new_zeros((), dtype=torch.float32)
        hits = _hits(logits, targets) if counts else None
        size = _chunk(logits.shape[-1], logits.device)
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


def _show(values: Tensor, head: nn.Linear | None, see: Callable[[Tensor, slice], None]) -> None:
    """Give `see` logits in fp32 by parts: `values` [T, ...], or what `head` makes of them."""
    vocab = values.shape[-1] if head is None else head.weight.shape[0]
    size = _chunk(vocab, values.device)
    for start in range(0, len(values), size):
        part = slice(start, start + size)
        logits = values[part]
        if head is not None:
            logits = nn.functional.linear(logits, head.weight, head.bias)
        see(logits.float(), part)
        del logits
