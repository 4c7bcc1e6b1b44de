"""How ranks meet: the store that they find each other by, who is missing, the process group."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import (  # type: ignore[attr-defined]
    HashStore,
    PrefixStore,
    Store,
    TCPStore,
)

from launcher.core import runtime
from launcher.core.errors import ConfigError, HangError
from launcher.core.runtime import Ranks
from launcher.distributed import collectives

#: Longest wait of the other ranks for rank 0 to compose the config and prepare data.
PREPARE_TIMEOUT = timedelta(hours=24)

#: Longest wait in one collective, where no watchdog tells more about a hang.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


def open_store(ranks: Ranks, timeout_s: float) -> Store:
    """The key-value store at the rendezvous; needs no process group, and no other rank yet.

    Rank 0 holds it, or torch's agent does. Raises `HangError` if it is not reached within
    `timeout_s` seconds, `ConfigError` if the place of the rendezvous is unknown.
    """
    if ranks.launched_by == "none":
        runtime.export_ranks()
        return HashStore()
    address, port = runtime.rendezvous()
    is_shared = runtime.shares_agent_store()
    holds = ranks.is_main and not is_shared
    try:
        store = TCPStore(
            address,
            port,
            ranks.world_size,
            holds,
            timedelta(seconds=timeout_s),
            wait_for_workers=False,
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise _no_store(ranks, f"{address}:{port}", holds, timeout_s, error) from error
    # The agent's store still has what ranks wrote before the agent started them again.
    return PrefixStore(f"start {runtime.agent_restarts()}", store) if is_shared else store


def _no_store(
    ranks: Ranks, place: str, holds: bool, timeout_s: float, error: Exception
) -> HangError:
    said = str(error).splitlines()[0]
    if holds:
        return HangError(
            f"rank 0 on {ranks.host} cannot listen on {place}: {said}",
            where="launch",
            hint="the address must be one of this host's, the port free: set MASTER_ADDR and"
            " MASTER_PORT, or launch.endpoint or launch.master_addr",
        )
    planned = runtime.planned_hosts()
    host = f" (host {planned[0]})" if planned else ""
    return HangError(
        f"rank {ranks.rank} on {ranks.host} did not reach rank 0 at {place}{host}"
        f" within {timeout_s:.0f} s: {said}",
        where="launch.join_timeout_s",
        hint="see that the first host is up and its rank 0 started, that MASTER_ADDR and"
        " MASTER_PORT are the same everywhere, and that no firewall is between",
    )


def join(
    store: Store, ranks: Ranks, planned_world: int, device: torch.device, timeout_s: float
) -> None:
    """Check who is there and make the process group; all ranks call it together.

    Raises what `await_all` and `check_world` do.
    """
    check_world(ranks, planned_world)
    announce(store, ranks)
    await_all(store, ranks, timeout_s)
    make_group(store, ranks, device)


def announce(store: Store, ranks: Ranks, device: Mapping[str, Any] | None = None) -> None:
    """Say that this rank is there, with the facts of its device."""
    place: dict[str, Any] = {"host": ranks.host, "local": ranks.local_rank}
    place |= {"world": ranks.world_size, "device": device}
    store.set(f"joined/{ranks.rank}", json.dumps(place))
    if store.add(f"claims/{ranks.rank}", 1) > 1:
        store.set("claimed twice", f"{ranks.rank} {ranks.host}")


def check_world(ranks: Ranks, planned_world: int) -> None:
    """Raise `ConfigError` if there is another number of ranks than the plan has."""
    if ranks.world_size != planned_world:
        raise ConfigError(
            f"{ranks.world_size} ranks were started, the plan is for {planned_world}",
            where="launch.processes",
            hint="start as many ranks as planned, or make a new run",
        )


def await_all(store: Store, ranks: Ranks, timeout_s: float) -> dict[int, dict[str, Any]]:
    """Wait until every rank has announced itself, each in a place of its own; what each said.

    Raises `HangError` naming the ranks that are still missing after `timeout_s` seconds and their
    hosts, and `ConfigError` if two claim one place; both with a table of who joined.
    """
    deadline = time.monotonic() + timeout_s
    try:
        for rank in range(ranks.world_size):
            left = max(0.1, deadline - time.monotonic())
            store.wait([f"joined/{rank}"], timedelta(seconds=left))
    except (dist.DistError, RuntimeError) as error:
        places = {r: p for r in range(ranks.world_size) if (p := _place(store, r)) is not None}
        raise _missing(places, ranks.world_size, timeout_s) from error
    places = {rank: _place(store, rank) or {} for rank in range(ranks.world_size)}
    problem = _conflict(store, places)
    if problem:
        raise ConfigError(
            f"{problem}\n{_table(places)}",
            where="launch",
            hint="every node needs a number of its own and the same number of nodes and ranks",
        )
    return places


def _place(store: Store, rank: int) -> dict[str, Any] | None:
    if not store.check([f"joined/{rank}"]):
        return None
    place: dict[str, Any] = json.loads(store.get(f"joined/{rank}"))
    return place


def _missing(places: dict[int, dict[str, Any]], world: int, timeout_s: float) -> HangError:
    missing, planned = [r for r in range(world) if r not in places], runtime.planned_hosts()
    if len(planned) == world:
        # A dict, not a set: in the order of ranks.
        hosts = {
            planned[rank]: [r for r in missing if planned[r] == planned[rank]] for rank in missing
        }
        named = "; ".join(f"{_ranges(ranks)} on host {host}" for host, ranks in hosts.items())
    else:
        named = _ranges(missing)
    return HangError(
        f"after {timeout_s:.0f} s {len(missing)} of {world} ranks have not joined: {named}"
        f"\n{_table(places)}",
        where="launch.join_timeout_s",
        hint="see that these hosts are up and look at the missing ranks' logs;"
        " raise launch.join_timeout_s if they are only slow",
    )


def _ranges(numbers: list[int]) -> str:
    """`ranks 0-2, 5`."""
    text: list[str] = []
    for _, group in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        text.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return f"rank{'s' if len(numbers) > 1 else ''} {', '.join(text)}"


def _conflict(store: Store, places: dict[int, dict[str, Any]]) -> str:
    if store.check(["claimed twice"]):
        rank, _, host = store.get("claimed twice").decode().partition(" ")
        return f"two processes say that they are rank {rank}, one of them on {host}"
    worlds = sorted({place["world"] for place in places.values()})
    if len(worlds) > 1:
        return f"the ranks were started for jobs of different size: {worlds}"
    count = Counter((place["host"], place["local"]) for place in places.values())
    twice = [f"{host} local rank {local}" for (host, local), times in count.items() if times > 1]
    return f"several ranks claim the same place: {', '.join(twice)}" if twice else ""


def _table(places: dict[int, dict[str, Any]]) -> str:
    lines = (
        f"  rank {rank:>4}  host {place['host']}  local rank {place['local']}"
        for rank, place in sorted(places.items())
    )
    return "joined:\n" + "\n".join(lines)


def tell_others(store: Store, text: str) -> None:
    """Rank 0, once all have joined and the data is there: let the others go on."""
    store.set("main", f"ready {text}")


def tell_failure(store: Store, ranks: Ranks, code: int, *, patient: bool) -> None:
    """Rank 0 failed: let the others know, and hold the store until they have read it.

    A `patient` rank 0 waits for ranks that have not started yet, too; none waits over 10 s.
    """
    store.set("main", f"failed {code}")
    end = time.monotonic() + (10.0 if patient else 2.0)
    while store.add("told", 0) < ranks.world_size - 1 and time.monotonic() < end:
        time.sleep(0.05)


def await_main(store: Store) -> tuple[bool, str]:
    """Whether rank 0 failed, and its exit code or what it told the others.

    Raises `HangError` if rank 0 dies without a word.
    """
    try:
        store.wait(["main"], PREPARE_TIMEOUT)
        word, _, text = store.get("main").decode().partition(" ")
        store.add("told", 1)
    except (dist.DistError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        raise HangError(
            f"rank 0 is gone: {said}", where="launch", hint="see the log of rank 0"
        ) from error
    return word == "failed", text


def make_group(
    store: Store, ranks: Ranks, device: torch.device, timeout: timedelta = COLLECTIVE_TIMEOUT
) -> str:
    """Make the process group of ranks that have all announced themselves.

    A collective that takes longer than `timeout` fails. Returns what to warn of, or nothing.
    """
    is_gpu = device.type == "cuda"
    backend = "nccl" if is_gpu else "gloo"
    dist.init_process_group(
        backend,
        store=PrefixStore("group", store),
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timeout,
        device_id=device if is_gpu else None,
    )
    why = collectives.keep_apart(device, timeout) if is_gpu else ""
    if not why:
        return ""
    return (
        f"messages between ranks go over NCCL, behind what the GPUs compute: {why}"
        "\n  HINT: GLOO_SOCKET_IFNAME (cluster.network_interface) names that between the nodes"
    )


def leave() -> None:
    """Give up the process group, if there is one."""
    if dist.is_initialized():
        collectives.reset()
        dist.destroy_process_group()
