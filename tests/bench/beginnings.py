"""What it saves that pairs compute once what both answers begin with, in forward and backward.

usage: python tests/bench/beginnings.py MODEL PAIRS.jsonl [--count 40] [--batch 5] [--turns 5]

MODEL is a folder with a causal language model, PAIRS.jsonl has {"prompt", "chosen", "rejected"}.
One process of one thread, fp32, log-probabilities of the answers and their gradients, both ways in
turn; prints tokens, seconds and the median of turn-by-turn ratios.
"""

import argparse
import itertools
import json
import statistics
import time

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.data.chat.masking import ChatOptions
from launcher.data.formats.base import Preference
from launcher.data.pack.loader import make_row
from launcher.model import attention
from launcher.model.head import TargetHead
from launcher.objectives.preference.encoder import PairEncoder


class Records:
    """Pieces of the encoder, as rows are made from them."""

    columns: dict = {}
    is_weighted = False

    def __init__(self, pieces):
        self._pieces = pieces

    def __len__(self):
        return len(self._pieces)

    def record(self, i):
        return self._pieces[i].tokens, self._pieces[i].targets

    def documents(self, i):
        return list(self._pieces[i].lengths)


def read(path, count, tokenizer):
    with open(path) as file:
        lines = [json.loads(line) for line in itertools.islice(file, count)]
    said = [
        Preference(
            *([{"role": "user", "content": line["prompt"]}],),
            *([{"role": "assistant", "content": line[key]}] for key in ("chosen", "rejected")),
        )
        for line in lines
    ]
    return Records([one.pieces[0] for one in PairEncoder(tokenizer, ChatOptions()).encode(said)])


def seconds(model, head, rows, shares):
    head.shares = shares
    model.zero_grad()
    started = time.perf_counter()
    for row in rows:
        head.log_probs(model, row).sum().backward()
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("pairs")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--batch", type=int, default=5, help="pairs a row")
    parser.add_argument("--turns", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    attention.register()
    records = read(options.pairs, options.count, AutoTokenizer.from_pretrained(options.model))
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    model.set_attn_implementation(attention.DOCUMENT)
    head = TargetHead(model)
    cuts = range(0, len(records), options.batch)
    rows = [make_row(records, range(i, min(i + options.batch, len(records)))) for i in cuts]
    whole = sum(len(row.input_ids) for row in rows)
    once = sum(len(row.sharing.kept if row.sharing else row.input_ids) for row in rows)
    seconds(model, head, rows[:1], shares=True)
    turns = [
        [seconds(model, head, rows, shares=way) for way in (False, True)]
        for _ in range(options.turns)
    ]
    print(f"{'':<10}{'tokens':>10}{'seconds':>10}")
    for name, tokens, way in (("each", whole, 0), ("once", once, 1)):
        print(f"{name:<10}{tokens:>10,}{statistics.median(turn[way] for turn in turns):>10.2f}")
    ratio = statistics.median(one / other for one, other in turns)
    print(f"{'ratio':<10}{whole / once:>9.2f}x{ratio:>9.2f}x")


if __name__ == "__main__":
    main()
