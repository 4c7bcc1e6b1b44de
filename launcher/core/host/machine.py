"""What the machine and its environment offer: packages, driver, limits, memory, settings."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from launcher.core import registry, runtime

#: The shared memory in which ranks of a host exchange data.
SHM = Path("/dev/shm")  # noqa: S108 - its size is asked for, nothing is written


def facts(packages: Iterable[str], programs: Iterable[str]) -> dict[str, Any]:
    """Facts of this host; `packages` are looked up among the installed, `programs` on the path.

    limits: soft limits, None without one; shm_bytes: size of /dev/shm, None if there is none;
    variables: those that steer the ranks' libraries.
    """
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": {name: registry.version(name) for name in packages},
        "programs": [name for name in programs if shutil.which(name)],
        "driver": _driver(),
        "gpus": runtime.gpu_count(),
        "cpus": runtime.cpu_count(),
        "limits": {
            "open_files": _soft_limit(resource.RLIMIT_NOFILE),
            "locked_memory": _soft_limit(resource.RLIMIT_MEMLOCK),
        },
        "shm_bytes": _size(SHM),
        "interfaces": _names(Path("/sys/class/net")),
        "infiniband": _names(Path("/sys/class/infiniband")),
        "variables": runtime.library_variables(),
    }


def _driver() -> str | None:
    """Version of the NVIDIA kernel driver, such as 580.65.06."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\b(\d+\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else None


def _soft_limit(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


def _size(folder: Path) -> int | None:
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_frsize * found.f_blocks


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
