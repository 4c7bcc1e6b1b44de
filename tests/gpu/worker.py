"""One rank that trains the same few steps under several engine settings, on the GPU or on the CPU.

usage: worker.py cuda|cpu CASES.json OUT.json      (started by run_ranks)
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from launcher.config.derive import deepspeed, plan
from launcher.config.schema import variants
from launcher.config.schema.variants import PEFT_METHODS
from launcher.core import runtime
from launcher.data.cache import TokenCache
from launcher.data.pack.loader import Loader
from launcher.data.pack.packing import PackedOrder
from launcher.distributed import rendezvous
from launcher.model.load import load_model
from launcher.train.setup import make_engine
from launcher.train.zero import connect
from support.configs import make_config


def run(case, cache, device):
    config = make_config(**case["config"])
    order = PackedOrder(
        cache.lengths, config.data.max_length, config.seed, config.data.shuffle, config.data.packing
    )
    made = plan.make(
        config, world_size=1, has_gpu=device.type == "cuda", train_packs=order.num_packs
    )
    loader = Loader(
        cache,
        order,
        global_sequences=made.global_sequences,
        micro_batch=made.micro_batch,
        accumulation=made.accumulation,
        rank=0,
        world_size=1,
    )
    torch.manual_seed(0)
    settings = deepspeed.build(config, made) if made.zero == 3 else None
    model = load_model(config.model, made, 0, settings)
    if config.peft.name != "none":
        torch.manual_seed(0)  # adapters are made on the CPU, except at stage 3
        model = PEFT_METHODS.load(config.peft.name)(model, config.peft)
    objective = variants.objective(config.objective)
    head = objective.head(model)
    engine = make_engine(model, config, made)
    losses, norms = [], []
    for step in range(made.steps):
        rows = [row.to(device) for row in loader.step(step)]
        weight = sum(map(objective.weight, rows))
        total = 0.0
        for index, row in enumerate(rows):
            loss = objective.loss(head, engine, row).total
            engine.backward(loss * (1 / weight))
            total += float(loss.detach())
            if index < len(rows) - 1:
                engine.micro_step()
        norms.append(engine.step(1.0).grad_norm)
        losses.append(total / weight)
    assert head.head is not None
    where = {parameter.device.type for parameter in model.parameters()}
    return {
        "name": case["name"],
        "losses": losses,
        "norms": norms,
        "attention": made.attention,
        "devices": sorted(where),
    }


def main():
    device = torch.device(sys.argv[1])
    if device.type == "cuda":
        device = torch.device("cuda", 0)
        torch.cuda.set_device(device)
    assert torch.get_float32_matmul_precision() == "highest"
    cases = json.loads(Path(sys.argv[2]).read_text())
    ranks = runtime.ranks()
    store = rendezvous.open_store(ranks, 60)
    rendezvous.join(store, ranks, 1, device, 60)
    torch.set_num_threads(1)
    connect(device.type)
    cache = TokenCache.open(cases["cache"])
    results = [run(case, cache, device) for case in cases["cases"]]
    Path(sys.argv[3]).write_text(json.dumps(results))
    dist.destroy_process_group()


main()
