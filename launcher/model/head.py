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
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from launcher.core.errors import ConfigError
from launcher.model import attention, products, sequence_parallel
from launcher.model.adapter import inner_model
from launcher.model.sequence_parallel import RowStretch, SequenceGroup
from launcher.model.target_logits import (
    Criterion,
    CrossEntropy,
    Distributions,
    HeadLogProbs,
    HeadLoss,
    LogitsLogProbs,
    LogitsLoss,
    Reading,
    Scores,
    TokenLoss,
    Within,
    chunk_rows,
)

if TYPE_CHECKING:
    from launcher.model.divergence import Teacher


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
    sequence: SequenceGroup | None
    """The ranks that share each row, which all of them are given whole; None: it is each rank's
    own."""
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


class _Wish(Enum):
    """What the patched head is to compute."""

    loss = "loss"
    see = "see"
    log_probs = "log_probs"
    hidden = "hidden"


@dataclass(slots=True)
class _Request:
    """What the patched head computes on its next call, and what came of it."""

    row: RowTensors | RowStretch
    keep: Tensor
    wish: _Wish
    criterion: Criterion | None = None
    see: Callable[[Tensor, slice], None] | None = None
    joins: bool = False
    """Whether the targets of all ranks that share the row are shown."""
    reading: Reading = Reading()
    result: Tensor | None = None
    entropies: Tensor | None = None
    divergences: Tensor | None = None
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
        self.sequence: SequenceGroup | None = None
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
        total: Tensor
        own = self._own(row)
        if isinstance(own, RowStretch):
            criterion = Within(criterion, own.part)
        wish = _Request(own, own.target_index, _Wish.loss, criterion)
        if (request := self._fused(caller, own, wish)) is not None:
            assert request.result is not None
            total, self.hits = request.result, request.correct
        else:
            total, self.hits = LogitsLoss.apply(
                self._logits(caller, own), own.targets, criterion, self._counts_hits
            )
        self._count(own)
        return total if self.sequence is None else self.sequence.sum(total)

    def log_probs(self, caller: Any, row: RowTensors) -> Tensor:
        """Log-probability of each of the row's targets: fp32 [targets], with gradients.

        The logits are worked out twice, chunk by chunk, and never kept.
        """
        return self._read(caller, row, Reading(counts=self._counts_hits))[0]

    def distributions(
        self, caller: Any, row: RowTensors, temperature: float, teacher: Teacher | None = None
    ) -> Distributions:
        """What the model makes of the row's targets by logits divided by `temperature`, and how far
        it is from a `teacher` there, whose measure has a temperature of its own.

        The teacher is asked twice for each part of the targets, as the logits are worked out twice.
        """
        assert self.sequence is None or teacher is None, "a teacher is asked of whole rows"
        reading = Reading(temperature, True, teacher, counts=self._counts_hits)
        log_probs, entropies, divergences = self._read(caller, row, reading)
        assert entropies is not None
        return Distributions(log_probs, entropies, divergences)

    def learn_by_token(
        self,
        caller: Any,
        row: RowTensors,
        temperature: float,
        judge: Callable[[Distributions, slice], Tensor],
        teacher: Teacher | None = None,
    ) -> tuple[Tensor, Distributions]:
        """The sum of `judge` over parts of the row's targets, a fp32 scalar with gradients, and the
        `distributions` that it was given, without any.

        In fp16 all of them are one part: gradients would be formed before they are scaled, and
        those of a token may be too small for it.
        """
        if next(self.model.parameters()).dtype == torch.float16:
            whole = self.distributions(caller, row, temperature, teacher)
            far = None if whole.divergences is None else whole.divergences.detach()
            known = Distributions(whole.log_probs.detach(), whole.entropies.detach(), far)
            return judge(whole, slice(None)), known
        assert self.sequence is None, "what it finds would be of this rank's targets alone"
        criterion = TokenLoss(row.targets, Reading(temperature, True, teacher), judge)
        return self.learn(caller, row, criterion), criterion.found

    def _read(
        self, caller: Any, row: RowTensors, reading: Reading
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        own = self._own(row)
        wish = _Request(own, own.target_index, _Wish.log_probs, reading=reading)
        if (request := self._fused(caller, own, wish)) is not None:
            assert request.result is not None
            self.hits = request.correct
            read = [request.result, request.entropies, request.divergences]
        else:
            *read, self.hits = LogitsLogProbs.apply(self._logits(caller, own), own.targets, reading)
        self._count(own)
        found = [None if x is None else _joined(own, x) for x in read]
        log_probs, entropies, divergences = found
        assert log_probs is not None
        return log_probs, entropies, divergences

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
        own = self._own(row)
        found = Scores(own.targets)
        self._show_to(found, caller, own, joins=False)
        return _joined(own, found.losses), _joined(own, found.correct.byte()).bool()

    @torch.no_grad()
    def see(self, caller: Any, row: RowTensors, see: Callable[[Tensor, slice], None]) -> None:
        """Show `see` the fp32 logits [t, V] of each part of the row's targets, in order and without
        gradients."""
        self._show_to(see, caller, self._own(row), joins=True)

    def _show_to(
        self,
        see: Callable[[Tensor, slice], None],
        caller: Any,
        own: RowTensors | RowStretch,
        *,
        joins: bool,
    ) -> None:
        """What `see` does; unless it `joins` them, of this rank's own targets alone."""
        wish = _Request(own, own.target_index, _Wish.see, see=see, joins=joins)
        if self._fused(caller, own, wish) is None:
            logits = self._logits(caller, own)
            _show(_joined(own, logits) if joins else logits, None, see)

    @torch.no_grad()
    def logits_by_part(self, caller: Any, row: RowTensors) -> Callable[[slice], Tensor]:
        """What gives the logits [t, V] of a part of the row's targets, without gradients: whole
        they are held of models alone that change logits after the head."""
        if self.head is not None and not self._is_fused:
            self.score(caller, row)  # a scalar tells, which no model takes for logits
        own = self._own(row)
        wish = _Request(own, own.target_index, _Wish.hidden)
        if (request := self._fused(caller, own, wish)) is not None:
            hidden, head = request.result, self.head
            assert hidden is not None
            assert head is not None
            weight = head.weight.detach()
            bias = None if head.bias is None else head.bias.detach()
            return lambda part: products.linear(hidden[part], weight, bias)
        logits = _joined(own, self._logits(caller, own))
        return lambda part: logits[part]

    def _own(self, row: RowTensors) -> RowTensors | RowStretch:
        """What this rank computes of a row."""
        return row if self.sequence is None else sequence_parallel.cut(row, self.sequence)

    def _count(self, own: RowTensors | RowStretch) -> None:
        """Let `hits` be those of the row."""
        if self.hits is not None and isinstance(own, RowStretch):
            self.hits = own.stretches.group.sum(self.hits)

    def _fused(
        self, caller: Any, row: RowTensors | RowStretch, request: _Request
    ) -> _Request | None:
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

    def _logits(self, caller: Any, row: RowTensors | RowStretch) -> Tensor:
        """Logits [targets, vocabulary] of the model itself."""
        inputs, packed, keep = self._layout(row)
        return _select(self._call(caller, inputs, packed), keep, len(row.targets))

    def _layout(self, row: RowTensors | RowStretch) -> tuple[dict[str, Any], RowLayout, Tensor]:
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
        with attention.packed_row(*packed):
            logits: Tensor = caller(**inputs).logits
        return logits

    def _forward(self, hidden: Tensor) -> Tensor:
        request, head = self._request, self.head
        assert head is not None
        if request is None:
            plain: Tensor = self._plain_forward(hidden)
            return plain
        flat = _select(hidden, request.keep, len(request.row.targets))
        if request.wish is _Wish.log_probs:
            found = HeadLogProbs.apply(
                flat, head.weight, head.bias, request.row.targets, request.reading
            )
            request.result, request.entropies, request.divergences, request.correct = found
        elif request.wish is _Wish.see:
            assert request.see is not None
            # Vectors are joined, which are fewer numbers than logits.
            _show(_joined(request.row, flat) if request.joins else flat, head, request.see)
            request.result = flat.new_zeros(())
        elif request.wish is _Wish.hidden:
            request.result = _joined(request.row, flat)
        else:
            request.result, request.correct = HeadLoss.apply(
                *(flat, head.weight, head.bias, request.row.targets),
                *(request.criterion, self._counts_hits),
            )
        return request.result


def _joined(own: RowTensors | RowStretch, values: Tensor) -> Tensor:
    """[targets, ...] of the row, of what this rank has made of its own."""
    if not isinstance(own, RowStretch):
        return values
    return own.stretches.group.join(values, own.counts)


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
    stretches: sequence_parallel.Stretches | None = None
    """How ranks share the row, if they do."""

    def place(self, index: Tensor) -> Tensor:
        """Where tokens of the row, int64 [n], stand among the computed ones."""
        return index if self.keys is None else self.keys.where[index]


def packed_inputs(
    row: RowTensors | RowStretch, *, shares: bool
) -> tuple[dict[str, Any], RowLayout]:
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
    if isinstance(row, RowStretch):
        packed = RowLayout(starts, stretches=row.stretches)
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


def padded_inputs(row: RowTensors | RowStretch, padding: int = 0) -> dict[str, Any]:
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


def _kept(row: RowTensors | RowStretch, mask: Tensor) -> Tensor:
    """Which positions of the padded documents are predicted from: bool, as `mask`."""
    keep = torch.zeros_like(mask, dtype=torch.bool)
    flat = torch.zeros_like(row.input_ids, dtype=torch.bool)
    flat[row.target_index] = True
    keep[mask.bool()] = flat
    return keep


def _show(values: Tensor, head: nn.Linear | None, see: Callable[[Tensor, slice], None]) -> None:
    """Give `see` logits in fp32 by parts: `values` [T, ...], or what `head` makes of them."""
    vocab = values.shape[-1] if head is None else head.weight.shape[0]
    size = chunk_rows(vocab, values.device)
    for start in range(0, len(values), size):
        part = slice(start, start + size)
        logits = values[part]
        if head is not None:
            logits = products.linear(logits, head.weight, head.bias)
        see(logits.float(), part)
        del logits
