"""The device of each rank, and whether the devices of all are what the run was planned for.

Libraries fall back to the CPU, or to a GPU that another rank computes on, without a word; here that
is refused before anything is computed. Whoever wants the CPU says so: `cluster.gpus_per_node=0` on
a cluster, an empty CUDA_VISIBLE_DEVICES elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from launcher.config.check.model_checks import CUDA_ONLY
from launcher.config.derive.plan import ADA, AMPERE, Capability
from launcher.config.schema import Config, Dtype
from launcher.core import processes, runtime
from launcher.core.errors import Problem
from launcher.core.runtime import Ranks


def choose(ranks: Ranks) -> torch.device:
    """The GPU of this rank, or the CPU where torch sees no GPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", ranks.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def facts(device: torch.device) -> dict[str, Any]:
    """What the main rank must know of a rank's device: plain JSON values."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return {
            "type": "cuda",
            "name": found.name,
            "id": str(getattr(found, "uuid", "")),
            # V100 and T4 only pretend to have it.
            "bf16": torch.cuda.is_bf16_supported(including_emulation=False),
            "capability": [found.major, found.minor],
        }
    promise = runtime.promised_gpus()
    return {"type": "cpu", "hidden": runtime.hides_gpus(), "promise": promise, "cause": _cause()}


def _cause() -> str:
    """Why torch has no GPU."""
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA"
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return "torch finds no GPU that it can use"


def judge(
    config: Config, plan: Mapping[str, Any], places: Mapping[int, Mapping[str, Any]]
) -> tuple[list[Problem], list[str]]:
    """(what forbids a start, what only has to be said) of the devices of all ranks.

    `places` holds host and `facts` of each rank, `plan` is plan.json as made before the start.
    """
    devices = {rank: place["device"] for rank, place in places.items()}
    found = [*_without_gpu(config, plan, places), *_shared(places)]
    types = {rank: device["type"] for rank, device in devices.items()}
    if not found and len(set(types.values())) > 1:
        on_cpu = [rank for rank, kind in types.items() if kind == "cpu"]
        text = f"{_named(on_cpu, places)} would compute on the CPU, the others on GPUs"
        hint = "give every rank a GPU of its own, or hide the GPUs from all: CUDA_VISIBLE_DEVICES="
        found.append(Problem("launch.processes", text, hint))
    notes = []
    names = sorted({device["name"] for device in devices.values() if "name" in device})
    if len(names) > 1:
        notes.append(
            f"the ranks have different GPUs, the slowest sets the pace: {', '.join(names)}"
        )
    if not found:
        found += _beyond(config, places)
        older = oldest(device.get("capability") for device in devices.values())
        if older and older < AMPERE and config.engine.precision is Dtype.auto and not found:
            notes.append(
                f"compute capability {_version(older)} has no bf16: what was left at auto is fp16,"
                " and attention document by document"
            )
        kind = next(iter(types.values()), plan.get("device"))
        if plan.get("device") not in (None, kind):
            notes.append(
                f"the run was planned for {plan['device']} in {plan.get('precision')}, it computes"
                f" on {kind}"
            )
    return found, notes


def free_memory(ranks: Ranks, device: torch.device) -> int:
    """Bytes that this rank may still take: of its GPU, or its share of the host's."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return processes.available_memory() // ranks.local_world_size


def capability(device: torch.device) -> Capability | None:
    """Compute capability of a GPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else None


def oldest(capabilities: Iterable[Sequence[int] | None]) -> Capability | None:
    """The least of compute capabilities; None if there are none."""
    return min(((one[0], one[1]) for one in capabilities if one), default=None)


def _version(capability: Capability) -> str:
    return ".".join(map(str, capability))


def _beyond(config: Config, places: Mapping[int, Mapping[str, Any]]) -> Iterator[Problem]:
    """What was asked for and cannot be computed on the GPUs; what is left at auto gives way."""
    devices = {rank: place["device"] for rank, place in places.items()}
    without = [rank for rank, device in devices.items() if device.get("bf16") is False]
    if without:
        text = f"the GPU of {_named(without, places)} cannot compute in bf16"
        if config.engine.precision is Dtype.bf16:
            hint = "engine.precision=fp16, or engine.precision=fp32"
            yield Problem("engine.precision", text, hint)
        elif config.model.dtype is Dtype.bf16:
            yield Problem("model.dtype", text, "model.dtype=auto")
    if config.model.attention in CUDA_ONLY and (older := _older(AMPERE, places)):
        text = f"{older} {config.model.attention.name} kernels need {_version(AMPERE)}"
        yield Problem("model.attention", text, "model.attention=document")
    if config.model.fp8 and (older := _older(ADA, places)):
        text = f"{older} matrix products in FP8 need {_version(ADA)}"
        yield Problem("model.fp8", text, "model.fp8=false")


def _older(least: Capability, places: Mapping[int, Mapping[str, Any]]) -> str:
    """Which ranks have GPUs of less than a compute capability; empty if none has."""
    found = {
        rank: tuple(place["device"]["capability"])
        for rank, place in places.items()
        if tuple(place["device"].get("capability", least)) < least
    }
    if not found:
        return ""
    which = ", ".join(sorted({_version(one) for one in found.values()}))
    return f"the GPU of {_named(list(found), places)} has compute capability {which};"


def _without_gpu(
    config: Config, plan: Mapping[str, Any], places: Mapping[int, Mapping[str, Any]]
) -> Iterator[Problem]:
    """Ranks on the CPU though there were to be GPUs, one problem a cause."""
    asked = config.launch.gpus_by_site and config.cluster.gpus_per_node
    causes: dict[tuple[str, str], list[int]] = defaultdict(list)
    for rank, place in places.items():
        device = place["device"]
        if device["type"] != "cpu":
            continue
        if asked:
            promise = f"cluster.gpus_per_node={asked}"
        elif device["hidden"] or config.launch.has_queue:
            continue  # this was asked for
        elif plan.get("device") == "cuda":
            promise = "the run was planned for GPUs"
        else:
            promise = device["promise"]
        if promise:
            causes[promise, device["cause"]].append(rank)
    for (promise, cause), ranks in causes.items():
        cpu = (
            "cluster.gpus_per_node=0"
            if asked
            else "set CUDA_VISIBLE_DEVICES= (to nothing) in the environment"
        )
        yield Problem(
            "cluster.gpus_per_node" if asked else "devices",
            f"{promise}, but torch can use none on {_named(ranks, places)}: {cause}",
            "install a torch that is built for the GPU's driver (`nvidia-smi` must work there too);"
            f" to compute on the CPU: {cpu}",
        )


def _shared(places: Mapping[int, Mapping[str, Any]]) -> Iterator[Problem]:
    """GPUs on which several ranks would compute."""
    users: dict[tuple[str, str], list[int]] = defaultdict(list)
    for rank, place in places.items():
        if identity := place["device"].get("id"):
            users[place["host"], identity].append(rank)
    hosts: dict[str, list[int]] = defaultdict(list)
    for (host, _), ranks in users.items():
        if len(ranks) > 1:
            hosts[host] += ranks
    for host, ranks in hosts.items():
        there = len({identity for place, identity in users if place == host})
        count = sum(place["host"] == host for place in places.values())
        yield Problem(
            "launch.processes",
            f"host {host} has {count} ranks and shows them {there} GPU{'s' if there > 1 else ''}:"
            f" ranks {', '.join(map(str, sorted(ranks)))} would share",
            f"launch.processes={there}, or let the ranks see more GPUs (CUDA_VISIBLE_DEVICES)",
        )


def _named(ranks: list[int], places: Mapping[int, Mapping[str, Any]]) -> str:
    first = f"rank {ranks[0]} on {places[ranks[0]]['host']}"
    return f"{first} and {len(ranks) - 1} more" if len(ranks) > 1 else first
