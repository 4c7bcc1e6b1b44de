"""The queue seam: what a launch back end answers besides, whose runs wait in a scheduler's queue.

A *queue job* is the scheduler's; it works on one run, and on as many of its attempts as it is
started. Nobody outside a back end's own package knows which scheduler it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from launcher.config.schema.launch import LaunchConfig
from launcher.core.errors import ConfigError
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.launch.retry import BusyError
from launcher.launch.spec import (
    AttemptState,
    Backend,
    LaunchPlan,
    job_file,
    number_in,
)

#: A queue job that its queue does not know for so long, and that has left no result, is lost.
MISSING_S = 30.0


class Ending(Enum):
    """How a queue job has ended, as its queue tells."""

    cancelled = "cancelled"
    dropped = "dropped"
    """What it waited for has failed."""
    out_of_memory = "out_of_memory"
    time_limit = "time_limit"
    preempted = "preempted"
    lost_node = "lost_node"
    other = "other"


@dataclass(frozen=True, slots=True)
class QueueJob:
    """What a queue says of one of its jobs."""

    id: str
    """Task I of an array is ARRAY_I."""
    state: AttemptState
    word: str = ""
    """The queue's own word for the state."""
    reason: str = ""
    """Why it waits."""
    is_ending: bool = False
    """Whether it still runs, but only to clear up."""
    ending: Ending = Ending.other
    """How it has ended, if it is gone."""


@dataclass(frozen=True, slots=True)
class QueueHealth:
    """Whether a queue takes jobs from this host."""

    is_here: bool
    """Whether anything of it is on this host; no other host need hear of its troubles."""
    found: str
    """What it says, or what is wrong."""
    hint: str = ""
    """What to do about it; "" if all is well."""


class FullError(BusyError):
    """A queue has answered, and takes no more jobs for now."""

    is_open = False


class ArrayError(ConfigError):
    """A queue takes no array of so many tasks; it may take several smaller ones."""


class QueueBackend(Backend, Protocol):
    """A launch back end with a queue: the class of its options says `has_queue`.

    A run in a queue has the note `job_file` in the folder of its attempt, written before the job
    can start: the plan, `base` (the attempt of the first start), and `job`, the id, or `array`,
    [folder, index], if `folder`/job.json has the id. Each start of a job is an attempt of its own.
    All methods that ask raise `BusyError` where the scheduler does not answer.
    """

    title: str
    """The scheduler's name, for people."""

    def submit_many(
        self,
        plans: Sequence[LaunchPlan],
        folder: Path,
        *,
        max_parallel: int | None,
        after: Sequence[str] = (),
    ) -> str:
        """Submit one array of which `max_parallel` tasks run at a time, once the jobs `after` have
        ended; returns its id.

        May be called again after a `BusyError`, and then submits nothing twice. Raises
        `ConfigError` if the plans differ in what they ask for, `ArrayError` if they are too many
        for one array, `FullError` if there is no room for them now.
        """

    def recover(self, run: RunDir, attempt: int) -> str | None:
        """Id of the job of an attempt whose submission was cut off, noted from now on; None if the
        queue has none: it was not submitted, or is being submitted."""

    def observe(self, jobs: Sequence[str]) -> Mapping[str, QueueJob]:
        """Id -> what the queue knows, for those of `jobs` that it knows, by few questions."""

    def cancel_many(self, attempts: Sequence[tuple[RunDir, int]], *, now: bool) -> None:
        """`cancel` for many runs, by few questions; returns when all their jobs are gone."""

    def log(self, run: RunDir, attempt: int) -> Path | None:
        """What the job of an attempt says before and after its ranks; None without a job."""

    def on_a_node(self, command: str) -> str:
        """For people: what to type to have `command` done where jobs run."""

    def health(self) -> QueueHealth:
        """Whether it takes jobs from here; quick, and raises nothing."""


def has_queue(name: str | None) -> bool:
    """Whether the launch back end `name` has a queue; does not import it."""
    from launcher.config.schema import (
        variants,  # as below: a listing without queue jobs does without
    )

    options = variants.OPTIONS["launch"].get(name or "", LaunchConfig)
    return issubclass(options, LaunchConfig) and options.has_queue


def is_installed(name: str) -> bool:
    """Whether there is a launch back end `name`: that of a plugin may be gone again."""
    from launcher.config.schema import variants

    return name in variants.LAUNCHERS


def queues() -> list[str]:
    """Names of all launch back ends with a queue."""
    from launcher.config.schema import variants

    return [name for name in variants.LAUNCHERS if has_queue(name)]


def queue_of(name: str | None) -> QueueBackend | None:
    """The launch back end `name` if it has a queue, else None."""
    if name is None or not has_queue(name):
        return None
    from launcher.config.schema import variants

    queue: QueueBackend = variants.LAUNCHERS.load(name)()
    return queue


def queue_job(run: RunDir, attempt: int) -> str | None:
    """Id of the queue job that works, or is to work, on an attempt, as it was noted."""
    raw = read_json(job_file(run, attempt))
    return number_in(raw) if isinstance(raw, dict) else None


def array_of(job: str) -> str:
    """Id of the array of a task; of any other job its own."""
    return job.partition("_")[0]
