"""A rank of `launcher doctor`: `python -m launcher.distributed.probe RUN --attempt N`.

Each rank writes RUN/ranks/rank-N.json as it goes on, so that a rank which stops is known with the
place where it stopped. What is asked for stands in RUN/probe.json.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from launcher.config.compose import compose
from launcher.core import runtime
from launcher.core.errors import ExitCode, LauncherError
from launcher.core.files import read_json, storage_errors, write_json
from launcher.core.host import machine, storage
from launcher.core.rundir import RunDir, State
from launcher.core.runtime import Ranks
from launcher.distributed import bandwidth, collectives, devices, rendezvous

#: How long a rank looks for what rank 0 has written.
VISIBLE_TIMEOUT_S = 20.0
_CLOCK_ROUNDS = 5


class Report:
    """What this rank has to say; every change of phase is written at once."""

    def __init__(self, path: Path, ranks: Ranks) -> None:
        self._path = path
        self.values: dict[str, Any] = {
            "rank": ranks.rank,
            "host": ranks.host,
            "local_rank": ranks.local_rank,
            "pid": os.getpid(),
            "phase": "start",
            "done": False,
        }

    def phase(self, name: str, **values: Any) -> None:
        """Note results and go on to the next phase."""
        self.values.update(values, phase=name)
        # The parent is not made: a rank that does not see the folder must not make one of its own.
        if self._path.parent.is_dir():
            write_json(self._path, self.values)


def main(argv: list[str]) -> int:
    """Probe as one rank; returns the exit code."""
    words = [word for word in argv if not word.startswith("--local")]
    run, attempt = RunDir(words[0]), int(words[words.index("--attempt") + 1])
    ranks = runtime.export_ranks()
    report = Report(run.path / "ranks" / f"rank-{ranks.rank}.json", ranks)
    code = ExitCode.ok
    try:
        report.phase("joining")
        _probe(run, ranks, report)
    except Exception as error:
        traceback.print_exc()
        code = error.exit_code if isinstance(error, LauncherError) else ExitCode.internal
        with contextlib.suppress(LauncherError, OSError):
            report.phase(report.values["phase"], error=f"{type(error).__name__}: {error}")
    if ranks.is_main and run.exists():
        state = State.failed if code else State.succeeded
        reason = report.values.get("error", "")
        run.set_status(state, attempt=attempt, reason=reason, exit_code=int(code))
    return int(code)


def _probe(run: RunDir, ranks: Ranks, report: Report) -> None:
    if not run.exists():
        raise LauncherError(f"{run} is not to be seen on {ranks.host}", hint="see run.root")
    asked, config = read_json(run.path / "probe.json"), compose.load(run.config)
    device = devices.choose(ranks)
    timeout_s = float(config.launch.join_timeout_s)
    store = rendezvous.open_store(ranks, timeout_s)
    rendezvous.join(store, ranks, asked["world_size"], device, timeout_s)
    report.phase("host facts", torch=_torch_facts(device))
    if ranks.local_rank == 0:
        facts = machine.facts(asked["packages"], asked["programs"])
        named = storage.folders(asked["run_root"], config.data.cache)
        report.values["machine"] = {**facts, "host": ranks.host, "folders": storage.facts(named)}
    report.phase("clock")
    report.phase("shared folder", clock_s=_clock_offset_s())
    report.phase("collectives", shared=_shared(run.path / "shared", ranks))
    results = {}
    for name in bandwidth.NAMES if ranks.world_size > 1 else ():
        report.phase(name)
        results[name] = bandwidth.measure(name, device)
    collectives.barrier()
    report.phase("end", collectives=results, done=True)
    # Rank 0 says how it ended only when all have: the job may be taken down from then on.
    collectives.barrier()
    rendezvous.leave()


def _torch_facts(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {
        "device": device.type,
        "device_name": "CPU",
        "devices": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "cuda": torch.version.cuda,
        "nccl": None,
        "memory_bytes": None,
        "free_bytes": None,
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        nccl = torch.cuda.nccl.version()
        found.update(
            device_name=torch.cuda.get_device_name(device),
            nccl=".".join(map(str, nccl)),
            memory_bytes=total,
            free_bytes=free,
        )
    return found


def _clock_offset_s() -> float:
    """This host's clock less that of rank 0: the smallest seen just after a barrier."""
    offsets = []
    for _ in range(_CLOCK_ROUNDS):
        collectives.barrier()
        now = time.time()
        offsets.append(now - collectives.gather_objects(now)[0])
    return min(offsets, key=abs)


# ---- the shared folder


def _shared(folder: Path, ranks: Ranks) -> dict[str, Any]:
    """visible_s: until rank 0's file is there, None if it never is; torn: whether half of it was
    read; locked: whether rank 0's lock keeps this rank out, None where there is no other rank."""
    content = bytes(1 << 16)
    collectives.barrier()
    begin = time.monotonic()
    if ranks.is_main:
        with storage_errors(folder):
            (folder / "file.tmp").write_bytes(content)
            os.replace(folder / "file.tmp", folder / "file")
    visible_s, torn = _await_file(folder / "file", content, begin)
    return {"visible_s": visible_s, "torn": torn, "locked": _kept_out(folder / "lock", ranks)}


def _await_file(path: Path, content: bytes, begin: float) -> tuple[float | None, bool]:
    while time.monotonic() < begin + VISIBLE_TIMEOUT_S:
        try:
            return time.monotonic() - begin, path.read_bytes() != content
        except FileNotFoundError:
            time.sleep(0.002)
    return None, False


def _kept_out(path: Path, ranks: Ranks) -> bool | None:
    with _main_holds(path, ranks):
        kept_out = None
        if not ranks.is_main:
            kept_out = False
            with contextlib.suppress(OSError), open(path, "a", encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    kept_out = True
        collectives.barrier()
    return kept_out


@contextlib.contextmanager
def _main_holds(path: Path, ranks: Ranks) -> Iterator[None]:
    """Rank 0 holds a lock; all go on only when it does."""
    if not ranks.is_main:
        collectives.barrier()
        yield
        return
    with open(path, "a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        collectives.barrier()
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
