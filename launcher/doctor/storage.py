"""The folders that runs write to: room, latency, atomic rename, locks, seen by all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from launcher.config.schema import Config
from launcher.core import console
from launcher.doctor.finding import CheckFinding, Seen, failed, passed, warned

#: Less than this cannot hold a checkpoint of anything but a toy.
FREE_FAIL_BYTES = 1 << 30
FREE_WARN_BYTES = 20 << 30
FREE_FILES = 1000
#: A small durable write; status, heartbeats and logs are made of them.
WRITE_WARN_S = 0.1
#: Until a rename on one host is seen on all others.
VISIBLE_WARN_S = 2.0
#: Folders in which a failure stops a run; in the others it costs time or an option.
NEEDED = ("run.root", "cache", "TMPDIR")

_HINTS = {
    "run.root": "choose another run.root, or make room",
    "cache": "set LAUNCHER_CACHE or data.cache to a folder with room",
    "hub cache": "set HF_HOME to a folder with room",
    "TMPDIR": "set TMPDIR to a folder with room (cluster.environment)",
}


def folders(config: Config, host: Mapping[str, Any]) -> Iterator[CheckFinding]:
    """Each folder that a run on this host writes to."""
    for name, facts in host["folders"].items():
        yield from judge(name, facts)


def run_root_here(seen: Seen) -> Iterator[CheckFinding]:
    """run.root as this host sees it, from which runs are made; the ranks' hosts see it too."""
    if seen.hosts[0] is not seen.here:
        for finding in judge("run.root", seen.here["folders"]["run.root"]):
            if finding.hint:
                yield finding


def judge(name: str, facts: Mapping[str, Any]) -> Iterator[CheckFinding]:
    """One folder, from what `host.storage.measure` found."""
    hint, bad = _HINTS[name], failed if name in NEEDED else warned
    place = f"{facts['path']} ({facts['filesystem']})"
    if facts["error"]:
        yield bad(name, f"{place}: {facts['error']}", hint)
        return
    free, write_s = facts["free_bytes"], facts["write_s"]
    numbers = {"free_bytes": free, "write_s": write_s}
    found = f"{place}: {console.size(free)} free, {write_s * 1000:.1f} ms a small durable write"
    if free < FREE_FAIL_BYTES or not facts["reserved"]:
        reason = "" if facts["reserved"] else ", and no more may be used (full, or the quota)"
        yield bad(name, f"{place}: {console.size(free)} free{reason}", hint, **numbers)
    elif facts["free_files"] is not None and facts["free_files"] < FREE_FILES:
        yield bad(name, f"{place}: room for {facts['free_files']} more files", hint, **numbers)
    elif free < FREE_WARN_BYTES:
        yield warned(name, found, hint, **numbers)
    elif write_s > WRITE_WARN_S:
        yield warned(name, found, "slow: choose a faster file system", **numbers)
    else:
        yield passed(name, found, **numbers)
    if not facts["locks"]:
        hint = "mount it with locks (Lustre: -o flock; NFS: not nolock)"
        yield bad(name, f"{place}: locks do not keep others out", hint)


def shared(seen: Seen) -> Iterator[CheckFinding]:
    """Whether all ranks work in the same folder, see renames at once, and respect locks."""
    reports = [report for report in seen.ranks.values() if report.get("shared")]
    if len(reports) < 2:
        return
    hint = "run.root must lie on a file system that all nodes share"
    blind = [_place(r) for r in reports if r["shared"]["visible_s"] is None]
    if blind:
        found = f"what rank 0 writes is not seen by {', '.join(blind)}"
        yield failed("shared folder", found, hint)
        return
    torn = [_place(r) for r in reports if r["shared"]["torn"]]
    if torn:
        hint = "use another file system: checkpoints and status need an atomic rename"
        yield failed("shared folder", f"half a file was read by {', '.join(torn)}", hint)
    slowest = max(r["shared"]["visible_s"] for r in reports)
    numbers = {"visible_s": slowest}
    if slowest > VISIBLE_WARN_S:
        hint = "NFS caches too long: mount with actimeo=1 or less"
        found = f"a rename is seen only after {slowest:.1f} s"
        yield warned("shared folder", found, hint, **numbers)
    else:
        found = f"atomic rename, seen by all ranks within {slowest * 1000:.1f} ms"
        yield passed("shared folder", found, **numbers)
    deaf = [_place(r) for r in reports if r["shared"]["locked"] is False]
    if deaf:
        hint = "mount it with locks over the network (Lustre: -o flock; NFS: not local_lock)"
        found = f"a lock held by rank 0 does not keep out {', '.join(deaf)}"
        yield failed("shared locks", found, hint)
    else:
        yield passed("shared locks", "a lock of one rank keeps the others out")


def _place(report: Mapping[str, Any]) -> str:
    return f"rank {report['rank']} on {report['host']}"
