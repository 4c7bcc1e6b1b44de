"""The few collectives that are needed besides DeepSpeed's own: small messages between hosts.

Ranks on GPUs send them over gloo, beside the device, whose work goes on meanwhile; where no such
group can be made they go over NCCL.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from launcher.core.errors import LauncherError, Problem

T = TypeVar("T")

#: How long ranks try to connect over gloo before their messages go over the default group.
CONNECT_TIMEOUT = timedelta(seconds=60)


class _Way:
    """The group that messages go over, None for the default one, and where their tensors lie."""

    group: dist.ProcessGroup | None = None
    device = torch.device("cpu")


def keep_apart(device: torch.device, timeout: timedelta) -> str:
    """Send messages over a gloo group of their own from now on; all ranks of the default group,
    whose tensors lie on `device`, call it together.

    A message that takes longer than `timeout` fails. Returns why they go over the default group
    instead if any rank cannot connect; else an empty text.
    """
    reset()
    if dist.get_world_size() == 1:
        return ""
    group, why = None, ""
    try:
        group = dist.new_group(backend="gloo", timeout=min(timeout, CONNECT_TIMEOUT))
        dist.barrier(group)
        dist.distributed_c10d._set_pg_timeout(timeout, group)
    except RuntimeError as error:
        why = str(error).splitlines()[0]
    failed = torch.tensor(float(bool(why)), device=device)
    dist.all_reduce(failed)
    if not failed.item():
        _Way.group = group
        return ""
    _Way.device = device
    return why or "another rank could not connect"


def reset() -> None:
    """Send messages over the default group, as if there were no other."""
    _Way.group, _Way.device = None, torch.device("cpu")


def sum_over_ranks(values: list[float]) -> list[float]:
    """Element-wise sum over all ranks in float64; one collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=_Way.device)
    dist.all_reduce(tensor, group=_Way.group)
    result: list[float] = tensor.tolist()
    return result


def max_over_ranks(value: int) -> int:
    """The largest number of all ranks; one collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    tensor = torch.tensor(value, device=_Way.device)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_Way.group)
    return int(tensor)


def all_agree(mine: bool) -> bool:
    """Whether `mine` is true on every rank; one collective."""
    return sum_over_ranks([float(not mine)])[0] == 0


def gather_objects(value: Any) -> list[Any]:
    """`value` of every rank, in rank order, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_Way.group)
    return values


def by_main(is_main: bool, call: Callable[[], T]) -> T:
    """What rank 0 makes of `call`, on all ranks; the `LauncherError` that it raises, all of them
    do. All ranks call it together."""
    value: Any = None
    failed: tuple[type[LauncherError], tuple[Problem, ...]] | None = None
    if is_main:
        try:
            value = call()
        except LauncherError as error:
            failed = type(error), error.problems
    value, failed = _from_main((value, failed))
    if failed is not None:
        kind, problems = failed
        raise kind(problems)
    made: T = value
    return made


def _from_main(value: Any) -> Any:
    """`value` of rank 0, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0, group=_Way.group, device=_Way.device)
    return values[0]


def barrier() -> None:
    """Wait for all ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier(_Way.group)
