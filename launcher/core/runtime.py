"""Facts of process and machine: the one place that reads the environment. Standard library only."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from launcher.core.errors import ConfigError
from launcher.core.ranks import (
    HOST_VARIABLE,
    HOSTS_VARIABLE,
    exports,
    identify,
    surroundings,
)
from launcher.core.ranks import Ranks as Ranks
from launcher.core.ranks import planned_hosts as _planned_hosts
from launcher.core.ranks import rendezvous as _rendezvous

CONF_VARIABLE = "LAUNCHER_CONF"
CACHE_VARIABLE = "LAUNCHER_CACHE"
TRUST_VARIABLE = "LAUNCHER_TRUST_CODE"


def ranks(environ: Mapping[str, str] | None = None) -> Ranks:
    """This process's place among the ranks of its job, whoever started them."""
    return identify(os.environ if environ is None else environ, socket.gethostname())


def rendezvous(environ: Mapping[str, str] | None = None) -> tuple[str, int]:
    """Address and port of rank 0: see `launcher.core.ranks.rendezvous`."""
    return _rendezvous(os.environ if environ is None else environ)


def export_ranks() -> Ranks:
    """Find this process's place and set the variables in which torch and DeepSpeed look for it."""
    found = ranks()
    address, port = ("127.0.0.1", 0) if found.launched_by == "none" else rendezvous()
    os.environ.update(exports(found, address, port))
    return found


def planned_hosts() -> list[str]:
    """Host of each rank as its launcher planned it, in the order of ranks; empty if unknown."""
    return _planned_hosts(os.environ)


def shares_agent_store() -> bool:
    """Whether torch's agent keeps the store at the rendezvous, not rank 0."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def agent_restarts() -> str:
    """How often torch's agent has started the ranks again, as it says."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def gpu_count() -> int:
    """Number of visible NVIDIA GPUs, without importing torch or starting a driver call."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    try:
        present = len(list(Path("/proc/driver/nvidia/gpus").iterdir()))
    except OSError:
        present = len([p for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdecimal()])
    if visible is None:
        return present
    return min(present, len(_visible(visible)))


def hides_gpus() -> bool:
    """Whether the user hides all GPUs: CUDA_VISIBLE_DEVICES is set and names none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible is not None and not _visible(visible)


def _visible(text: str) -> list[str]:
    """Devices that CUDA_VISIBLE_DEVICES names; CUDA ignores what follows an index that is none."""
    listed = itertools.takewhile(lambda item: item != "-1", map(str.strip, text.split(",")))
    return [item for item in listed if item not in ("", "NoDevFiles", "void", "none")]


def promised_gpus() -> str:
    """What says that this process is to have GPUs, in words; empty where nothing does.

    For a process in which they cannot be used: asks nvidia-smi last.
    """
    if hides_gpus():
        return ""
    if count := gpu_count():
        return f"this host has {count} GPU{'s' if count > 1 else ''}"
    around = surroundings(os.environ)
    if around and around.gpus:
        return around.gpus
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    # Where we or deepspeed's launcher (CROSS_RANK) have set it, it only says which.
    if visible and not {HOST_VARIABLE, "CROSS_RANK"} & os.environ.keys():
        return f"CUDA_VISIBLE_DEVICES={visible}"
    import subprocess  # only a rank without a GPU asks

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["nvidia-smi", "-L"]
        said = subprocess.run(command, capture_output=True, timeout=20)  # noqa: S603
        if listed := [line for line in said.stdout.splitlines() if line.startswith(b"GPU ")]:
            return f"nvidia-smi lists {len(listed)} GPU{'s' if len(listed) > 1 else ''}"
    return ""


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cache_dir() -> Path:
    """Where prepared data, tiny models and base scores lie: $LAUNCHER_CACHE, else the XDG cache."""
    explicit = os.environ.get(CACHE_VARIABLE)
    if explicit:
        return user_path(explicit).resolve()
    return (_user_cache() / "launcher").resolve()


def user_path(text: str | Path) -> Path:
    """A path that a person gave, `~` and `~NAME` resolved; kept as it is where nobody knows the
    home, as of a container's user without a line in passwd."""
    return Path(os.path.expanduser(text))


def _user_cache() -> Path:
    found = user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if found.is_absolute():
        return found
    raise ConfigError(
        "there is no home folder: HOME is not set, and the system knows none of this user",
        where="environment variable LAUNCHER_CACHE",
        hint="name a folder for what is kept between runs: export LAUNCHER_CACHE=/path/to/folder",
    )


def hub_cache() -> Path:
    """Where the Hugging Face hub client keeps downloaded models, whether it exists or not."""
    explicit = os.environ.get("HF_HUB_CACHE")
    return user_path(explicit) if explicit else _hub_home() / "hub"


def datasets_cache() -> Path:
    """Where the library `datasets` keeps what it has made, whether it exists or not."""
    explicit = os.environ.get("HF_DATASETS_CACHE")
    return user_path(explicit) if explicit else _hub_home() / "datasets"


def _hub_home() -> Path:
    """The hub client's own folder; where there is no home, in our cache."""
    home = os.environ.get("HF_HOME")
    if home:
        return user_path(home)
    try:
        return _user_cache() / "huggingface"
    except ConfigError:
        return cache_dir() / "huggingface"


def trusts_code() -> bool:
    """Whether Python files that run folders name are run whoever can have written them."""
    return os.environ.get(TRUST_VARIABLE) == "1"


def conf_dir(explicit: str | None = None) -> Path:
    """Folder of config groups: explicit option, $LAUNCHER_CONF, packaged copy, package sibling."""
    return data_dir("conf", explicit or os.environ.get(CONF_VARIABLE))


def data_dir(name: str, explicit: str | None = None) -> Path:
    """Folder of files that belong to the package: `explicit`, packaged copy, package sibling."""
    package = Path(__file__).resolve().parents[1]
    if explicit:
        folder = user_path(explicit).resolve()
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
    """The environment for a child process, with `changes` applied: it runs the code of this one,
    as it was written."""
    # Without docstrings transformers does not open a model, and our asserts are to hold.
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONOPTIMIZE"}
    places = _python_path(os.environ.get("PYTHONPATH", ""))
    return {**kept, **({"PYTHONPATH": places} if places else {}), **changes}


def utf8_environment(encoding: str) -> dict[str, str]:
    """The environment for this program in Python's UTF-8 mode, its output in `encoding`."""
    return {"PYTHONIOENCODING": encoding, **os.environ, "PYTHONUTF8": "1"}


#: Where this process was started; None if the folder is gone.
try:
    _STARTED_IN: str | None = os.getcwd()
except OSError:
    _STARTED_IN = None


def _python_path(given: str) -> str:
    """PYTHONPATH for children: without empty parts, which mean the current folder and mostly come
    from `$PYTHONPATH:/more`; with that folder if the code of this process was taken from it."""
    places = [os.path.abspath(place) for place in given.split(os.pathsep) if place]
    own = str(Path(__file__).resolve().parents[2])
    if own == _STARTED_IN and own not in places:
        places.insert(0, own)
    return os.pathsep.join(places)


def keep_current_folder_off_the_path() -> None:
    """No module is taken from the current folder, neither here nor in processes that libraries
    start with `python -m` or `-c`; what PYTHONPATH names stays."""
    os.environ["PYTHONSAFEPATH"] = "1"
    take_current_folder_off_the_path()


def take_current_folder_off_the_path() -> None:
    """The same for this process alone: those of the user's that it starts are as they were."""
    named = filter(None, _python_path(os.environ.get("PYTHONPATH", "")).split(os.pathsep))
    # Behind the standard library come installed packages, which may be worked on right here.
    library = os.path.dirname(os.__file__)
    end = sys.path.index(library) if library in sys.path else len(sys.path)
    gone = {"", _STARTED_IN}.difference(named)
    sys.path[:end] = [place for place in sys.path[:end] if place not in gone]


def name_device(index: int) -> None:
    """Let libraries that take LOCAL_RANK for the number of this rank's GPU find it: a rank that is
    shown one GPU alone has number 0, whatever its place."""
    os.environ["LOCAL_RANK"] = str(index)


def fix_order_of_sums() -> None:
    """Ask libraries for kernels that always sum in the same order, before their first use: cuBLAS
    of its workspaces (the larger of the two sizes that it knows for that), flash-attn of its
    backward."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"


def single_threaded_tokenizers() -> None:
    """Give `tokenizers` one thread in this process and its children: processes share the work."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def single_threaded_rayon() -> None:
    """The same for libraries on rayon, before their first use: its threads do not survive a fork,
    and a forked process would wait for them for ever."""
    os.environ["RAYON_NUM_THREADS"] = "1"


def keep_wandb_from_advising() -> None:
    """No advice to install Weave, which wandb gives, even when it is told to be silent, where a
    library for models' endpoints (openai, mcp, ...) is loaded."""
    os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")


def secret(variable: str) -> str | None:
    """The key that the user keeps in this environment variable; None if it is not set."""
    return os.environ.get(variable, "").strip() or None


def openai_url() -> str | None:
    """The server that OpenAI's clients are told to ask; None if that is OpenAI's own."""
    return os.environ.get("OPENAI_BASE_URL", "").strip() or None


def openai_scope() -> dict[str, str]:
    """Headers by which OpenAI's clients say whose account a request is for: organization and
    project, where the environment names them."""
    named = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
    found = {header: os.environ.get(name, "").strip() for header, name in named.items()}
    return {header: value for header, value in found.items() if value}


def has_wandb_credentials() -> bool:
    """Whether wandb could log in: an API key in the environment or in the user's netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    netrc = user_path(os.environ.get("NETRC", "~/.netrc"))
    try:
        return "api.wandb.ai" in netrc.read_text(encoding="utf-8")
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
    """The environment for a child that is no rank: without the variables of torchrun and others.

    A queue job stays visible, so that the child may use its scheduler's commands in it.
    """
    around = surroundings(os.environ)
    mpi = ("OMPI_COMM_", "MV2_COMM_", "PMI_", "PMIX_", "MPI_LOCAL")
    prefixes = ("TORCHELASTIC_", *mpi, *(around.rank_prefixes if around else ()))
    names = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "GROUP_RANK"}
    names |= {"ROLE_RANK", "CROSS_RANK", "CROSS_SIZE", HOST_VARIABLE, HOSTS_VARIABLE}
    names |= {*(around.rank_names if around else ())}
    names |= {"MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"}
    return {
        name: value
        for name, value in child_environment().items()
        if name not in names and not name.startswith(prefixes)
    }


def wandb_agent_run() -> str | None:
    """Id that a W&B sweep agent has given the run that this process is to make; None without."""
    return os.environ.get("WANDB_RUN_ID") if "WANDB_SWEEP_ID" in os.environ else None


def visible_gpus(count: int) -> list[str]:
    """Names of the first `count` visible GPUs, as CUDA_VISIBLE_DEVICES takes them."""
    listed = [item.strip() for item in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return ([item for item in listed if item] or [str(i) for i in range(count)])[:count]


def library_variables() -> dict[str, str]:
    """Variables by which the ranks' libraries are steered: of NCCL, gloo, torch, CUDA, OpenMP."""
    prefixes = ("NCCL_", "TORCH_NCCL_", "TORCH_DISTRIBUTED_", "GLOO_", "CUDA_", "OMP_")
    return {name: value for name, value in os.environ.items() if name.startswith(prefixes)}


def hub_endpoint() -> str | None:
    """Address of the Hugging Face hub; None where its client is told to stay offline."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return None
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def hub_token() -> str | None:
    """The access token that the hub's client would use; None without one."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    path = os.environ.get("HF_TOKEN_PATH")
    file = user_path(path) if path else _hub_home() / "token"
    try:
        found = file.read_text(encoding="utf-8")
    except (OSError, UnicodeError):
        return None
    return found.strip() or None


def wandb_endpoint() -> str:
    """Address of the Weights & Biases server."""
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


#: What a rank on another host needs of the environment in which the user typed the command.
_FORWARDED = (
    *("PYTHON", "NCCL_", "GLOO_", "UCX_", "FI_", "TORCH_", "PYTORCH_", "HF_", "TRANSFORMERS_"),
    *("WANDB_", "MLFLOW_", "LAUNCHER_", "TOKENIZERS_", "LD_LIBRARY_PATH", "PATH", "VIRTUAL_ENV"),
    *("XDG_CACHE_HOME", "OPENAI_"),
)
_SECRET = ("KEY", "_TOKEN", "SECRET", "PASSWORD")


def forwarded_environment() -> dict[str, str]:
    """Variables to set on other hosts, where they may show in command lines: no secrets."""
    return {
        name: value
        for name, value in environment_without_ranks().items()
        if name.startswith(_FORWARDED) and not any(word in name for word in _SECRET)
    }


def forwarded_secrets(*others: str) -> dict[str, str]:
    """Keys and tokens for other hosts, and the variables `others`, to be sent where nobody else
    sees them."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in others or (name.startswith(_FORWARDED) and any(word in name for word in _SECRET))
    }
