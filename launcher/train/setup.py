"""What a run trains with, made from its config: its data, its model, the engine around both."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher import fingerprint
from launcher.config.derive import deepspeed
from launcher.config.derive import plan as plans
from launcher.config.derive.plan import Plan
from launcher.config.schema import AdapterConfig, Config, MicroBatch, variants
from launcher.config.schema.variants import PEFT_METHODS
from launcher.core.errors import ConfigError, Problem
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir
from launcher.core.runtime import Ranks
from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.origins import call_as_now
from launcher.data.pack.loader import Ahead, Loader, Row, RowSource
from launcher.data.pack.mixture import Order, open_data
from launcher.data.tokenizer import load_tokenizer, padding_of
from launcher.distributed import collectives, devices
from launcher.health.heartbeat import Heartbeat
from launcher.health.isolation import isolate, share
from launcher.model.activations import save_less
from launcher.model.adapter import count_parameters, inner_model
from launcher.model.checkpoint import Checkpoint
from launcher.model.head import Head
from launcher.model.load import load_model
from launcher.model.rebuild import local_folder
from launcher.model.sequence_parallel import SequenceGroup
from launcher.objectives.base import Objective
from launcher.scoring import referee
from launcher.train import microbatch, restoring, saving
from launcher.train.engine import Engine
from launcher.train.single import SingleEngine
from launcher.train.zero import ZeroEngine, connect

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Data:
    """The prepared data of a run, and what follows from it."""

    folders: dict[str, Any]
    """data.json: split -> folder of its cache."""
    tokenizer: Any
    cache: TokenCache | JoinedCache
    order: Order
    held_out: TokenCache | JoinedCache | None
    objective: Objective
    plan: Plan
    plan_of: Callable[..., Plan]
    """`launcher.config.derive.plan.make` of this run; it takes `chosen`."""
    loader: Callable[[Plan], RowSource]
    """This rank's rows of prepared data, as a plan cuts them."""
    rows: Any
    """`rows.step(n)` gives this rank's rows of optimizer step `n`."""


def read_data(
    run: RunDir, config: Config, ranks: Ranks, device: torch.device, say: Say, *, told: bool
) -> Data:
    """Map what `launcher.data.prepare` has left, settle objective and plan, and say the plan; where
    it was `told` already, what has changed since."""
    folders = read_json(run.data)
    tokenizer = load_tokenizer(config.model)
    cache, order = open_data(folders["train"], config)
    call_as_now(cache, config, "train")
    held_out = TokenCache.open(Path(folders["validation"])) if folders.get("validation") else None
    if held_out is not None:
        call_as_now(held_out, config, "validation")
    objective: Objective = variants.objective(config.objective)
    objective.settle(config, cache, held_out)
    objective.spec = objective.sequence_head(padding_of(tokenizer))
    plan_of = partial(
        plans.make,
        config,
        world_size=ranks.world_size,
        has_gpu=device.type == "cuda",
        train_packs=order.num_packs,
        capability=devices.oldest(collectives.gather_objects(devices.capability(device))),
    )
    plan, found = _planned(run, config, ranks, device, plan_of, objective)
    text = plans.describe(config, plan)
    if told:
        known = plans.describe(config, Plan(**read_json(run.plan))).splitlines()
        text = "\n".join(line for line in text.splitlines() if line not in known)
    if ranks.is_main:
        write_json(run.plan, plans.as_dict(plan))

    def loader(plan: Plan) -> RowSource:
        return Loader(
            cache,
            order,
            global_sequences=plan.global_sequences,
            micro_batch=plan.micro_batch,
            accumulation=plan.accumulation,
            rank=ranks.rank // plan.sequence_parallel,
            world_size=plan.groups,
        )

    if text:
        say(text)
    if found:
        say(found)
    return Data(
        *(folders, tokenizer, cache, order, held_out, objective, plan, plan_of, loader),
        rows=_rows(loader(plan), objective, device),
    )


def _planned(
    run: RunDir,
    config: Config,
    ranks: Ranks,
    device: torch.device,
    plan_of: Callable[..., Plan],
    objective: Objective,
) -> tuple[Plan, str]:
    """The plan of these ranks, and what to say of a micro-batch that the run has found before, or
    that is estimated; what is measured follows when there is a model. All ranks plan alike."""
    if config.batch.micro is not MicroBatch.auto:
        return plan_of(), ""
    if type(objective).rows is not Objective.rows:
        raise ConfigError(
            f"auto, and objective {config.objective.name} makes its rows itself",
            where="batch.micro",
            hint="set batch.micro=null, or a number",
        )
    # Of one rank: another may already read what this one is about to write.
    known = plans.kept_choice(read_json(run.plan, {}), ranks.world_size)
    known = collectives.gather_objects(known)[0]
    if known is not None:
        plan = plan_of(chosen=known)
        return plan, microbatch.told(plan, "as the run has found before")
    plan = plan_of()
    if plan.zero == 3:
        free = min(collectives.gather_objects(devices.free_memory(ranks, device)))
        plan, how = microbatch.estimated(lambda chosen: plan_of(chosen=chosen), free, plan)
        return plan, microbatch.told(plan, how)
    return plan, ""


def _rows(loader: RowSource, objective: Objective, device: torch.device) -> RowSource:
    if device.type == "cuda":
        loader = Ahead(loader, _pinned_for(device))
    return objective.rows(loader)


def _pinned_for(device: torch.device) -> Callable[[Row], Row]:
    """Pins a row on a thread, which would otherwise begin a context on the first GPU."""

    def pinned(row: Row) -> Row:
        torch.cuda.set_device(device)
        return row.pinned()

    return pinned


@dataclass(frozen=True, slots=True)
class Learner:
    """A model under its engine, at the step from which it goes on."""

    model: Any
    head: Head
    engine: Engine
    data: Data
    """The data, cut into the micro-batches that the engine computes."""
    is_isolated: bool
    """Whether documents are kept apart already (see `keep_apart`)."""
    start: Checkpoint | None
    """The checkpoint to go on from (see `go_on`)."""
    origin: dict[str, str]
    """What the weights stand on (see `launcher.fingerprint.origin`)."""


def make_learner(
    run: RunDir,
    config: Config,
    ranks: Ranks,
    device: torch.device,
    heart: Heartbeat,
    data: Data,
    say: Say,
) -> Learner:
    """The model with its adapters as a new run has them, under an engine.

    Raises `ConfigError` for what cannot be trained or does not stand on the base that it began on.
    """

    def warn(text: str) -> None:
        say(f"warning: {text}")

    heart.beat("start", 0, "model")
    objective, plan = data.objective, data.plan
    torch.manual_seed(config.seed)
    zero3 = deepspeed.build(config, plan) if plan.zero == 3 else None
    if zero3 is not None:
        connect(device.type)  # the model is built in shards
    model: Any = load_model(config.model, plan, len(data.tokenizer), zero3, objective.spec)
    if objective.spec is not None:
        objective.spec = replace(objective.spec, fresh=model.fresh_modules)
    if ranks.is_main:
        objective.save(run)
    if config.peft.name != "none":
        # Under ZeRO-3 the making of some models draws numbers, elsewhere it does not.
        torch.manual_seed(config.seed)
        fresh = objective.spec and objective.spec.fresh
        model = PEFT_METHODS.load(config.peft.name)(model, config.peft, fresh)
        _refuse_untrained_tokens(model, len(data.tokenizer))
        if left_out := getattr(model, "left_out", ""):
            say(left_out)
    trainable, total = count_parameters(model)
    say(f"parameters: {trainable:,} trainable of {total:,} ({trainable / total:.2%})")
    start = _start_from(run, ranks, warn)
    origin = _origin(config, ranks, start, warn)
    adapter = config.peft.adapter if isinstance(config.peft, AdapterConfig) else None
    asks_start = config.objective.asks_start(config)
    asks_start |= bool(objective.reference) and adapter is not None and Path(adapter).is_dir()
    if adapter and (start is None or asks_start):
        restoring.load_adapter(adapter, model)
        say(f"going on from the adapter in {adapter}")
    if objective.reference:
        references = referee.open_references(run, config, plan, ranks, objective, origin)
        references.train.attach(data.cache)
        objective.references = references
    head = objective.head(model, counts_hits=config.train.token_accuracy)
    if device.type == "cuda" and config.engine.offload_optimizer:
        say("loading DeepSpeed's CPU Adam (built the first time, about a minute)")
    measures = config.batch.micro is MicroBatch.auto and plan.micro_by == "rule"
    if measures:
        data = _measured(config, ranks, device, heart, data, model, head, say)
    # DeepSpeed's buckets are cut by what is trained, which the model's files may not tell.
    data = replace(data, plan=replace(data.plan, trainable=trainable))
    if ranks.is_main:
        write_json(run.plan, plans.as_dict(data.plan))
    heart.beat("start", 0, "engine")
    engine = make_engine(model, config, data.plan)
    gc.freeze()
    gc.enable()
    return Learner(model, head, engine, data, measures, start, origin)


def go_on(learner: Learner, heart: Heartbeat, say: Say) -> None:
    """Put what the checkpoint holds that a run goes on from, if there is one, into the model and
    its optimizer, which are those of a new run until then."""
    if learner.start is None:
        return
    heart.beat("start", 0, "weights")
    restoring.load_weights(learner.start, learner.model)
    heart.beat("start", 0, "optimizer")
    restoring.load_optimizer(learner.start, learner.engine)
    say(f"resuming from step {learner.start.step}")


def keep_apart(
    head: Head,
    caller: Any,
    model: Any,
    data: Data,
    device: torch.device,
    say: Say,
) -> None:
    """Find out on a model in evaluation mode how the documents of a row are kept apart in it, and
    in those that the objective asks beside it."""
    agree, groups = collectives.all_agree, data.objective.options.samples
    for note in isolate(head, caller, model, data.cache, device, agree, trains=True, groups=groups):
        say(f"attention: {note}")
    for own, other in data.objective.companions(device):
        for note in isolate(own, other, other, data.cache, device, agree, groups=groups):
            say(f"attention of {inner_model(other).name_or_path}: {note}")


def share_rows(learner: Learner, device: torch.device) -> None:
    """Let the ranks of each group share the rows that they compute; all ranks call this together.
    `ConfigError` for a model for which that is not right."""
    group = SequenceGroup.make(learner.data.plan.sequence_parallel)
    caller, cache = learner.engine, learner.data.cache
    share(learner.head, caller, learner.model, cache, device, group, collectives.all_agree)


def _measured(
    config: Config,
    ranks: Ranks,
    device: torch.device,
    heart: Heartbeat,
    data: Data,
    model: Any,
    head: Head,
    say: Say,
) -> Data:
    """`data` cut into the micro-batches that are fastest on `model`, which has no engine yet."""
    plan = data.plan

    def plan_of(size: int) -> Plan:
        return data.plan_of(chosen=(size, "measured"))

    heart.beat("start", 0, "documents of a row")
    _make_lean(model, config)
    was_training = model.training
    model.eval()
    keep_apart(head, model, model, data, device, say)
    model.train(was_training)
    per_rank = plan.global_sequences // plan.groups
    single = data.loader(plan_of(1))
    passes = microbatch.Passes(
        *(model, head, data.objective, data.cache),
        microbatch.longest(single, per_rank, data.order.num_packs, plan.world_size),
        config=config,
        device=device,
        uses_of=lambda size: microbatch.uses(plan_of(size), model, config),
        free=devices.free_memory(ranks, device),
    )

    def measure(size: int) -> float | str:
        heart.beat("start", 0, f"a micro-batch of {size}")
        return passes(size)

    trials = microbatch.fastest(microbatch.sizes(per_rank), measure)
    microbatch.release(device)
    plan = plan_of(microbatch.best(trials))
    say(microbatch.told(plan, f"measured: {'; '.join(map(str, trials))}"))
    return replace(data, plan=plan, rows=_rows(data.loader(plan), data.objective, device))


def make_engine(model: nn.Module, config: Config, plan: Plan) -> Engine:
    """The engine that `plan` asks for, around `model`: DeepSpeed, if there is something to
    shard."""
    _make_lean(model, config)
    if plan.zero is None:
        return SingleEngine(model, config, plan)
    return ZeroEngine(model, config, plan, deepspeed.build(config, plan))


def _make_lean(model: nn.Module, config: Config) -> None:
    """Let a model that is to keep its activations keep less of them; nothing, the second time."""
    if not (config.model.gradient_checkpointing or config.model.compile):
        save_less(model)


def _refuse_untrained_tokens(model: Any, num_tokens: int) -> None:
    """New rows of a frozen embedding are random, and no adapter would store them."""
    embedding = model.get_input_embeddings()
    frozen = not any(parameter.requires_grad for parameter in embedding.parameters())
    if frozen and getattr(inner_model(model), "grown_to", 0) == num_tokens:
        raise ConfigError(
            "the tokens that were added to the embedding would not be trained",
            where="peft.modules_to_save",
            hint="set peft.modules_to_save=[embed_tokens,lm_head]",
        )


def _start_from(run: RunDir, ranks: Ranks, warn: Any) -> Checkpoint | None:
    """The checkpoint to go on from, the same on all ranks."""
    if ranks.is_main:
        saving.clean_up(run)
    return restoring.newest_valid(run, ranks, warn)


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
            elif isinstance(config.peft, AdapterConfig) and config.peft.adapter:
                fingerprint.require_base(config.peft.adapter, base)
        except ConfigError as error:
            problems = error.problems
    found, problems = collectives.gather_objects((found, problems))[0]
    if problems:
        raise ConfigError(problems)
    return found
