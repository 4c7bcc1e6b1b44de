"""Collectives with known results: whether they are right, and how fast they are."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

#: Name -> part of the message that must cross the slowest link, as a function of the ranks n.
#: bus bandwidth = algorithm bandwidth times this, so that it can be held against the hardware's.
BUS_FACTOR: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "broadcast": lambda n: 1.0,
}
NAMES = tuple(BUS_FACTOR)
#: Device -> size of the message of which bandwidth is measured, and how often it is sent.
MESSAGE_BYTES = {"cuda": 256 << 20, "cpu": 16 << 20}
ITERATIONS = {"cuda": 20, "cpu": 5}
#: Values repeat with this period; sums of them over 60,000 ranks are exact in float32.
_PERIOD = 251
_WARM_UP = 2


def measure(name: str, device: torch.device) -> dict[str, Any]:
    """Check and time one collective; all ranks call it together.

    bytes: size of the whole message (input of all_reduce, reduce_scatter and broadcast, output of
    all_gather); wrong: elements of this rank that differ from what they must be; seconds: mean of
    one call on the slowest rank; algorithm, bus: bytes/s.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    share = max(1, MESSAGE_BYTES[device.type] // 4 // world)
    run, result, expected = _make(name, device, share, rank, world)
    run()
    wrong = int((result() != expected).sum())
    seconds = _time(run, device, ITERATIONS[device.type])
    total = share * world * 4
    algorithm = total / seconds
    return {
        "bytes": total,
        "wrong": wrong,
        "seconds": seconds,
        "algorithm": algorithm,
        "bus": algorithm * BUS_FACTOR[name](world),
    }


def _make(
    name: str, device: torch.device, share: int, rank: int, world: int
) -> tuple[Callable[[], Any], Callable[[], torch.Tensor], torch.Tensor]:
    """(the call, its result, what the result of the first call must be).

    Element i of rank r is i mod 251 + r, so a sum over ranks is world (i mod 251) + 0 + 1 + ...
    """
    whole = torch.arange(share * world, device=device).remainder(_PERIOD).float()
    part = whole[rank * share : (rank + 1) * share]
    summed = world * whole + world * (world - 1) / 2
    if name == "all_reduce":
        buffer = whole + rank
        return (lambda: dist.all_reduce(buffer)), (lambda: buffer), summed
    if name == "all_gather":
        gathered, mine = torch.empty_like(whole), part + rank
        owners = torch.arange(world, device=device).repeat_interleave(share)
        expected = whole + owners
        return (lambda: dist.all_gather_into_tensor(gathered, mine)), (lambda: gathered), expected
    if name == "reduce_scatter":
        given, scattered = whole + rank, torch.empty_like(part)
        expected = summed[rank * share : (rank + 1) * share]
        return (lambda: dist.reduce_scatter_tensor(scattered, given)), (lambda: scattered), expected
    assert name == "broadcast"
    last = world - 1
    spread = whole + rank
    return (lambda: dist.broadcast(spread, src=last)), (lambda: spread), whole + last


def _time(run: Callable[[], Any], device: torch.device, iterations: int) -> float:
    """Mean seconds of a call, on the slowest rank."""
    for _ in range(_WARM_UP):
        run()
    _settle(device)
    begin = time.perf_counter()
    for _ in range(iterations):
        run()
    _settle(device)
    seconds = torch.tensor((time.perf_counter() - begin) / iterations, device=device)
    dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
    return float(seconds)


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    dist.barrier()
