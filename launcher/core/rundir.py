"""The run folder: all that the control plane and the run plane share. Standard library only.

Every write of state is atomic (temporary file, fsync, rename), so a reader never sees half a file
and a full disk never damages what was there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import shlex
import socket
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import IO, Any

from launcher.core.errors import ConfigError, LauncherError, StorageError, did_you_mean

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


_ELSEWHERE = "`run.root` for runs, LAUNCHER_CACHE for what is kept between them"
_HINTS = {
    errno.ENOSPC: "free space on this file system, then resume the run",
    errno.EDQUOT: "the quota is used up: free space, then resume the run",
    errno.EFBIG: "a limit keeps files this small: raise it (ulimit -f), then resume the run",
    errno.EROFS: f"the file system is read-only: choose another place ({_ELSEWHERE})",
    errno.EACCES: f"mend the permissions, or choose another place ({_ELSEWHERE})",
    errno.EPERM: f"mend the permissions, or choose another place ({_ELSEWHERE})",
    errno.ENOTDIR: f"a file stands where a folder is needed: choose another place ({_ELSEWHERE})",
}
#: How `tempfile` begins when it finds no folder to write to.
_NO_TEMPORARY = "No usable temporary directory"


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's storage failures on `path` into `StorageError` with a hint."""
    try:
        yield
    except OSError as error:
        known = storage_error(error, path)
        if known is None:
            raise
        raise known from error


def too_many_processes(error: BaseException) -> LauncherError | None:
    """What it means that no process or thread could be started; None if it is another error."""
    text = str(error)
    words = ("can't start new thread", os.strerror(errno.EAGAIN))
    if not (isinstance(error, OSError | RuntimeError) and any(word in text for word in words)):
        return None
    return LauncherError(
        f"no further process or thread may be started here: {text}",
        where="ulimit -u",
        hint="raise the limit (ulimit -u) or end other processes of this user; fewer of"
        " launch.processes and data.workers need fewer",
    )


def storage_error(error: OSError, path: Path | None = None) -> StorageError | None:
    """What `error` means for a user; None if it is none of the storage, or nobody knows where."""
    if error.errno == errno.ENOENT and str(error.strerror).startswith(_NO_TEMPORARY):
        hint = "name a folder with room that you may write to: export TMPDIR=/path/to/folder"
        return StorageError(str(error.strerror), where="environment variable TMPDIR", hint=hint)
    named = error.filename if isinstance(error.filename, str) else None
    place = path or (Path(named) if named else None)
    if place is None and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of a library's file
        hint = "free space where runs, the cache and temporary files (TMPDIR) lie"
        return StorageError(error.strerror or str(error), where="storage", hint=hint)
    if error.errno not in _HINTS or place is None:
        return None
    found = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        denied = _denied(Path(named) if named else place)
        found += f": {ownership(denied)}" if denied else ""
    return StorageError(found, where=str(place), hint=_HINTS[error.errno])


def require_readable(path: Path) -> None:
    """Raises `StorageError` if a file or folder at or below `path`, or a folder above, is closed to
    this user: libraries say of such a file that it does not exist or is damaged."""
    denied = next(_closed(path), None)
    if denied is not None:
        raise StorageError(
            f"{os.strerror(errno.EACCES)}: {ownership(denied)}",
            where=str(denied),
            hint=f"its owner opens it with: chmod -R a+rX {shlex.quote(str(denied))}"
            " (LAUNCHER_CACHE=FOLDER keeps a cache of your own)",
        )


def _closed(path: Path) -> Iterator[Path]:
    yield from (folder for folder in reversed(path.parents) if not _may(folder, os.X_OK))
    if not os.path.exists(path):
        return
    if not _may(path, os.R_OK):
        yield path
    for folder, _, names in os.walk(path):
        places = (Path(folder), *(Path(folder, name) for name in names))
        yield from (place for place in places if os.path.exists(place) and not _may(place, os.R_OK))


def _may(path: Path, mode: int) -> bool:
    """Whether this user may do that to `path`; to read a folder is to enter it too."""
    if mode & os.R_OK and path.is_dir():
        mode |= os.X_OK
    return os.access(path, mode, effective_ids=True) or not os.path.lexists(path)


def _denied(path: Path) -> Path | None:
    """The file or folder, at or above `path`, that keeps this user from writing there."""
    there = [place for place in (path, *path.parents) if os.path.lexists(place)]
    return next((place for place in there if not _may(place, os.R_OK | os.W_OK)), None)


def ownership(path: Path) -> str:
    """Whose `path` is, its mode, and who asks."""
    facts = path.stat()
    mode = stat.filemode(facts.st_mode)
    return f"{path} is of {_user(facts.st_uid)}, {mode}, and you are {_user(os.geteuid())}"


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def give_usual_permissions(folder: Path) -> None:
    """Give the files below `folder` the mode that the umask leaves to new files, whatever the
    library that wrote them has chosen (safetensors 0.8 closes them to all others)."""
    mode = 0o666 & ~_umask()
    for file in folder.rglob("*") if folder.is_dir() else (folder,):
        if file.is_file() and not file.is_symlink():
            with storage_errors(file):
                file.chmod(mode)


def close_code(folder: Path) -> None:
    """Let only owner and group write the Python files in `folder`, and put others in their place,
    whatever the umask leaves: who works with the folder runs them."""
    files = [*folder.glob("*.py")]
    with contextlib.suppress(OSError):  # a mount may know no modes
        for path in (*files, folder) if files else ():
            path.chmod(path.stat().st_mode & ~stat.S_IWOTH & 0o7777)


def _umask() -> int:
    # Set and put back, as elsewhere, it would be another for a moment in all threads.
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def open_lock(path: Path) -> IO[str]:
    """A file to lock, made if it is not there; another user's serves as well."""
    with storage_errors(path):
        try:
            return open(path, "a", encoding="ascii")
        except PermissionError:
            if not path.exists():
                raise
            return open(path, encoding="ascii")


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut.

    Without `durable` a power cut may undo it; a thousand files then do not wait for the disk.

    Raises `StorageError` when the disk is full, read-only or not permitted.
    """
    data = content.encode() if isinstance(content, str) else content
    # Threads of one process may write the same file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        if durable:
            fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Atomically write `value` as JSON with a final newline."""
    write_atomic(path, as_json(value), durable=durable)


def as_json(value: Any) -> str:
    """JSON text with a final newline."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path, default: Any = None) -> Any:
    """Content of a JSON file, or `default` if it is absent or unreadable."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default


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
            before.update(exit_code=None, reason="")
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
