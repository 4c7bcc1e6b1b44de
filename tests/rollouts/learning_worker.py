"""One rank that learns from given answers under several engine settings.

usage: learning_worker.py CASES.json OUT.json      (started by run_ranks)
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
from launcher.core.rundir import RunDir
from launcher.data.cache import TokenCache
from launcher.distributed import collectives, rendezvous
from launcher.health.isolation import isolate
from launcher.model.load import load_model
from launcher.rollouts.dealing import deal, row_of
from launcher.rollouts.journal import RolloutJournal
from launcher.train.microbatch import micro_batches
from launcher.train.setup import make_engine
from launcher.train.zero import connect
from support.configs import make_config

CPU = torch.device("cpu")


def agree(mine):
    return collectives.sum_over_ranks([float(not mine)])[0] == 0


def run(case, cases, ranks):
    config = make_config(**case["config"])
    objective = variants.objective(config.objective)
    made = plan.make(config, world_size=ranks.world_size, has_gpu=False)
    torch.manual_seed(0)
    model = load_model(
        config.model, made, 0, deepspeed.build(config, made) if made.zero == 3 else None
    )
    if config.peft.name != "none":
        torch.manual_seed(0)
        model = PEFT_METHODS.load(config.peft.name)(model, config.peft)
    head = objective.head(model)
    engine = make_engine(model, config, made)
    engine.eval()
    isolate(head, engine, model, TokenCache.open(cases["cache"]), CPU, agree)
    engine.train()
    losses, norms, sums = [], [], []
    for step in range(made.steps):
        answers = RolloutJournal(RunDir(cases["run"]), cases["answers"]).read(step)
        answers = [own for own in answers if own.is_learned]
        lengths = [len(own.prompt_tokens) + len(own.tokens) for own in answers]
        packing = config.data.packing
        rows = [
            row_of([answers[i] for i in own.places], idle=own.is_idle)
            for own in deal(lengths, made, packing=packing)[ranks.rank]
        ]
        weight = collectives.sum_over_ranks([sum(map(objective.weight, rows))])[0]
        rows = micro_batches(rows, head, packing)
        engine.eval()
        with torch.no_grad():
            for row in rows:
                objective.over_batch(head, engine, row)
        engine.train()
        total, counted = 0.0, {}
        for index, row in enumerate(rows):
            engine.last_micro_batch(index == len(rows) - 1)
            found = objective.loss(head, engine, row)
            loss = found.total * (not row.is_filler)
            engine.backward(loss * (ranks.world_size / weight))
            total += float(loss.detach())
            for name, pair in found.sums.items():
                before = counted.get(name, (0.0, 0.0))
                more = [float(one) * (not row.is_filler) for one in pair]
                counted[name] = [x + y for x, y in zip(before, more, strict=True)]
            if index < len(rows) - 1:
                engine.micro_step()
        norms.append(engine.step(1.0).grad_norm)
        losses.append(collectives.sum_over_ranks([total])[0] / weight)
        names = sorted(counted)
        flat = collectives.sum_over_ranks([x for name in names for x in counted[name]])
        sums.append({name: flat[2 * i] / flat[2 * i + 1] for i, name in enumerate(names)})
    return {"name": case["name"], "losses": losses, "norms": norms, "sums": sums}


def main():
    cases = json.loads(Path(sys.argv[1]).read_text())
    ranks = runtime.ranks()
    store = rendezvous.open_store(ranks, 60)
    rendezvous.join(store, ranks, ranks.world_size, CPU, 60)
    torch.set_num_threads(1)
    connect("cpu")
    results = [run(case, cases, ranks) for case in cases["cases"]]
    if ranks.is_main:
        Path(sys.argv[2]).write_text(json.dumps(results))
    dist.destroy_process_group()


main()
