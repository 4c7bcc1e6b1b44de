"""From the command line to a sweep folder: what is asked for, and whether any trial can run."""

from __future__ import annotations

import dataclasses
import datetime
import errno
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.config import create
from launcher.config.compose import compose, ownfile
from launcher.config.schema import Config, conversion, variants
from launcher.config.schema.launch import TorchrunConfig
from launcher.config.schema.sweep import Direction, OptunaSweepConfig, Pruner
from launcher.core import runtime
from launcher.core.errors import ConfigError, LauncherError, Problem
from launcher.core.files import storage_errors
from launcher.core.rundir import RunDir, command
from launcher.launch.torchrun import given_endpoint
from launcher.runs import requirements, start
from launcher.sweeps import proposals, space
from launcher.sweeps.folder import Request, SweepDir
from launcher.sweeps.pool import Pool
from launcher.sweeps.table import pasted
from launcher.sweeps.trials import Maker

#: Values of a training step -> whether more is better; those of an objective need
#: `sweep.direction`.
_MORE_IS_BETTER = {
    "loss": False,
    "tokens_per_s": True,
    "target_tokens_per_s": True,
    "step_time_s": False,
    "memory_bytes": False,
}
#: Where a trial lies and who starts it is the sweep's own business.
_NOT_SWEPT = ("run.name", "run.root", "launch", "sweep", "track.wandb.group")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+@-]{0,199}")
#: Trials looked at before the first is started, to tell a wrong sweep from a wrong trial.
_PROBES = 8


def request(words: Sequence[str], config_dirs: Sequence[str]) -> tuple[SweepDir, Request]:
    """What a command line asks for, and the folder it names. Nothing is made yet.

    Raises `ConfigError` for wrong sweep syntax and options, and if no trial's config would be
    right.
    """
    sources = compose.Sources(config_dirs)
    found = space.read(words, sources.options)
    config, problems = compose.try_compose(found.fixed, sources=sources)
    problems = [p for p in problems if p.where.partition(".")[0] in ("sweep", "run", "launch")]
    problems += _problems(found, config)
    if problems:
        raise ConfigError(problems)
    kind = _sweeper(found) or config.sweep.name
    sweep = SweepDir(Path(config.run.root, config.run.name or _new_name(found.fixed)))
    asked = Request(
        words=tuple(words),
        config_dirs=tuple(str(runtime.user_path(folder).resolve()) for folder in config_dirs),
        cwd=os.getcwd(),
        created=time.time(),
        kind=kind,
        metric=_metric(config),
        maximize=_maximize(config),
        fixed=tuple(found.fixed),
        swept=tuple(found.swept.values()),
        hydra=tuple(found.hydra),
        options=conversion.to_dict(config.sweep),
        backend=config.launch.name,
    )
    if kind == "grid":
        space.grid(found)
    if kind == "optuna":
        proposals.require()
    _check_trials(Maker(sweep, asked, sources=sources), found)
    return sweep, asked


def _metric(config: Config) -> str:
    """`sweep.metric` as it stands in the lines of a trial."""
    given = config.sweep.metric
    name = given.removeprefix("eval/")
    return given if name == given else f"eval/{variants.metric_name(name)}"


def _check_trials(maker: Maker, found: space.Space) -> None:
    """Raise the error of the first trial, if no trial that was tried can start."""
    error: LauncherError | None = None
    for words in found.corners(_PROBES):
        try:
            config, _ = maker.composed(words)
            Pool(maker.sweep, config)
            _check_metric(config, maker.request)
            requirements.require(config)
        except LauncherError as problem:
            error = error or problem
        else:
            return
    assert error is not None
    raise error


def _check_metric(trial: Config, asked: Request) -> None:
    if asked.kind != "optuna":
        return
    name = asked.metric.removeprefix("eval/")
    if name != asked.metric:
        measured = [variants.metric_name(metric) for metric in variants.metrics_of(trial)]
        if trial.eval.name == "none" or name not in measured:
            metrics = ", ".join(f"eval/{metric}" for metric in measured) or "none"
            hint = f"trials are evaluated by: {metrics}; see eval.metrics"
            raise ConfigError(f"{asked.metric} is not measured", where="sweep.metric", hint=hint)
        during = trial.eval.every_steps or trial.eval.times
        if asked.options["pruner"] != Pruner.none.name and during is None:
            hint = "evaluate during training, e.g. eval.every_steps=50"
            raise ConfigError(
                f"{asked.options['pruner']} sees {asked.metric} only at the end of a trial",
                where="sweep.pruner",
                hint=hint,
            )


def _problems(found: space.Space, config: Config) -> list[Problem]:
    problems = []
    for key in found.swept:
        if key in _NOT_SWEPT or key.startswith(("sweep.", "launch.max_parallel")):
            problems.append(Problem(key, "cannot differ between trials", "give one value"))
    name = config.run.name
    if name is not None and not _NAME.fullmatch(name):
        hint = "a letter or digit, then letters, digits and ._=,+@- (at most 200)"
        problems.append(Problem("run.name", f"{name!r} cannot name a folder", hint))
    problems += _one_port(config)
    if isinstance(config.sweep, OptunaSweepConfig):
        if _sweeper(found):
            hint = "leave one of the two out"
            problems.append(Problem("sweep", "optuna, and a sweeper of Hydra's", hint))
        if not found.swept:
            hint = "e.g. 'optim.lr=tag(log,interval(1e-5,1e-3))' or peft.rank=8,16"
            problems.append(Problem("sweep", "nothing varies", hint))
    return problems


def _one_port(config: Config) -> list[Problem]:
    """A port that trials side by side would all listen at."""
    launch = config.launch
    if not isinstance(launch, TorchrunConfig) or (launch.max_parallel or 1) == 1:
        return []
    host, port = given_endpoint(launch)
    if port is None:
        return []
    found = f"{launch.max_parallel} trials at a time cannot all meet at port {port}"
    return [Problem("launch.endpoint", found, f"launch.endpoint={host} gives each one of its own")]


def _sweeper(found: space.Space) -> str | None:
    names = [word.partition("=")[2] for word in found.hydra if word.startswith("hydra/sweeper=")]
    return names[-1] if names and names[-1] != "basic" else None


def _maximize(config: Config) -> bool:
    if config.sweep.direction is not Direction.auto:
        return config.sweep.direction is Direction.maximize
    scored, rows = config.sweep.metric.removeprefix("eval/"), variants.metric_rows(config)
    # eval/METRIC, or eval/SET/METRIC of a further set
    row = rows.get(scored) or rows.get(scored.partition("/")[2])
    if row is not None and scored != config.sweep.metric:
        return not row.lower_is_better
    if config.sweep.metric not in _MORE_IS_BETTER:
        hint = "sweep.direction=minimize or sweep.direction=maximize"
        found = f"whether more {config.sweep.metric} is better is not known"
        raise ConfigError(found, where="sweep.direction", hint=hint)
    return _MORE_IS_BETTER[config.sweep.metric]


def _new_name(words: Sequence[str]) -> str:
    """sweep, recipe if there is one, time and four random characters."""
    recipes = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    base = "-".join(["sweep", *recipes[-1:]])
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return f"{base}-{now}-{secrets.token_hex(2)}"


def announced(asked: Request) -> str:
    """What a search will do with a grid, in a line for people; "" if it was given none."""
    lists = [dimension for dimension in asked.swept if dimension.values]
    if asked.kind not in ("optuna", "random") or not lists:
        return ""
    keys = ", ".join(dimension.key for dimension in lists)
    text = f"{asked.planned} trials, each with a choice of the values of {keys}"
    if len(lists) < len(asked.swept):
        return text
    count = math.prod(len(dimension.values) for dimension in lists)
    again = "some of them again" if asked.kind == "optuna" else "each once at most"
    return f"{text}: {count} combinations, {again}; sweep=grid runs each once"


def make(sweep: SweepDir, asked: Request) -> Request:
    """Make the sweep folder, all at once; `ConfigError` if the name is taken by something else.

    Files of one's own are copied into it: the trials to come are made from what they say now. The
    request that is returned names the copies. A sweep of the same command line that was made in the
    same moment is the one.
    """
    path = sweep.path
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            fixed = tuple(_kept(path, temporary, n, word) for n, word in enumerate(asked.fixed))
            asked = dataclasses.replace(asked, fixed=fixed)
            SweepDir(temporary).write(asked)
            # Not over a folder that holds anything.
            temporary.rename(path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        else:
            return asked
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    if not sweep.exists():
        raise create.taken(RunDir(path))
    check_same(sweep, asked)
    return sweep.request()


def _kept(path: Path, folder: Path, number: int, word: str) -> str:
    """A word of the sweep, or in the place of a file of one's own the path that its copy in
    `folder` will have below `path`."""
    if not ownfile.is_named(word):
        return word
    name = f"own-{number}.yaml"
    shutil.copyfile(runtime.user_path(word), folder / name)
    return str(path / name)


def require_free(sweep: SweepDir, asked: Request) -> None:
    """Raise `ConfigError` if a run, another folder or another sweep has the name."""
    if sweep.exists():
        check_same(sweep, asked)
    elif sweep.path.exists():
        raise create.taken(RunDir(sweep.path))


def check_same(sweep: SweepDir, asked: Request) -> None:
    """Raise `ConfigError` if the sweep of this name was started by another command line."""
    before = sweep.request()
    if (before.words, before.config_dirs) != (asked.words, asked.config_dirs):
        raise ConfigError(
            f"there is a sweep of this name already, of other overrides: {sweep}",
            where="run.name",
            hint=f"{command('sweep resume', sweep.path)} goes on with it; or choose another name",
        )


def rehearsal(sweep: SweepDir, request: Request) -> str:
    """What `--dry-run` shows, for people: the trials, and what would be submitted for the first of
    them; nothing is made or started."""
    found = space.read(request.words, compose.Sources(request.config_dirs).options)
    if request.kind == "grid":
        trials = space.grid(found)
    elif request.kind == "random":
        trials = space.draws(found, request.options["trials"], request.options["seed"])
    else:
        trials = []
    first = next(iter(trials), found.corners(2)[0])
    config, _ = Maker(sweep, request).composed(first)
    pool = Pool(sweep, config)
    config, plan = Maker(sweep, request, pool.world_size).composed(first)
    path = sweep.trial_path(0)
    config.run.root, config.run.name = str(path.parent), path.name
    lines = [start.rehearsed(RunDir(path), config, plan.world_size, ask=False).describe(), ""]
    lines += [f"# {sweep.trial_path(n).name}: {pasted(words)}" for n, words in enumerate(trials)]
    if not trials:
        shown = ", ".join(
            f"{dimension.key} in {dimension.text}" for dimension in found.swept.values()
        )
        lines.append(
            f"# {request.planned or 'as many as it asks for'} trials of {request.kind}: {shown}"
        )
    return "\n".join(lines)
