"""Tasks of EleutherAI's lm-eval harness on a run's model and on its base."""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.config.compose import compose
from launcher.core import registry
from launcher.core.errors import ConfigError, DataError, LauncherError, did_you_mean
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir
from launcher.inference.command import note
from launcher.inference.loading import open_speaker
from launcher.report.summary import number

BATCH = 16
#: task -> metric -> {"value", "stderr"}; no stderr (None) where lm-eval has none.
Scores = dict[str, dict[str, dict[str, float | None]]]


def evaluate(run: RunDir, tasks: Sequence[str], sides: Sequence[str]) -> dict[str, Scores]:
    """Score sides of a run on tasks, each a name that lm-eval knows or the path of a YAML file.

    A side is "base", "tuned" (the export) or the step of a checkpoint. The results are put into
    eval/lm_eval.json, beside those of other tasks, and all of it is returned, by side. Raises
    `ConfigError` for a model that makes no text, without the library and for unknown tasks,
    `DataError` for a task that lm-eval cannot run.
    """
    objective = compose.load(run.config).objective
    if objective.has_sequence_head:
        raise ConfigError(
            f"the run has trained {objective.model_kind}, which lm-eval's tasks cannot score",
            where=str(run),
            hint=f"{run.command('eval', anywhere=True)} scores it on its held-out records",
        )
    registry.need("lm_eval", "--lm-eval needs", where="launcher eval", extra="lm-eval")
    from lm_eval.tasks import TaskManager

    folders = sorted({str(Path(task).resolve().parent) for task in tasks if _is_file(task)})
    own = all(map(_is_file, tasks))  # then lm-eval need not look through its own thousands
    manager = TaskManager(include_path=folders or None, include_defaults=not own)
    names = [_name_in(task) if _is_file(task) else task for task in tasks]
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        hint = did_you_mean(unknown[0], manager.all_tasks)
        raise ConfigError(f"lm-eval has no task {unknown[0]!r}", where="--lm-eval", hint=hint)
    path = run.eval / "lm_eval.json"
    for side in sides:
        note(f"lm-eval: {', '.join(names)} on {side} of {run.name}")
        step = int(side) if side.isdecimal() else None
        # In no variable here, and collected: the next model is loaded when this one is gone.
        scores = _scored(open_speaker(run, checkpoint=step, base=side == "base"), names, manager)
        gc.collect()
        made = read_json(path) or {}
        made[side] = {**made.get(side, {}), **scores}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, made)
    return dict(read_json(path))


def table(made: dict[str, Scores]) -> str:
    """Task, metric, and each side's value with its standard error."""
    lines = [("task", "metric", *made)]
    keys = {(task, m) for side in made.values() for task in side for m in side[task]}
    for task, metric in sorted(keys):
        cells = (_cell(side.get(task, {}).get(metric)) for side in made.values())
        lines.append((task, metric, *cells))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(row.rstrip() for row in rows)


def _scored(speaker: Any, names: list[str], manager: Any) -> Scores:
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = speaker.model
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.generation_config.eos_token_id = speaker.stop_tokens or None
    try:
        found = simple_evaluate(
            HFLM(pretrained=model, tokenizer=speaker.tokenizer, batch_size=BATCH),
            tasks=names,
            task_manager=manager,
            log_samples=False,
        )
    except LauncherError:
        raise
    except Exception as error:  # of the task's files, its data, or the way to them
        raise DataError(
            f"lm-eval: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            where=", ".join(names),
            hint="a task downloads its data unless its dataset_path is json with data_files here",
        ) from error
    return {task: _metrics(values) for task, values in found["results"].items()}


def _metrics(values: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """lm-eval has keys such as "acc,none" and "acc_stderr,none", metric and filter."""
    found = {}
    for key, value in values.items():
        metric, _, by = key.partition(",")
        if not by or metric.endswith("_stderr"):
            continue
        error = values.get(f"{metric}_stderr,{by}")
        name = metric if by == "none" else f"{metric} ({by})"
        stderr = float(error) if isinstance(error, float) else None
        found[name] = {"value": float(value), "stderr": stderr}
    return found


def _cell(score: dict[str, float | None] | None) -> str:
    if score is None:
        return "-"
    error = score["stderr"]
    return number(score["value"]) + (f" ± {number(error)}" if error is not None else "")


def _is_file(task: str) -> bool:
    return task.endswith((".yaml", ".yml"))


def _name_in(file: str) -> str:
    """The name of the task that a YAML file describes; its own tags keep other parsers out."""
    try:
        found = re.search(
            r"^task:\s*['\"]?([^'\"\s]+)", Path(file).read_text(encoding="utf-8"), re.MULTILINE
        )
    except (OSError, UnicodeError) as error:
        raise ConfigError(str(error), where="--lm-eval", hint="give a task's YAML file") from error
    if not found:
        raise ConfigError("no line `task: NAME`", where=file, hint="give a task's YAML file")
    return found[1]
