"""Joining the ranks, and the few collectives that the loop needs besides DeepSpeed's own."""

from __future__ import annotations

import time
from collections import Counter
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from launcher import runtime
from launcher.errors import ConfigError, HangError
from launcher.runtime import Ranks

#: Longest wait of the other ranks for rank 0 to compose the config and prepare data.
PREPARE_TIMEOUT = timedelta(hours=24)

#: Longest wait in one collective; a rank that needs longer has hung.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def open_store(ranks: Ranks, timeout_s: float) -> Store:
    """The key-value store that the launcher's environment points to; needs no process group.

    Raises `HangError` if the ranks do not find each other within `timeout_s` seconds.
    """
    if ranks.launched_by == "none":
        runtime.become_single_rank()
        return HashStore()
    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise HangError(
            f"rank {ranks.rank} on {ranks.host} cannot reach the rendezvous: {error}",
            where="launch",
            hint="check MASTER_ADDR, MASTER_PORT and that all nodes were started"
            " with the same values",
        ) from error
    return store


def join(
    store: Store, ranks: Ranks, planned_world: int, device: torch.device, timeout_s: float
) -> None:
    """Make the process group and check who joined.

    Raises `HangError` naming the ranks still missing after `timeout_s` seconds, and `ConfigError`
    when the world differs from the plan or two ranks share a place on a host.
    """
    store.set(f"joined/{ranks.rank}", f"{ranks.host} {ranks.local_rank}")
    _await_all(store, ranks, timeout_s)
    places = [store.get(f"joined/{rank}").decode() for rank in range(ranks.world_size)]
    problem = _wrong_world(places, ranks, planned_world)
    if problem:
        raise ConfigError(
            f"{problem}\n{_table(places)}",
            where="launch.processes",
            hint="start as many ranks as planned",
        )
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=PrefixStore("group", store),
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=COLLECTIVE_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )


def _await_all(store: Store, ranks: Ranks, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    for rank in range(ranks.world_size):
        left = max(0.1, deadline - time.monotonic())
        try:
            store.wait([f"joined/{rank}"], timedelta(seconds=left))
        except (dist.DistError, RuntimeError) as error:
            missing = [r for r in range(ranks.world_size) if not store.check([f"joined/{r}"])]
            raise HangError(
                f"after {timeout_s:.0f} s these of {ranks.world_size} ranks"
                f" have not joined: {missing}",
                where="launch.join_timeout_s",
                hint="look at the missing ranks' logs;"
                " raise launch.join_timeout_s if they are only slow",
            ) from error


def _wrong_world(places: list[str], ranks: Ranks, planned_world: int) -> str:
    if ranks.world_size != planned_world:
        return f"{ranks.world_size} ranks joined, the plan is for {planned_world}"
    twice = [place for place, count in Counter(places).items() if count > 1]
    return f"several ranks claim the same place: {', '.join(twice)}" if twice else ""


def _table(places: list[str]) -> str:
    lines = (
        f"  rank {rank:>4}  {place.replace(' ', '  local rank ')}"
        for rank, place in enumerate(places)
    )
    return "\n".join(lines)


def sum_over_ranks(values: list[float], device: torch.device) -> list[float]:
    """Element-wise sum over all ranks in float64; one collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    result: list[float] = tensor.tolist()
    return result


def gather_objects(value: Any) -> list[Any]:
    """`value` of every rank, in rank order, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def leave() -> None:
    """Give up the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
