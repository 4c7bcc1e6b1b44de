"""Slurm's commands: what is asked, and how their failures are told apart."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.core.errors import ConfigError, LauncherError
from launcher.launch.queue import FullError, QueueJob
from launcher.launch.retry import BusyError
from launcher.launch.slurm import environment, text

#: Longest wait for one answer; a busy controller takes some seconds.
_TIMEOUT_S = 60.0
#: Job ids in one command line.
_MOST_IDS = 500
_UNKNOWN_JOB = ("Invalid job id",)
#: What Slurm's commands say where nothing is kept of ended jobs.
NO_ACCOUNTING = "accounting storage is disabled"
#: How ended jobs are asked for. Old versions do not know --array.
ACCOUNTED = ("sacct", "--noheader", "--parsable2", "--allocations", "--format", "jobid,state")


#: What Slurm's commands say while the controller, or the way to it, is away or overloaded.
_AWAY = re.compile(
    r"unable to contact|connect(ion)? failure|timed out|zero bytes were transmitted"
    r"|connection (refused|reset)|not connected|standby mode|message (send|receive) failure"
    r"|name resolution|munge|protocol authentication|unable to establish",
    re.IGNORECASE,
)
#: What they say while nothing more is taken.
_FULL = re.compile(
    r"temporarily unable|temporarily unavailable|submit(jobs?)?.{0,20}limit|i/o error writing"
    r"|violates accounting/qos policy|submission.{0,20}(disabled|throttled)|try again",
    re.IGNORECASE,
)
#: What they say of an array that the site allows at no time.
_ARRAY = re.compile(r"invalid job array|array too large|MaxArraySize", re.IGNORECASE)
#: Names of limits that are about one job's size or time: it breaks them tomorrow too.
_OF_ONE_JOB = re.compile(r"\b(?:QOS|Assoc)(?!\w*Submit)\w+Limit\b|PerJob")


class SlurmDownError(BusyError):
    """Slurm's controller does not answer: nothing is known about what it was asked for."""


class SlurmRefusedError(LauncherError):
    """Slurm has answered, and refused."""


class SlurmArrayError(SlurmRefusedError):
    """Slurm has answered, and takes no array of so many tasks."""


def run(*command: str, cwd: Path | None = None) -> str:
    """Output of a command of Slurm; variables of the user's that steer it are not passed on.

    Raises `ConfigError` if it is not installed, `SlurmDownError` if the controller does not answer,
    `FullError` if it takes no more for now, `SlurmArrayError` if it is given too large an
    array, `SlurmRefusedError` with its words if it fails in another way.
    """
    try:
        done = subprocess.run(  # noqa: S603 - Slurm's own commands
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TIMEOUT_S,
            cwd=cwd,
            env=environment.of_commands(),
            check=False,
        )
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no `{command[0]}` on the PATH",
            where="launch=slurm",
            hint="run this on a login node of the cluster (often after `module load slurm`),"
            " or choose launch=local",
        ) from error
    except subprocess.TimeoutExpired as error:
        said = (error.stderr or b"").decode(errors="replace")
        if _FULL.search(said):  # sbatch tries by itself, for longer than we wait
            full = _full(said.strip().splitlines()[-1])
            full.is_open = True  # its last try may have come through
            raise full from error
        hint = "its controller is away or busy: try again; jobs go on meanwhile"
        raise SlurmDownError(
            f"`{command[0]}` does not answer within {_TIMEOUT_S:.0f} s", where="Slurm", hint=hint
        ) from error
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.strip() or done.stdout.strip()
    # Only the commands' words tell, and they differ by version. One that was killed says nothing.
    if not said or done.returncode < 0 or _AWAY.search(said):
        hint = "its controller is away or busy: try again; jobs go on meanwhile"
        said = said or f"`{command[0]}` ended with exit code {done.returncode} and no word"
        raise SlurmDownError(said, where="Slurm", hint=hint)
    if _FULL.search(said) and not _OF_ONE_JOB.search(said):
        raise _full(said)
    raise (SlurmArrayError if _ARRAY.search(said) else SlurmRefusedError)(said, where="Slurm")


def _full(said: str) -> FullError:
    hint = "a limit of the site: try again when others of your jobs have ended"
    return FullError(said, where="Slurm", hint=hint)


def jobs(ids: Sequence[str]) -> dict[str, QueueJob]:
    """Job id -> what Slurm knows, for those of `ids` that it knows: squeue first, then sacct.

    Raises `SlurmDownError`.
    """
    if not ids:
        return {}
    found = _squeue(ids)
    missing = [number for number in ids if number not in found]
    return {**found, **_sacct(missing)}


def batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """As many ids at a time as one command line takes."""
    for first in range(0, len(ids), _MOST_IDS):
        yield ids[first : first + _MOST_IDS]


def _squeue(ids: Sequence[str]) -> dict[str, QueueJob]:
    # One question about all jobs costs less than several about some.
    narrowed = ["--jobs", ",".join(ids)] if len(ids) <= _MOST_IDS else []
    form = ("--noheader", "--array", "--states=all", "--format", text.JOB_FORMAT)
    try:
        found = text.parse_jobs(run("squeue", *form, *narrowed))
    except SlurmRefusedError as error:
        if any(words in str(error) for words in _UNKNOWN_JOB):
            return {}
        raise SlurmDownError(str(error)) from error
    return {number: found[number] for number in ids if number in found}


def _sacct(ids: Sequence[str]) -> dict[str, QueueJob]:
    """What accounting remembers; nothing where there is none."""
    if not ids:
        return {}
    # Of an array whole: tasks that were never started have no line of their own.
    whole = list(dict.fromkeys(number.partition("_")[0] for number in ids))
    try:
        said = "\n".join(run(*ACCOUNTED, "--jobs", ",".join(some)) for some in batches(whole))
    except ConfigError:  # it is not installed
        return {}
    except SlurmRefusedError as error:
        if NO_ACCOUNTING in str(error):
            return {}
        # A job of which nothing could be learned is not lost.
        raise SlurmDownError(str(error)) from error
    found = text.parse_jobs(said)
    return {number: found[number] for number in ids if number in found}


def fields(job: str) -> dict[str, str]:
    """`scontrol show job`: field -> value. Raises what `run` raises."""
    return text.parse_fields(run("scontrol", "show", "job", "--oneliner", job))


def submitted(script: Path) -> list[str]:
    """Ids of the jobs of this user that were submitted from the file `script`, oldest first.

    Of an array, its own. Raises `SlurmDownError`.
    """
    form = ("--noheader", "--all", "--states=all", f"--user={os.getuid()}", "--format=%F|%o")
    try:
        said = run("squeue", *form)
    except SlurmRefusedError as error:
        raise SlurmDownError(str(error)) from error
    wanted = (str(script), os.path.realpath(script))
    lines = (line.partition("|") for line in said.splitlines())
    found = {number.strip() for number, _, file in lines if file.strip() in wanted}
    return sorted(found, key=int)
