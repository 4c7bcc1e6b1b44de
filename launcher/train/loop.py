"""The training loop, from config to trained weights, in the order in which it happens."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from launcher import fingerprint
from launcher.config.compose import compose
from launcher.config.derive import deepspeed
from launcher.config.derive import plan as plans
from launcher.config.derive.plan import Plan
from launcher.config.schema import Config, LoraConfig, OnNonFinite, variants
from launcher.config.schema.variants import PEFT_METHODS
from launcher.core import console
from launcher.core.errors import ConfigError, DataError, DivergedError, Preempted, Problem
from launcher.core.rundir import RunDir, State, read_json, write_json
from launcher.core.runtime import Ranks
from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.pack.loader import Loader, Row, rectangles
from launcher.data.pack.mixture import open_data
from launcher.data.tokenizer import load_tokenizer, padding_of
from launcher.distributed import collectives
from launcher.evals.runner import EvaluationStopped
from launcher.health.heartbeat import Heartbeat
from launcher.health.isolation import isolate, require_recomputable
from launcher.health.selftest import require_trainable, silent_adapters
from launcher.health.stragglers import OwnTime, Stragglers, report_slow
from launcher.model.checkpoint import Checkpoint, checkpoints, newest_valid
from launcher.model.head import Head
from launcher.model.load import load_model
from launcher.model.rebuild import local_folder
from launcher.objectives.base import Objective
from launcher.peft.lora import describe
from launcher.scoring.evaluate import score_base
from launcher.scoring.evaluators import make_evaluator
from launcher.track import meters
from launcher.track.tracker import Trackers
from launcher.train import checkpointing, selection
from launcher.train.engine import Engine, connect
from launcher.train.finish import finish
from launcher.train.schedule import factor
from launcher.train.signals import StopFlag, too_slow_for_grace


@dataclass(slots=True)
class Progress:
    """What a checkpoint must hold besides weights and optimizer state."""

    step: int = 0
    work: meters.Work = field(default_factory=meters.Work)
    skipped: int = 0
    eval_loss: float | None = None
    """Held-out loss of the weights as they are now; None if they have not been scored."""
    evaluated: int = 0
    """Step of the last evaluation that was finished."""
    window_loss: float = 0.0
    """Loss sum of the steps since the last logged one."""
    window_weight: float = 0.0
    window_sums: dict[str, list[float]] = field(default_factory=dict)
    """Numerator and denominator, over those steps, of what the objective logs beside the loss."""


def train(
    run: RunDir,
    config: Config,
    ranks: Ranks,
    device: torch.device,
    stop: StopFlag,
    heart: Heartbeat,
    *,
    told: bool = False,
) -> None:
    """Train the run in `run` to its end, from its newest valid checkpoint if it has one.

    `told` says that plan.json was shown already: then only what has changed since is.

    The process group is up and `run` has prepared data. Raises `Preempted` after a clean stop, and
    another `LauncherError` for what went wrong.
    """
    heart.beat("start", 0, "data")

    def say(text: str) -> None:
        if ranks.is_main:
            print(text, flush=True)

    def warn(text: str) -> None:
        say(f"warning: {text}")

    def stopping() -> bool:
        heart.again()
        return collectives.sum_over_ranks([float(bool(stop))], device)[0] > 0

    # Data: prepared already, only mapped here.
    folders = read_json(run.data)
    tokenizer = load_tokenizer(config.model)
    cache, order = open_data(folders["train"], config)
    held_out = TokenCache.open(Path(folders["validation"])) if folders.get("validation") else None
    objective: Objective = variants.objective(config.objective)
    objective.settle(config, cache, held_out)
    objective.spec = objective.sequence_head(padding_of(tokenizer))
    plan = plans.make(
        config,
        world_size=ranks.world_size,
        has_gpu=device.type == "cuda",
        train_packs=order.num_packs,
    )
    assert plan.steps is not None
    assert plan.warmup_steps is not None
    text = plans.describe(config, plan)
    if told:
        known = plans.describe(config, Plan(**read_json(run.plan))).splitlines()
        text = "\n".join(line for line in text.splitlines() if line not in known)
    if ranks.is_main:
        write_json(run.plan, plans.as_dict(plan))
    loader = objective.rows(
        Loader(
            cache,
            order,
            global_sequences=plan.global_sequences,
            micro_batch=plan.micro_batch,
            accumulation=plan.accumulation,
            rank=ranks.rank,
            world_size=ranks.world_size,
        )
    )
    if text:
        say(text)

    # Model, adapters, weights of the checkpoint to go on from, engine.
    heart.beat("start", 0, "model")
    settings = deepspeed.build(config, plan)
    torch.manual_seed(config.seed)
    connect(device.type)
    zero3 = settings if config.engine.zero == 3 else None
    model: Any = load_model(config.model, plan, len(tokenizer), zero3, objective.spec)
    if objective.spec is not None:
        objective.spec = replace(objective.spec, fresh=model.fresh_modules)
    if ranks.is_main:
        objective.save(run)
    if config.peft.name != "none":
        # Under ZeRO-3 the making of some models draws numbers, elsewhere it does not.
        torch.manual_seed(config.seed)
        fresh = objective.spec and objective.spec.fresh
        model = PEFT_METHODS.load(config.peft.name)(model, config.peft, fresh)
        _refuse_untrained_tokens(model, len(tokenizer))
        if model.left_out:
            say(model.left_out)
    trainable, total = describe(model)
    if ranks.is_main and plan.trainable != trainable:
        write_json(run.plan, {**plans.as_dict(plan), "trainable": trainable})
    say(f"parameters: {trainable:,} trainable of {total:,} ({trainable / total:.2%})")
    progress, start = Progress(), _start_from(run, ranks, warn)
    origin = _origin(config, ranks, start, warn)
    if start is None and isinstance(config.peft, LoraConfig) and config.peft.adapter:
        checkpointing.load_adapter(config.peft.adapter, model)
        say(f"going on from the adapter in {config.peft.adapter}")
    if start is not None:
        heart.beat("start", 0, "weights")
        checkpointing.load_weights(start, model)
        progress = _progress(start)
        say(f"resuming from step {progress.step}")
    head = objective.head(model, counts_hits=config.train.token_accuracy)
    flops = meters.known_flops(model, warn)
    windows = flops.windows if flops else ()
    if device.type == "cuda" and config.engine.offload_optimizer:
        say("loading DeepSpeed's CPU Adam (built the first time, about a minute)")
    heart.beat("start", 0, "engine")
    engine = Engine(model, config, plan, settings)
    if start is not None:
        heart.beat("start", 0, "optimizer")
        checkpointing.load_optimizer(start, engine)
    own = OwnTime(device)
    if engine.zero == 3 and not config.model.compile:
        own.watch(engine.layers)
    stragglers = Stragglers(
        ranks.world_size, config.watchdog.slow_factor, config.watchdog.slow_steps
    )

    gc.freeze()
    gc.enable()

    # Followers: trackers, meters, evaluation.
    heart.beat("start", 0, "trackers")
    trackers = Trackers.open(
        run,
        config,
        compose.to_dict(config),
        resumed_step=progress.step if start else None,
        is_main=ranks.is_main,
        warn=warn,
    )
    meter = meters.Meter(
        flops=flops, peak_flops=_peak(plan, device), device=device.type, totals=progress.work
    )
    evaluator = None
    if config.eval.name != "none" and held_out is not None:
        evaluator = make_evaluator(
            config, plan, ranks, folders, tokenizer, head, device, stopping, objective
        )

    chosen = selection.make(
        config,
        evaluator.metrics if evaluator else None,
        start.state.get("selection") if start else None,
    )
    if chosen is None and ranks.is_main:
        run.best.unlink(missing_ok=True)  # of an end that the run had before
    if start is not None and (said := _new_length(start, config, plan)):
        say(said)

    saved_step = progress.step

    def state() -> dict[str, Any]:
        own = {"selection": selection.state_of(chosen), "steps": plan.steps}
        return {**_state(progress), **own, "warmup_steps": plan.warmup_steps}

    def save() -> None:
        nonlocal saved_step
        if saved_step == progress.step:
            return
        heart.beat("save", progress.step)
        began = time.monotonic()
        checkpointing.save(run, engine, progress.step, ranks.rank, state(), heart.again, origin)
        saved_step = progress.step
        if slow := too_slow_for_grace(config.launch, time.monotonic() - began):
            warn(slow)
        if ranks.is_main:
            best = chosen.found.step if chosen and chosen.keeps_best else None
            checkpointing.rotate(run, config.checkpoint, progress.step, best)

    def stop_now() -> None:
        save()
        if ranks.is_main:
            run.set_status(State.running, step=progress.step)
        trackers.finish(int(Preempted.exit_code), preempted=True)
        # Together: the first rank to end has the others killed 30 s later.
        collectives.barrier()
        raise Preempted(f"stopped by {stop.by} at step {progress.step}")

    def evaluate() -> None:
        assert evaluator is not None
        heart.beat("eval", progress.step)
        engine.eval()
        scores = evaluator.quick(engine)
        engine.train()
        progress.eval_loss = scores.get("loss")
        record = {"kind": "eval", "time": time.time()}
        record |= {f"eval/{name}": value for name, value in scores.items()}
        trackers.log(progress.step, record)
        say(console.metrics_line({"step": progress.step, **record}, plan.steps))
        progress.evaluated = progress.step
        if chosen is not None:
            # One rank's number, so that all decide alike.
            score = collectives.gather_objects(scores.get(chosen.options.metric))[0]
            is_best = chosen.add(progress.step, score)
            if ranks.is_main:
                chosen.write(run)
            if is_best and chosen.keeps_best:
                save()

    def evaluates() -> bool:
        """Whether the weights of this step are scored; the last ones are by `finish` anyway."""
        if progress.step == plan.steps:
            return chosen is not None
        if evaluator is None:
            return False
        times, steps = config.eval.times, plan.steps
        if times is None or config.eval.every_steps is not None or steps is None:
            return _due(progress.step, plan.eval_steps)
        return progress.step * times // steps > (progress.step - 1) * times // steps

    def ends() -> bool:
        return progress.step == plan.steps or (chosen is not None and chosen.is_exhausted)

    def all_agree(mine: bool) -> bool:
        return collectives.sum_over_ranks([float(not mine)], device)[0] == 0

    engine.eval()
    for note in isolate(head, engine, model, cache, device, all_agree, trains=True):
        say(f"attention: {note}")
    require_recomputable(head, config.model)
    require_trainable(objective, head, model, cache, device)
    if config.model.compile:
        model.compile()
    if ranks.is_main:
        run.set_status(State.running, step=progress.step, steps=plan.steps)
    try:
        if evaluator is not None and progress.step == 0:
            heart.beat("eval", 0)
            engine.eval()
            if config.eval.base:
                score_base(evaluator, run, engine, model, folders["validation"], say)
            else:
                evaluator.rehearse(model, say)
        engine.train()
        if stopping():
            stop_now()

        # An evaluation that a stop had cut short.
        if progress.step and progress.evaluated < progress.step and evaluates():
            evaluate()

        is_fresh = isinstance(config.peft, LoraConfig) and not config.peft.adapter and not start
        while not ends():
            step = progress.step
            heart.beat("step", step, "batch")
            meter.begin()
            # Dropout depends on seed, step and rank alone, so a resumed run draws the same masks.
            torch.manual_seed(_step_seed(config.seed, step, ranks.rank))
            with own.loading():
                rows = loader.step(step)
            heart.beat("step", step, "agree on the batch")
            weight, work = _totals(objective, rows, windows, device)
            rows = micro_batches(rows, head, config.data.packing, device)
            rows = [row.to(device, non_blocking=True) for row in rows]
            if not weight:
                raise DataError(
                    f"no target token in the global batch of step {step + 1}",
                    where="data.train",
                    hint="raise data.max_length: targets may be cut off",
                )
            losses: list[torch.Tensor] = []
            counted: list[Mapping[str, tuple[Any, Any]]] = []
            for index, row in enumerate(rows):
                heart.beat("step", step, "forward")
                engine.last_micro_batch(index == len(rows) - 1)
                with own.forward():
                    found = objective.loss(head, engine, row)
                    loss = found.total * 0.0 if row.is_filler else found.total
                heart.beat("step", step, "backward")
                # DeepSpeed averages over ranks, so the sum over ranks is divided by the weight.
                engine.backward(loss * (ranks.world_size / weight))
                losses.append(loss.detach())
                if not row.is_filler:
                    counted.append({k: _detached(pair) for k, pair in found.sums.items()})
                if index < len(rows) - 1:
                    engine.micro_step()
            mine = [float(torch.stack(losses).sum()), float(bool(stop))]  # waits for the device
            names, sums = _sums(counted)
            heart.beat("step", step, "agree on the loss")
            loss_sum, stops, *others = collectives.sum_over_ranks(
                [*mine, *sums, *_one_of(own.read(), ranks)], device
            )
            seconds = others[len(sums) :]
            if not math.isfinite(loss_sum) and config.train.on_nonfinite is OnNonFinite.stop:
                raise _diverged(run, step, "loss", rows, losses, cache, ranks)
            rate = factor(config.schedule, step, plan.steps, plan.warmup_steps)
            heart.beat("step", step, "update")
            result = engine.step(rate)
            if is_fresh and result.applied and rate > 0:
                is_fresh = False
                if silent := silent_adapters(engine.pieces()):
                    warn(f"no gradient reaches the adapters of {_some(silent)}")
            heart.beat("step", step, "log")
            progress.step += 1
            progress.eval_loss = None
            meter.end(work)
            progress.work = meter.totals
            if result.applied:
                progress.window_loss += loss_sum
                progress.window_weight += weight
                for name, *pair in zip(names, others[::2], others[1::2], strict=False):
                    window = progress.window_sums.setdefault(name, [0.0, 0.0])
                    window[:] = (window[0] + pair[0], window[1] + pair[1])
            else:
                progress.skipped += 1
                if plan.precision != "fp16" and config.train.on_nonfinite is OnNonFinite.stop:
                    raise _diverged(run, step, "gradient norm", rows, losses, cache, ranks)
                say(f"step {progress.step}: non-finite gradient, step skipped")

            if ranks.is_main and (changes := stragglers.add(seconds)):
                report_slow(run, changes, progress.step, config.watchdog, warn)
            may_end = progress.step == plan.steps or (chosen is not None and evaluates())
            if _due(progress.step, config.train.log_every_steps) or may_end:
                record = {
                    "kind": "train",
                    "time": time.time(),
                    "loss": progress.window_loss / (progress.window_weight or math.nan),
                    "lr": engine.lr,
                    "grad_norm": result.grad_norm,
                    "epoch": progress.step * plan.global_sequences / order.num_packs,
                    "skipped": progress.skipped,
                    **meter.read(),
                    **stragglers.read(),
                }
                for name, (numerator, denominator) in progress.window_sums.items():
                    record[name] = numerator / (denominator or math.nan)
                progress.window_loss = progress.window_weight = 0.0
                progress.window_sums = {}
                trackers.log(progress.step, record)
                say(console.metrics_line({"step": progress.step, **record}, plan.steps))
                if ranks.is_main:
                    run.set_status(State.running, step=progress.step)
            if evaluates():
                evaluate()
            if _due(progress.step, config.checkpoint.every_steps) or ends():
                save()
            if stops:
                stop_now()

        reason, counts = "", progress.step
        if chosen is not None:
            stopped = progress.step if progress.step < plan.steps else None
            if stopped is not None:
                say(reason := chosen.told(stopped))
            if chosen.keeps_best and chosen.found.step is not None:
                counts = _put_back(run, chosen.found.step, progress.step, model, ranks, say)
            if ranks.is_main:
                chosen.write(run, stopped=stopped, result=counts)
        finish(
            *(run, config, ranks, engine, model, evaluator, trackers, heart, progress.step, say),
            result=counts,
            reason=reason,
        )
    except EvaluationStopped:
        stop_now()


def _refuse_untrained_tokens(model: Any, num_tokens: int) -> None:
    """New rows of a frozen embedding are random, and no adapter would store them."""
    embedding = model.get_input_embeddings()
    frozen = not any(parameter.requires_grad for parameter in embedding.parameters())
    if frozen and getattr(model.get_base_model(), "grown_to", 0) == num_tokens:
        raise ConfigError(
            "the tokens that were added to the embedding would not be trained",
            where="peft.modules_to_save",
            hint="set peft.modules_to_save=[embed_tokens,lm_head]",
        )


def _start_from(run: RunDir, ranks: Ranks, warn: Any) -> Checkpoint | None:
    """The checkpoint to go on from, chosen and verified by rank 0 for all ranks."""
    chosen = None
    if ranks.is_main:
        checkpointing.clean_up(run)
        found = newest_valid(run, warn)
        chosen = found.step if found else None
    chosen = collectives.gather_objects(chosen)[0]
    return next((c for c in checkpoints(run) if c.step == chosen), None)


def _put_back(run: RunDir, best: int, step: int, model: Any, ranks: Ranks, say: Any) -> int:
    """Put the weights of the checkpoint of step `best` into the model; the step that is in it."""
    if best != step:
        found = None
        if ranks.is_main:
            found = newest_valid(run, lambda text: say(f"warning: {text}"), best)
        if collectives.gather_objects(found is not None)[0]:
            chosen = next(c for c in checkpoints(run) if c.step == best)
            checkpointing.load_weights(chosen, model)
            say(f"the weights of step {best} are the result: the best of all evaluations")
            return best
        say(f"warning: the best weights, of step {best}, are gone: the last ones are the result")
    return step


def _new_length(start: Checkpoint, config: Config, plan: Plan) -> str:
    """What the learning rate does where a run goes on to another end than it had; else empty."""
    before, warmup = start.state.get("steps"), start.state.get("warmup_steps")
    if before is None or warmup is None or before == plan.steps:
        return ""
    assert plan.steps is not None
    assert plan.warmup_steps is not None
    rate = config.optim.lr
    last = rate * factor(config.schedule, start.step - 1, before, warmup)
    now = rate * factor(config.schedule, start.step, plan.steps, plan.warmup_steps)
    return (
        f"length   {plan.steps} steps instead of {before}: the learning rate is that of a"
        f" {config.schedule.name} schedule over all {plan.steps}: it was {last:.2e} at step"
        f" {start.step} and goes on at {now:.2e}"
    )


def _origin(config: Config, ranks: Ranks, start: Checkpoint | None, warn: Any) -> dict[str, str]:
    """What this run stands on; `ConfigError` on all ranks if its adapters come from elsewhere."""
    found: dict[str, str] = {}
    problems: tuple[Problem, ...] = ()
    if ranks.is_main:
        try:
            base = local_folder(config.model)
            found = fingerprint.origin(config, base)
            if start is not None:
                for text in fingerprint.require_same(config, start.origin, found, start.path):
                    warn(text)
            elif isinstance(config.peft, LoraConfig) and config.peft.adapter:
                fingerprint.require_base(config.peft.adapter, base)
        except ConfigError as error:
            problems = error.problems
    found, problems = collectives.gather_objects((found, problems))[0]
    if problems:
        raise ConfigError(problems)
    return found


def _progress(start: Checkpoint) -> Progress:
    state = start.state
    return Progress(
        step=start.step,
        work=meters.Work(**state["work"]),
        skipped=state["skipped"],
        eval_loss=state["eval_loss"],
        evaluated=state.get("evaluated", start.step),
        window_loss=state["window_loss"],
        window_weight=state["window_weight"],
        window_sums=state.get("window_sums", {}),
    )


def _state(progress: Progress) -> dict[str, Any]:
    work = progress.work
    return {
        "work": {
            "tokens": work.tokens,
            "target_tokens": work.target_tokens,
            "squared_lengths": work.squared_lengths,
        },
        "skipped": progress.skipped,
        "eval_loss": progress.eval_loss,
        "evaluated": progress.evaluated,
        "window_loss": progress.window_loss,
        "window_weight": progress.window_weight,
        "window_sums": progress.window_sums,
    }


def _one_of(seconds: float, ranks: Ranks) -> list[float]:
    """Zeros but for this rank's place, so that a sum over the ranks holds the value of each."""
    return [seconds if rank == ranks.rank else 0.0 for rank in range(ranks.world_size)]


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _step_seed(seed: int, step: int, rank: int) -> int:
    return ((seed * 1_000_003 + step) * 65_537 + rank) & ((1 << 63) - 1)


def micro_batches(rows: list[Row], head: Head, packing: bool, device: torch.device) -> list[Row]:
    """`rows` as `head` computes them: where documents are a line each, in rows that hold little
    padding or none, as many on every rank."""
    is_small = not head.keeps_logits and not packing
    if head.isolates or (is_small and head.pads):
        return rows
    parts = [part for row in rows for part in rectangles(row, equal=not head.pads)]
    count = collectives.max_over_ranks(len(parts), device)
    return parts + [replace(parts[-1], is_filler=True)] * (count - len(parts))


def _detached(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """Both numbers, of which none keeps a graph alive."""
    one, other = (x.detach() if isinstance(x, torch.Tensor) else x for x in pair)
    return one, other


def _sums(counted: list[Mapping[str, tuple[Any, Any]]]) -> tuple[list[str], list[float]]:
    """Names of what the objective logs beside the loss, and of each the numerator and denominator
    of this rank's rows. Every rank has rows, and an objective the same names in each."""
    names = sorted({name for row in counted for name in row})
    if taken := sorted({"loss", "lr", "grad_norm", "epoch", "skipped", "kind", "time"} & {*names}):
        raise ConfigError(
            f"the objective logs {', '.join(taken)}, which every run has",
            where="objective.name",
            hint="give it another name",
        )
    sums = [
        float(sum(row[name][side] for row in counted if name in row))
        for name in names
        for side in (0, 1)
    ]
    return names, sums


def _totals(
    objective: Objective, rows: list[Row], windows: Sequence[int], device: torch.device
) -> tuple[float, meters.Work]:
    """Weight and work of the global batch, all ranks and micro-batches together."""
    mine = meters.work_of(rows, windows)
    weight, *work = collectives.sum_over_ranks(
        [
            sum(objective.weight(row) for row in rows),
            float(mine.tokens),
            float(mine.target_tokens),
            float(mine.squared_lengths),
            *map(float, mine.windowed),
        ],
        device,
    )
    tokens, targets, squares, *windowed = map(int, work)
    return weight, meters.Work(tokens, targets, squares, tuple(windowed))


def _peak(plan: Plan, device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    one = meters.peak_flops(torch.cuda.get_device_name(device), plan.precision)
    return one * plan.world_size if one else None


def _diverged(
    run: RunDir,
    step: int,
    what: str,
    rows: list[Row],
    losses: list[torch.Tensor],
    cache: TokenCache | JoinedCache,
    ranks: Ranks,
) -> DivergedError:
    """An error that names step, ranks and records; all ranks call this."""
    bad = [row for row, loss in zip(rows, losses, strict=True) if not torch.isfinite(loss)]
    suspects = bad if what == "loss" else rows
    mine = [cache.where(record) for row in suspects for record in row.records]
    parts = collectives.gather_objects(mine)
    named = [f"rank {rank}: {_some(found)}" for rank, found in enumerate(parts) if found]
    return DivergedError(
        f"{what} is not finite at step {step + 1}; records of the batch: {'; '.join(named)}",
        where=str(run),
        hint="look at these records, lower optim.lr, or set train.on_nonfinite=skip; the last"
        " checkpoint is untouched",
    )


def _some(names: list[str], most: int = 8) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
