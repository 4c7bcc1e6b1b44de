"""Throughput, utilisation and memory of the training loop. docs/metrics.md defines every number."""

from __future__ import annotations

import functools
import math
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Protocol

from launcher.config.derive.tensors import full_shape


class Packed(Protocol):
    """What the meters need of a row: cumulative document starts [D + 1] and target ids [T]."""

    @property
    def document_starts(self) -> Any: ...

    @property
    def targets(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Work:
    """Size of some training work.

    squared_lengths: the sum over documents. windowed: for each window of the model's attention, the
    pairs of a token and one that it sees: itself, or an earlier one of its document in the window.
    """

    tokens: int = 0
    target_tokens: int = 0
    squared_lengths: int = 0
    windowed: tuple[int, ...] = ()

    @property
    def pairs(self) -> float:
        """Pairs of a token and itself or an earlier one of its document: s (s + 1) / 2 each."""
        return (self.squared_lengths + self.tokens) / 2

    def __add__(self, other: Work) -> Work:
        return Work(
            self.tokens + other.tokens,
            self.target_tokens + other.target_tokens,
            self.squared_lengths + other.squared_lengths,
            tuple(a + b for a, b in zip_longest(self.windowed, other.windowed, fillvalue=0)),
        )


def work_of(rows: Iterable[Packed], windows: Sequence[int] = ()) -> Work:
    """The work in `rows` of this rank; add it up over the ranks for the global batch.

    `windows` are those of `ModelFlops`.
    """
    total = Work(windowed=(0,) * len(windows))
    for row in rows:
        starts = row.document_starts.tolist()  # one read, wherever the tensor lies
        lengths = [end - start for start, end in zip(starts, starts[1:], strict=False)]
        squares = sum(length * length for length in lengths)
        within = tuple(sum(_pairs(n, window) for n in lengths) for window in windows)
        total += Work(sum(lengths), len(row.targets), squares, within)
    return total


def _pairs(length: int, window: int) -> int:
    """Pairs of a token of a document and one of the last `window` up to itself."""
    seen = min(length, window)
    return length * seen - seen * (seen - 1) // 2


@dataclass(frozen=True, slots=True)
class ModelFlops:
    """FLOPs that the maths of one training step needs; recomputed activations do not count.

    per_token: matrix multiplications of the body, for each token.
    per_target: the LM head, for each target position (it runs nowhere else).
    per_pair: scores and values of causal attention, for each pair of a token and one up to it.
    per_squared_length: the same of attention in both directions, for each squared document length.
    per_windowed: the same of causal attention with a sliding window, by the window's tokens, for
    each pair of a token and one in its window.
    """

    per_token: float
    per_target: float
    per_pair: float = 0.0
    per_squared_length: float = 0.0
    per_windowed: Mapping[int, float] = field(default_factory=dict)

    @property
    def windows(self) -> tuple[int, ...]:
        """The windows for which `work_of` must count."""
        return tuple(self.per_windowed)

    def of(self, work: Work) -> float:
        """FLOPs of forward and backward over `work`."""
        return (
            self.per_token * work.tokens
            + self.per_target * work.target_tokens
            + self.per_pair * work.pairs
            + self.per_squared_length * work.squared_lengths
            + sum(
                each * number
                for each, number in zip(self.per_windowed.values(), work.windowed, strict=True)
            )
        )


class UnknownFlops(Exception):
    """Why the FLOPs of a model cannot be told from its structure."""


def known_flops(model: Any, warn: Callable[[str], None]) -> ModelFlops | None:
    """`model_flops`, or None after a warning with the reason: a number for the log stops no run."""
    try:
        return model_flops(model)
    except UnknownFlops as error:
        warn(f"mfu is not measured: {error}")
    except Exception as error:  # models are of any make; training does not need the number
        warn(f"mfu is not measured, its formula fails on this model ({error!r}); please report it")
    return None


def model_flops(model: Any) -> ModelFlops:
    """The FLOP formula of a language model or classifier, plain or with adapters.

    A trained matrix costs 6 FLOPs per element and token (forward, gradient of its input, gradient
    of itself), a frozen one 4. Expert matrices count by the share of experts that a token visits.
    Attention is counted layer by layer, by the width of its heads, its window and its direction: of
    a causal layer's scores, those above the diagonal are not needed. What other mixers
    (Mamba, linear attention) compute beside their matrices is little, and not counted.
    Call it before or after ZeRO-3 partitioning; sizes are those of the whole parameters.
    Raises `UnknownFlops` where the structure does not tell them.
    """
    head = model.get_output_embeddings()
    head_weight = getattr(head, "weight", None)
    lookups = {id(p) for m in model.modules() if _is_lookup(m) for p in m.parameters(recurse=False)}
    share = functools.partial(_active_share, model)
    per_token = 0.0
    # Layers that share their weights compute with them each time.
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter is head_weight or id(parameter) in lookups or "original_module" in name:
            continue
        shape = full_shape(parameter)
        if len(shape) < 2 or _OTHER_SENSES.search(name):
            continue
        active = share(name, shape) if ".experts." in f"{name}." else 1.0
        per_token += active * math.prod(shape) * (6 if parameter.requires_grad else 4)
    per_target = 0.0
    if head_weight is not None:
        size = math.prod(full_shape(head_weight))
        per_target = float(size * (6 if head_weight.requires_grad else 4))
    causal = squared = 0.0
    windowed: dict[int, float] = {}
    for module in _attentions(model):
        # Scores and values: 2 FLOPs forward and 4 backward for each element of a head.
        flops = 6.0 * sum(_attention_widths(module))
        window, is_causal = _window(module), getattr(module, "is_causal", True)
        if window is not None:  # of encoders, on either side
            flops *= 1 if is_causal else 2
            windowed[window] = windowed.get(window, 0.0) + flops
        elif is_causal:
            causal += flops
        else:
            squared += flops
    return ModelFlops(per_token, per_target, causal, squared, windowed)


#: Parts of multimodal models that text does not run through.
_OTHER_SENSES = re.compile(r"(^|[._])(vision|visual|image|audio|speech|video)[._]")
#: Attention whose cost grows with the length alone: it is no attention to pairs of tokens.
_LINEAR = re.compile(r"Linear|Lightning|Rwkv|Delta|GatedSlot|Retention")
#: Names of the layer behind the heads, whose inputs are as wide as all values together.
_OUTPUTS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "o", "out_lin", "output", "proj")
_QUERIES = ("query", "q_proj", "q")


def _attentions(model: Any) -> Iterator[Any]:
    """The modules that attend to pairs of tokens; of nested ones the innermost."""
    for name, module in model.named_modules(remove_duplicate=False):
        if not _is_attention(module) or _OTHER_SENSES.search(f"{name}."):
            continue
        if not any(_is_attention(inner) for inner in module.modules() if inner is not module):
            yield module


def _is_attention(module: Any) -> bool:
    kind = type(module).__name__
    return "Attention" in kind and not _LINEAR.search(kind) and not kind.endswith("Norm")


def _attention_widths(module: Any) -> tuple[float, float]:
    """Width of all heads together: of queries and keys, and of values."""
    values = _features(module, _OUTPUTS, -1) or _features(module, _QUERIES, 0)
    if values is None:
        raise UnknownFlops(f"the width of the heads of {type(module).__name__} is not known")
    key, value = getattr(module, "qk_head_dim", None), getattr(module, "v_head_dim", None)
    return (values * key / value if key and value else float(values)), float(values)


def _features(module: Any, names: Sequence[str], side: int) -> int | None:
    """Inputs (`side` -1) or outputs (0) of the first linear layer of these names."""
    for name in names:
        layer = getattr(module, name, None)
        layer = getattr(layer, "base_layer", layer)  # under an adapter
        weight = getattr(layer, "weight", None)
        if weight is not None and len(shape := full_shape(weight)) == 2:
            is_transposed = type(layer).__name__ == "Conv1D"  # as GPT-2 has it
            return int(shape[-1 - side] if is_transposed else shape[side])
    return None


def _window(module: Any) -> int | None:
    """Tokens that an attention layer looks back at most; None without such a limit."""
    if hasattr(module, "sliding_window"):
        window = module.sliding_window
    else:
        config, layer = getattr(module, "config", None), getattr(module, "layer_idx", None)
        kinds = getattr(config, "layer_types", None)
        # Without kinds of layers, a window is that of all.
        kind = kinds[layer] if kinds and layer is not None else "sliding_attention"
        window = getattr(config, _WINDOWS.get(kind, ""), None)
    return window if isinstance(window, int) and window > 0 else None


#: The field of a config that limits a kind of layer.
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


def _is_lookup(module: Any) -> bool:
    return any(kind.__name__ == "Embedding" for kind in type(module).__mro__)


#: How configs call the number of experts that a token visits.
_CHOSEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_topk",
    "moe_top_k",
    "moe_k",
    "top_k_experts",
)
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def _active_share(model: Any, name: str, shape: tuple[int, ...]) -> float:
    """The share of an expert parameter's numbers that a token is multiplied with."""
    config = model.config.get_text_config()
    layer = next((int(part) for part in name.split(".") if part.isdecimal()), 0)
    chosen = _setting(config, _CHOSEN, layer)
    experts = shape[0] if len(shape) == 3 else _setting(config, _EXPERTS, layer)
    if not chosen or not experts:
        raise UnknownFlops("its config does not say how many experts a token visits")
    return min(1.0, chosen / experts)


def _setting(config: Any, names: Sequence[str], layer: int) -> int | None:
    """A number of a config, which may have one for each layer."""
    each = getattr(config, "per_layer_config", None)
    for name in names:
        # A number that differs by layer cannot be read off the whole: that raises AttributeError.
        value = getattr(config, name, None)
        if value is None and each is not None:
            value = getattr(each[layer], name, None)
        if isinstance(value, (list, tuple)) and layer < len(value):
            value = value[layer]
        if isinstance(value, int) and value > 0:
            return value
    return None


class Meter:
    """Times training steps, leaves out everything between them, and reads the averages of a window.

    `begin` and `end` enclose the computation of one optimizer step; call `end` after the loss has
    been read back, so that queued GPU work is inside. Evaluation and saving lie outside by
    construction.
    """

    def __init__(
        self,
        *,
        flops: ModelFlops | None = None,
        peak_flops: float | None = None,
        device: str = "cpu",
        totals: Work | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`peak_flops` is that of all devices together; `totals` is the work before a resume."""
        self.totals = totals or Work()
        self._flops = flops
        self._peak_flops = peak_flops
        self._device = device
        self._clock = clock
        self._started: float | None = None
        self._window = Work()
        self._steps = 0
        self._seconds = 0.0

    def begin(self) -> None:
        """Start the clock of a step."""
        self._started = self._clock()

    def end(self, work: Work) -> None:
        """Stop the clock and add the global batch's `work` (of all ranks)."""
        assert self._started is not None, "Meter.end without Meter.begin"
        self._seconds += self._clock() - self._started
        self._started = None
        self._steps += 1
        self._window += work
        self.totals += work

    def read(self) -> dict[str, float | int | None]:
        """Averages since the last reading, named as in metrics.jsonl; starts a new window."""
        seconds = self._seconds or math.inf
        mfu = None
        if self._flops and self._peak_flops and self._steps:
            mfu = self._flops.of(self._window) / seconds / self._peak_flops
        values: dict[str, float | int | None] = {
            "tokens": self.totals.tokens,
            "target_tokens": self.totals.target_tokens,
            "tokens_per_s": self._window.tokens / seconds,
            "target_tokens_per_s": self._window.target_tokens / seconds,
            "mfu": mfu,
            "step_time_s": self._seconds / self._steps if self._steps else None,
            "memory_bytes": peak_memory_bytes(self._device),
        }
        self._window, self._steps, self._seconds = Work(), 0, 0.0
        return values


def peak_memory_bytes(device: str) -> int:
    """Most memory this process has held: allocated by torch on CUDA, resident on CPU."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
