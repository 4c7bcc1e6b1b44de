"""One rank that learns from given answers under several engine settings.

usage: learning_worker.py CASES.json OUT.json      (started by run_ranks)
"""

from dataclasses import replace

import torch

from launcher.config.derive import deepspeed, plan
from launcher.config.schema import variants
from launcher.config.schema.variants import PEFT_METHODS
from launcher.core.rundir import RunDir
from launcher.data.cache import TokenCache
from launcher.distributed import collectives
from launcher.health.isolation import isolate
from launcher.model.load import load_model
from launcher.rollouts.dealing import rows_of_rank
from launcher.rollouts.journal import RolloutJournal
from launcher.train import restoring
from launcher.train.microbatch import micro_batches
from launcher.train.setup import make_engine
from support.configs import make_config
from support.rank_cases import CPU, agree, compute


def run(case, cases, ranks):
    config = make_config(**case["config"])
    objective = variants.objective(config.objective)
    objective.settle(config, TokenCache.open(cases["cache"]), None)
    made = plan.make(config, world_size=ranks.world_size, has_gpu=False)
    torch.manual_seed(0)
    model = load_model(
        config.model, made, 0, deepspeed.build(config, made) if made.zero == 3 else None
    )
    if config.peft.name != "none":
        torch.manual_seed(0)
        model = PEFT_METHODS.load(config.peft.name)(model, config.peft)
        if config.peft.adapter:
            restoring.load_adapter(config.peft.adapter, model)
    head = objective.head(model)
    engine = make_engine(model, config, made)
    engine.eval()
    isolate(head, engine, model, TokenCache.open(cases["cache"]), CPU, agree, groups=True)
    head.shares &= case["shares"]
    engine.train()
    losses, norms, sums = [], [], []
    computed = tokens = 0

    def count(module, inputs, output):
        nonlocal computed
        computed += inputs[0].numel()

    for step in range(made.steps):
        answers = RolloutJournal(RunDir(cases["run"]), cases["answers"]).read(step)
        if not config.objective.asks_of_drawn:
            answers = [replace(own, teacher_log_probs=None) for own in answers]
        answers = [own for own in answers if own.is_learned]
        packing, shares = config.data.packing, head.shares
        rows = rows_of_rank(answers, objective, made, ranks.rank, packing=packing, shares=shares)
        weight = collectives.sum_over_ranks([sum(map(objective.weight, rows))])[0]
        rows = micro_batches(rows, head, packing)
        engine.eval()
        with torch.no_grad():
            for row in rows:
                objective.over_batch(head, engine, row)
        engine.train()
        total, counted = 0.0, {}
        tokens += sum(len(row.input_ids) for row in rows)
        hook = model.get_input_embeddings().register_forward_hook(count)
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
        hook.remove()
        norms.append(engine.step(1.0).grad_norm)
        losses.append(collectives.sum_over_ranks([total])[0] / weight)
        names = sorted(counted)
        flat = collectives.sum_over_ranks([x for name in names for x in counted[name]])
        sums.append({name: flat[2 * i] / flat[2 * i + 1] for i, name in enumerate(names)})
    found = {"name": case["name"], "losses": losses, "norms": norms, "sums": sums}
    return {**found, "computed": computed, "tokens": tokens}


compute(run)
