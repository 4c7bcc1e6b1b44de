"""GPUs, limits, shared memory and the variables that steer the ranks' libraries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from launcher.config import create
from launcher.config.schema import AdamwConfig, Config
from launcher.core import console
from launcher.core.host.machine import SHM
from launcher.doctor.finding import CheckFinding, Seen, failed, passed, warned

#: Below this a data loader or a store of many ranks runs out of files.
OPEN_FILES = 4096
#: NCCL and data workers exchange tensors there; containers give 64 MiB unasked.
SHM_BYTES = 1 << 30
_SHM = str(SHM)
COMPILERS = ("c++", "g++", "clang++")
#: variable -> (values that are suspicious; () for any, what they do).
SUSPICIOUS: dict[str, tuple[tuple[str, ...], str]] = {
    "NCCL_P2P_DISABLE": (("1",), "GPUs of a host exchange data through main memory"),
    "NCCL_SHM_DISABLE": (("1",), "ranks of a host exchange data through the network"),
    "NCCL_IB_DISABLE": (("1",), "InfiniBand is not used"),
    "NCCL_NET": (("Socket", "socket"), "InfiniBand is not used"),
    "NCCL_ALGO": ((), "NCCL cannot choose the algorithm"),
    "NCCL_PROTO": ((), "NCCL cannot choose the protocol"),
    "NCCL_DEBUG": (("INFO", "TRACE"), "logs grow without bound"),
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": (("0",), "a lost rank leaves the others hanging"),
    "TORCH_NCCL_BLOCKING_WAIT": (("1",), "every collective waits on the CPU"),
    "TORCH_DISTRIBUTED_DEBUG": (("DETAIL",), "every collective is checked, several times slower"),
    "CUDA_LAUNCH_BLOCKING": (("1",), "every kernel waits on the CPU"),
}


def devices(seen: Seen) -> Iterator[CheckFinding]:
    """What the ranks compute on, and whether each has a device of its own."""
    names: dict[str, int] = {}
    for rank, report in seen.ranks.items():
        torch = report.get("torch")
        if torch is None:
            continue
        gpus, visible = report.get("machine", {}).get("gpus", 0), torch["devices"]
        if gpus and not visible:
            hint = "the driver is too old for this torch, or CUDA_VISIBLE_DEVICES hides the GPUs"
            yield failed("devices", f"rank {rank}: torch sees none of {gpus} GPUs", hint)
        name = torch["device_name"]
        names[name] = names.get(name, 0) + 1
    if names:
        yield passed("devices", ", ".join(f"{count} x {name}" for name, count in names.items()))
    if len(names) > 1:
        hint = "the slowest sets the pace: choose one kind, e.g. cluster.constraint"
        yield warned("devices", "the ranks compute on different devices", hint)


def wanted_gpus(seen: Seen) -> Iterator[CheckFinding]:
    """Whether the ranks got the GPUs that the cluster section promises."""
    wanted = create.gpus_per_node(seen.config)
    without = [r for r in seen.ranks.values() if r.get("torch", {}).get("device") == "cpu"]
    if wanted and without:
        hint = "look at cluster.gpus_per_node, cluster.gpu_type and the partition"
        hosts = ", ".join(sorted({report["host"] for report in without}))
        found = f"{len(without)} ranks on {hosts} compute on the CPU"
        yield failed("devices", f"{found}; {wanted} GPUs a node are planned", hint)


def gpu_memory(seen: Seen) -> Iterator[CheckFinding]:
    """Whether other processes already hold memory of the ranks' GPUs."""
    for report in seen.ranks.values():
        torch = report.get("torch")
        if torch and torch["memory_bytes"] and torch["free_bytes"] < 0.9 * torch["memory_bytes"]:
            free, total = console.size(torch["free_bytes"]), console.size(torch["memory_bytes"])
            hint = "another process uses this GPU: see nvidia-smi"
            found = f"rank {report['rank']} on {report['host']}: {free} of {total} free"
            yield warned("GPU memory", found, hint)


def cuda(seen: Seen) -> Iterator[CheckFinding]:
    """Versions of driver, CUDA and NCCL, and whether the driver is new enough for torch's CUDA."""
    said = set()
    for report in seen.ranks.values():
        torch = report.get("torch")
        if torch is None or torch["device"] == "cpu":
            continue
        driver = report.get("machine", {}).get("driver") or "unknown"
        found = f"driver {driver}, CUDA {torch['cuda']}, NCCL {torch['nccl']}"
        if found not in said:
            said.add(found)
            yield passed("CUDA", found)
    if len(said) > 1:
        hint = "give all nodes the same driver and environment"
        yield warned("CUDA", "driver, CUDA or NCCL differ between hosts", hint)


def open_files(config: Config, host: Mapping[str, Any]) -> Iterator[CheckFinding]:
    """The limit on open files."""
    limit = host["limits"]["open_files"]
    if limit is not None and limit < OPEN_FILES:
        hint = "`ulimit -n 65536` in the job, or nofile in /etc/security/limits.conf"
        yield warned("open files", f"at most {limit}", hint)
    else:
        yield passed("open files", "unlimited" if limit is None else f"at most {limit}")


def locked_memory(config: Config, host: Mapping[str, Any]) -> Iterator[CheckFinding]:
    """The limit on locked memory, which InfiniBand needs without one."""
    limit = host["limits"]["locked_memory"]
    if host["infiniband"] and limit is not None:
        hint = "memlock unlimited; for a queue's jobs, in its daemon's unit: LimitMEMLOCK=infinity"
        found = f"at most {console.size(limit)}, with InfiniBand {', '.join(host['infiniband'])}"
        yield warned("locked memory", found, hint)


def shm(config: Config, host: Mapping[str, Any]) -> Iterator[CheckFinding]:
    """The size of /dev/shm."""
    num_bytes = host["shm_bytes"]
    if num_bytes is None or num_bytes < SHM_BYTES:
        found = "is not there" if num_bytes is None else console.size(num_bytes)
        hint = "for a container: --shm-size=8g, or --ipc=host"
        yield warned(_SHM, found, hint)
    else:
        yield passed(_SHM, console.size(num_bytes))


def threads(config: Config, host: Mapping[str, Any]) -> Iterator[CheckFinding]:
    """Whether the ranks of a host share its cores; only for ranks that compute on the CPU."""
    ranks = create.ranks_per_node(config)
    given = host["variables"].get("OMP_NUM_THREADS", "")
    count = config.train.threads or (int(given) if given.isdecimal() else 1)
    if ranks * count > host["cpus"]:
        hint = "fewer launch.processes, train.threads=1, or more cluster.cpus_per_rank"
        found = f"{ranks} ranks with {count} threads each on {host['cpus']} cores"
        yield warned("threads", found, hint)


def variables(config: Config, host: Mapping[str, Any]) -> Iterator[CheckFinding]:
    """Variables of NCCL, torch and CUDA with values that cost speed or safety."""
    for name, (values, effect) in SUSPICIOUS.items():
        value = host["variables"].get(name)
        if value is not None and (not values or value in values):
            hint = "unset it, unless this site needs it (cluster.environment)"
            yield warned(name, f"{value}: {effect}", hint)
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        yield from interface(name, host["variables"].get(name), host["interfaces"])


def interface(name: str, value: str | None, present: list[str]) -> Iterator[CheckFinding]:
    """A variable that names network interfaces: `eth,ib` prefixes, `=eth0` exact, `^lo` not."""
    if not value or value.startswith("^"):
        return
    exact, words = value.startswith("="), value.lstrip("=").split(",")
    exact = exact or name.startswith("GLOO")
    matches = any(p == word if exact else p.startswith(word) for word in words for p in present)
    if not matches:
        hint = f"set cluster.network_interface to one of {', '.join(present)}"
        yield failed(name, f"{value}: there is no such interface", hint)


def compiler(config: Config, host: Mapping[str, Any]) -> Iterator[CheckFinding]:
    """A C++ compiler, if this config has something to build."""
    uses = []
    if config.model.compile:
        uses.append("model.compile")
    if config.optim.needs_compiler:
        uses.append(f"optim={config.optim.name}")
    on_gpu = create.gpus_per_node(config) > 0
    if on_gpu and config.engine.offload_optimizer and type(config.optim) is AdamwConfig:
        uses.append("engine.offload_optimizer")
    found = [name for name in COMPILERS if name in host["programs"]]
    if uses and not found:
        hint = f"install one of {', '.join(COMPILERS)}"
        yield failed("compiler", f"none, but {' and '.join(uses)} must build something", hint)
    elif uses:
        yield passed("compiler", found[0])
