"""Throughput, utilisation and memory of the training loop. docs/metrics.md defines every number."""

from __future__ import annotations

import math
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

#: Dense bf16 (and fp16) peaks in TFLOP/s by words of the device name; the first row that fits
#: counts. From the vendors' data sheets, without sparsity.
PEAKS_TFLOPS: tuple[tuple[str, float], ...] = (
    ("GB200", 2500.0),
    ("B200", 2250.0),
    ("GH200", 989.0),
    ("H200 NVL", 835.0),
    ("H200", 989.0),
    ("H100 PCIE", 756.0),
    ("H100 NVL", 835.0),
    ("H100", 989.0),
    ("H800", 989.0),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("A40", 149.7),
    ("A10", 125.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX 5090", 209.5),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
)


def peak_flops(device_name: str, precision: str) -> float | None:
    """Dense FLOP/s of one device, or None where the table has no honest figure for it.

    Args:
        device_name: as torch reports it, e.g. "NVIDIA H100 80GB HBM3".
        precision: "bf16", "fp16" or "fp32"; the table holds 16-bit matrix peaks only.
    """
    if precision not in ("bf16", "fp16"):
        return None
    words = set(re.split(r"[^A-Z0-9]+", device_name.upper()))
    for row, tflops in PEAKS_TFLOPS:
        if set(row.split()) <= words:
            return tflops * 1e12
    return None


class Packed(Protocol):
    """What the meters need of a row: cumulative document starts [D + 1] and target ids [T]."""

    @property
    def document_starts(self) -> Any: ...

    @property
    def targets(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Work:
    """Size of some training work; `squared_lengths` is the sum over documents."""

    tokens: int = 0
    target_tokens: int = 0
    squared_lengths: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.tokens + other.tokens,
            self.target_tokens + other.target_tokens,
            self.squared_lengths + other.squared_lengths,
        )


def work_of(rows: Iterable[Packed]) -> Work:
    """The work in `rows` of this rank; add it up over the ranks for the global batch."""
    total = Work()
    for row in rows:
        starts = row.document_starts.tolist()  # one read, wherever the tensor lies
        lengths = [end - start for start, end in zip(starts, starts[1:], strict=False)]
        squares = sum(length * length for length in lengths)
        total += Work(sum(lengths), len(row.targets), squares)
    return total


@dataclass(frozen=True, slots=True)
class ModelFlops:
    """FLOPs that the maths of one training step needs; recomputed activations do not count.

    per_token: matrix multiplications of the body, for each token.
    per_target: the LM head, for each target position (it runs nowhere else).
    per_squared_length: attention scores and values, for each squared document length.
    """

    per_token: float
    per_target: float
    per_squared_length: float

    def of(self, work: Work) -> float:
        """FLOPs of forward and backward over `work`."""
        return (
            self.per_token * work.tokens
            + self.per_target * work.target_tokens
            + self.per_squared_length * work.squared_lengths
        )


def model_flops(model: Any) -> ModelFlops:
    """The FLOP formula of a causal language model, plain or with adapters.

    A trained matrix costs 6 FLOPs per element and token (forward, gradient of its input, gradient
    of itself), a frozen one 4. Expert matrices count by the share of experts that a token visits.
    Call it before or after ZeRO-3 partitioning; sizes are those of the whole parameters.
    """
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    head_weight = None if head is None else head.weight
    lookups = {id(p) for m in model.modules() if _is_lookup(m) for p in m.parameters(recurse=False)}
    active = _active_share(config)
    per_token = 0.0
    for name, parameter in model.named_parameters():
        if parameter is head_weight or id(parameter) in lookups or "original_module" in name:
            continue
        shape = full_shape(parameter)
        if len(shape) < 2:
            continue
        share = active if ".experts." in f"{name}." else 1.0
        per_token += share * math.prod(shape) * (6 if parameter.requires_grad else 4)
    per_target = 0.0
    if head_weight is not None:
        size = math.prod(full_shape(head_weight))
        per_target = float(size * (6 if head_weight.requires_grad else 4))
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return ModelFlops(per_token, per_target, 12.0 * config.num_hidden_layers * width)


def full_shape(parameter: Any) -> tuple[int, ...]:
    """Shape of the whole parameter, also if partitioned by ZeRO-3 or packed in 4 bits."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return tuple(state.shape)
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _is_lookup(module: Any) -> bool:
    return any(kind.__name__ == "Embedding" for kind in type(module).__mro__)


def _active_share(config: Any) -> float:
    chosen = getattr(config, "num_experts_per_tok", None)
    for field in ("num_experts", "num_local_experts", "n_routed_experts"):
        if chosen and getattr(config, field, None):
            return float(chosen) / float(getattr(config, field))
    return 1.0


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
