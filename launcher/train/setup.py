"""What a run trains with, made from its config: its data, its model, the engine around both."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher import fingerprint
from launcher.config.derive import deepspeed
from launcher.config.derive import plan as plans
from launcher.config.derive.plan import Plan
from launcher.config.schema import AdapterConfig, Config, variants
from launcher.config.schema.variants import PEFT_METHODS
from launcher.core.errors import ConfigError, Problem
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir
from launcher.core.runtime import Ranks
from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.pack.loader import Ahead, Loader, Row, RowSource
from launcher.data.pack.mixture import open_data
from launcher.data.tokenizer import load_tokenizer, padding_of
from launcher.distributed import collectives, devices
from launcher.health.heartbeat import Heartbeat
from launcher.model.adapter import count_parameters, inner_model
from launcher.model.checkpoint import Checkpoint
from launcher.model.head import Head
from launcher.model.load import load_model
from launcher.model.rebuild import local_folder
from launcher.objectives.base import Objective
from launcher.train import restoring, saving
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
    num_packs: int
    held_out: TokenCache | JoinedCache | None
    objective: Objective
    plan: Plan
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
    held_out = TokenCache.open(Path(folders["validation"])) if folders.get("validation") else None
    objective: Objective = variants.objective(config.objective)
    objective.settle(config, cache, held_out)
    objective.spec = objective.sequence_head(padding_of(tokenizer))
    plan = plans.make(
        config,
        world_size=ranks.world_size,
        has_gpu=device.type == "cuda",
        train_packs=order.num_packs,
        capability=devices.oldest(collectives.gather_objects(devices.capability(device))),
    )
    text = plans.describe(config, plan)
    if told:
        known = plans.describe(config, Plan(**read_json(run.plan))).splitlines()
        text = "\n".join(line for line in text.splitlines() if line not in known)
    if ranks.is_main:
        write_json(run.plan, plans.as_dict(plan))
    loader: RowSource = Loader(
        cache,
        order,
        global_sequences=plan.global_sequences,
        micro_batch=plan.micro_batch,
        accumulation=plan.accumulation,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    if device.type == "cuda":
        loader = Ahead(loader, _pinned_for(device))
    rows = objective.rows(loader)
    if text:
        say(text)
    return Data(folders, tokenizer, cache, order.num_packs, held_out, objective, plan, rows)


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
    start: Checkpoint | None
    """The checkpoint that it has gone on from."""
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
    """The model with its adapters and the weights of the newest valid checkpoint, under an engine.

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
    if plan.trainable != trainable:  # DeepSpeed's buckets are cut by it
        plan = replace(plan, trainable=trainable)
        if ranks.is_main:
            write_json(run.plan, plans.as_dict(plan))
    say(f"parameters: {trainable:,} trainable of {total:,} ({trainable / total:.2%})")
    start = _start_from(run, ranks, warn)
    origin = _origin(config, ranks, start, warn)
    if start is None and isinstance(config.peft, AdapterConfig) and config.peft.adapter:
        restoring.load_adapter(config.peft.adapter, model)
        say(f"going on from the adapter in {config.peft.adapter}")
    if start is not None:
        heart.beat("start", 0, "weights")
        restoring.load_weights(start, model)
        say(f"resuming from step {start.step}")
    head = objective.head(model, counts_hits=config.train.token_accuracy)
    if device.type == "cuda" and config.engine.offload_optimizer:
        say("loading DeepSpeed's CPU Adam (built the first time, about a minute)")
    heart.beat("start", 0, "engine")
    engine = make_engine(model, config, plan)
    if start is not None:
        heart.beat("start", 0, "optimizer")
        restoring.load_optimizer(start, engine)
    gc.freeze()
    gc.enable()
    return Learner(model, head, engine, start, origin)


def make_engine(model: nn.Module, config: Config, plan: Plan) -> Engine:
    """The engine that `plan` asks for, around `model`: DeepSpeed, if there is something to
    shard."""
    if plan.zero is None:
        return SingleEngine(model, config, plan)
    return ZeroEngine(model, config, plan, deepspeed.build(config, plan))


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
