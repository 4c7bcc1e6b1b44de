"""One rank that computes rows of model families alone, and with the others that share them.

usage: sequence_worker.py CASES.json OUT.json      (started by run_ranks)
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM

from launcher.core.errors import ConfigError
from launcher.core.runtime import Ranks
from launcher.data.cache import TokenCache
from launcher.data.pack.loader import make_row
from launcher.distributed import collectives
from launcher.health.isolation import isolate, share
from launcher.model import attention
from launcher.model.head import TargetHead
from launcher.model.sequence_parallel import SequenceGroup
from support.adapted import family
from support.rank_cases import CPU, agree, compute


def run(case: dict[str, Any], cases: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    cache = TokenCache.open(cases["cache"])
    torch.manual_seed(0)
    attention.register()
    config = family(case["name"])
    if "rope" in case:
        config.rope_parameters = {"rope_theta": 10000.0, **case["rope"]}
    kind = attention.supported(AutoModelForCausalLM._model_mapping[type(config)], case["attention"])
    model = AutoModelForCausalLM.from_config(config, attn_implementation=kind, dtype=torch.float32)
    head = TargetHead(model, counts_hits=True)
    model.eval()
    isolate(head, model, model, cache, CPU, agree)
    # Documents of several lengths, one longer than a rank's stretch, and a row of few tokens.
    rows = [make_row(cache, own) for own in ([0, 1, 2, 3], [4], [5, 6])]
    found: dict[str, Any] = {"name": case["name"], "layout": head.layout}
    alone = [told(head, model, row) for row in rows]
    try:
        share(head, model, model, cache, CPU, SequenceGroup.make(ranks.world_size), agree)
    except ConfigError as error:
        return {**found, "refused": str(error)}
    together = [told(head, model, row, adds=True) for row in rows]
    for name in alone[0]:
        pairs = [(one[name], other[name]) for one, other in zip(alone, together, strict=True)]
        found[name] = max(
            float((x - y).abs().max() / x.abs().max().clamp(min=1e-6)) for x, y in pairs
        )
    return found


def told(head: TargetHead, model: Any, row: Any, *, adds: bool = False) -> dict[str, torch.Tensor]:
    """What a head says of a row, and the gradients of both ways to learn from it, added up over
    the ranks where each has some of them."""
    found = {}
    for name in ("loss", "log_probs"):
        model.zero_grad()
        if name == "loss":
            value = head.loss(model, row, 0.1)
        else:
            value = (head.log_probs(model, row) * torch.linspace(0.5, 1.5, len(row.targets))).sum()
        value.backward()
        assert head.hits is not None
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        grad = torch.cat(grads)
        if adds:
            grad = torch.tensor(collectives.sum_over_ranks(grad.tolist()))
        found |= {name: value.detach(), f"{name}_grad": grad.float(), f"{name}_hits": head.hits}
    losses, correct = head.score(model, row)
    part = head.logits_by_part(model, row)(slice(None))
    return {**found, "losses": losses, "correct": correct.float(), "logits": part.detach()}


compute(run)
