"""A W&B sweep file: its agents start trials of ours, each one run with all its ranks."""

from __future__ import annotations

from typing import Any

from launcher.config.compose import compose
from launcher.config.schema import conversion
from launcher.config.schema.sweep import SweepConfig
from launcher.sweeps.folder import Request
from launcher.sweeps.space import Dimension

_METHODS = {"grid": "grid", "random": "random", "optuna": "bayes"}
_HEAD = """\
# `wandb sweep FILE` makes the sweep, `wandb agent ID` on any machine works on it.
# An agent starts `launcher train` with the values that W&B proposes.
"""


def sweep_file(request: Request) -> str:
    """YAML for `wandb sweep`: the same space, metric and fixed overrides."""
    return _HEAD + compose.dump_as_is(content(request))


def content(request: Request) -> dict[str, Any]:
    """The sweep file as plain data."""
    goal = "maximize" if request.maximize else "minimize"
    # The tracker logs training values under train/, evaluation metrics as they are named.
    name = request.metric if "/" in request.metric else f"train/{request.metric}"
    found: dict[str, Any] = {
        "program": "launcher",
        "method": _METHODS.get(request.kind, "bayes"),
        "metric": {"name": name, "goal": goal},
        "parameters": {d.key: parameter(d) for d in request.swept},
        "command": ["launcher", "train", *_folders(request), *_fixed(request)]
        + ["${args_no_hyphens}"],
    }
    if request.planned and request.kind != "grid":
        found["run_cap"] = request.planned
    pruner = request.options.get("pruner", "none")
    if pruner != "none":
        first, reduction = request.options["prune_from"], request.options["reduction"]
        found["early_terminate"] = {"type": "hyperband", "min_iter": first, "eta": reduction}
    return found


def parameter(dimension: Dimension) -> dict[str, Any]:
    """A dimension as W&B describes one; values stay words, so that none is written anew."""
    if dimension.values:
        return {"values": list(dimension.values)}
    low, high = dimension.low, dimension.high
    if dimension.whole:
        kind = "q_log_uniform_values" if dimension.log else "int_uniform"
        return {"distribution": kind, "min": int(low), "max": int(high)}
    kind = "log_uniform_values" if dimension.log else "uniform"
    return {"distribution": kind, "min": low, "max": high}


def _folders(request: Request) -> list[str]:
    return [f"--config-dir={folder}" for folder in request.config_dirs]


def _fixed(request: Request) -> list[str]:
    """The shared overrides, with tracking on and without what only one run can have or a sweep
    alone: its name, and how trials are chosen."""
    kept = [
        word
        for word in request.fixed
        if not word.startswith(("run.name=", "sweep=", "sweep.", "track.wandb.mode="))
    ]
    # Files say such things, too.
    config, _ = compose.try_compose(kept, request.config_dirs)
    unsaid = ["run.name=null"] if config.run.name is not None else []
    if config.sweep != SweepConfig():
        plain = conversion.to_dict(SweepConfig())
        unsaid += [f"sweep={plain.pop('name')}", *(f"sweep.{k}={v}" for k, v in plain.items())]
    return [*kept, *unsaid, "track.wandb.mode=auto"]
