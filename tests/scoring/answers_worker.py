"""One rank that answers prompts under several engine settings, with training before and after.

usage: answers_worker.py MODEL_FOLDER OUT.json CASE...      (started by run_ranks)
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoTokenizer

from launcher.config.derive import deepspeed, plan
from launcher.core import runtime
from launcher.distributed import gathered, rendezvous
from launcher.evals.decoding import Decoding
from launcher.evals.generation import generate_records
from launcher.evals.records import TokenizedPrompt
from launcher.evals.runner import gather
from launcher.model.load import load_model
from launcher.train.setup import make_engine
from launcher.train.zero import connect
from support.configs import make_config

PROMPTS = [TokenizedPrompt(i, list(range(10 + i, 15 + 4 * i)), "", f"d:{i}") for i in range(7)]
#: name -> stage, eval.gather_weights, eval.batch_tokens.
CASES = {
    "zero0": (0, None, 150),
    "zero2": (2, None, 150),
    "fits": (3, None, 150),
    "too large": (3, None, 10**13),
    "sharded": (3, False, 150),
}


def answer(folder, zero, gather_weights, batch_tokens, ranks):
    config = make_config(
        model={"name": folder, "attention": "sdpa"},
        data={"max_length": 64},
        batch={"sequences": 2},
        train={"steps": 1},
        engine={"zero": zero},
        optim={"name": "adamw", "lr": 1e-2},
        eval={"gather_weights": gather_weights, "batch_tokens": batch_tokens},
    )
    made = plan.make(config, world_size=ranks.world_size, has_gpu=False, train_packs=2)
    torch.manual_seed(0)
    settings = deepspeed.build(config, made) if made.zero == 3 else None
    model = load_model(config.model, made, 0, settings)
    engine = make_engine(model, config, made)
    losses, said = [], []

    def step():
        engine.train()
        ids = torch.arange(20, 40).unsqueeze(0)
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step(1.0)
        losses.append(float(loss.detach()))

    def answers(decoding):
        engine.eval()
        with gathered.for_generation(model, config, ranks, said.append) as lockstep:
            mine = generate_records(
                PROMPTS,
                model,
                AutoTokenizer.from_pretrained(folder),
                decoding,
                batch_tokens=config.eval.batch_tokens,
                rank=ranks.rank,
                world_size=ranks.world_size,
                lockstep=lockstep,
            )
        return [asdict(record) for record in gather(mine, expected=len(PROMPTS))]

    greedy = answers(Decoding(12))
    step()
    step()
    drawn = answers(Decoding(12, stop=("ab",), temperature=1.0, seed=5))
    step()
    return {"greedy": greedy, "drawn": drawn, "losses": losses, "said": said}


def main():
    ranks = runtime.ranks()
    store = rendezvous.open_store(ranks, 60)
    rendezvous.join(store, ranks, ranks.world_size, torch.device("cpu"), 60)
    torch.set_num_threads(1)
    connect("cpu")
    results = {name: answer(sys.argv[1], *CASES[name], ranks) for name in sys.argv[3:]}
    if ranks.is_main:
        Path(sys.argv[2]).write_text(json.dumps(results))
    dist.destroy_process_group()


main()
