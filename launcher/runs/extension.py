"""Going on to another end, or on ranks that share sequences otherwise: the few keys that a resume
may change."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launcher.config import create
from launcher.config.check import checks
from launcher.config.compose import compose, groups, overrides
from launcher.config.derive import plan
from launcher.config.schema import Config, Weights, conversion
from launcher.core.errors import ConfigError, Problem
from launcher.core.files import read_json, write_atomic, write_json
from launcher.core.rundir import RunDir, State

#: What decides where a run ends, and how ranks share what it computes; anything else would make
#: another run of it.
KEYS = ("train.steps", "train.epochs", "train.early_stop.patience", "engine.sequence_parallel")


def changed(run: RunDir, words: Sequence[str], world_size: int | None = None) -> Callable[[], None]:
    """What writes the run's config with `words` on it, to be called by `start.begin`.

    `world_size` is the number of ranks to go on with, by default as many as before. Raises
    `ConfigError` for another key, an end that lies behind what is done, or a run that has no
    checkpoint to go on from.
    """
    asked = overrides.read(words, groups.list_groups())
    problems = [*asked.problems, *_others(run, asked, words)]
    if problems:
        raise ConfigError(problems)
    before = compose.load(run.config)
    data = compose.to_dict(before)
    overrides.apply(asked.values, data)
    config, problems = conversion.build(data)
    if not problems and plan.exports_best(before) and config.export.weights is None:
        config.export.weights = Weights.best  # what counts stays what it was
    if not problems:
        world_size = world_size or int(read_json(run.plan)["world_size"])
        has_gpu = create.gpus_per_node(config) > 0
        problems = checks.check(config, world_size=world_size, has_gpu=has_gpu)
        problems = problems or _end(run, config)
    if problems:
        raise ConfigError(problems)
    ranks = world_size or 1
    chosen = plan.kept_choice(read_json(run.plan, {}), ranks)
    made = plan.make(config, world_size=ranks, has_gpu=has_gpu, chosen=chosen)

    def write() -> None:
        compose.save(config, run.config)  # the rest follows from it
        run.config.chmod(0o444)
        had = run.overrides.read_text(encoding="utf-8") if run.overrides.exists() else ""
        write_atomic(run.overrides, had.removesuffix("[]\n") + compose.dump_as_is(list(words)))
        write_json(run.plan, plan.as_dict(made))

    return write


def finished(run: RunDir) -> ConfigError:
    """That a run which has succeeded has nothing left to do, and how it may go on."""
    status = run.status()
    if newest(run) is None:
        hint = f"no checkpoint is left: {_anew(run)} begins another one like it"
    elif _stopped(run) is not None:
        word = "train.early_stop.patience=null"
        hint = f"{run.command('resume', more=[word])} goes on to step {status.steps}"
    else:
        word = f"train.steps={2 * status.step}"
        hint = f"{run.command('resume', more=[word])} trains on"
    found = ": ".join(["the run has finished", *([status.reason] if status.reason else [])])
    return ConfigError(found, where=str(run), hint=hint)


def newest(run: RunDir) -> dict[str, Any] | None:
    """Manifest of the newest checkpoint whose files are there in full; None if there is none.

    Their content is verified when it is read.
    """
    for path in sorted(run.checkpoints.glob("step-*/manifest.json"), reverse=True):
        manifest = read_json(path)
        if isinstance(manifest, dict) and _is_whole(path.parent, manifest):
            return manifest
    return None


def _is_whole(folder: Path, manifest: dict[str, Any]) -> bool:
    try:
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
        return all(sizes[name] == entry["bytes"] for name, entry in manifest["files"].items())
    except (OSError, KeyError):
        return False


def _stopped(run: RunDir) -> int | None:
    """The step at which the run was ended early; None if it was not."""
    stopped = read_json(run.best, {}).get("stopped")
    return stopped if run.status().state is State.succeeded else None


def _others(run: RunDir, asked: overrides.Overrides, words: Sequence[str]) -> list[Problem]:
    found = "a run goes on with the config that it began with"
    other = _anew(run, [] if asked.problems else words)
    hint = f"a resume takes {', '.join(KEYS)}; {other} begins another run{_from_export(run)}"
    keys = [*asked.groups, *asked.values]
    return [Problem(key, found, hint) for key in keys if key not in KEYS]


def _anew(run: RunDir, words: Sequence[str] = ()) -> str:
    """`launcher train` of another run with the config of this one, and `words` on it."""
    names = (f"{run.name}-{number}" for number in itertools.count(2))
    name = next(name for name in names if not run.path.with_name(name).exists())
    kept = [word for word in words if not word.startswith("run.name=")]
    named = [f"run.name={name}"] if len(kept) == len(words) else []
    return f"`{shlex.join(['launcher', 'train', str(run.config), *words, *named])}`"


def _from_export(run: RunDir) -> str:
    """How a run begins with the weights that this one has exported, if it has."""
    if not any((run.export / name).is_file() for name in ("config.json", "adapter_config.json")):
        return ""
    return f", with model=hf {shlex.quote(f'model.name={run.export}')} from the exported weights"


def _end(run: RunDir, config: Config) -> list[Problem]:
    """What is wrong with the end that `config` gives the run."""
    manifest = newest(run)
    if manifest is None:
        found = "no whole checkpoint is left to go on from"
        hint = f"{_anew(run)} starts from the beginning{_from_export(run)}"
        return [Problem(str(run.checkpoints), found, hint)]
    done = max(int(manifest["step"]), run.status().step)
    patience = config.train.early_stop.patience
    since = (manifest.get("state", {}).get("selection") or {}).get("since", 0)
    is_used_up = patience is not None and since >= patience
    end, epochs = config.train.steps, config.train.epochs
    key, steps = ("train.steps", end) if end else ("train.epochs", _steps_of(run, epochs))
    if steps is not None and steps <= done:
        found = f"{end or epochs} ends where the run has been: it has done {done} steps"
        also = " train.early_stop.patience=null" if is_used_up else ""
        return [Problem(key, found, f"more of them, e.g. train.steps={2 * done}{also}")]
    if is_used_up:
        found = f"{patience}: there was no progress in the last {since} evaluations"
        hint = f"add train.early_stop.patience=null, or more than {since}"
        return [Problem("train.early_stop.patience", found, hint)]
    return []


def _steps_of(run: RunDir, epochs: float | None) -> float | None:
    """The steps of so many epochs, by what the run has made of the data; None if not known."""
    made = read_json(run.plan, {})
    if not epochs or not made.get("epochs") or not made.get("steps"):
        return None
    return float(epochs * made["steps"] / made["epochs"])
