"""A hand-written DDP loop on packed rows: what a plain script reaches, for comparison.

usage: torchrun --nproc-per-node 2 tests/bench/plain_ddp.py MODEL CHATS.jsonl STEPS

Rows of 1,024 tokens cut from the chats laid end to end, two rows a rank and step, every position a
target, whole logits. Prints `RESULT {json}` on rank 0.
"""

import json
import sys
import time

START = time.time()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

LENGTH, ROWS = 1024, 2


def rows_of(path, tokenizer, count):
    """The first `count` rows: token ids and positions, each [LENGTH]."""
    ids, positions = [], []
    with open(path) as lines:
        for line in lines:
            chat = json.loads(line)["messages"]
            encoded = tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)
            tokens = encoded["input_ids"]
            ids += tokens
            positions += range(len(tokens))
            if len(ids) >= count * LENGTH:
                break
    cut = [slice(i * LENGTH, (i + 1) * LENGTH) for i in range(count)]
    return [(ids[part], positions[part]) for part in cut]


def main():
    folder, chats, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = DistributedDataParallel(AutoModelForCausalLM.from_pretrained(folder))
    rows = rows_of(chats, tokenizer, steps * world * ROWS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ends = []
    for step in range(steps):
        first = (step * world + rank) * ROWS
        ids, positions = (torch.tensor(x) for x in zip(*rows[first : first + ROWS], strict=True))
        model(input_ids=ids, position_ids=positions, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ends.append(time.time())
    if rank == 0:
        tokens = (steps - 3) * world * ROWS * LENGTH
        result = {"first_step_s": ends[0] - START, "tokens_per_s": tokens / (ends[-1] - ends[2])}
        print("RESULT", json.dumps(result))
    dist.destroy_process_group()


main()
