"""From the command line to a sweep folder: what is asked for, and whether any trial can run."""

from __future__ import annotations

import datetime
import os
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from launcher import runtime
from launcher.config import compose, typed
from launcher.config.schema import Config
from launcher.config.schema_sweep import Direction, OptunaSweepConfig, Pruner
from launcher.errors import ConfigError, Problem
from launcher.rundir import command, storage_errors
from launcher.sweeps import space
from launcher.sweeps.folder import Request, SweepDir
from launcher.sweeps.making import Maker
from launcher.sweeps.pool import Pool

#: Metrics of this package -> whether more is better; those of a user need `sweep.direction`.
_MORE_IS_BETTER = {
    "eval/loss": False,
    "eval/perplexity": False,
    "eval/token_accuracy": True,
    "eval/exact_match": True,
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


def refuse_in_rank() -> None:
    """Raise `ConfigError` in a process that is one of a job's ranks: each would start a sweep."""
    ranks = runtime.ranks()
    if ranks.launched_by != "none" and not (ranks.launched_by == "slurm" and ranks.world_size == 1):
        raise ConfigError(
            f"this process is rank {ranks.rank} of {ranks.world_size} ({ranks.launched_by})",
            where="sweep",
            hint="start a sweep from a shell, not through torchrun, mpirun or srun",
        )


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
        config_dirs=tuple(str(Path(folder).expanduser().resolve()) for folder in config_dirs),
        cwd=os.getcwd(),
        created=time.time(),
        kind=kind,
        metric=config.sweep.metric,
        maximize=_maximize(config),
        fixed=tuple(found.fixed),
        swept=tuple(found.swept.values()),
        hydra=tuple(found.hydra),
        options=typed.to_dict(config.sweep),
        backend=config.launch.name,
    )
    if kind == "grid":
        space.grid(found)
    _check_trials(Maker(sweep, asked, sources=sources), found)
    return sweep, asked


def _check_trials(maker: Maker, found: space.Space) -> None:
    """Raise the `ConfigError` of the first trial, if no trial that was tried is right."""
    error: ConfigError | None = None
    for words in found.corners(_PROBES):
        try:
            config, _ = maker.composed(words)
            Pool(maker.sweep, config)
            _check_metric(config, maker.request)
        except ConfigError as problem:
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
        if trial.eval.name == "none" or name not in trial.eval.metrics:
            metrics = ", ".join(f"eval/{metric}" for metric in trial.eval.metrics) or "none"
            hint = f"trials are evaluated by: {metrics}; see eval.metrics"
            raise ConfigError(f"{asked.metric} is not measured", where="sweep.metric", hint=hint)
        if asked.options["pruner"] != Pruner.none.name and trial.eval.every_steps is None:
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
    if isinstance(config.sweep, OptunaSweepConfig):
        if _sweeper(found):
            hint = "leave one of the two out"
            problems.append(Problem("sweep", "optuna, and a sweeper of Hydra's", hint))
        if not found.swept:
            hint = "e.g. 'optim.lr=tag(log,interval(1e-5,1e-3))' or peft.rank=8,16"
            problems.append(Problem("sweep", "nothing varies", hint))
    return problems


def _sweeper(found: space.Space) -> str | None:
    names = [word.partition("=")[2] for word in found.hydra if word.startswith("hydra/sweeper=")]
    return names[-1] if names and names[-1] != "basic" else None


def _maximize(config: Config) -> bool:
    if config.sweep.direction is not Direction.auto:
        return config.sweep.direction is Direction.maximize
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


def make(sweep: SweepDir, asked: Request) -> None:
    """Make the sweep folder; `ConfigError` if the name is taken by something else."""
    if sweep.path.exists():
        raise ConfigError(
            f"there is a run of this name already: {sweep}",
            where="run.name",
            hint="choose another name",
        )
    with storage_errors(sweep.path):
        sweep.write(asked)


def check_same(sweep: SweepDir, asked: Request) -> None:
    """Raise `ConfigError` if the sweep of this name was started by another command line."""
    before = sweep.request()
    if (before.words, before.config_dirs) != (asked.words, asked.config_dirs):
        raise ConfigError(
            f"there is a sweep of this name already, of other overrides: {sweep}",
            where="run.name",
            hint=f"{command('sweep resume', sweep.path)} goes on with it; or choose another name",
        )
