"""Slurm's commands: what is asked, and how their failures are told apart."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.errors import ConfigError, LauncherError
from launcher.launch import slurm_text
from launcher.launch.slurm_text import Job
from launcher.runtime import submission_environment

#: Longest wait for one answer; a busy controller takes some seconds.
_TIMEOUT_S = 60.0
#: Job ids in one command line.
_MOST_IDS = 500
_UNKNOWN_JOB = ("Invalid job id",)
#: What Slurm's commands say where nothing is kept of ended jobs.
NO_ACCOUNTING = "accounting storage is disabled"
#: How ended jobs are asked for. Old versions do not know --array.
ACCOUNTED = ("sacct", "--noheader", "--parsable2", "--allocations", "--format", "jobid,state")


class SlurmDownError(LauncherError):
    """Slurm's controller does not answer, so nothing is known about the job."""


class SlurmRefusedError(LauncherError):
    """Slurm has answered, and refused."""


def run(*command: str, cwd: Path | None = None) -> str:
    """Output of a command of Slurm; variables of the user's that steer it are not passed on.

    Raises `ConfigError` if it is not installed, `SlurmDownError` if the controller does not answer,
    `SlurmRefusedError` with its words if it fails in another way.
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
            env=submission_environment(),
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
        raise SlurmDownError(
            f"`{command[0]}` does not answer within {_TIMEOUT_S:.0f} s", where="Slurm"
        ) from error
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}"
    # Only the commands' words tell; they differ by version and always name the controller.
    lower = said.lower()
    down = "unable to contact" in lower or "connect failure" in lower or "timed out" in lower
    down = down or "zero bytes were transmitted" in lower
    if down:
        hint = "its controller is away or busy: try again; jobs go on meanwhile"
        raise SlurmDownError(said, where="Slurm", hint=hint)
    raise SlurmRefusedError(said, where="Slurm")


def jobs(ids: Sequence[str]) -> dict[str, Job]:
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


def _squeue(ids: Sequence[str]) -> dict[str, Job]:
    # One question about all jobs costs less than several about some.
    narrowed = ["--jobs", ",".join(ids)] if len(ids) <= _MOST_IDS else []
    form = ("--noheader", "--array", "--states=all", "--format", slurm_text.JOB_FORMAT)
    try:
        found = slurm_text.parse_jobs(run("squeue", *form, *narrowed))
    except SlurmRefusedError as error:
        if any(words in str(error) for words in _UNKNOWN_JOB):
            return {}
        raise SlurmDownError(str(error)) from error
    return {number: found[number] for number in ids if number in found}


def _sacct(ids: Sequence[str]) -> dict[str, Job]:
    """What accounting remembers; nothing where there is none."""
    if not ids:
        return {}
    # Of an array whole: tasks that were never started have no line of their own.
    whole = list(dict.fromkeys(number.partition("_")[0] for number in ids))
    try:
        text = "\n".join(run(*ACCOUNTED, "--jobs", ",".join(some)) for some in batches(whole))
    except ConfigError:  # it is not installed
        return {}
    except SlurmRefusedError as error:
        if NO_ACCOUNTING in str(error):
            return {}
        # A job of which nothing could be learned is not lost.
        raise SlurmDownError(str(error)) from error
    found = slurm_text.parse_jobs(text)
    return {number: found[number] for number in ids if number in found}


def fields(job: str) -> dict[str, str]:
    """`scontrol show job`: field -> value. Raises what `run` raises."""
    return slurm_text.parse_fields(run("scontrol", "show", "job", "--oneliner", job))
