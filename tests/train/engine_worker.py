"""One rank that trains the same few steps under several engine settings and writes what it saw.

usage: engine_worker.py CASES.json OUT.json      (started by run_ranks)
"""

import torch
from torch._dynamo.utils import counters

from launcher.config.derive import deepspeed, plan
from launcher.config.schema import variants
from launcher.config.schema.variants import PEFT_METHODS
from launcher.data.cache import TokenCache
from launcher.data.pack.loader import Loader
from launcher.data.pack.packing import PackedOrder
from launcher.distributed import collectives
from launcher.health.isolation import isolate, share
from launcher.model.layers import compile_layers
from launcher.model.load import load_model
from launcher.model.sequence_parallel import SequenceGroup
from launcher.train.microbatch import micro_batches
from launcher.train.setup import make_engine
from support.configs import make_config
from support.rank_cases import CPU, agree, compute


def run(case, cases, ranks):
    config = make_config(**case["config"])
    cache = TokenCache.open(case.get("cache", cases["cache"]))
    objective = variants.objective(config.objective)
    objective.settle(config, cache, None)
    spec = objective.sequence_head()
    order = PackedOrder(
        cache.lengths, config.data.max_length, config.seed, config.data.shuffle, config.data.packing
    )
    made = plan.make(
        config, world_size=ranks.world_size, has_gpu=False, train_packs=order.num_packs
    )
    loader = Loader(
        cache,
        order,
        global_sequences=made.global_sequences,
        micro_batch=made.micro_batch,
        accumulation=made.accumulation,
        rank=ranks.rank // made.sequence_parallel,
        world_size=made.groups,
    )
    torch.manual_seed(0)
    zero3 = deepspeed.build(config, made) if made.zero == 3 else None
    model = load_model(config.model, made, 0, zero3, spec)
    if config.peft.name != "none":
        head = model.fresh_modules if spec else None
        model = PEFT_METHODS.load(config.peft.name)(model, config.peft, head)
    head = objective.head(model)
    engine = make_engine(model, config, made)
    norms = [m for m in model.modules() if type(m).__name__ == "LlamaRMSNorm"]
    is_lean = ["forward" in vars(norm) for norm in norms]
    keeps = config.model.gradient_checkpointing or config.model.compile
    if config.model.activation_gib is not None:  # those of layers that recompute are not
        assert is_lean[-1]
        assert not is_lean[0]
    else:
        assert is_lean == [not keeps] * len(norms)
    assert norms or spec
    if spec:
        engine.eval()
        isolate(head, engine, model, cache, CPU, agree)
        assert head.layout.startswith(case.get("layout", ""))
        engine.train()
    counts = ranks.rank % made.sequence_parallel == 0
    if made.sequence_parallel > 1:
        engine.eval()
        isolate(head, engine, model, cache, CPU, agree)
        group = SequenceGroup.make(made.sequence_parallel)
        share(head, engine, model, cache, CPU, group, agree)
        engine.train()
    if config.model.compile:
        counters.clear()
        compile_layers(model)
    losses, grad_norms = [], []
    for step in range(made.steps):
        rows = loader.step(step)
        weight = collectives.sum_over_ranks([counts * sum(map(objective.weight, rows))])[0]
        total = 0.0
        rows = micro_batches(rows, head, config.data.packing)
        for index, row in enumerate(rows):
            loss = objective.loss(head, engine, row).total * (not row.is_filler)
            engine.backward(loss * (ranks.world_size / weight))
            total += float(loss.detach())
            if index < len(rows) - 1:
                engine.micro_step()
        grad_norms.append(engine.step(1.0).grad_norm)
        losses.append(collectives.sum_over_ranks([counts * total])[0] / weight)
    assert spec or (head.head is None) == case.get("fallback", False)
    found = {"name": case["name"], "losses": losses, "norms": grad_norms}
    if config.model.compile:
        found["graphs"] = counters["stats"]["unique_graphs"]
        found["breaks"] = list(counters["graph_break"])
    return found


compute(run)
