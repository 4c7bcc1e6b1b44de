"""What is installed and attached, as far as it can be told without importing it."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from typing import Any

#: Package -> the oldest version that will do for anything at all.
OLDEST = {"torch": (2, 11), "transformers": (5, 17)}
_REPORTED = (
    *("torch", "triton", "transformers", "deepspeed", "peft", "accelerate", "pytest"),
    *("bitsandbytes", "flash-attn", "liger-kernel", "trl", "torchao"),
)


def facts() -> dict[str, Any]:
    """Versions of Python, packages, driver and compiler, and the number of CPUs."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    nvcc = re.search(r"release ([\d.]+)", _said(["nvcc", "--version"]))
    return {
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
        "driver": _said(query).partition("\n")[0] or "none",
        "nvcc": nvcc.group(1) if nvcc else "none",
        "versions": {name: version(name) for name in _REPORTED},
    }


def version(name: str) -> str:
    """The version of an installed package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def too_old() -> list[str]:
    """What is missing or too old, and what is needed."""
    problems = []
    for name, oldest in OLDEST.items():
        found = version(name)
        numbers = tuple(int(part) for part in re.findall(r"\d+", found)[:2])
        if numbers < oldest:
            problems.append(f"{name} is {found}, needs {'.'.join(map(str, oldest))} or later")
    return problems


def _said(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout if done.returncode == 0 else ""
