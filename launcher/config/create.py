"""Make the folder of a new run: config frozen, plan made, environment noted. For both planes."""

from __future__ import annotations

import contextlib
import datetime
import errno
import itertools
import os
import platform
import re
import secrets
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from launcher import __version__
from launcher.config.check import checks
from launcher.config.compose import compose, ownfile
from launcher.config.derive import copies, hostfile, plan
from launcher.config.schema import Config
from launcher.config.schema.launch import DeepspeedConfig
from launcher.config.schema.sweep import SweepConfig
from launcher.core import registry, runtime
from launcher.core.errors import ConfigError, Problem
from launcher.core.files import (
    as_json,
    close_code,
    read_json,
    storage_errors,
    write_atomic,
    write_json,
)
from launcher.core.rundir import SWEEP_FILE, RunDir, State

_PACKAGES = ("torch", "deepspeed", "transformers", "peft", "hydra-core", "datasets", "wandb")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+@-]{0,199}")


def gpus_per_node(config: Config) -> int:
    """GPUs of a node of the run: those of this machine, or on a cluster what the site's file says.

    A local run has no cluster, whatever `cluster` says.
    """
    said = config.cluster.gpus_per_node if config.launch.gpus_by_site else 0
    # Whoever types on a login node without GPUs may ask for hosts that have some.
    return said if said or config.launch.has_queue else runtime.gpu_count()


def ranks_per_node(config: Config) -> int:
    """`launch.processes`, or one rank a GPU, or one rank."""
    return config.launch.processes or gpus_per_node(config) or 1


def planned_world(config: Config) -> int:
    """Ranks of the whole job; `ConfigError` for a hostfile that does not say."""
    if isinstance(config.launch, DeepspeedConfig):
        return sum(len(host.slots) for host in hostfile.hosts(config.launch, Path()))
    return config.launch.nodes * ranks_per_node(config)


def checked(
    words: Sequence[str], *, world_size: int | None = None, config_dirs: Iterable[str | Path] = ()
) -> tuple[Config, plan.Plan]:
    """Compose and plan a run; `ConfigError` with all that is wrong.

    `world_size` is that of ranks already started; by default it follows from the config.
    """
    sources = compose.Sources(config_dirs)
    config, problems = compose.try_compose(words, sources=sources)
    if config.sweep != SweepConfig():
        hint = "`launcher train -m` makes a sweep; leave it out for a single run"
        problems.append(Problem("sweep", f"{config.sweep.name} sweep of a single run", hint))
    try:
        return judged(config, problems, world_size)
    except ConfigError as error:
        located = compose.located(error.problems, words, sources)
        raise ConfigError(located) from error


def judged(
    config: Config, problems: Sequence[Problem], world_size: int | None = None
) -> tuple[Config, plan.Plan]:
    """What was composed with its plan; `ConfigError` with `problems` and all further ones."""
    problems = list(problems)
    if not world_size:
        try:
            world_size = planned_world(config)
        except ConfigError as error:
            world_size = 1
            problems += checks.beside(problems, error.problems)[len(problems) :]
    has_gpu = gpus_per_node(config) > 0
    checked = checks.check(config, world_size=world_size, has_gpu=has_gpu)
    problems = checks.beside(problems, checked)
    problems += _name_problems(config)
    problems += _device_problems(config)
    if problems:
        raise ConfigError(problems)
    return config, plan.make(config, world_size=world_size, has_gpu=has_gpu)


def create(
    words: Sequence[str], *, world_size: int | None = None, config_dirs: Iterable[str | Path] = ()
) -> RunDir:
    """Make the run folder of a new run in state `preparing`; nothing is left behind on failure.

    Raises `ConfigError` for a wrong config or a name that is taken, `StorageError` if `run.root`
    cannot be written.
    """
    config, made = checked(words, world_size=world_size, config_dirs=config_dirs)
    return make(named(config, words), config, made, words)


def named(config: Config, words: Sequence[str]) -> RunDir:
    """The folder that a new run will have, not made yet; gives `config` a name if it has none."""
    config.run.name = config.run.name or _new_name(config, words)
    return RunDir(Path(config.run.root, config.run.name))


def make(run: RunDir, config: Config, made: plan.Plan, words: Sequence[str]) -> RunDir:
    """Make the folder of a run that is checked and named; raises what `create` raises."""
    with storage_errors(run.path):
        _make_root(run.path.parent)
        try:
            run.path.mkdir()
        except FileExistsError as error:
            raise taken(run) from error
    try:
        _fill(run, config, made, words)
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return run


def keeps_name(run: RunDir, state: State) -> bool:
    """Whether a run in this state may go on: it has not ended, or has taken a step or saved
    anything."""
    if state not in (State.failed, State.cancelled):
        return True
    step = (read_json(run.heartbeat(0)) or {}).get("step") or 0
    has_checkpoint = run.checkpoints.is_dir() and any(run.checkpoints.iterdir())
    return step > 0 or has_checkpoint or _has_records(run.metrics)


def _has_records(metrics: Path) -> bool:
    return metrics.is_file() and metrics.stat().st_size > 0


def set_aside(run: RunDir) -> Path:
    """Move a run whose name is wanted, and that does not keep it; returns where it lies now."""
    aside = run.path.parent / ".failed"
    places = (aside / f"{run.name}.{number}" for number in itertools.count(1))
    place = next(place for place in places if not place.exists())
    with storage_errors(aside):
        aside.mkdir(exist_ok=True)
        run.path.rename(place)
    print(f"the run that had this name took no step; it lies in {place} now", file=sys.stderr)
    return place


def taken(run: RunDir) -> ConfigError:
    """What to raise where there is a folder in the place of a new run."""
    is_sweep = (run.path / SWEEP_FILE).is_file()
    if is_sweep or run.exists():
        what, verb = ("sweep", "sweep resume") if is_sweep else ("run", "resume")
        hint = f"{run.command(verb)} goes on with it; or choose another name"
    else:  # a kill, or somebody's own
        what = "folder that is no run"
        hint = f"choose another name, or remove it: rm -r {shlex.quote(str(run))}"
    found = f"there is a {what} of this name already: {run}"
    return ConfigError(found, where="run.name", hint=hint)


def _make_root(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # a file; the message would be that of a run name taken
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error


def replan(run: RunDir, world_size: int) -> None:
    """Plan a run anew if it is to go on with another number of ranks; the config stays as it is.

    Raises `ConfigError` if the global batch cannot be cut for so many.
    """
    before = read_json(run.plan) or {}
    if before.get("world_size") == world_size:
        return
    config = compose.load(run.config)
    has_gpu = gpus_per_node(config) > 0
    problems = checks.check(config, world_size=world_size, has_gpu=has_gpu)
    if problems:
        raise ConfigError(problems)
    write_json(run.plan, plan.as_dict(plan.make(config, world_size=world_size, has_gpu=has_gpu)))


def _fill(run: RunDir, config: Config, made: plan.Plan, words: Sequence[str]) -> None:
    for path, text in contents(run, made, words, environment()).items():
        write_atomic(path, text)
    for name, text in copies.keep(config, run.path).items():
        (run.path / name).parent.mkdir(exist_ok=True, parents=True)
        write_atomic(run.path / name, text)
    close_code(run.path)
    run.set_status(State.preparing)
    # Last, because a folder is a run from the moment it has a config.
    compose.save(config, run.config)
    run.config.chmod(run.config.stat().st_mode & 0o444)


def contents(
    run: RunDir, made: plan.Plan, words: Sequence[str], place: dict[str, Any]
) -> dict[Path, str]:
    """File -> text of a new run folder, but for state and config; `place` is `environment()`."""
    letters = string.ascii_lowercase + string.digits
    wandb_id = runtime.wandb_agent_run() or "".join(secrets.choice(letters) for _ in range(8))
    return {
        run.overrides: compose.dump_as_is(list(words)),
        run.plan: as_json(plan.as_dict(made)),
        run.tracking: as_json({"wandb": wandb_id}),
        run.environment: as_json(place),
    }


def _device_problems(config: Config) -> list[Problem]:
    gpus, ranks = gpus_per_node(config), config.launch.processes
    if not gpus or ranks is None or ranks <= gpus:
        return []
    found = f"{ranks} ranks on {gpus} GPU{'s' if gpus > 1 else ''}: each rank needs one of its own"
    return [Problem("launch.processes", found, f"launch.processes={gpus}, or leave it out")]


def _name_problems(config: Config) -> list[Problem]:
    name = config.run.name
    if name is None or _NAME.fullmatch(name):
        return []
    hint = "use letters, digits and . _ - = , + @; the folder of the runs is `run.root`"
    return [Problem("run.name", f"{name!r} cannot be the name of a run folder", hint)]


def _new_name(config: Config, words: Sequence[str]) -> str:
    """Recipe, own file or model, time and four random characters; sorts by time within a recipe."""
    recipes = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    recipes += [word.rpartition(".")[0] for word in words if ownfile.is_named(word)]
    base = recipes[-1] if recipes else config.model.name or config.model.kind
    base = re.sub(r"[^A-Za-z0-9._]+", "-", Path(base).name).strip("-.")[:60] or "run"
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return f"{base}-{now}-{secrets.token_hex(2)}"


def environment() -> dict[str, Any]:
    """Where and with what a run starts: folder, revision, versions, host, devices."""
    return {
        "launcher": __version__,
        "cwd": os.getcwd(),
        "git": _git_revision(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: version for name in _PACKAGES if (version := registry.version(name))},
        "host": platform.node(),
        "platform": platform.platform(),
        "cpus": runtime.cpu_count(),
        "gpus": _gpu_names(),
    }


def _git_revision() -> str | None:
    """Commit of the current folder, `-dirty` if tracked files differ; None outside a repository."""
    command = ("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, timeout=5)  # noqa: S603
        return done.stdout.decode(errors="replace").strip() or None
    return None


def _gpu_names() -> list[str]:
    names = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            found = re.search(r"Model:\s*(.+)", file.read_text(encoding="utf-8"))
            names.append(found[1].strip() if found else "NVIDIA GPU")
    return names
