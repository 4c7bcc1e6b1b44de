"""One rank that computes the gradient of one global batch of models with experts, as the loop does,
and writes it.

usage: experts_worker.py CASES.json OUT.json      (started by run_ranks)
"""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from deepspeed.utils import safe_get_full_grad

from launcher.config.derive import deepspeed, plan
from launcher.config.schema import WatchdogConfig, variants
from launcher.config.schema.variants import PEFT_METHODS
from launcher.core.rundir import RunDir
from launcher.data.cache import TokenCache
from launcher.data.pack.loader import Loader
from launcher.data.pack.packing import PackedOrder
from launcher.distributed import collectives
from launcher.health.heartbeat import Heartbeat
from launcher.health.isolation import isolate
from launcher.health.stragglers import OwnTime
from launcher.model.load import load_model
from launcher.train.loop import Progress, Training
from launcher.train.microbatch import micro_batches
from launcher.train.routing import Routing
from launcher.train.setup import make_engine
from support.configs import make_config
from support.rank_cases import CPU, agree, compute


def run(case, cases, ranks):
    config = make_config(**case["config"])
    cache = TokenCache.open(cases["cache"])
    order = PackedOrder(cache.lengths, config.data.max_length, 0, False, config.data.packing)
    made = plan.make(
        config, world_size=ranks.world_size, has_gpu=False, train_packs=order.num_packs
    )
    loader = Loader(
        cache,
        order,
        global_sequences=made.global_sequences,
        micro_batch=made.micro_batch,
        accumulation=made.accumulation,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    zero3 = deepspeed.build(config, made) if made.zero == 3 else None
    model = load_model(config.model, made, 0, zero3)
    if config.peft.name != "none":
        torch.manual_seed(0)
        model = PEFT_METHODS.load(config.peft.name)(model, config.peft)
    objective = variants.objective(config.objective)
    head = objective.head(model)
    engine = make_engine(model, config, made)
    engine.eval()
    isolate(head, engine, model, cache, CPU, agree)
    engine.train()
    routing = Routing(model, config.train.router_aux, ranks.world_size)
    routing.attach()
    folder = Path(cases["folder"]) / case["name"]
    beats = RunDir(folder / f"run-{ranks.rank}")
    beats.heartbeats.mkdir(parents=True)
    training = SimpleNamespace(
        heart=Heartbeat(beats, ranks, 1, WatchdogConfig()),
        progress=Progress(),
        objective=objective,
        engine=engine,
        ranks=ranks,
        head=head,
        own_time=OwnTime(CPU),
    )
    training.look = partial(Training.look, training)
    rows = micro_batches(loader.step(0), head, config.data.packing)
    weight = collectives.sum_over_ranks([float(sum(map(objective.weight, rows)))])[0]
    losses, _ = Training.backward(training, rows, weight, routing)
    load = routing.load()
    total = collectives.sum_over_ranks([float(sum(losses))])[0]
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            one = parameter.grad if made.zero is None else safe_get_full_grad(parameter)
            found[name] = None if one is None else one.detach().clone()
    if ranks.is_main:
        torch.save(found, folder / "gradients.pt")
    return {
        "name": case["name"],
        "loss": total / weight,
        "aux": load.aux,
        "rows": len(rows),
        "shares": load.shares,
        "entropy": load.entropy,
        "isolates": head.isolates,
    }


compute(run)
