"""Facts of process and machine: the one place that reads the environment. Standard library only."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from launcher.errors import ConfigError

CONF_VARIABLE = "LAUNCHER_CONF"
CACHE_VARIABLE = "LAUNCHER_CACHE"


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


def ranks(environ: Mapping[str, str] | None = None) -> Ranks:
    """Rank and world size from torchrun, the deepspeed launcher or MPI, Slurm, or a single process.

    torchrun and deepspeed set the same variables; MPI and Slurm are read only without those.
    """
    env = os.environ if environ is None else environ
    host = socket.gethostname()
    sources = (
        ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
        (
            "mpi",
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
        ),
        ("slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
    )
    for source, rank, world, local, local_world in sources:
        if rank in env and world in env:
            if source == "slurm" and env.get("SLURM_STEP_ID") in (None, "batch", "interactive"):
                continue
            world_size = int(env[world])
            return Ranks(
                rank=int(env[rank]),
                world_size=world_size,
                local_rank=int(env.get(local, "0")),
                local_world_size=int(env.get(local_world, world_size)),
                host=host,
                launched_by=source,
            )
    return Ranks(0, 1, 0, 1, host, "none")


def gpu_count() -> int:
    """Number of visible NVIDIA GPUs, without importing torch or starting a driver call."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        present = len(list(Path("/proc/driver/nvidia/gpus").iterdir()))
    except OSError:
        present = len([p for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit()])
    if visible is None:
        return present
    listed = [item for item in visible.split(",") if item.strip() and item.strip() != "-1"]
    return min(present, len(listed))


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_dir() -> Path:
    """Where prepared data, tiny models and base scores lie: $LAUNCHER_CACHE, else the XDG cache."""
    explicit = os.environ.get(CACHE_VARIABLE)
    if explicit:
        return Path(explicit).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().resolve() / "launcher"


def hub_cache() -> Path:
    """Where the Hugging Face hub client keeps downloaded models, whether it exists or not."""
    explicit = os.environ.get("HF_HUB_CACHE")
    home = (
        os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    )
    return Path(explicit or f"{home}/hub").expanduser()


def conf_dir(explicit: str | None = None) -> Path:
    """Folder of config groups: explicit option, $LAUNCHER_CONF, packaged copy, package sibling."""
    return _data_dir("conf", explicit or os.environ.get(CONF_VARIABLE))


def _data_dir(name: str, explicit: str | None) -> Path:
    package = Path(__file__).resolve().parent
    if explicit:
        folder = Path(explicit).expanduser().resolve()
        if not folder.is_dir():
            raise ConfigError(
                f"no such folder: {folder}",
                where=f"{name} folder",
                hint=f"give a folder with the {name} files, or unset {CONF_VARIABLE}",
            )
        return folder
    for folder in (package / f"_{name}", package.parent / name):
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"the packaged {name}/ folder is missing beside {package}",
        where="installation",
        hint="reinstall the package",
    )


def child_environment(**changes: str) -> dict[str, str]:
    """A copy of the environment for a child process, with `changes` applied."""
    return {**os.environ, **changes}


def single_threaded_tokenizers() -> None:
    """Give `tokenizers` one thread in this process and its children: processes share the work."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def has_wandb_credentials() -> bool:
    """Whether wandb could log in: an API key in the environment or in the user's netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return "api.wandb.ai" in netrc.read_text()
    except OSError:
        return False


def wants_color(stream: TextIO) -> bool:
    """Whether `stream` is a terminal whose user has not set NO_COLOR."""
    return (
        stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") != "dumb"
    )


def is_terminal() -> bool:
    """Whether progress goes to a person's terminal (bars) rather than to a log (plain lines)."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") != "dumb"


def choose_cpu_accelerator() -> None:
    """Tell DeepSpeed, before its import, that this process computes on the CPU."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def let_cuda_memory_grow() -> None:
    """Let torch's CUDA allocator extend its segments: rows of changing length would leave holes."""
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def become_single_rank() -> None:
    """Set what torchrun would set for the only rank of a job, where DeepSpeed reads it."""
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }.items():
        os.environ.setdefault(name, value)


def limit_heap_fragmentation() -> None:
    """Keep glibc's heap from growing by freed tensors; without effect on other C libraries.

    Rows differ in length from step to step, so freed tensors leave holes that the next do not fit,
    and each thread has a heap of its own. A fixed threshold for large blocks (which turns glibc's
    growing one off) and one heap for all threads take a sixth off a CPU rank's memory.
    """
    import ctypes

    mmap_threshold, arena_max = -3, -8
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 2 << 20)
        libc.mallopt(arena_max, 1)


def is_profiled_by_nsight() -> bool:
    """Whether NVIDIA Nsight Systems records this process."""
    return "NSYS_PROFILING_SESSION_ID" in os.environ


def has_thread_setting() -> bool:
    """Whether the number of compute threads was chosen from outside."""
    return "OMP_NUM_THREADS" in os.environ


def environment_without_ranks() -> dict[str, str]:
    """The environment for a child that is no rank: without the variables of torchrun and others."""
    prefixes = ("TORCHELASTIC_", "OMPI_COMM_", "PMI_")
    names = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK"}
    names |= {"MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"}
    return {k: v for k, v in os.environ.items() if k not in names and not k.startswith(prefixes)}
