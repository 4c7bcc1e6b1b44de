"""What follows the last step: comparison with the base, export, report."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping
from typing import Any

from launcher import report
from launcher.config.schema import Config
from launcher.core.errors import ExitCode, LauncherError
from launcher.core.rundir import RunDir, State
from launcher.core.runtime import Ranks
from launcher.distributed import collectives
from launcher.evals import judge, store
from launcher.evals.comparison import paired
from launcher.evals.metric import score_all
from launcher.evals.records import passes
from launcher.health.heartbeat import Heartbeat
from launcher.report import summary
from launcher.rollouts.watch import Sides, watch
from launcher.scoring.evaluator import Evaluator
from launcher.scoring.held_out import contamination, groups, held_out
from launcher.track.tracker import Trackers


def finish(
    run: RunDir,
    config: Config,
    ranks: Ranks,
    engine: Any,
    model: Any,
    evaluator: Evaluator | None,
    trackers: Trackers,
    heart: Heartbeat,
    step: int,
    say: Callable[[str], None],
    *,
    result: int,
    reason: str = "",
) -> None:
    """Evaluate and compare with all ranks; then, on rank 0, export, settle status and report.

    `result` is the step whose weights are in the model and in its checkpoint, `step` the last one,
    `reason` why there were no further ones.
    """
    if evaluator is not None:
        heart.beat("eval", step)
        engine.eval()
        journal = evaluator.journal(run, "tuned", evaluator.base_key(held_out(run)), result)
        results = evaluator.everything(engine, model, journal, say)
        if ranks.is_main:
            _store(run, evaluator, results, trackers, result)
    collectives.barrier()
    if not ranks.is_main:
        return
    if evaluator is not None:
        # Alone, since a judge may take minutes.
        _compare(run, config, evaluator, results, trackers, heart, say)
        journal.clear()
    if config.export.at_end:
        from launcher.inference.export import export_run

        heart.beat("export", step)
        folder = export_run(run, merge=config.export.merge, checkpoint=result, say=say)
        say(f"exported to {folder}")
        trackers.artifact("model", folder)
    heart.beat("end", step)
    trackers.finish(int(ExitCode.ok))
    run.set_status(State.succeeded, exit_code=int(ExitCode.ok), step=step, reason=reason)
    try:
        say(f"report: {report.build(run)}")
    except Exception as error:  # the run is done, and all that the report shows is kept
        say(f"warning: the report could not be written: {error!r}")


def _store(run: RunDir, evaluator: Evaluator, results: Any, trackers: Trackers, step: int) -> None:
    run.eval.mkdir(parents=True, exist_ok=True)
    about = evaluator.about(results)
    path = run.eval / "tuned.json"
    scores = store.write_results(path, results, evaluator.metrics, step=step, **about)
    record = {"kind": "eval", "time": time.time()}
    if (evaluator.config.eval.draws or 0) > 1:
        # The mean over all draws stands there already: these answers are one of them.
        scores = {name: score for name, score in scores.items() if name not in evaluator.drawn}
    trackers.log(step, record | {f"eval/{name}": score for name, score in scores.items()})


def _compare(
    run: RunDir,
    config: Config,
    evaluator: Evaluator,
    results: Any,
    trackers: Trackers,
    heart: Heartbeat,
    say: Callable[[str], None],
) -> None:
    metrics = evaluator.metrics
    kinds = passes(config.objective)
    base = store.read_results(run.eval / "base.json", kinds) if config.eval.base else None
    if base is None:
        lines = evaluator.lines(None, results, metrics)
        store.write_predictions(run, lines)
        scores = score_all(metrics, results)
        trackers.summary({f"tuned/{name}": score for name, score in scores.items()})
        say("tuned: " + ", ".join(f"{name} {score}" for name, score in scores.items()))
        return
    # As stored, with probabilities rounded: `launcher compare` finds the same numbers.
    results = store.read_results(run.eval / "tuned.json", kinds) or results
    try:
        judge.settle(metrics, base, results, heart.again)
    except LauncherError as error:
        metrics = [metric for metric in metrics if not isinstance(metric, judge.WinRate)]
        say(f"warning: compared without a judge: {error}")
        say(f"{_asked_again(run)} asks the judge again")
    parts = groups(run, evaluator.cache, results.ids())
    notes = contamination(run)
    about, told = evaluator.about_comparison(results, metrics)
    notes += told
    lines = evaluator.lines(base, results, metrics)
    resampling = paired.Resampling(config.seed, sign_of_life=heart.again)

    def watched(rows: Mapping[str, Any]) -> dict[str, Any] | None:
        objective: Any = evaluator.objective
        seen = Sides(base, results, metrics, rows, resampling)
        return watch(run, objective.grader, seen)

    comparison = store.write_comparison(
        *(run, base, results, metrics, parts),
        resampling=resampling,
        notes=notes,
        lines=lines,
        watch=watched if config.objective.samples else None,
        **about,
    )
    beyond = summary.beyond(comparison)
    say("\n".join([paired.table(comparison), *comparison["notes"], *beyond]))
    for line in summary.hacking(comparison):
        say(f"warning: {line}")
    scored: dict[str, float | None] = {}
    for name, row in comparison["metrics"].items():
        scored |= {f"base/{name}": row["base"], f"tuned/{name}": row["tuned"]}
    trackers.summary(scored)
    _table_of_samples(run, config, trackers)


def _asked_again(run: RunDir) -> str:
    name = str(run)  # what a rank says is read in other folders, too
    return f"`{shlex.join(['launcher', 'compare', f'{name}:base', name])}`"


def _table_of_samples(run: RunDir, config: Config, trackers: Trackers) -> None:
    lines = (
        (run.eval / "predictions.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()[: config.eval.samples]
    )
    columns = ["prompt", "reference", "base", "tuned", "base_match", "tuned_match"]
    rows = [[record[column] for column in columns] for record in map(json.loads, lines)]
    if rows:
        trackers.table("samples", columns, rows)
