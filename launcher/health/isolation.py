"""How the documents of a row are kept apart in a model: found out on the model itself.

Four ways, of which the first that is right is taken:

1. side by side in one row, by attention that knows where each begins;
2. the same, and each layer that carries something along the row beside its attention (a state, a
   convolution) runs once a document;
3. a line for each, padded to the longest, with the model's own attention;
4. the same with lines of one length at a time, for models that padding reaches (convolutions,
   Fourier transforms, pooling of all that is there).

Right means that the losses of a document do not change with what lies before it in the row, and
that they are those of the document alone with the model's own plain attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from launcher.core.errors import ConfigError
from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.pack.loader import LEAST_SHARED, Row, make_row
from launcher.health import determinism
from launcher.model import attention
from launcher.model.adapter import inner_model
from launcher.model.head import Head
from launcher.model.mixers import Mixers, part, tensors
from launcher.model.sequence_parallel import SequenceGroup

#: Tokens of each document of the check at most: longer ones would only cost time.
_LONGEST = 256
#: Records that the documents of the check are chosen from.
_CHOICE = 100
#: About so many are tried for losses that are finite.
_TRIED = 16
#: How code of others fails on what it does not expect.
_FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
#: Share of what the loss of its beginning does to a document that rounding may do.
_SEEN = 0.1
#: Rotary positions whose frequencies follow the longest position that a forward is given, which is
#: another one in each stretch of a row.
_TURNING = {"dynamic", "longrope"}
#: A model has at most so many kinds of layers that carry something along the row.
_ROUNDS = 4


@dataclass(frozen=True, slots=True)
class _Tolerance:
    """What rounding may do. A document that is isolated does not change at all, but for experts,
    whose batches of tokens are cut otherwise; one that sees other tokens changes by far more."""

    leak: float
    """Mean change of a target's loss when another document changes, in nats."""
    loss: float
    """Mean difference of a target's loss to that of the document alone, in nats."""
    relative: float
    """Largest change of a layer's output, in shares of its largest element."""


_EXACT = _Tolerance(leak=1e-5, loss=1e-4, relative=1e-5)
_HALF = _Tolerance(leak=0.01, loss=0.1, relative=0.02)


class _NothingToSee(Exception):
    """No record has two tokens, so that there is none that another could see."""


class _Excerpt:
    """Records of a cache without their middles, of which each token but the first is a target; an
    end-of-sequence token stays, as some classifiers read texts there."""

    def __init__(self, cache: TokenCache | JoinedCache) -> None:
        self._cache = cache
        self.is_weighted = False
        self.columns: dict[str, Any] = {}

    def record(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        lengths = self._cache.documents(i)
        start = sum(lengths[: (longest := lengths.index(max(lengths)))])
        tokens = self._cache.record(i)[0][start : start + lengths[longest]]
        if len(tokens) > _LONGEST:
            tokens = np.append(tokens[: _LONGEST - 1], tokens[-1])
        return tokens, np.ones(len(tokens), np.uint8)

    def documents(self, i: int) -> list[int]:
        return [len(self.record(i)[0])]

    def weight(self, i: int) -> float:
        return 1.0


def _without_beginnings(row: Row) -> Row:
    """A row in whose place of what documents share stands its first token, over and over."""
    assert row.sharing is not None
    where = torch.zeros_like(row.sharing.where)
    where[row.sharing.kept] = row.sharing.where[row.sharing.kept]
    return replace(row, sharing=replace(row.sharing, where=where))


class _Plain:
    """Records of a cache without its columns."""

    def __init__(self, cache: TokenCache | JoinedCache) -> None:
        self._cache = cache
        self.is_weighted = False
        self.columns: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


class _Twins(_Excerpt):
    """The same, each as two documents whose second halves differ in the order of their tokens."""

    def record(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        tokens, flags = super().record(i)
        half = max(len(tokens) // 2, LEAST_SHARED)
        other = np.append(tokens[:half], tokens[half:][::-1])
        return np.append(tokens, other), np.append(flags, flags)

    def documents(self, i: int) -> list[int]:
        return [len(self.record(i)[0]) // 2] * 2


class _Probe:
    """Some documents of the data, and what a head makes of them; all ranks ask it the same."""

    def __init__(
        self,
        head: Head,
        caller: Any,
        cache: TokenCache | JoinedCache,
        device: torch.device,
    ) -> None:
        self._excerpt: Any = _Excerpt(cache)
        several = np.flatnonzero(np.asarray(cache.lengths) > 1)[:_CHOICE].tolist()
        lengths = {i: len(self._excerpt.record(i)[0]) for i in several}
        if not several:
            raise _NothingToSee
        # The longest, a middling and the shortest one: what padding does shows where they differ.
        several.sort(key=lambda i: -lengths[i])
        self._several = several
        self.head, self._caller, self._device = head, caller, device
        self._choose(several)

    def _choose(self, records: list[int]) -> None:
        self._longest = records[0]
        self._lay([records[0], records[len(records) // 2], records[-1]])

    def lay_finite(self, agree: Callable[[bool], bool]) -> bool:
        """Compare records whose losses are finite, each by itself; False if there are none. A few
        others are the loop's affair."""
        records = self._several[:: max(len(self._several) // _TRIED, 1)]
        finite = []
        for i in records:
            losses = self.losses(make_row(self._excerpt, [i]).to(self._device))
            if agree(bool(losses.isfinite().all())):
                finite.append(i)
        if finite:
            self._choose(finite)
        return bool(finite)

    def _lay(self, chosen: list[int]) -> None:
        """Compare these records, in a row and each alone."""
        self.row = make_row(self._excerpt, chosen).to(self._device)
        self.documents = [make_row(self._excerpt, [i]).to(self._device) for i in chosen]
        self.border = int(self.row.document_starts[1])
        other = self.row.input_ids.clone()
        other[: self.border] = other[: self.border].roll(1)
        other[self.border - 1] = self.row.input_ids[self.border]
        self.changed = replace(self.row, input_ids=other)
        self._behind = self.head.documents_of_probe(self.row) > 0

    def sharing(self, cache: TokenCache | JoinedCache, *, twins: bool) -> Row | None:
        """Some records with documents that begin alike, the shortest ones; None if there are
        none. `twins`: documents are made that do."""
        whole: Any = _Twins(cache) if twins else _Plain(cache)
        rows = (make_row(whole, [i]) for i in self._several if len(whole.documents(i)) > 1)
        found = [row for row in rows if row.sharing is not None]
        found.sort(key=lambda row: len(row.input_ids))
        chosen = [i for row in found[:3] for i in row.records]
        return make_row(whole, chosen).to(self._device) if chosen else None

    def lay_equal(self) -> None:
        """Compare documents of one length: the longest one, behind another order of its tokens."""
        self._lay([self._longest] * 2)
        self.row, self.changed = self.changed, self.row
        first = self.row.input_ids[: self.border]
        self.documents[0] = replace(self.documents[0], input_ids=first)

    def losses(self, row: Row) -> Tensor:
        return self.head.probe(self._caller, row)

    def behind(self, row: Row) -> Tensor:
        """Losses of the documents behind the first one."""
        return self.losses(row)[self._behind]

    def leak(self) -> float:
        """What a change of the first document does to those behind it, in nats a target."""
        difference = (self.behind(self.row) - self.behind(self.changed)).abs().mean()
        return float(difference)

    def foresight(self) -> float:
        """What a change of a document's last token does to what is predicted before it, in nats a
        target; nothing where all of it is read."""
        if self.head.reads_whole:
            return 0.0
        row = self.documents[0]
        other = row.input_ids.clone()
        # Some tokenizers begin and end texts with the same token.
        others = self.row.input_ids[self.row.input_ids != other[-1]]
        other[-1] = others[0] if len(others) else (other[-1] - 1).abs()
        difference = self.losses(row) - self.losses(replace(row, input_ids=other))
        return float(difference.abs().mean())

    def beside(self) -> float:
        """What it does to a document's losses that it is computed beside others, in nats a target:
        the attention is the same, so that no choice (of experts, of keys) falls otherwise."""
        return float((self.losses(self.row) - self.alone()).abs().mean())

    def alone(self) -> Tensor:
        """The losses of all, one after the other."""
        return torch.cat([self.losses(row) for row in self.documents])

    def rounding(self, model: Any) -> float:
        """What it does to the losses, with the attention that is set, that every element of the
        embeddings moves to the next number of its format, in nats a target. Where experts or keys
        are chosen, a rounding may choose others."""

        def moved(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            generator = torch.Generator().manual_seed(0)
            signs = torch.randint(0, 2, output.shape, generator=generator) * 2 - 1
            step = torch.finfo(output.dtype).eps * signs.to(output.device, output.dtype)
            return output + output * step

        expected = self.alone()
        hook = model.get_input_embeddings().register_forward_hook(moved)
        try:
            return float((self.alone() - expected).abs().mean())
        finally:
            hook.remove()


def isolate(
    head: Head,
    caller: Any,
    model: Any,
    cache: TokenCache | JoinedCache,
    device: torch.device,
    agree: Callable[[bool], bool] = bool,
    *,
    trains: bool = False,
    groups: bool = False,
) -> list[str]:
    """Choose how `head` keeps documents apart in `model`, and say what is out of the ordinary.

    `caller` is what to call for a forward (the engine while training), in evaluation mode; `agree`
    tells of a rank's finding whether it is that of all. All ranks call this with the same cache.
    `groups`: rows will hold records of several documents that begin alike, though the cache has
    none. Raises `ConfigError` for a model that gives a document another loss beside others than
    alone, and with `trains` for one that cannot be computed in training mode.
    """
    try:
        probe = _Probe(head, caller, cache, device)
    except _NothingToSee:
        return []
    inner = inner_model(model)
    choice = _Choice(head, probe, model, inner, agree)
    notes = choice.make()
    head.shares = choice.shares(cache, twins=groups)
    if trains:
        model.train()
        with as_refusal(inner, " in training"):
            probe.losses(probe.row)
        model.eval()
    return notes


def share(
    head: Head,
    caller: Any,
    model: Any,
    cache: TokenCache | JoinedCache,
    device: torch.device,
    group: SequenceGroup,
    agree: Callable[[bool], bool],
) -> None:
    """Let the ranks of `group` share each row that `head` computes, once `isolate` has found that
    documents lie side by side.

    Raises `ConfigError` for a model that gives other losses so than on each rank alone, or that
    carries something along the row beside its attention.
    """
    inner = inner_model(model)
    if head.layout != "row":
        _, _, names = head.layout.partition(", ")
        found = f"layers that carry a state along the row ({names})" if head.isolates else names
        raise _unshared(inner, found or "attention of its own")
    if turning := _TURNING & _turns(inner.config.get_text_config()):
        raise _unshared(inner, f"positions that turn by the longest one ({', '.join(turning)})")
    head.shares = False
    try:
        probe = _Probe(head, caller, cache, device)
    except _NothingToSee:
        head.sequence = group
        return
    expected = probe.losses(probe.row)
    head.sequence = group
    with as_refusal(inner, " of which ranks share a row"):
        off = float((probe.losses(probe.row) - expected).abs().mean())
    dtype = next(p for p in model.parameters() if p.is_floating_point()).dtype
    exact = dtype in (torch.float32, torch.float64)
    if not agree(off <= (_EXACT if exact else _HALF).loss):
        raise _unshared(inner, f"losses that change by {off:.2g} nats a token then")


def _turns(config: Any) -> set[str]:
    """The kinds of rotary positions of a model, of its layers of each type."""
    found = getattr(config, "rope_parameters", None) or {}
    kinds = [found, *(own for own in found.values() if isinstance(own, dict))]
    return {str(own["rope_type"]) for own in kinds if own.get("rope_type")}


def _unshared(inner: Any, found: str) -> ConfigError:
    return ConfigError(
        f"ranks cannot share a row of {type(inner).__name__}, which has {found}",
        where="engine.sequence_parallel",
        hint="engine.sequence_parallel=1, with model.gradient_checkpointing=true for long rows",
    )


class _Choice:
    """The first way of a model that is right; all ranks choose alike."""

    def __init__(
        self, head: Head, probe: _Probe, model: Any, inner: Any, agree: Callable[[bool], bool]
    ) -> None:
        dtype = next(p for p in model.parameters() if p.is_floating_point()).dtype
        self._head, self._probe, self._inner, self._agree = head, probe, inner, agree
        self._dtype = dtype
        self._tolerance = _EXACT if dtype in (torch.float32, torch.float64) else _HALF
        self._limits = [self._tolerance.loss]

    def make(self) -> list[str]:
        """Set what the head is to do, and say what is out of the ordinary."""
        head, inner = self._head, self._inner
        asked, head.isolates = head.isolates, False
        alone = self._alone()
        why = None
        if asked:
            mixers = Mixers()
            why = self._in_a_row(mixers, alone)
            if self._agree(why is None):
                names = mixers.names
                head.layout = ", ".join(["row", *names])
                return [f"{name} runs once a document, as it carries state" for name in names]
            mixers.undo()
            head.isolates = False
            inner.set_attn_implementation(attention.supported(type(inner), "sdpa"))
            if not self._is_close(self._probe.beside()):
                inner.set_attn_implementation("eager")
        elif attention.supported(type(inner), attention.DOCUMENT) != attention.DOCUMENT:
            why = "attention of its own"
        elif head.pools:
            why = "a head of its own"
        return self._in_lines(why)

    def shares(self, cache: TokenCache | JoinedCache, *, twins: bool) -> bool:
        """Whether what documents of a record begin with alike may be computed once: whether the
        losses stay what they are. Documents that are not in a row have nothing in common."""
        head, probe = self._head, self._probe
        if head.layout != "row" or (row := probe.sharing(cache, twins=twins)) is None:
            return False
        assert row.sharing is not None
        # Of targets whose own tokens are computed in any case; an output is of a whole document.
        counts = torch.isin(row.target_index, row.sharing.kept)
        apart, off, blind = probe.losses(row), math.inf, 0.0
        which = slice(None) if head.reads_whole else counts
        head.shares = True
        try:
            off = float((probe.losses(row) - apart)[which].abs().mean())
            lost = probe.losses(_without_beginnings(row))
            blind = float((lost - apart)[which].abs().mean())
        except torch.OutOfMemoryError:
            raise
        except (attention.Unknown, *_FAILURES):
            pass
        finally:
            head.shares = False
        # What 16 bits round may be as much as a model makes of a beginning: then nobody can tell.
        return self._is_close(off) and self._agree(off <= _SEEN * blind)

    def _alone(self) -> Tensor:
        """The losses of documents that nothing lies beside, with plain attention. `ConfigError` if
        they are not finite, or if a token is predicted by one that sees it."""
        probe, inner = self._probe, self._inner
        with as_refusal(inner):
            with _attention(inner, "eager"):
                losses = probe.alone()
                is_finite = self._agree(bool(losses.isfinite().all()))
                if not is_finite and (is_finite := probe.lay_finite(self._agree)):
                    losses = probe.alone()
                foresight = probe.foresight()
            # What users open it with. PaliGemma without the mask of its images is causal in plain
            # attention alone.
            with _attention(inner, attention.supported(type(inner), "sdpa")):
                foresight = max(foresight, probe.foresight())
        if not is_finite:
            raise ConfigError(
                f"{type(inner).__name__} gives texts of the data a loss that is not a finite"
                f" number, each by itself and with plain attention, in {self._dtype}",
                where="model.name",
                hint="are its weights whole? if they are: engine.precision=bf16, as fp16 overflows"
                " in some models",
            )
        if not self._agree(foresight <= self._tolerance.leak):
            raise _not_causal(inner)
        return losses

    def _in_a_row(self, mixers: Mixers, alone: Tensor) -> str | None:
        """Compute documents side by side; else why that is not right."""
        self._head.isolates = True
        why = _side_by_side(self._probe, self._inner, mixers, self._tolerance, self._agree)
        if self._agree(why is None):
            off = float((self._probe.losses(self._probe.row) - alone).abs().mean())
            why = None if self._is_close(off) else "attention that is not that of packed rows"
        return why

    def _in_lines(self, why: str | None) -> list[str]:
        """Compute documents a line each, padded or of equal lengths; `ConfigError` if neither is
        right. `why` says why they are not computed in a row."""
        head, probe, inner = self._head, self._probe, self._inner
        own = inner.config._attn_implementation
        head.layout = f"padded, {own}"
        padded = _off_in_lines(probe)
        if self._is_right(padded):
            note = f"documents are padded, one a line, with {own}: the model has {why}"
            return [note] if why else []
        head.pads, head.layout = False, f"equal lengths, {own}"
        probe.lay_equal()
        if self._is_right(_off_in_lines(probe)):
            return [
                f"documents of one length are computed together, one a line, with {own}, as others"
                f" would {padded.what}"
            ]
        again = float((probe.alone() - probe.alone()).abs().mean())
        if not self._agree(again <= self._tolerance.loss):
            raise ConfigError(
                f"{type(inner).__name__} gives a text another loss each time, by {again:.2g} nats"
                " a token: it draws random numbers while it computes",
                where="model.name",
                hint="look in its config.json for what turns that off, or take another model",
            )
        raise ConfigError(
            f"{type(inner).__name__} gives a document another loss beside others than alone: they"
            f" {padded.what}",
            where="model.name",
            hint="try model.attention=eager, or another model",
        )

    def _is_right(self, found: _Off) -> bool:
        """Whether what others do to a document is no more than rounding."""
        return self._is_close(found.difference) and self._agree(found.leak <= self._tolerance.leak)

    def _is_close(self, difference: float) -> bool:
        """Whether a mean difference is one of rounding: within the tolerance, or what the least of
        it does to this model, which is found out where it matters."""
        if self._agree(difference <= self._limits[-1]):
            return True
        if len(self._limits) > 1:
            return False
        isolates, self._head.isolates = self._head.isolates, False
        with _attention(self._inner, "eager"):
            self._limits.append(max(self._tolerance.loss, self._probe.rounding(self._inner)))
        self._head.isolates = isolates
        return self._agree(difference <= self._limits[-1])


def _not_causal(model: nn.Module) -> ConfigError:
    return ConfigError(
        f"{type(model).__name__} is not causal: a token sees those that it is to predict",
        where="model.name",
        hint="a model that reads in both directions can classify: objective=classify",
    )


@dataclass(frozen=True, slots=True)
class _Off:
    """What it does to a document that it is computed with others, each a line."""

    difference: float
    """Mean difference of a target's loss to that of the document alone, in nats."""
    leak: float
    """Mean change of a target's loss when another document changes, in nats."""
    error: Exception | None = None

    @property
    def what(self) -> str:
        """The same in words."""
        if self.error is not None:
            return f"make it fail ({type(self.error).__name__}: {self.error})"
        text = f"move its loss by {self.difference:.2g} nats a target"
        return f"{text}, by {self.leak:.2g} with each change of theirs" if self.leak else text


def _off_in_lines(probe: _Probe) -> _Off:
    try:
        return _Off(probe.beside(), probe.leak())
    except torch.OutOfMemoryError:
        raise
    except _FAILURES as error:
        return _Off(math.inf, math.inf, error)


def _side_by_side(
    probe: _Probe,
    model: nn.Module,
    mixers: Mixers,
    tolerance: _Tolerance,
    agree: Callable[[bool], bool],
) -> str | None:
    """Keep the documents of a row apart, by `mixers` if need be; else what keeps them together."""
    if not probe.head.inputs.has_positions:
        return "no places of tokens but those in the row"
    for _ in range(_ROUNDS):
        error: Exception | None = None
        leak = math.inf
        try:
            leak = probe.leak()
        except torch.OutOfMemoryError:
            raise
        # A kernel that takes no boundaries, a layer that cannot be run on a part of its row: each
        # fails in its own way, on all ranks alike.
        except (attention.Unknown, *_FAILURES) as found:
            error = found
        if agree(leak <= tolerance.leak):
            return None
        if isinstance(error, attention.Unknown):
            return error.problems[0].found
        if error is not None:
            if not probe.head.inputs.hands_on:
                return f"layers that cannot take a part of a row ({error})"
            probe.head.inputs.hands_on = False
            continue
        kinds = _leaking(probe, model, tolerance)
        if not agree(bool(kinds)):
            break
        mixers.add(model, kinds)
        if not mixers.are_gathered_whole(model):
            return f"{', '.join(mixers.names)} outside of the layers that ZeRO-3 gathers as one"
    return "layers that see all of a row"


def _leaking(probe: _Probe, model: nn.Module, tolerance: _Tolerance) -> set[type[nn.Module]]:
    """The innermost modules whose output for the documents behind the first one changes with it
    though their input for them does not."""
    total, border = len(probe.row.input_ids), probe.border
    before: dict[str, list[list[Tensor]]] = {}
    blamed: dict[str, nn.Module] = {}

    def watch(name: str, module: nn.Module, values: tuple[Any, ...]) -> None:
        *inputs, output = (
            [x.detach() for x in tensors(part(value, total, border, total))] for value in values
        )
        now = [[x for one in inputs for x in one], output]
        if name not in before:
            before[name] = now
            return
        same_input, same_output = (
            all(_same(x, y, tolerance.relative) for x, y in zip(*pair, strict=True))
            for pair in zip(before[name], now, strict=True)
        )
        if same_input and not same_output:
            blamed[name] = module

    hooks = [
        module.register_forward_hook(
            lambda m, args, kwargs, out, name=name: watch(name, m, (args, kwargs, out)),
            with_kwargs=True,
        )
        for name, module in model.named_modules()
        if name
    ]
    try:
        probe.losses(probe.row)
        probe.losses(probe.changed)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        type(module)
        for name, module in blamed.items()
        if not any(other.startswith(f"{name}.") for other in blamed)
    }


def _same(x: Tensor, y: Tensor, relative: float) -> bool:
    if x.shape != y.shape:
        return False
    if not x.is_floating_point():
        return torch.equal(x, y)
    if not x.numel():
        return True
    return float((x - y).abs().max()) <= relative * float(x.abs().max())


@contextmanager
def as_refusal(model: Any, when: str = "") -> Iterator[None]:
    """A model that transformers cannot compute a plain text with is refused."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _FAILURES as error:
        if (refused := determinism.refusal(error)) is not None:
            raise refused from error
        raise ConfigError(
            f"{type(model).__name__} fails on a text{when}: {type(error).__name__}: {error}",
            where="model.name",
            hint="see whether plain transformers can compute it, or take another model",
        ) from error


@contextmanager
def _attention(model: Any, implementation: str) -> Iterator[None]:
    """Another implementation ("eager" is the plain formula) than the model was loaded with."""
    before = model.config._attn_implementation
    if before == implementation or not model._can_set_attn_implementation():
        yield
        return
    model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
