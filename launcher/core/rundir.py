"""The run folder: all that the control plane and the run plane share. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shlex
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO, Any

from launcher.core.errors import ConfigError, StorageError, did_you_mean
from launcher.core.files import read_json, storage_errors, write_json

#: Where runs and sweeps are looked for, unless --root or `run.root` says otherwise.
DEFAULT_ROOT = "runs"
#: What makes a folder a sweep, whose runs lie below it.
SWEEP_FILE = "sweep.json"


class State(Enum):
    """State of a run."""

    preparing = "preparing"
    queued = "queued"
    running = "running"
    preempted = "preempted"
    succeeded = "succeeded"
    failed = "failed"
    cancelled = "cancelled"
    unknown = "unknown"
    """Never written: what is shown while a scheduler cannot be asked."""

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens without a resume."""
        return self in (State.succeeded, State.failed, State.cancelled)


@dataclass(frozen=True, slots=True)
class Status:
    """Content of status.json. `time` is Unix seconds; `exit_code` is None while the run lives."""

    state: State
    reason: str = ""
    exit_code: int | None = None
    attempt: int = 0
    step: int = 0
    steps: int | None = None
    host: str = ""
    pid: int = 0
    time: float = 0.0
    slow: list[dict[str, Any]] = field(default_factory=list)
    """Ranks slower than the others: rank, host, factor (of the median), step of the report."""
    lost: bool = False
    """Whether the run has failed because its processes or a node went away, or were killed."""


class RunDir:
    """Paths and state of one run folder."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The run id: the folder's name."""
        return self.path.name

    @property
    def config(self) -> Path:
        """The frozen, fully resolved config."""
        return self.path / "config.yaml"

    @property
    def overrides(self) -> Path:
        """What the user typed."""
        return self.path / "overrides.yaml"

    @property
    def plan(self) -> Path:
        """Numbers derived for this world size."""
        return self.path / "plan.json"

    @property
    def memory(self) -> Path:
        """What each rank has held in a step, beside the plan's estimate."""
        return self.path / "memory.json"

    @property
    def reference(self) -> Path:
        """Which model the columns of the objective's reference are of; not there where it has
        none."""
        return self.path / "reference.json"

    @property
    def rollouts(self) -> Path:
        """Answers that were learned from, a file for each rollout, of objectives that sample."""
        return self.path / "rollouts"

    @property
    def probe(self) -> Path:
        """What a probe has measured; a run that has it from its start is one."""
        return self.path / "probe.json"

    @property
    def status_file(self) -> Path:
        """State, reason, exit code, attempt."""
        return self.path / "status.json"

    @property
    def environment(self) -> Path:
        """Git revision, package versions, host, devices."""
        return self.path / "environment.json"

    @property
    def data(self) -> Path:
        """Where prepared data lies: {"train": cache folder, "validation": cache folder or null};
        further held-out sets under general and new.NAME."""
        return self.path / "data.json"

    @property
    def objective(self) -> Path:
        """What the objective has settled, such as a classifier's classes; not there where it has
        nothing to keep."""
        return self.path / "objective.json"

    @property
    def base(self) -> Path:
        """Which base `model.recipe` pre-trains (see `launcher.bases.freeze`)."""
        return self.path / "base.json"

    @property
    def metrics(self) -> Path:
        """One JSON line a logged step."""
        return self.path / "metrics.jsonl"

    @property
    def experts(self) -> Path:
        """Load of each expert in the step that was logged last; of a model that has some."""
        return self.path / "experts.json"

    @property
    def tracking(self) -> Path:
        """Ids of this run at the trackers, made once and reused on resume."""
        return self.path / "tracking.json"

    @property
    def heartbeats(self) -> Path:
        """One file a rank: step, phase, time, pid, host."""
        return self.path / "heartbeats"

    @property
    def checkpoints(self) -> Path:
        """Folder of step-00000100/ folders."""
        return self.path / "checkpoints"

    @property
    def eval(self) -> Path:
        """base.json, tuned.json, comparison.json, predictions.jsonl."""
        return self.path / "eval"

    @property
    def best(self) -> Path:
        """Which evaluation was the best and whose weights count, where the run chooses by it."""
        return self.eval / "best.json"

    @property
    def slices(self) -> Path:
        """Held-out records by field and value, if `eval.slices` names fields."""
        return self.eval / "slices.json"

    @property
    def export(self) -> Path:
        """The Hugging Face folder."""
        return self.path / "export"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.path / "report.html"

    def attempt(self, number: int) -> Path:
        """Folder of one attempt: the submitted command and one log file a rank."""
        return self.path / "attempts" / f"{number:04d}"

    def attempts(self) -> list[int]:
        """Numbers of the attempts made, ascending."""
        folder = self.path / "attempts"
        if not folder.is_dir():
            return []
        return sorted(int(p.name) for p in folder.iterdir() if p.name.isdecimal())

    def wish(self, attempt: int) -> Path:
        """Who asked that an attempt stop, in words: "Ctrl-C"."""
        return self.attempt(attempt) / "stop.txt"

    def log(self, attempt: int, rank: int) -> Path:
        """Log file of one rank in one attempt."""
        return self.attempt(attempt) / f"rank-{rank}.log"

    def heartbeat(self, rank: int) -> Path:
        """Heartbeat file of one rank."""
        return self.heartbeats / f"rank-{rank}.json"

    def command(
        self, verb: str, *options: str, more: Sequence[str] = (), anywhere: bool = False
    ) -> str:
        """`launcher VERB RUN` as it can be typed here, in backticks: see `command`."""
        return command(verb, self.path, *options, more=more, anywhere=anywhere)

    def exists(self) -> bool:
        """Whether this is a run folder."""
        return self.config.is_file()

    def require(self) -> RunDir:
        """This folder, or `ConfigError` if it is not a run folder."""
        if not self.exists():
            raise ConfigError(
                "not a run folder (there is no config.yaml in it)",
                where=str(self.path),
                hint=f"{listed(self.path.parent)} lists the runs beside it",
            )
        return self

    def status(self) -> Status:
        """The run's state as last written; a folder without a readable one counts as preparing."""
        raw = read_json(self.status_file, {})
        try:
            known = {key: raw[key] for key in Status.__dataclass_fields__ if key in raw}
            return Status(**{**known, "state": State(raw.get("state", "preparing"))})
        except (TypeError, ValueError, AttributeError):
            return Status(State.preparing, reason="status.json is not readable")

    def set_status(self, state: State, *, durable: bool = True, **changes: Any) -> Status:
        """Write a new state, keeping the fields that `changes` does not name."""
        before = asdict(self.status())
        if not (state.is_final or state is State.preempted):
            before.update(exit_code=None, reason="", lost=False)
        if state is State.preparing:
            before.update(slow=[])
        before.update(state=state, host=socket.gethostname(), pid=os.getpid(), time=time.time())
        status = Status(**{**before, **changes})
        raw = {**asdict(status), "state": status.state.value}
        write_json(self.status_file, raw, durable=durable)
        return status

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder of a run or sweep alone; `StorageError` at once if another process holds
        it.

        The lock is the kernel's, so it goes with the process however it dies.
        """
        path = self.path / ".lock"
        with storage_errors(path):
            file: IO[str] = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closed in finally, after the yield
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                file.seek(0)
                is_sweep = (self.path / SWEEP_FILE).exists()
                what, verb = ("sweep", "sweep cancel") if is_sweep else ("run", "cancel")
                raise StorageError(
                    f"another process works on this {what}: {file.read().strip() or 'unknown'}",
                    where=str(self.path),
                    hint=f"wait for it, or stop it with {self.command(verb)}",
                ) from error
            file.truncate(0)
            file.write(f"host {socket.gethostname()} pid {os.getpid()}\n")
            file.flush()
            yield
        finally:
            file.close()


def command(
    verb: str, folder: Path, *options: str, more: Sequence[str] = (), anywhere: bool = False
) -> str:
    """`launcher VERB NAME` for a run or sweep in `folder`, in backticks, with --root where that is
    not the default: it works when typed in the current folder, whatever characters are in it. Words
    of `more` come last.

    Of `anywhere` it names the path: what ranks write is read in other folders than theirs.
    """
    root, name = folder.parent, folder.name
    words = [name] if root == Path(DEFAULT_ROOT).resolve() else [name, "--root", str(root)]
    # A name that looks like an option, or that is a path from here, which is looked for first.
    if anywhere or name.startswith("-") or Path(name).exists():
        words = [str(folder)]
    return f"`{shlex.join(['launcher', *verb.split(), *options, *words, *more])}`"


def listed(root: Path) -> str:
    """`launcher status` for the runs under `root`, in backticks."""
    here = root.resolve() == Path(DEFAULT_ROOT).resolve()
    words = [] if here else ["--root", str(root.resolve())]
    return f"`{shlex.join(['launcher', 'status', *words])}`"


def run_dirs(root: str | os.PathLike[str]) -> list[RunDir]:
    """All run folders directly under `root`, by name."""
    try:
        with os.scandir(root) as entries:
            names = sorted(entry.path for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return []
    return [run for run in map(RunDir, names) if run.exists()]


def find_run(run: str, root: str = DEFAULT_ROOT) -> RunDir:
    """The run folder at a path or with an id under `root`; else `ConfigError` with close names."""
    for path in (Path(run), Path(root) / run):
        if RunDir(path).exists():
            return RunDir(path)
        if (path / SWEEP_FILE).is_file():
            raise ConfigError(
                f"{run!r} is a sweep, whose runs lie below it",
                where="run",
                hint=f"{command('sweep status', path.resolve())} lists them;"
                " sweep cancel, resume and report are for all of them",
            )
    names = [found.name for found in run_dirs(root)]
    raise ConfigError(
        f"no run {run!r} here or under {root}/",
        where="run",
        hint=did_you_mean(run, names) if names else f"there are no runs under {root}/ yet",
    )
