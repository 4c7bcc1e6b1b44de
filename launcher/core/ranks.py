"""Who a process is among the ranks of an attempt, and where they meet. Standard library only.

The one place that knows the variables of torchrun, DeepSpeed's launcher and MPI; those of a
scheduler are known to its back end. All functions are pure: `launcher.core.runtime` hands them the
environment.
"""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from launcher.core.errors import ConfigError

#: Hosts of an attempt as its launcher names them, `HOST:RANKS` in the order of ranks, by commas.
HOSTS_VARIABLE = "LAUNCHER_HOSTS"
#: Name under which the launcher knows the host of a rank.
HOST_VARIABLE = "LAUNCHER_HOST"

#: Ports at which ranks meet: below those that systems give to outgoing connections.
FIRST_PORT = 10000
PORTS = 20000
#: What says how a scheduler's variables begin, and which `Surroundings` read them: the options of
#: launch back ends. Both are loaded on use, and need the standard library only.
SCHEDULERS = "launcher.config.schema.variants:surroundings"
#: (launcher, rank, world size, local rank, local world size); the first that is complete counts.
_SOURCES = (
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("deepspeed", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE"),
    (
        "mpi",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    (
        "mpi",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    ("mpi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place among the ranks of an attempt."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    host: str
    launched_by: str

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only rank that writes shared state."""
        return self.rank == 0


class Surroundings(Protocol):
    """The queue job around a process, if there is one, by the variables of a scheduler; made from
    them. Pure."""

    launcher: str
    """The scheduler's command that starts ranks, if it has one."""
    rank_prefixes: tuple[str, ...]
    """How variables of a rank begin, which no child of it is to see."""
    rank_names: tuple[str, ...]
    """Further ones, in full."""

    @property
    def host(self) -> str:
        """The scheduler's name of this host; "" if it has none."""

    @property
    def job(self) -> str:
        """Id of the job; "" if there is none."""

    @property
    def step(self) -> int:
        """Number of the step of ranks around this process; steps of a job run side by side."""

    @property
    def restarts(self) -> int:
        """Times that the scheduler has started the job again."""

    @property
    def gpus(self) -> str:
        """What says that the job has GPUs, in words; "" where nothing does."""

    def place(self, host: str) -> Ranks | None:
        """Place of a rank that `launcher` has started on `host`; None for any other process."""

    def hosts(self) -> list[str]:
        """Hosts of the ranks in their order; [] if nothing says which."""

    def tasks(self) -> list[int]:
        """Ranks on each of them."""


def surroundings(env: Mapping[str, str]) -> Surroundings | None:
    """What a scheduler says in this environment; None if none says anything."""
    first = None
    for prefix, path in _load(SCHEDULERS)().items():
        if any(name.startswith(prefix) for name in env):
            found: Surroundings = _load(path)(env)
            if found.job:
                return found
            first = first or found  # a site's settings alone, outside any job
    return first


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def identify(env: Mapping[str, str], host: str) -> Ranks:
    """Rank and world size from torchrun, deepspeed, MPI or a scheduler; else a single process.

    `host` is this machine's name, used unless the launcher has another for it. Raises
    `ConfigError` for values that cannot be a place among ranks.
    """
    around = surroundings(env)
    host = env.get(HOST_VARIABLE) or (around.host if around else "") or host
    for source, rank, world, local, local_world in _SOURCES:
        if all(name in env for name in (rank, world, local, local_world)):
            return _valid(
                Ranks(
                    rank=number(env, rank),
                    world_size=number(env, world),
                    local_rank=number(env, local),
                    local_world_size=number(env, local_world),
                    host=host,
                    launched_by=source,
                )
            )
    if "RANK" in env and "WORLD_SIZE" in env:
        # Started by hand, or by a launcher that says no more: one host as far as is known.
        rank_, world_ = number(env, "RANK"), number(env, "WORLD_SIZE")
        local_ = number(env, "LOCAL_RANK") if "LOCAL_RANK" in env else rank_
        return _valid(Ranks(rank_, world_, local_, world_, host, "torchrun"))
    if around and (found := around.place(host)):
        return _valid(found)
    return Ranks(0, 1, 0, 1, host, "none")


def number(env: Mapping[str, str], name: str) -> int:
    """The variable `name`; `ConfigError` if it is no number."""
    try:
        return int(env[name])
    except ValueError:
        raise ConfigError(
            f"{env[name]!r} is not a number",
            where=f"environment variable {name}",
            hint="unset it, or start the ranks with torchrun, deepspeed, mpirun or the scheduler",
        ) from None


def _valid(ranks: Ranks) -> Ranks:
    inside = 0 <= ranks.rank < ranks.world_size
    if not (inside and 0 <= ranks.local_rank < ranks.local_world_size <= ranks.world_size):
        raise ConfigError(
            f"rank {ranks.rank} of {ranks.world_size}, local rank {ranks.local_rank} of"
            f" {ranks.local_world_size}, cannot be",
            where=f"environment variables of {ranks.launched_by}",
            hint="start all ranks with one command of torchrun, deepspeed, mpirun or the scheduler",
        )
    return ranks


def rendezvous(env: Mapping[str, str]) -> tuple[str, int]:
    """Address and port at which rank 0 of the job listens.

    MASTER_ADDR and MASTER_PORT where they are set; else the first host that the scheduler names and
    a port that follows from the queue job's id, or this host for an MPI job that has no other.
    Raises `ConfigError` if nothing says where rank 0 is.
    """
    around = surroundings(env)
    address = env.get("MASTER_ADDR") or _master(env, around)
    if env.get("MASTER_PORT"):
        return address, number(env, "MASTER_PORT")
    job = around.job if around else ""
    if around and job:
        return address, port_of(job, around.step, around.restarts)
    return address, port_of(env.get("PMIX_NAMESPACE") or env.get("PMI_JOBID") or "")


def _master(env: Mapping[str, str], around: Surroundings | None) -> str:
    ranks = identify(env, "")
    # mpirun in a queue job too
    if around and ranks.launched_by in (around.launcher, "mpi") and (hosts := around.hosts()):
        return hosts[0]
    if ranks.world_size == ranks.local_world_size:
        return "127.0.0.1"
    raise ConfigError(
        f"nothing says where rank 0 of {ranks.world_size} is",
        where="environment variable MASTER_ADDR",
        hint="hand it to all ranks, e.g. `mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500 ...`",
    )


def port_of(job: str, step: int = 0, restart: int = 0) -> int:
    """A port from 10000 to 29999 that follows from the id of a job.

    Another one for each restart: the last may have been taken by somebody else.
    """
    number = int(job) if job.isdecimal() else zlib.crc32(job.encode())
    return FIRST_PORT + (number + 1009 * step + 7919 * restart) % PORTS


def exports(ranks: Ranks, address: str, port: int) -> dict[str, str]:
    """What torch's env:// and DeepSpeed read."""
    return {
        "RANK": str(ranks.rank),
        "WORLD_SIZE": str(ranks.world_size),
        "LOCAL_RANK": str(ranks.local_rank),
        "LOCAL_WORLD_SIZE": str(ranks.local_world_size),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }


def pick_devices(env: Mapping[str, str], slots: Sequence[int]) -> str:
    """CUDA_VISIBLE_DEVICES for these slots: of the devices that `env` shows, else of all."""
    if "CUDA_VISIBLE_DEVICES" not in env:
        return ",".join(map(str, slots))
    shown = [device for device in env["CUDA_VISIBLE_DEVICES"].split(",") if device.strip()]
    return ",".join(shown[slot] for slot in slots if slot < len(shown))


def planned_hosts(env: Mapping[str, str]) -> list[str]:
    """Host on which each rank was to be started, in the order of ranks; empty if unknown."""
    if env.get(HOSTS_VARIABLE):
        pairs = (entry.rpartition(":") for entry in env[HOSTS_VARIABLE].split(","))
        return [host for host, _, count in pairs for _ in range(int(count))]
    around = surroundings(env)
    if around is None or identify(env, "").launched_by != around.launcher:
        return []
    hosts, counts = around.hosts(), around.tasks()
    if len(hosts) != len(counts):
        return []
    # Blocks of ranks are what is asked for; a scheduler can be told another order.
    return [host for host, count in zip(hosts, counts, strict=True) for _ in range(count)]
