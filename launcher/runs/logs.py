"""Print the logs of a run, and follow them while it lives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from launcher.config.schema import variants
from launcher.core.errors import ConfigError
from launcher.core.rundir import RunDir
from launcher.launch.spec import AttemptState, Backend, backend_name
from launcher.runs.status import is_live
from launcher.runs.tail import Tail

_POLL_S = 0.2


def lines(
    run: RunDir, *, rank: int | None = None, attempt: int | None = None, follow: bool = False
) -> Iterator[str]:
    """Lines of one rank's log, or, if no rank is given, of the preparation and rank 0.

    `follow` waits for more until the run has ended. `ConfigError` names the attempts and ranks that
    there are.
    """
    attempts = run.attempts()
    chosen = attempt if attempt is not None else max(attempts, default=0)
    if chosen not in attempts:
        found = ", ".join(map(str, attempts)) or "none"
        raise ConfigError(
            f"no attempt {chosen}", where=str(run), hint=f"attempts of this run: {found}"
        )
    tails = [Tail(path) for path in _files(run, chosen, rank)]
    if not follow and rank is not None and not tails[0].path.is_file():
        names = sorted(path.name for path in run.attempt(chosen).glob("*.log"))
        raise ConfigError(
            f"rank {rank} has no log in attempt {chosen}",
            where=str(run.attempt(chosen)),
            hint=f"there are: {', '.join(names) or 'no logs yet'}",
        )
    backend = backend_of(run, chosen)
    while True:
        ended = not follow or _ended(run, chosen, backend)
        # A queue job that is started again goes on in a further attempt.
        further = follow and attempt is None and max(run.attempts()) != chosen
        for tail in tails:
            yield from tail.lines(final=ended or further)
        if further:
            chosen = max(run.attempts())
            tails = [Tail(path) for path in _files(run, chosen, rank)]
        elif ended:
            return
        else:
            time.sleep(_POLL_S)


def _files(run: RunDir, attempt: int, rank: int | None) -> list[Path]:
    backend = backend_of(run, attempt)
    if rank is not None:
        return [run.log(attempt, rank)]
    return backend.logs(run, attempt) if backend else [run.log(attempt, 0)]


def _ended(run: RunDir, attempt: int, backend: Backend | None) -> bool:
    if backend and backend.status(run, attempt) is not AttemptState.gone:
        return False
    return attempt != max(run.attempts()) or not is_live(run.status())


def backend_of(run: RunDir, attempt: int) -> Backend | None:
    """The back end that started an attempt; None if the ranks were started directly."""
    name = backend_name(run, attempt)
    if name is None:
        return None
    backend: Backend = variants.LAUNCHERS.load(name)()
    return backend
