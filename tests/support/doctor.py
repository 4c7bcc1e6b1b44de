"""What the checks of `launcher doctor` look at, made up: a healthy host and healthy ranks."""

from __future__ import annotations

from typing import Any

from launcher.doctor.finding import Seen
from support.configs import make_config

GIB = 1 << 30


def folder(**changes: Any) -> dict[str, Any]:
    """A folder with room on a fast file system."""
    found = {"path": "/data/x", "filesystem": "ext4", "error": None, "free_bytes": 100 * GIB}
    return {**found, "free_files": 10**6, "reserved": True, "write_s": 0.002, "locks": True} | (
        changes
    )


def host(name: str = "node1", **changes: Any) -> dict[str, Any]:
    """Facts of a host on which nothing is wrong."""
    found = {
        "host": name,
        "python": "3.11.7",
        "packages": {"torch": "2.13.0", "numpy": "2.0"},
        "programs": ["c++"],
        "driver": None,
        "gpus": 0,
        "cpus": 64,
        "limits": {"open_files": 65536, "locked_memory": None},
        "shm_bytes": 8 * GIB,
        "interfaces": ["eth0", "lo"],
        "infiniband": [],
        "variables": {},
        "folders": {key: folder() for key in ("run.root", "cache", "hub cache", "TMPDIR")},
    }
    return {**found, **changes}


def rank(number: int, where: str = "node1", **changes: Any) -> dict[str, Any]:
    """The report of a rank that went through the whole probe on a CPU."""
    torch = {"device": "cpu", "device_name": "CPU", "devices": 0, "cuda": None, "nccl": None}
    speed = {"bytes": 4e6, "wrong": 0, "seconds": 0.001, "algorithm": 4e9, "bus": 4e9}
    found = {
        "rank": number,
        "host": where,
        "local_rank": number,
        "phase": "end",
        "done": True,
        "torch": {**torch, "memory_bytes": None, "free_bytes": None},
        "clock_s": 0.001 * number,
        "shared": {"visible_s": 0.001, "torn": False, "locked": True if number else None},
        "collectives": {"all_reduce": speed},
    }
    return {**found, **changes}


def seen(*ranks: dict[str, Any], asked: int | None = None, **changes: Any) -> Seen:
    """What the checks see when these ranks have reported."""
    found = {"config": make_config(), "here": host(), "services": {}, **changes}
    reports = {report["rank"]: report for report in ranks}
    return Seen(asked=len(ranks) if asked is None else asked, ranks=reports, **found)
