"""`launcher plan --probe`: real steps of a config in a folder that is removed, and what fits best.

The config is measured as it is typed, then others with the same global batch: other micro-batches,
ZeRO stages, with and without recomputed activations. Only what was measured is proposed.
"""

from __future__ import annotations

import contextlib
import copy
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.config import create
from launcher.config.check import checks
from launcher.config.derive import plan as plans
from launcher.config.derive.plan import Plan
from launcher.config.schema import Config, MicroBatch
from launcher.config.schema.launch import TorchrunConfig
from launcher.config.schema.track import TrackConfig
from launcher.core.errors import ConfigError, ExitCode, HangError, LauncherError, OutOfMemoryError
from launcher.core.files import read_json, storage_errors, write_json
from launcher.core.rundir import RunDir
from launcher.launch.outcome import settled
from launcher.launch.spec import AttemptState
from launcher.runs import start
from launcher.runs.cancel import cancel
from launcher.runs.status import observed_run

#: Seconds that a probe may take.
LIMIT_S = 110.0
_POLL_S = 0.1
#: Share of the memory that a proposal may take.
_SHARE = 0.9
#: Of the step as typed, what a proposal may take: less is noise of a single step.
_CLEARLY = 0.95

Say = Callable[[str], None]


@dataclass(slots=True)
class Candidate:
    """One way to cut the work, and what came of it."""

    change: dict[str, Any]
    """Overrides that make it of the config as typed; empty for that itself."""
    plan: Plan
    outcome: str = "not measured"
    """`measured`, `out of memory`, `out of time`, `failed` or `not measured`."""
    found: dict[str, Any] = field(default_factory=dict)
    """probe.json of its ranks, as far as they got."""
    reason: str = ""
    exit_code: int = 0

    @property
    def estimate(self) -> int | None:
        """Bytes of a rank by the plan, on its device."""
        return self.plan.device_bytes

    @property
    def peak(self) -> int | None:
        """Bytes of the rank that held most."""
        return max((rank["peak"] for rank in self.counted), default=None)

    @property
    def counted(self) -> list[dict[str, int]]:
        """What each rank has held, of those that could count it."""
        return [rank for rank in self.found.get("ranks", []) if "peak" in rank]

    @property
    def fits(self) -> bool:
        """Whether all of it was measured within the memory of the device."""
        limit = self.found.get("limit")
        is_within = self.peak is None or limit is None or self.peak <= _SHARE * limit
        return self.outcome == "measured" and is_within

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "overrides": words(self.change),
            "outcome": self.outcome,
            "reason": self.reason,
            "estimate_bytes": self.estimate,
            "peak_bytes": self.peak,
            "planned": self.plan.memory,
            **self.found,
        }


def words(change: dict[str, Any]) -> list[str]:
    """Overrides as they are typed."""
    return [f"{key}={str(value).lower()}" for key, value in change.items()]


def require_probable(config: Config) -> None:
    """Raise `ConfigError` where the ranks cannot be started from here at once."""
    if config.launch.has_queue:
        raise ConfigError(
            f"a probe starts its ranks at once, and launch={config.launch.name} has a queue",
            where="--probe",
            hint="probe on a machine with the same devices: add launch=local",
        )
    if isinstance(config.launch, TorchrunConfig) and config.launch.nodes > 1:
        raise ConfigError(
            f"a probe would wait for {config.launch.nodes - 1} other hosts to join",
            where="--probe",
            hint="probe on this host alone: add launch=local",
        )


def probe(config: Config, plan: Plan, say: Say, *, limit_s: float = LIMIT_S) -> list[Candidate]:
    """Measure `config` and, as long as there is time, other ways to cut it; the first is as typed.

    Raises the error of the config itself where it fails in another way than by memory or time.
    Ctrl-C and SIGTERM end the ranks; nothing is left behind.
    """
    require_probable(config)
    end = time.monotonic() + limit_s
    trials = [Candidate({}, plan)]
    with _folder(config) as folder, _stops_on_signals():
        _measure(trials[0], config, folder, end, say)
        first = trials[0]
        if first.outcome == "failed":
            error = LauncherError(first.reason, where="--probe")
            error.exit_code = ExitCode(first.exit_code or ExitCode.internal)
            raise error
        trials += candidates(config, first.plan, first)
        for trial in trials[1:]:
            # What one takes is known by the one before: a start that cannot end is not begun.
            needed = first.found.get("wall_s", 0.0)
            if first.outcome == "out of time" or time.monotonic() + needed > end:
                break
            _measure(trial, changed(config, trial.change), folder, end, say)
    return trials


def changed(config: Config, change: dict[str, Any]) -> Config:
    """A copy of `config` with these keys set."""
    made = copy.deepcopy(config)
    for key, value in change.items():
        section, _, name = key.rpartition(".")
        setattr(getattr(made, section), name, value)
    return made


def candidates(config: Config, plan: Plan, first: Candidate) -> list[Candidate]:
    """Other ways to cut the same global batch, the most promising first: those that fit by their
    estimate (scaled by what the first has shown), with little recomputed and few, large pieces."""
    scale = first.peak / first.estimate if first.peak and first.estimate else 1.0
    limit = first.found.get("limit")
    per_rank = plan.global_sequences // plan.groups
    sizes = [size for size in range(1, per_rank + 1) if per_rank % size == 0]
    known = (plan.micro_batch, config.engine.zero, config.model.gradient_checkpointing, False)
    ways = []
    for zero in (0, 1, 2, 3):
        for recomputes in (False, True):
            for offloads in (False, True) if plan.device == "cuda" and zero else (False,):
                ways += [(size, zero, recomputes, offloads) for size in sizes]
    found: list[tuple[Any, ...]] = []
    for size, zero, recomputes, offloads in ways:
        if (size, zero, recomputes, offloads) == known:
            continue
        change = {"batch.micro": size, "engine.zero": zero}
        change |= {"model.gradient_checkpointing": recomputes}
        change |= {"engine.offload_optimizer": True} if offloads else {}
        here = changed(config, change)
        has_gpu = plan.device == "cuda"
        if checks.check(here, world_size=plan.world_size, has_gpu=has_gpu):
            continue
        made = plans.make(here, world_size=plan.world_size, has_gpu=has_gpu)
        if made.zero is None and zero != config.engine.zero:
            continue  # the same engine: one rank shards nothing at any stage
        trial = Candidate(_differences(config, change, plan), made)
        if limit is None or trial.estimate is None or trial.estimate * scale <= _SHARE * limit:
            away = abs(size - plan.micro_batch), abs(zero - config.engine.zero)
            found.append((offloads, recomputes, *away, -size, len(found), trial))
    return [entry[-1] for entry in sorted(found, key=lambda entry: entry[:-1])]


def _differences(config: Config, change: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Those of `change` that are not so in `config` already."""
    kept = {}
    for key, value in change.items():
        section, _, name = key.rpartition(".")
        now = getattr(getattr(config, section), name)
        if key == "batch.micro" and now is not MicroBatch.auto:  # which may find another one
            now = plan.micro_batch
        if now != value:
            kept[key] = value
    return kept


def best(trials: list[Candidate]) -> Candidate | None:
    """The fastest that was measured and fits; as typed, unless that is clearly slower."""
    measured = [trial for trial in trials if trial.fits and "step_s" in trial.found]
    found = min(measured, key=lambda trial: trial.found["step_s"], default=None)
    first = trials[0]
    if found is not None and first.fits:
        is_clear = found.found["step_s"] < _CLEARLY * first.found["step_s"]
        return found if is_clear else first
    return found


def require_measured(trials: list[Candidate]) -> None:
    """Raise `OutOfMemoryError` if all that was tried is too large, `HangError` if nothing of the
    first was measured in time."""
    first = trials[0]
    if first.outcome == "out of time" and "step_s" not in first.found:
        hint = "give it more time: --within 600"
        raise HangError("no step has ended within the time of a probe", where="--probe", hint=hint)
    if first.outcome == "out of memory" and best(trials) is None:
        raise OutOfMemoryError(
            first.reason or "it does not fit, and nothing else that was tried does",
            where="--probe",
            hint="set peft=lora, a smaller data.max_length, or engine=zero3_offload",
        )


def _measure(trial: Candidate, config: Config, folder: Path, end: float, say: Say) -> None:
    said = " ".join(words(trial.change)) or "as typed"
    say(f"probe    {said} ...")
    began = time.monotonic()
    run = _made(config, trial.plan, folder)
    attempt = start.begin(run)
    backend = start.submit(run, attempt, attached=True)
    try:
        while backend.status(run, attempt) is not AttemptState.gone or not settled(run.status()):
            if time.monotonic() > end:
                trial.outcome = "out of time"
                break
            time.sleep(_POLL_S)
            if backend.status(run, attempt) is AttemptState.gone:
                break
    finally:
        with contextlib.suppress(ConfigError):  # it has ended
            cancel(run, now=True)
    status = observed_run(run)
    trial.found = read_json(run.probe) or {}
    trial.found["wall_s"] = time.monotonic() - began
    if config.batch.micro is MicroBatch.auto and (found := read_json(run.plan)):
        keys = ("micro_batch", "accumulation", "micro_by", "memory")
        trial.plan = replace(trial.plan, **{key: found[key] for key in keys})
    trial.reason, trial.exit_code = status.reason, status.exit_code or 0
    if trial.found.get("is_whole"):
        trial.outcome, trial.reason = "measured", ""
    elif trial.outcome != "out of time":
        killed = "SIGKILL" in status.reason
        is_full = killed or status.exit_code == ExitCode.out_of_memory
        trial.outcome = "out of memory" if is_full else "failed"
    shutil.rmtree(run.path, ignore_errors=True)


def _made(config: Config, plan: Plan, folder: Path) -> RunDir:
    """A run of this config that is a probe: it saves when told, and is tracked by nobody."""
    made = copy.deepcopy(config)
    made.run.root, made.run.name = str(folder), "probe"
    made.train.steps, made.train.epochs = 1_000_000, None
    made.train.early_stop.patience = None
    made.checkpoint.every_steps = None
    made.export.weights = None
    made.eval.every_steps = made.eval.times = None
    made.track = TrackConfig(name="none")
    run = create.make(RunDir(folder / "probe"), made, plan, [])
    write_json(run.probe, {})
    return run


@contextlib.contextmanager
def _folder(config: Config) -> Iterator[Path]:
    """A folder beside the runs, on the disk that checkpoints are written to."""
    root = Path(config.run.root)
    was_there = root.is_dir()
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".probe-", dir=root))
    try:
        yield folder.resolve()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if not was_there:
            with contextlib.suppress(OSError):
                root.rmdir()


@contextlib.contextmanager
def _stops_on_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a probe as Ctrl-C does."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def time_to_end(config: Config, trial: Candidate) -> dict[str, float] | None:
    """Seconds of the whole run by what was measured, and GPU hours; None if steps are unknown or
    not measured. Base and result are evaluated in full, which may take longer."""
    plan, found = trial.plan, trial.found
    if plan.steps is None or "step_s" not in found:
        return None
    every = config.checkpoint.every_steps
    saves = 1 + ((plan.steps - 1) // every if every else 0)
    evaluations = (plan.steps - 1) // plan.eval_steps if plan.eval_steps else 0
    if "evaluation_s" in found:
        evaluations += 1 + config.eval.base
    seconds = plan.steps * found["step_s"] + saves * found.get("save_s", 0.0)
    seconds += evaluations * found.get("evaluation_s", 0.0)
    gpus = plan.world_size if plan.device == "cuda" else 0
    return {"seconds": seconds, "gpu_hours": gpus * seconds / 3600}


def as_dict(config: Config, trials: list[Candidate]) -> dict[str, Any]:
    """Plain data: `trials` as they were tried, `fastest` of them by its overrides, `to_end`."""
    fastest = best(trials)
    return {
        "trials": [trial.to_json() for trial in trials],
        "fastest": None if fastest is None else words(fastest.change),
        "to_end": time_to_end(config, trials[0]),
    }


# ---- for people


def text(config: Config, trials: list[Candidate]) -> str:
    """Measured beside estimated, the time that a run takes, and what would be faster."""
    first = trials[0]
    lines = [f"measured {first.outcome}{': ' + first.reason if first.reason else ''}"]
    held = max(first.counted, key=lambda rank: rank["peak"], default=None)
    uses = first.plan.memory or {}
    if held:
        parts = ("weights", "optimizer", "gradients")
        rest = held["peak"] - sum(held.get(part, 0) for part in parts)
        lines.append(f"{'a rank':<14}{'estimate':>12}{'measured':>12}")
        shown = {part: (uses.get(part, 0), held.get(part, 0)) for part in ("weights", "optimizer")}
        passing = ("gradients", "activations", "logits", "buffers")
        shown["in a step"] = (sum(uses.get(u, 0) for u in passing), rest + held.get("gradients", 0))
        shown["together"] = (sum(p[0] for p in shown.values()), held["peak"])
        lines += [f"{k:<14}{_mib(e):>12}{_mib(m):>12}" for k, (e, m) in shown.items()]
    for key, what in (("step_s", "a step"), ("evaluation_s", "evaluation"), ("save_s", "a save")):
        if key in first.found:
            lines.append(f"{what:<14}{first.found[key]:>10.2f} s")
    if "checkpoint_bytes" in first.found:
        lines.append(f"{'a checkpoint':<14}{_mib(first.found['checkpoint_bytes']):>12}")
    if length := time_to_end(config, first):
        gpu = f", {length['gpu_hours']:.2g} GPU hours" if length["gpu_hours"] else ""
        lines.append(f"{'to the end':<14}{length['seconds']:>10.0f} s{gpu}")
    if len(trials) > 1:
        lines.append("the same global batch in other ways:")
    for trial in trials[1:]:
        if trial.outcome != "not measured":
            time_s = f"{trial.found['step_s']:.2f} s a step" if "step_s" in trial.found else ""
            peak = f"{_mib(trial.peak)}" if trial.peak else ""
            told = ", ".join(filter(None, [trial.outcome, time_s, peak]))
            lines.append(f"  {' '.join(words(trial.change))}: {told}")
    fastest = best(trials)
    if fastest is not None and fastest is not first:
        lines.append(f"fastest  {' '.join(words(fastest.change))}")
    elif fastest is first:
        lines.append("fastest  as typed, of what was measured")
    return "\n".join(lines)


def _mib(size: int | None) -> str:
    return f"{(size or 0) / 2**20:,.1f} MiB"
