"""How much a rank computes at once: `batch.micro=auto`, and the rows that a forward is given.

What fits and what is fastest is found by forward and backward of the longest sequences, on the
model itself and before an engine is around it: so a rank that runs out of memory leaves nobody
waiting in a collective, and nothing has to be put back. What optimizer, gradients and engine will
take is the plan's estimate. Under ZeRO-3, where each forward takes all ranks, all is estimate.
The global batch is the same whatever is chosen.
"""

from __future__ import annotations

import gc
import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from launcher.config.derive import plan as plans
from launcher.config.derive.plan import Choice, Plan
from launcher.config.schema import Config
from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.pack.loader import Row, RowSource, make_row, rectangles
from launcher.distributed import collectives
from launcher.model.head import Head
from launcher.objectives.base import Objective
from launcher.track.footprint import Footprint
from launcher.train import allocation

#: Share of the memory that is there which a micro-batch may need: the rest is for what is not
#: counted, and for pieces that the allocator cannot join.
SHARE = 0.9
#: The same where all is estimate, which may be off by a tenth.
ESTIMATED_SHARE = 0.8
#: A larger micro-batch is taken if its tokens take at most this share of the time.
GAIN = 0.95
#: Sequences of this rank that the longest are searched in.
_SEARCHED = 2000
#: Passes that are timed; the fastest counts.
_TIMED = 2
_FAILED = "runs out of memory"
#: Candidates grow at least so much: less gains less than `GAIN` can tell.
_GROWTH = 1.5


def micro_batches(rows: list[Row], head: Head, packing: bool) -> list[Row]:
    """`rows` as `head` computes them: where documents are a line each, in rows that hold little
    padding or none, as many on every rank."""
    is_small = not head.keeps_logits and not packing
    if head.isolates or (is_small and head.pads):
        return rows
    parts = [part for row in rows for part in rectangles(row, equal=not head.pads)]
    count = collectives.max_over_ranks(len(parts))
    smallest = min(parts, key=lambda part: len(part.input_ids))
    return parts + [replace(smallest, is_filler=True)] * (count - len(parts))


@dataclass(frozen=True, slots=True)
class Tried:
    """What one micro-batch took."""

    size: int
    seconds: float | None
    """A token, on the slowest rank; None where it does not fit on all of them."""
    why: str = ""
    """Why it does not fit, of the first rank on which it does not."""

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.size} {self.why}"
        return f"{self.size} at {1 / self.seconds:,.0f} tokens/s a rank"


def sizes(per_rank: int) -> list[int]:
    """Micro-batches to try for so many sequences of a rank, the least first."""
    found = [1]
    for size in plans.divisors(per_rank):
        if size >= _GROWTH * found[-1] or (size == per_rank and size > found[-1]):
            found.append(size)
    return found


def fastest(candidates: Sequence[int], measure: Callable[[int], float | str]) -> list[Tried]:
    """Try `candidates` in turn; the last that was an improvement is `best` of what is returned.

    `measure` gives this rank's seconds a token, or why the size cannot fit; it may run out of
    memory. All ranks call this with the same candidates and go the same way: it ends at the first
    that does not fit on some rank, or that is not faster on the slowest one. Raises
    `OutOfMemoryError` if the first has run out of memory on some rank.
    """
    trials: list[Tried] = []
    for size in candidates:
        mine: float | str
        try:
            mine = measure(size)
        except Exception as error:
            if not allocation.is_failure(error):
                raise
            mine = _FAILED
        trials.append(_agreed(size, mine))
        if trials[-1].seconds is None:
            break
        if len(trials) > 1 and trials[-1].seconds > GAIN * (trials[-2].seconds or math.inf):
            break
    first = trials[0]
    if first.seconds is None and first.why.startswith(_FAILED):
        raise allocation.error(f"a micro-batch of {first.size} {first.why}")
    return trials


def _agreed(size: int, mine: float | str) -> Tried:
    found = collectives.gather_objects(mine)
    refusals = [f"{why} on rank {rank}" for rank, why in enumerate(found) if isinstance(why, str)]
    # What has failed says more than what was foreseen.
    refusals.sort(key=lambda why: not why.startswith(_FAILED))
    return Tried(size, None, refusals[0]) if refusals else Tried(size, max(found))


def best(trials: Sequence[Tried]) -> int:
    """The micro-batch to take of what `fastest` has tried."""
    kept = trials[0]
    for trial in trials[1:]:
        if trial.seconds is not None and trial.seconds <= GAIN * (kept.seconds or math.inf):
            kept = trial
    return kept.size


def told(plan: Plan, how: str) -> str:
    """The line of the log that says what was chosen."""
    return (
        f"batch    micro-batch {plan.micro_batch}, accumulation {plan.accumulation} by"
        f" batch.micro=auto, {how}"
    )


# ---- by estimate


def estimated(plan_of: Callable[[Choice], Plan], free: int, rule: Plan) -> tuple[Plan, str]:
    """The largest micro-batch that fits by the plan's estimate into `free` bytes, and how that came
    about; that of `rule` where nothing can be estimated. `free` is measured before the model is
    loaded, on the rank that has least."""
    chosen = plan_of((rule.micro_batch, "estimate"))
    if chosen.device_bytes is None:
        return chosen, "by the rule for batch.micro=null: no sizes of this model are at hand"
    fitting = None
    for size in sizes(rule.global_sequences // rule.groups):
        made = plan_of((size, "estimate"))
        if (made.device_bytes or 0) > ESTIMATED_SHARE * free:
            break
        fitting = made
    chosen = fitting or plan_of((1, "estimate"))
    beyond = "" if fitting else ", which may not fit"
    how = (
        f"an estimate, as ZeRO-3 is not measured: about {_size(chosen.device_bytes or 0)} of"
        f" {_size(free)} free{beyond}"
    )
    return chosen, how


# ---- by measuring


@dataclass(frozen=True, slots=True)
class Uses:
    """Bytes that a step takes beside the weights, by estimate."""

    reserve: int
    """Optimizer, gradients and buffers of the engine."""
    activations: int
    """Activations and logits: what the passes measure."""


class Passes:
    """Forward and backward of one rank's longest sequences, whose gradients are dropped."""

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        objective: Objective,
        cache: TokenCache | JoinedCache,
        longest: Sequence[Row],
        *,
        config: Config,
        device: torch.device,
        uses_of: Callable[[int], Uses],
        free: int,
    ) -> None:
        """`longest` are rows of one sequence, as many as the largest micro-batch has. `uses_of` has
        the estimate of a size, `free` is what is there for all of it, in bytes."""
        self._model, self._head, self._objective = model, head, objective
        self._cache, self._longest, self._packing = cache, longest, config.data.packing
        self._device, self._uses_of, self._free = device, uses_of, SHARE * free
        self._last: tuple[int, int] | None = None
        """Size and activations of the last that was measured."""

    def __call__(self, size: int) -> float | str:
        """Seconds a token of micro-batches of `size`, or why they cannot fit."""
        records = [i for row in self._longest[:size] for i in row.records]
        whole = make_row(self._cache, records)
        rows = micro_batches([whole], self._head, self._packing)  # by all ranks
        uses = self._uses_of(size)
        left = self._free - uses.reserve
        # On a host the kernel would end the process, so what surely takes too much is not tried.
        if (
            self._device.type == "cpu"
            and self._last
            and self._last[1] / self._last[0] * size > left
        ):
            return f"would need more than the {_size(self._free)} that are free"
        # A pair may have nothing to share: what fits has to fit without.
        rows = [replace(row, sharing=None).to(self._device) for row in rows]
        was_training = self._model.training
        self._model.train()
        try:
            with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
                counted, seconds = self._measured(rows)
        finally:
            self._model.train(was_training)
            for parameter in self._model.parameters():
                parameter.grad = None
        taken = uses.activations if counted is None else counted
        self._last = (size, taken)
        if taken > left:
            needed = _size(taken + uses.reserve)
            return f"needs {needed} with optimizer and gradients, of {_size(self._free)} free"
        return seconds / len(whole.input_ids)

    def _measured(self, rows: list[Row]) -> tuple[int | None, float]:
        """Bytes of activations, None where they cannot be counted, and seconds of one forward and
        backward."""
        self._run(rows)  # with it gradients are there, as they are in a step
        footprint = Footprint(self._device.type)
        footprint.start({"before": self._allocated()})
        try:
            self._run(rows)
        finally:
            found = footprint.stop()
        seconds = []
        for _ in range(_TIMED):
            self._wait()
            began = time.perf_counter()
            self._run(rows)
            self._wait()
            seconds.append(time.perf_counter() - began)
        counted = found["peak"] - found["before"] if "peak" in found else None
        return counted, min(seconds)

    def _run(self, rows: list[Row]) -> None:
        for row in rows:
            loss = self._objective.loss(self._head, self._model, row).total
            if loss.requires_grad:
                loss.backward()

    def _allocated(self) -> int:
        return torch.cuda.memory_allocated(self._device) if self._device.type == "cuda" else 0

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def longest(rows: RowSource, per_rank: int, num_packs: int, world_size: int) -> list[Row]:
    """The longest of this rank's sequences, as many as it has in a step, the longest first, of an
    epoch or the first of it; `rows` have one each."""
    steps = min(math.ceil(num_packs / (per_rank * world_size)), math.ceil(_SEARCHED / per_rank))
    found = (row for step in range(max(1, steps)) for row in rows.step(step))
    return heapq.nlargest(per_rank, found, key=lambda row: len(row.input_ids))


def uses(plan: Plan, model: nn.Module, config: Config) -> Uses:
    """The estimate of `plan`; where it has none, of one rank that shares nothing."""
    if plan.memory is None:
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return Uses(int(trained * (config.optim.moment_bytes + 8)), 0)
    names = ["optimizer", "gradients", "buffers"] + ["host"] * (plan.device == "cpu")
    kept = sum(plan.memory[name] for name in names)
    return Uses(kept, plan.memory["activations"] + plan.memory["logits"])


def release(device: torch.device) -> None:
    """Give back what the passes have left behind."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _size(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
