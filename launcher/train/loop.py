"""The training loop, from config to trained weights, in the order in which it happens."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NoReturn

import torch

from launcher.config.compose import compose
from launcher.config.derive import cards
from launcher.config.derive.plan import Plan
from launcher.config.schema import AdapterConfig, Config, OnNonFinite
from launcher.core import console
from launcher.core.errors import ConfigError, DataError, DivergedError, Preempted, StorageError
from launcher.core.files import write_json
from launcher.core.rundir import RunDir, State
from launcher.core.runtime import Ranks
from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.pack.loader import Row, RowSource
from launcher.data.pack.mixture import records_of
from launcher.distributed import collectives
from launcher.evals.runner import EvaluationStopped
from launcher.health.heartbeat import Heartbeat
from launcher.health.selftest import require_trainable, silent_adapters
from launcher.health.stragglers import OwnTime, Stragglers, report_slow
from launcher.model.checkpoint import Checkpoint
from launcher.model.head import Head
from launcher.model.layers import compile_layers
from launcher.objectives.base import LossSum, Objective
from launcher.rollouts.asking import Trainee
from launcher.rollouts.source import Rollouts
from launcher.scoring.evaluator import make_evaluator, score_base
from launcher.scoring.referee import Referee
from launcher.track import meters
from launcher.track.footprint import Footprint
from launcher.track.tracker import Trackers
from launcher.train import restoring, selection, setup
from launcher.train.engine import StepResult
from launcher.train.finish import finish
from launcher.train.microbatch import micro_batches, release
from launcher.train.routing import Routing
from launcher.train.saving import Saver
from launcher.train.signals import StopFlag, too_slow_for_grace

#: Share of targets that are the model's first choice, as it is logged.
HITS = "token_accuracy"


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

    def add(
        self,
        result: StepResult,
        loss_sum: float,
        weight: float,
        sums: Mapping[str, tuple[float, float]],
    ) -> None:
        """One step more, with the sums over its global batch; one that was skipped counts none."""
        self.step += 1
        self.eval_loss = None
        if not result.applied:
            self.skipped += 1
            return
        self.window_loss += loss_sum
        self.window_weight += weight
        for name, pair in sums.items():
            window = self.window_sums.setdefault(name, [0.0, 0.0])
            window[:] = (window[0] + pair[0], window[1] + pair[1])


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
    training = Training(run, config, ranks, device, stop, heart, told=told)
    training.verify()
    try:
        training.begin()
        while not training.ends():
            training.step()
        training.finish()
    except EvaluationStopped:
        training.stop_now()
    except DivergedError:  # raised by all ranks: what is under way is worth the wait
        training.saver.finish()
        raise
    except StorageError:  # perhaps of this rank alone, which has yet to say so in a file
        training.saver.give_up()
        raise
    finally:
        if training.rollouts is not None:
            training.rollouts.close()


class Training:
    """A run in training: what its steps share, from the first to the last. Every rank has one, and
    all call its methods together."""

    def __init__(
        self,
        run: RunDir,
        config: Config,
        ranks: Ranks,
        device: torch.device,
        stop: StopFlag,
        heart: Heartbeat,
        *,
        told: bool,
    ) -> None:
        self.run, self.config, self.ranks, self.device = run, config, ranks, device
        self.stop, self.heart = stop, heart
        # No method: the evaluator holds it, and the engine is to go with its last reference.
        self.stopping = partial(_is_asked, stop, heart)

        heart.beat("start", 0, "data")
        data = setup.read_data(run, config, ranks, device, self.say, told=told)
        learner = setup.make_learner(run, config, ranks, device, heart, data, self.say)
        self.data, self.plan, self.objective = learner.data, learner.data.plan, data.objective
        assert self.plan.steps is not None
        assert self.plan.warmup_steps is not None
        self.num_steps, self.warmup_steps = self.plan.steps, self.plan.warmup_steps
        self.sequences_per_epoch = self.data.order.num_packs * config.objective.answers_per_record
        self.learner = learner
        self.model, self.head, self.engine = learner.model, learner.head, learner.engine
        self.rows: RowSource = learner.data.rows
        self.rollouts: Rollouts | None = None
        self.is_isolated, start = learner.is_isolated, learner.start
        self.progress = _progress(start) if start else Progress()
        self.saver = Saver(
            *(run, self.engine, ranks, config.checkpoint, heart),
            step=self.progress.step,
            origin=learner.origin,
            warn=self.warn,
        )
        # Adapters that have not learned yet: the first step shows which of them a gradient reaches.
        self.is_fresh = (
            isinstance(config.peft, AdapterConfig) and not config.peft.adapter and start is None
        )

        self.wants_hits = config.train.token_accuracy

        # What ranks that share rows make of them is the same: one of them tells it.
        self.counts = ranks.rank % self.plan.sequence_parallel == 0

        self.routing = self.routed()
        self.is_balanced = True
        self.footprint = Footprint(device.type)
        self.taken = 0
        self.is_slow = False
        self.own_time = OwnTime(device)
        if self.engine.zero == 3:
            self.own_time.watch(self.engine.layers)
        self.stragglers = Stragglers(
            ranks.world_size, config.watchdog.slow_factor, config.watchdog.slow_steps
        )
        heart.beat("start", 0, "trackers")
        self.trackers = Trackers.open(
            run,
            config,
            compose.to_dict(config),
            resumed_step=self.progress.step if start else None,
            is_main=ranks.is_main,
            warn=self.warn,
        )
        flops = meters.known_flops(self.model, self.warn)
        self.windows: Sequence[int] = flops.windows if flops else ()
        self.meter = meters.Meter(
            flops=flops,
            peak_flops=_peak(self.plan, device),
            device=device.type,
            totals=self.progress.work,
        )
        self.evaluator = None
        if config.eval.name != "none" and self.data.held_out is not None:
            self.evaluator = make_evaluator(
                *(config, self.plan, ranks, self.data.folders, self.data.tokenizer, self.head),
                *(device, self.stopping, self.objective),
            )
            for metric in self.evaluator.metrics:
                metric.sign_of_life = heart.again
        self.selection = selection.make(
            config,
            self.evaluator.metrics if self.evaluator else None,
            start.state.get("selection") if start else None,
        )
        if self.selection is None and ranks.is_main:
            run.best.unlink(missing_ok=True)  # of an end that the run had before
        if start is not None and (said := _new_length(start, config, self.plan)):
            self.say(said)

    def say(self, text: str) -> None:
        """A line of the log, from rank 0."""
        if self.ranks.is_main:
            print(text, flush=True)

    def warn(self, text: str) -> None:
        """The same, of something that may be wrong."""
        self.say(f"warning: {text}")

    def verify(self) -> None:
        """Keep the documents of a row apart, and try on the model itself that what is trained
        learns. `ConfigError` where that cannot be."""

        self.engine.eval()
        model, cache, device = self.model, self.data.cache, self.device
        if not self.is_isolated:
            setup.keep_apart(self.head, self.engine, model, self.data, device, self.say)
        require_trainable(self.objective, self.head, model, cache, device)
        if self.plan.sequence_parallel > 1:
            setup.share_rows(self.learner, device)
            ranks = f"{self.plan.sequence_parallel} ranks"
            self.say(f"attention: {ranks} share each row, and have some of the heads each")
        if self.config.model.compile:
            self.head.shares = False  # its graphs are of rows whose tokens attend to themselves
            compile_layers(model)
        if self.head.shares:
            self.say("attention: what documents of a record begin with alike is computed once")

    def routed(self) -> Routing | None:
        """What follows the model's routers; None where it has none, or graphs that hold them.
        `ConfigError` where a loss of them is wanted and cannot be learned."""
        found = Routing(self.model, self.config.train.router_aux, self.ranks.world_size)
        is_compiled = self.config.model.compile
        if found.learns and (is_compiled or self.plan.precision == "fp16"):
            off = "model.compile=false" if is_compiled else "engine.precision=bf16"
            why = "model.compile=true" if is_compiled else "engine.precision=fp16"
            raise ConfigError(
                f"{found.coefficient}, as the model's config asks for, cannot be with {why}",
                where="train.router_aux",
                hint=f"set {off}, or train.router_aux=0",
            )
        if is_compiled or not found.watches:
            return None
        found.attach()
        return found

    def begin(self) -> None:
        """Ask the model that the run begins with what the objective wants of it, go on from a
        checkpoint, and score the base, or make up for the evaluation that a stop has cut short."""
        step = self.progress.step
        if self.objective.reference:
            self.refer()
        setup.go_on(self.learner, self.heart, self.say)
        if self.config.objective.samples:
            self.rows = self.rollouts = self.sampled()
        if self.ranks.is_main:
            self.run.set_status(State.running, step=step, steps=self.num_steps)
        if self.evaluator is not None and step == 0:
            self.heart.beat("eval", 0)
            self.engine.eval()
            self.evaluator.check(self.model)
            if self.config.eval.base:
                held_out = self.data.folders["validation"]
                score_base(self.evaluator, self.run, self.engine, self.model, held_out, self.say)
            else:
                self.evaluator.rehearse(self.model, self.say)
        self.engine.train()
        if self.stopping():
            self.stop_now()
        if step and self.progress.evaluated < step and self.evaluates(step):
            self.evaluate()

    def refer(self) -> None:
        """Fill the columns of `Objective.reference` for the records of the steps to come, and for
        those that are scored."""
        self.heart.beat("eval", 0, "reference")
        self.engine.eval()
        referee = Referee(
            *(self.config, self.plan, self.ranks, self.device, self.objective, self.head),
            self.model,
            should_stop=self.stopping,
            say=self.say,
        )
        count = self.plan.global_sequences
        packs = range(self.progress.step * count, self.num_steps * count)
        records = records_of(self.data.order, packs, len(self.data.cache))
        references = self.objective.references
        assert references is not None
        referee.fill(references.train, self.engine, self.data.cache, records, "training records")
        if self.evaluator is not None:
            for kept, cache, ids, what in self.evaluator.referred(references):
                referee.fill(kept, self.engine, cache, ids, what)
        if self.objective.referent_identity is not None:
            del referee
            release(self.device)

    def sampled(self) -> Rollouts:
        """Rows of answers that the model gives."""
        packing = self.config.data.packing
        trainee = Trainee(
            *(self.model, self.head, self.engine, self.objective),
            lay_out=partial(micro_batches, head=self.head, packing=packing),
        )
        return Rollouts(
            *(self.run, self.config, self.plan, self.ranks, self.device, self.heart, trainee),
            *(self.data.cache, self.data.order, self.data.tokenizer),
            should_stop=self.stopping,
            say=self.say,
        )

    def ends(self) -> bool:
        """Whether the last step is done."""
        is_exhausted = self.selection is not None and self.selection.is_exhausted
        return self.progress.step == self.num_steps or is_exhausted

    def step(self) -> None:
        """One optimizer step, and what is due after it: log, evaluation, checkpoint, stop."""
        step, beat, ranks = self.progress.step, self.heart.beat, self.ranks
        beat("step", step, "batch")
        self.meter.begin()
        # Dropout depends on seed, step and rank alone, so a resumed run draws the same masks.
        torch.manual_seed(_step_seed(self.config.seed, step, ranks.rank))
        with self.own_time.loading():
            rows = self.rows.step(step)
        beat("step", step, "agree on the batch")
        weight, work = _totals(self.objective, rows if self.counts else [], self.windows)
        rows = micro_batches(rows, self.head, self.config.data.packing)
        rows = [row.to(self.device, non_blocking=True) for row in rows]
        if not weight:
            raise DataError(
                f"no target token in the global batch of step {step + 1}",
                where="data.train",
                hint="raise data.max_length: targets may be cut off",
            )
        # The second step: the optimizer has its state. Compiled code hides what it holds.
        is_measured = self.taken == 1 and not (
            self.config.model.compile and self.device.type == "cpu"
        )
        if is_measured:
            self.footprint.start(self.engine.held())
        if type(self.objective).over_batch is not Objective.over_batch:
            self.objective.batch = self.over_batch(rows)
        follows = self.routing is not None and (self.routing.learns or self.logs(step + 1))
        losses, counted = self.backward(rows, weight, self.routing if follows else None)
        own = float(torch.stack(losses).sum()) * self.counts  # waits for the device
        mine = [own, float(bool(self.stop))]
        if self.rollouts is not None:
            found = self.rollouts.sums
            counted.append(found if ranks.is_main else dict.fromkeys(found, (0.0, 0.0)))
        names, sums = _sums(counted)
        sums = sums if self.counts else [0.0] * len(sums)
        if self.wants_hits and HITS not in names:
            self.wants_hits = False
            self.warn(f"train.{HITS}=true: the loss of {self.config.objective.name} tells of none")
        beat("step", step, "agree on the loss")
        saves = self.saver.report()
        loss_sum, stops, *others = collectives.sum_over_ranks(
            [*mine, *sums, *saves, *_one_of(self.own_time.read(), ranks)]
        )
        saved, seconds = others[len(sums) : len(sums) + len(saves)], others[len(sums + saves) :]
        is_strict = self.config.train.on_nonfinite is OnNonFinite.stop
        if not math.isfinite(loss_sum) and is_strict:
            raise _diverged(self.run, step, "loss", rows, losses, self.data.cache, ranks)
        pairs = zip(others[: len(sums) : 2], others[1 : len(sums) : 2], strict=True)
        totals = dict(zip(names, pairs, strict=True))
        self.objective.require_sound(totals)
        rate = self.config.schedule.factor(step, self.num_steps, self.warmup_steps)
        beat("step", step, "update")
        result = self.engine.step(rate)
        self.taken += 1
        if is_measured:
            self.note_memory(self.footprint.stop())
        if self.is_fresh and result.applied and rate > 0:
            self.is_fresh = False
            if silent := silent_adapters(self.engine.pieces()):
                self.warn(f"no gradient reaches the adapters of {_some(silent)}")
        beat("step", step, "log")
        self.meter.end(work)
        self.progress.work = self.meter.totals
        self.progress.add(result, loss_sum, weight, totals)
        if not result.applied:
            if self.plan.precision != "fp16" and is_strict:
                raise _diverged(
                    self.run, step, "gradient norm", rows, losses, self.data.cache, ranks
                )
            self.say(f"step {self.progress.step}: non-finite gradient, step skipped")
        if ranks.is_main and (changes := self.stragglers.add(seconds)):
            report_slow(self.run, changes, self.progress.step, self.config.watchdog, self.warn)

        if self.logs(self.progress.step):
            self.log(result)
        self.settle(saved)
        if self.evaluates(self.progress.step):
            self.evaluate()
        if _due(self.progress.step, self.config.checkpoint.every_steps) or self.ends():
            self.save(waits=self.ends())
            stops = stops or self.stopping()  # asked meanwhile: this checkpoint is the one
        if stops:
            self.stop_now()

    def note_memory(self, mine: dict[str, int]) -> None:
        """Write what each rank has held in a step beside what the plan says."""
        measured = collectives.gather_objects(mine)
        if self.ranks.is_main:
            write_json(self.run.memory, {"planned": self.plan.memory, "ranks": measured})

    @torch.no_grad()
    def over_batch(self, rows: list[Row]) -> dict[str, float]:
        """What the objective needs of the global batch before it says the loss of a row; every rank
        has rows, and an objective the same names in each."""
        self.heart.beat("step", self.progress.step, "look over the batch")
        self.engine.eval()
        found = []
        for row in rows:
            own = self.objective.over_batch(self.head, self.engine, row)
            found.append(dict.fromkeys(own, (0.0, 0.0)) if row.is_filler else own)
        self.engine.train()
        if not (names := sorted(found[0])):
            return {}
        sums = [float(sum(row[name][side] for row in found)) for name in names for side in (0, 1)]
        sums = collectives.sum_over_ranks(sums if self.counts else [0.0] * len(sums))
        return {name: sums[2 * i] / sums[2 * i + 1] for i, name in enumerate(names)}

    def backward(
        self, rows: list[Row], weight: float, routing: Routing | None
    ) -> tuple[list[torch.Tensor], list[Mapping[str, tuple[Any, Any]]]]:
        """Forward and backward of each row: its loss sums, and what the objective counts beside.

        `weight` is that of the global batch: the gradient is of the loss summed over it, divided
        by it. `routing` counts what the routers do, if it is given, and adds the gradient of the
        loss that balances experts.
        """
        losses: list[torch.Tensor] = []
        counted: list[Mapping[str, tuple[Any, Any]]] = []
        learns = routing is not None and routing.learns
        if routing is not None:
            routing.begin()
            if learns and len(rows) > 1:
                self.look(routing, rows)
        for index, row in enumerate(rows):
            self.heart.beat("step", self.progress.step, "forward")
            self.engine.last_micro_batch(index == len(rows) - 1)
            with routing.row(not row.is_filler) if routing else nullcontext():
                with self.own_time.forward():
                    found = self.objective.loss(self.head, self.engine, row)
                    loss = found.total * 0.0 if row.is_filler else found.total
                if routing is not None and learns and len(rows) == 1:
                    routing.settle()
                self.heart.beat("step", self.progress.step, "backward")
                # DeepSpeed averages over ranks, so the sum over ranks is divided by the weight.
                self.engine.backward(loss * (self.ranks.world_size / weight))
            losses.append(loss.detach())
            if not row.is_filler:
                counted.append(_counted(found, self.head, row))
            if index < len(rows) - 1:
                self.engine.micro_step()
        return losses, counted

    def look(self, routing: Routing, rows: list[Row]) -> None:
        """Have the choices of the whole global batch counted before the first backward."""
        self.heart.beat("step", self.progress.step, "look at the routers")
        self.engine.eval()
        passes = [partial(self.head.probe, self.engine, row) for row in rows]
        routing.look(passes, [not row.is_filler for row in rows])
        self.engine.train()
        routing.settle()

    def logs(self, step: int) -> bool:
        """Whether the numbers of a step are logged: those of the last one always are."""
        may_end = step == self.num_steps or (self.selection is not None and self.evaluates(step))
        return _due(step, self.config.train.log_every_steps) or may_end

    def log(self, result: StepResult) -> None:
        """Log the loss of the steps since the last logged one, and the numbers of this one."""
        progress = self.progress
        record = {
            "kind": "train",
            "time": time.time(),
            "loss": progress.window_loss / (progress.window_weight or math.nan),
            "lr": self.engine.lr,
            "grad_norm": result.grad_norm,
            "epoch": progress.step * self.plan.global_sequences / self.sequences_per_epoch,
            "skipped": progress.skipped,
            **self.meter.read(),
            **self.stragglers.read(),
            **self.load(),
        }
        for name, (numerator, denominator) in progress.window_sums.items():
            record[name] = numerator / (denominator or math.nan)
        progress.window_loss = progress.window_weight = 0.0
        progress.window_sums = {}
        self.trackers.log(progress.step, record)
        self.say(console.metrics_line({"step": progress.step, **record}, self.num_steps))
        if self.ranks.is_main:
            self.run.set_status(State.running, step=progress.step)

    def load(self) -> dict[str, float]:
        """What is logged of the experts in the step, whose shares are written beside; they are
        warned of when they get out of balance."""
        load = self.routing.load() if self.routing is not None else None
        if load is None:
            return {}
        step = self.progress.step
        if self.ranks.is_main:
            shares = dict(zip(load.names, load.shares, strict=True))
            write_json(self.run.experts, {"step": step, "load": shares, "use": load.uses})
        if self.is_balanced and load.complaint:
            self.warn(f"step {step}: {load.complaint}; see docs/experts.md")
        self.is_balanced = not load.complaint
        found = {
            "router_entropy": load.entropy,
            "expert_use": load.use,
            "experts_unused": load.unused,
        }
        return found | ({} if math.isnan(load.aux) else {"router_aux": load.aux})

    def evaluates(self, step: int) -> bool:
        """Whether the weights of a step are scored; the last ones are by `finish` anyway."""
        if step == self.num_steps:
            draws = 0 if self.evaluator is None else self.config.eval.draws or 0
            return self.selection is not None or draws > 1
        if self.evaluator is None:
            return False
        times = self.config.eval.times
        if times is None or self.config.eval.every_steps is not None:
            return _due(step, self.plan.eval_steps)
        return step * times // self.num_steps > (step - 1) * times // self.num_steps

    def evaluate(self) -> None:
        """Score the held-out records, and save the weights where they are the best so far."""
        assert self.evaluator is not None
        progress = self.progress
        self.heart.beat("eval", progress.step)
        self.engine.eval()
        scores = self.evaluator.during(self.engine, self.model)
        self.engine.train()
        progress.eval_loss = scores.get("loss")
        record = {"kind": "eval", "time": time.time()}
        record |= {f"eval/{name}": value for name, value in scores.items()}
        self.trackers.log(progress.step, record)
        self.say(console.metrics_line({"step": progress.step, **record}, self.num_steps))
        progress.evaluated = progress.step
        if self.selection is not None:
            # One rank's number, so that all decide alike.
            score = collectives.gather_objects(scores.get(self.selection.options.metric))[0]
            is_best = self.selection.add(progress.step, score)
            if self.ranks.is_main:
                self.selection.write(self.run)
            if is_best and self.selection.keeps_best:
                self.save()

    def save(self, *, waits: bool = False) -> None:
        """A checkpoint of this step, unless there is one or it is under way; who `waits` finds it
        there afterwards."""
        step = self.progress.step
        if self.saver.step != step:
            state = {
                **_state(self.progress),
                "selection": selection.state_of(self.selection),
                "steps": self.num_steps,
                "warmup_steps": self.warmup_steps,
            }
            best = None
            if self.selection is not None and self.selection.keeps_best:
                best = self.selection.found.step
            self.saver.save(state, step, best, waits=waits)
        if waits:
            self.saver.finish()
            self.warn_if_slow()

    def settle(self, reports: list[float]) -> None:
        """Make the checkpoint under way valid if all ranks have written it by now."""
        self.saver.settle(reports)
        self.warn_if_slow()

    def warn_if_slow(self) -> None:
        """Say once that a checkpoint might not be there before a job's time is over."""
        slow = too_slow_for_grace(self.config.launch, self.saver.seconds)
        if slow and not self.is_slow:
            self.is_slow = True
            self.warn(slow)

    def stop_now(self) -> NoReturn:
        """End with a checkpoint, to be gone on from: raises `Preempted`."""
        self.save(waits=True)
        if self.ranks.is_main:
            self.run.set_status(State.running, step=self.progress.step)
        self.trackers.finish(int(Preempted.exit_code), preempted=True)
        # Together: the first rank to end has the others killed 30 s later.
        collectives.barrier()
        raise Preempted(f"stopped by {self.stop.by} at step {self.progress.step}")

    def finish(self) -> None:
        """Settle which weights are the result; then compare, export and report."""
        reason, counts, step = "", self.progress.step, self.progress.step
        if self.selection is not None:
            stopped = step if step < self.num_steps else None
            if stopped is not None:
                self.say(reason := self.selection.told(stopped))
            best = self.selection.found.step
            if self.selection.keeps_best and best is not None:
                counts = _put_back(self.run, best, step, self.model, self.ranks, self.say)
            if self.ranks.is_main:
                self.selection.write(self.run, stopped=stopped, result=counts)
        finish(
            *(self.run, self.config, self.ranks, self.engine, self.model, self.evaluator),
            *(self.trackers, self.heart, step, self.say),
            result=counts,
            reason=reason,
        )


def _put_back(run: RunDir, best: int, step: int, model: Any, ranks: Ranks, say: Any) -> int:
    """Put the weights of the checkpoint of step `best` into the model; the step that is in it."""
    if best != step:
        found = restoring.newest_valid(run, ranks, lambda text: say(f"warning: {text}"), best)
        if found is not None:
            restoring.load_weights(found, model)
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
    last = rate * config.schedule.factor(start.step - 1, before, warmup)
    now = rate * config.schedule.factor(start.step, plan.steps, plan.warmup_steps)
    return (
        f"length   {plan.steps} steps instead of {before}: the learning rate is that of a"
        f" {config.schedule.name} schedule over all {plan.steps}: it was {last:.2e} at step"
        f" {start.step} and goes on at {now:.2e}"
    )


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


def _is_asked(stop: StopFlag, heart: Heartbeat) -> bool:
    """Whether any rank has been asked to stop; one collective."""
    heart.again()
    return collectives.sum_over_ranks([float(bool(stop))])[0] > 0


def _one_of(seconds: float, ranks: Ranks) -> list[float]:
    """Zeros but for this rank's place, so that a sum over the ranks holds the value of each."""
    return [seconds if rank == ranks.rank else 0.0 for rank in range(ranks.world_size)]


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _step_seed(seed: int, step: int, rank: int) -> int:
    return ((seed * 1_000_003 + step) * 65_537 + rank) & ((1 << 63) - 1)


def _counted(found: LossSum, head: Head, row: Row) -> dict[str, tuple[Any, Any]]:
    """What is logged beside the loss: the objective's sums, and the share of targets that were the
    first choice if `head` counts them."""
    hits = {} if head.hits is None else {HITS: (head.hits, len(row.targets))}
    return {name: _detached(pair) for name, pair in {**hits, **found.sums}.items()}


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
    objective: Objective, rows: list[Row], windows: Sequence[int]
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
        ]
    )
    tokens, targets, squares, *windowed = map(int, work)
    return weight, meters.Work(tokens, targets, squares, tuple(windowed))


def _peak(plan: Plan, device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    one = cards.peak_flops(torch.cuda.get_device_name(device), plan.precision)
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
