"""Evaluates on every rank, with a model whose forward is a collective, and prints the results.

Usage: evaluate_on_ranks.py MODEL_FOLDER NUM_RECORDS lockstep|free
"""

import json
import sys
from dataclasses import asdict
from types import SimpleNamespace

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.core import runtime
from launcher.evals.decoding import Decoding
from launcher.evals.generation import generate_records
from launcher.evals.records import TokenizedPrompt
from launcher.evals.runner import gather, loss_records, plan_batches, rows_of

folder, count, mode = sys.argv[1], int(sys.argv[2]), sys.argv[3]
lockstep = mode == "lockstep"
distributed = runtime.ranks().launched_by == "torchrun"
if distributed:
    dist.init_process_group("gloo")
rank, world_size = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)

model = AutoModelForCausalLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
forwards = []


def in_step(*_):
    """Like ZeRO-3: every forward waits for all ranks, and they must be at the same one."""
    forwards.append(None)
    if distributed and lockstep:
        counts = [torch.zeros(1, dtype=torch.long) for _ in range(world_size)]
        dist.all_gather(counts, torch.tensor([len(forwards)]))
        assert {int(c) for c in counts} == {len(forwards)}


model.register_forward_pre_hook(in_step)
documents = [[1, *range(10 + i, 14 + 3 * i)] for i in range(count)]


def build(ids):
    tokens = torch.tensor(documents[ids[0]])
    return SimpleNamespace(
        input_ids=tokens,
        document_starts=torch.tensor([0, len(tokens)]),
        target_index=torch.arange(len(tokens) - 1),
        sizes=[1],
    )


def score(row):
    logits = model(row.input_ids[None]).logits[0, :-1]
    targets = row.input_ids[1:]
    losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return losses, logits.argmax(-1) == targets


share = {"rank": rank, "world_size": world_size, "lockstep": lockstep}
polls = []


def should_stop():
    """A collective, so it must be asked equally often on every rank."""
    polls.append(None)
    if distributed:
        dist.barrier()
    return False


with torch.no_grad():
    batches = plan_batches([len(d) for d in documents], batch_tokens=1, **share)
    mine = loss_records(rows_of(batches, range(count), build), score, should_stop)
    losses = gather(mine, expected=count)
    prompts = [TokenizedPrompt(i, tokens, "", "") for i, tokens in enumerate(documents)]
    mine = generate_records(
        prompts,
        model,
        tokenizer,
        Decoding(max_new_tokens=12),
        batch_tokens=60,
        should_stop=should_stop,
        **share,
    )
    generations = gather(mine, expected=count)

result = {
    "losses": [asdict(record) for record in losses],
    "generations": [asdict(record) for record in generations],
}
if distributed:
    everywhere = [None] * world_size
    dist.all_gather_object(everywhere, result)
    assert all(other == result for other in everywhere)
    dist.destroy_process_group()
if rank == 0:
    print("RESULT " + json.dumps(result), flush=True)
