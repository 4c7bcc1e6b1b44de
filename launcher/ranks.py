"""Who a process is among the ranks of a job, and where they meet. Standard library only.

The one place that knows the variables of torchrun, DeepSpeed's launcher, MPI and Slurm. All
functions are pure: `launcher.runtime` hands them the environment.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from launcher.errors import ConfigError

#: Hosts of a job as its launcher names them, `HOST:RANKS` in the order of ranks, by commas.
HOSTS_VARIABLE = "LAUNCHER_HOSTS"
#: Name under which the launcher knows the host of a rank.
HOST_VARIABLE = "LAUNCHER_HOST"

#: Ports at which ranks meet: below those that systems give to outgoing connections.
FIRST_PORT = 10000
PORTS = 20000
#: Ids from here on stand for the batch script and other steps that are no ranks.
_SPECIAL_STEPS = 0xFFFFFFF0
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
    """This process's place among the ranks of a job."""

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


def identify(env: Mapping[str, str], host: str) -> Ranks:
    """Rank and world size from torchrun, deepspeed, MPI or a Slurm step; else a single process.

    `host` is this machine's name, used unless the launcher has another for it. Raises
    `ConfigError` for values that cannot be a place among ranks.
    """
    host = env.get(HOST_VARIABLE) or env.get("SLURMD_NODENAME") or host
    for source, rank, world, local, local_world in _SOURCES:
        if all(name in env for name in (rank, world, local, local_world)):
            return _valid(
                Ranks(
                    rank=_number(env, rank),
                    world_size=_number(env, world),
                    local_rank=_number(env, local),
                    local_world_size=_number(env, local_world),
                    host=host,
                    launched_by=source,
                )
            )
    if "RANK" in env and "WORLD_SIZE" in env:
        # Started by hand, or by a launcher that says no more: one host as far as is known.
        rank_, world_ = _number(env, "RANK"), _number(env, "WORLD_SIZE")
        local_ = _number(env, "LOCAL_RANK") if "LOCAL_RANK" in env else rank_
        return _valid(Ranks(rank_, world_, local_, world_, host, "torchrun"))
    if _is_slurm_task(env):
        counts = _tasks_per_node(env)
        node = _number(env, "SLURM_NODEID")
        world_ = _number(env, "SLURM_STEP_NUM_TASKS")
        return _valid(
            Ranks(
                rank=_number(env, "SLURM_PROCID"),
                world_size=world_,
                local_rank=_number(env, "SLURM_LOCALID"),
                local_world_size=counts[node] if node < len(counts) else world_,
                host=host,
                launched_by="slurm",
            )
        )
    return Ranks(0, 1, 0, 1, host, "none")


def _is_slurm_task(env: Mapping[str, str]) -> bool:
    """Whether srun started this process: a salloc shell and the batch script are no ranks."""
    step = env.get("SLURM_STEP_ID", "")
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS")
    return step.isdecimal() and int(step) < _SPECIAL_STEPS and all(name in env for name in names)


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except ValueError:
        raise ConfigError(
            f"{env[name]!r} is not a number",
            where=f"environment variable {name}",
            hint="unset it, or start the ranks with torchrun, deepspeed, mpirun or srun",
        ) from None


def _valid(ranks: Ranks) -> Ranks:
    inside = 0 <= ranks.rank < ranks.world_size
    if not (inside and 0 <= ranks.local_rank < ranks.local_world_size <= ranks.world_size):
        raise ConfigError(
            f"rank {ranks.rank} of {ranks.world_size}, local rank {ranks.local_rank} of"
            f" {ranks.local_world_size}, cannot be",
            where=f"environment variables of {ranks.launched_by}",
            hint="start all ranks with one command of torchrun, deepspeed, mpirun or srun",
        )
    return ranks


def rendezvous(env: Mapping[str, str]) -> tuple[str, int]:
    """Address and port at which rank 0 of the job listens.

    MASTER_ADDR and MASTER_PORT where they are set; else the first host of the Slurm step and a port
    that follows from the job's id, or this host for an MPI job that has no other. Raises
    `ConfigError` if nothing says where rank 0 is.
    """
    address = env.get("MASTER_ADDR") or _master(env)
    if env.get("MASTER_PORT"):
        return address, _number(env, "MASTER_PORT")
    job = env.get("SLURM_JOB_ID") or env.get("PMIX_NAMESPACE") or env.get("PMI_JOBID") or ""
    # Steps of one job may run side by side.
    step = _number(env, "SLURM_STEP_ID") if _is_slurm_task(env) else 0
    return address, port_of(job, step, restarts(env))


def restarts(env: Mapping[str, str]) -> int:
    """Times that Slurm has started the job around this process again."""
    text = env.get("SLURM_RESTART_COUNT", "")
    return int(text) if text.isdecimal() else 0


def _master(env: Mapping[str, str]) -> str:
    ranks = identify(env, "")
    if ranks.launched_by in ("slurm", "mpi") and _slurm_list(env):  # mpirun in a Slurm job too
        return _slurm_hosts(env)[0]
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
    if identify(env, "").launched_by != "slurm" or not _slurm_list(env):
        return []
    hosts, counts = _slurm_hosts(env), _tasks_per_node(env)
    if len(hosts) != len(counts):
        return []
    # Blocks of ranks are what srun makes unless --distribution asks for another order.
    return [host for host, count in zip(hosts, counts, strict=True) for _ in range(count)]


def _slurm_list(env: Mapping[str, str]) -> str:
    names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    return next((env[name] for name in names if env.get(name)), "")


def _slurm_hosts(env: Mapping[str, str]) -> list[str]:
    found = _slurm_list(env)
    if not found:
        raise ConfigError(
            "Slurm does not say on which nodes the step runs",
            where="environment variable SLURM_STEP_NODELIST",
            hint="start the ranks with srun",
        )
    return expand_hosts(found)


def _tasks_per_node(env: Mapping[str, str]) -> list[int]:
    """`2(x3),1` is [2, 2, 2, 1]."""
    text = env.get("SLURM_STEP_TASKS_PER_NODE", "")
    found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    return [int(count) for count, times in found for _ in range(int(times or 1))]


def expand_hosts(text: str) -> list[str]:
    """Names that a Slurm host list stands for: `n[1-3,5],m07` is n1, n2, n3, n5, m07.

    Raises `ConfigError` if it is none.
    """
    names = [name for part in _split(text) for name in _expand(part, text)]
    if not names or not all(names):
        raise _bad(text)
    return names


def _split(text: str) -> Iterator[str]:
    """Parts between commas that stand outside of brackets."""
    if text.count("[") != text.count("]"):
        raise _bad(text)
    yield from re.split(r",(?![^\[]*\])", text.strip())


def _expand(part: str, text: str) -> Iterator[str]:
    pieces = re.split(r"\[([^\[\]]*)\]", part)
    if any("[" in piece or "]" in piece for piece in pieces):
        raise _bad(text)
    choices = [
        [piece] if at % 2 == 0 else list(_numbers(piece, text)) for at, piece in enumerate(pieces)
    ]
    yield from map("".join, itertools.product(*choices))


def _numbers(piece: str, text: str) -> Iterator[str]:
    for item in piece.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise _bad(text)
        first, last = found[1], found[2] or found[1]
        for number in range(int(first), int(last) + 1):
            yield f"{number:0{len(first)}d}"


def _bad(text: str) -> ConfigError:
    return ConfigError(
        f"{text!r} is not a host list", where="Slurm node list", hint="e.g. node[01-04,7],login1"
    )
