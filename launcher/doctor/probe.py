"""Start the ranks of a probe through any launch back end, wait for them, collect what they say."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import secrets
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from launcher.config import create
from launcher.config.check import checks
from launcher.config.compose import compose
from launcher.config.schema import Config, variants
from launcher.core import runtime
from launcher.core.errors import ConfigError, LauncherError
from launcher.core.files import read_json, storage_errors, write_json
from launcher.core.rundir import RunDir
from launcher.doctor import machine, versions
from launcher.launch.outcome import settled
from launcher.launch.spec import AttemptState, Backend
from launcher.runs import start

_POLL_S = 0.2
#: Asking a scheduler is dear.
_ASK_S = 2.0
_END_TIMEOUT_S = 30.0
_LAST_LINES = 8
#: Sections that the ranks of a probe look at; the model, data and so on of a run are not touched.
_SECTIONS = ("run", "launch", "cluster", "watchdog")

Say = Callable[[str], None]
Reports = dict[int, dict[str, Any]]


@dataclasses.dataclass(slots=True)
class Probe:
    """A probe that was started."""

    run: RunDir
    backend: Backend
    asked: int
    timeout_s: float
    say: Say
    job: str
    """What the back end calls it: a number of the queue's, or of a process."""
    reports: Reports = dataclasses.field(default_factory=dict)
    trouble: str = ""


def check(config: Config) -> None:
    """Raise `ConfigError` with all that is wrong with the sections that say how ranks start."""
    world, has_gpu = create.planned_world(config), create.gpus_per_node(config) > 0
    problems = [
        problem
        for problem in checks.check(config, world_size=world, has_gpu=has_gpu)
        if problem.where.partition(".")[0] in _SECTIONS
    ]
    if problems:
        raise ConfigError(problems)


def probe(
    config: Config,
    *,
    timeout_s: float,
    keep: bool,
    say: Say,
    module: str = "launcher.distributed.probe",
) -> tuple[Reports, str]:
    """(rank -> its report, why the ranks did not end well or "").

    `timeout_s` counts from when the job runs, not while it waits in a queue. The folder of the
    probe, run.root/.doctor-TIME, is removed at the end unless `keep`.
    """
    with _terminable(), _folder(config, keep, say) as run:
        try:
            return _started(run, timeout_s, say, module)
        except LauncherError as error:
            return {}, str(error)


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM as Ctrl-C: the job is taken back and its folder removed."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _started(run: RunDir, timeout_s: float, say: Say, module: str) -> tuple[Reports, str]:
    config = compose.load(run.config)
    attempt = start.begin(run)
    spec = dataclasses.replace(start.spec(run, attempt, config), module=module)
    backend: Backend = variants.LAUNCHERS.load(config.launch.name)()
    asked = create.planned_world(config)
    say(f"starting {asked} ranks (launch={config.launch.name})")
    job = backend.submit(backend.plan(spec), attached=True)
    if config.launch.has_queue:
        say(f"job {job}")
    if config.launch.nodes_join and config.launch.nodes > 1:
        say(f"on the other nodes: launcher join {shlex.quote(str(run))}")
    started = Probe(run, backend, asked, timeout_s, say, job)
    try:
        _wait(started)
    finally:
        _end(started)
    return started.reports, started.trouble


def _wait(probe: Probe) -> None:
    """Collect reports until the job has ended or the time is over."""
    deadline, next_ask, state, came, waits = None, 0.0, AttemptState.queued, 0, False
    while True:
        now = time.monotonic()
        ended = settled(probe.run.status())
        if now >= next_ask:
            next_ask = now + _ASK_S
            state = probe.backend.status(probe.run, 1)
        if state is AttemptState.queued and not waits:
            waits = True
            probe.say("the job waits in the queue (Ctrl-C takes it back)")
        if deadline is None and state is not AttemptState.queued:
            deadline = now + probe.timeout_s
        probe.reports = _reports(probe.run)
        if len(probe.reports) != came:
            came = len(probe.reports)
            probe.say(f"{came} of {probe.asked} ranks are there")
        if ended or state is AttemptState.gone:
            return
        if deadline is not None and now > deadline:
            probe.trouble = f"not finished after {probe.timeout_s:.0f} s"
            return
        time.sleep(_POLL_S)


def _end(probe: Probe) -> None:
    """See that nothing of the job is left, and note its last words if it did not go well."""
    run, backend = probe.run, probe.backend
    if not settled(run.status()):
        with contextlib.suppress(LauncherError):
            backend.cancel(run, 1, now=True)
    end = time.monotonic() + _END_TIMEOUT_S
    while backend.status(run, 1) not in (AttemptState.gone, AttemptState.unknown):
        if time.monotonic() > end:
            # Its folder goes now, so no verb of ours could name it.
            probe.say(f"job {probe.job} does not end, though it was cancelled: end it by hand")
            break
        time.sleep(_POLL_S)
    probe.reports = _reports(run)
    if not all(report["done"] for report in probe.reports.values()) or not probe.reports:
        said = "\n".join(filter(None, (probe.trouble, run.status().reason, _last_words(probe))))
        probe.trouble = said or "the job ended without a word"


def _reports(run: RunDir) -> Reports:
    found = {}
    for file in (run.path / "ranks").glob("rank-*.json"):
        number, report = re.fullmatch(r"rank-(\d+)", file.stem), read_json(file)
        if number and isinstance(report, dict):
            found[int(number[1])] = report
    return dict(sorted(found.items()))


def _last_words(probe: Probe) -> str:
    """The end of the logs of the attempt."""
    folder, lines = probe.run.attempt(1), []
    files = {*probe.backend.logs(probe.run, 1), *folder.glob("*.log")}
    for log in sorted(files):
        with contextlib.suppress(OSError):
            text = log.read_text(encoding="utf-8", errors="replace").strip()
            lines += [f"{log.name}: {line}" for line in text.splitlines()[-_LAST_LINES:]]
    return "\n".join(lines)


@contextlib.contextmanager
def _folder(config: Config, keep: bool, say: Say) -> Iterator[RunDir]:
    """A folder that back ends take for a run's, with nothing to prepare."""
    stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    run = RunDir(runtime.user_path(config.run.root) / f".doctor-{stamp}")
    made_root = not run.path.parent.exists()
    with storage_errors(run.path):
        run.path.mkdir(parents=True)
        (run.path / "ranks").mkdir()
        (run.path / "shared").mkdir()
    try:
        _fill(run, config)
        yield run
    finally:
        if keep:
            say(f"kept {run}")
        else:
            shutil.rmtree(run.path, ignore_errors=True)
            if made_root:
                with contextlib.suppress(OSError):
                    run.path.parent.rmdir()


def _fill(run: RunDir, config: Config) -> None:
    lean = Config()
    for section in _SECTIONS:
        setattr(lean, section, getattr(config, section))
    lean.run.name, lean.data.cache = run.name, config.data.cache
    # Whoever waits for an answer wants none of the job's patience.
    lean.launch = lean.launch.for_probe()
    world = create.planned_world(config)
    write_json(run.plan, {"world_size": world})
    write_json(run.environment, create.environment())
    # No split, so that every back end finds all data prepared.
    write_json(run.data, {})
    asked = {
        "world_size": world,
        "run_root": str(run.path.parent),
        "packages": [requirement.name for requirement in versions.requirements()],
        "programs": list(machine.COMPILERS),
    }
    write_json(run.path / "probe.json", asked)
    compose.save(lean, run.config)
