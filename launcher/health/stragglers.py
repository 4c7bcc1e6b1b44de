"""Which rank is slower than the others by its own work, not by waiting for them."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from launcher.config.schema.launch import WatchdogConfig
from launcher.core.files import read_json
from launcher.core.rundir import RunDir, State


@dataclass(frozen=True, slots=True)
class Change:
    """A rank has become slow, or is no longer; `factor` is its own time over the median."""

    rank: int
    slow: bool
    factor: float


class Stragglers:
    """Follows the ranks' own times, step by step; rank 0 has one.

    The median of an even number of ranks is the lower one: of two ranks the faster.
    """

    def __init__(self, world_size: int, factor: float, steps: int) -> None:
        self._factor, self._steps = factor, steps
        self._streak = [0] * world_size
        self._calm = [0] * world_size
        self._slow: set[int] = set()
        self._sums = [0.0] * world_size

    def add(self, seconds: Sequence[float]) -> list[Change]:
        """Take in one step's own time of every rank; returns what it changes."""
        median = statistics.median_low(seconds)
        changes = []
        for rank, own in enumerate(seconds):
            self._sums[rank] += own
            is_over = own > self._factor * median
            self._streak[rank] = self._streak[rank] + 1 if is_over else 0
            self._calm[rank] = 0 if is_over else self._calm[rank] + 1
            factor = own / median if median else 1.0
            if self._streak[rank] == self._steps and rank not in self._slow:
                self._slow.add(rank)
                changes.append(Change(rank, True, factor))
            elif self._calm[rank] == self._steps and rank in self._slow:
                self._slow.discard(rank)
                changes.append(Change(rank, False, factor))
        return changes

    def read(self) -> dict[str, float | int]:
        """Numbers of the steps since the last reading, named as in metrics.jsonl."""
        sums, self._sums = self._sums, [0.0] * len(self._sums)
        median = statistics.median_low(sums)
        if len(sums) == 1 or not median:
            return {}
        slowest = max(range(len(sums)), key=sums.__getitem__)
        return {"step_skew": sums[slowest] / median, "slowest_rank": slowest}


def report_slow(
    run: RunDir,
    changes: Sequence[Change],
    step: int,
    limits: WatchdogConfig,
    warn: Callable[[str], None],
) -> None:
    """Say which ranks have become slow or recovered; status.json holds those that are slow."""
    slow = {entry["rank"]: entry for entry in run.status().slow}
    for change in changes:
        host = read_json(run.heartbeat(change.rank), {}).get("host", "")
        if not change.slow:
            slow.pop(change.rank, None)
            warn(f"rank {change.rank} on host {host} is no longer slow")
            continue
        slow[change.rank] = {
            "rank": change.rank,
            "host": host,
            "factor": round(change.factor, 2),
            "step": step,
        }
        warn(
            f"rank {change.rank} on host {host} is slow: its own part of a step takes"
            f" {change.factor:.1f}x the median of the ranks, and over"
            f" {limits.slow_factor:g}x for {limits.slow_steps} steps in a row"
        )
    run.set_status(State.running, slow=list(slow.values()))


class OwnTime:
    """Time that a rank spends on its own part of a step: loading its batch and forward passes.

    Nothing there waits for another rank, except under ZeRO-3, whose layers gather their weights
    first: there `watch` has only the layers themselves timed. Backward passes are not in it, since
    gradients are reduced meanwhile. On CUDA forward passes are timed on the device, by events that
    cost the host nothing to wait for.
    """

    def __init__(
        self, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._cuda = device.type == "cuda"
        self._clock = clock
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []
        self._started: Any = None
        self._forward = False
        self._by_layer = False

    def watch(self, layers: Sequence[nn.Module]) -> None:
        """Time only these modules within `forward`, from after their gather on."""
        self._by_layer = bool(layers)
        for layer in layers:
            layer.register_forward_pre_hook(self._layer_begins)
            layer.register_forward_hook(self._layer_ends, prepend=True)

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Around the loading of the batch."""
        started = self._clock()
        yield
        self._seconds += self._clock() - started

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """Around a forward pass."""
        self._forward = True
        if not self._by_layer:
            self._begin()
        yield
        if not self._by_layer:
            self._end()
        self._forward = False

    def read(self) -> float:
        """Seconds since the last reading; call it when the device has finished the passes."""
        seconds = self._seconds
        seconds += sum(begun.elapsed_time(ended) for begun, ended in self._events) / 1000
        self._seconds = 0.0
        self._events.clear()
        return seconds

    def _begin(self) -> None:
        self._started = self._event() if self._cuda else self._clock()

    def _end(self) -> None:
        if self._cuda:
            self._events.append((self._started, self._event()))
        else:
            self._seconds += self._clock() - self._started

    def _event(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    # Backward passes with gradient checkpointing call the layers again: outside of `forward`.

    def _layer_begins(self, module: nn.Module, inputs: Any) -> None:
        if self._forward:
            self._begin()

    def _layer_ends(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._forward:
            self._end()
