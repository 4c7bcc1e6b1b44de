"""Throughput, time to the first step and peak memory on two CPU ranks of one thread, against peers.

usage: python tests/bench/throughput.py MODEL CHATS.jsonl [--turns 5] [--steps 30] [--zero 1 2 3]
           [--peer NAME='COMMAND ...']...

MODEL is a folder with a small causal language model and its tokenizer, CHATS.jsonl has
{"messages"}. The plain DDP loop beside this file always runs; each --peer is a command that prints
`RESULT {json}` with first_step_s and tokens_per_s. All run in turn, so that a noisy machine meets
all of them, and the table shows medians and the median of the turn-by-turn ratios. Tokens are those
of the sequences without padding; the rate is that of steps 4 to the last; memory is the peak
resident size of one rank.
"""

import argparse
import functools
import os
import shlex
import statistics
import sys
import tempfile
import time
from pathlib import Path

from measured import TORCHRUN, lines, peer, run

HERE = Path(__file__).resolve().parent


def ours(options, zero, folder):
    words = [
        "model=hf",
        f"model.name={options.model}",
        "data=chat",
        f"data.train={options.chats}",
        "data.validation_share=0",
        "data.max_length=1024",
        "batch.sequences=4",
        f"train.steps={options.steps}",
        "train.log_every_steps=1",
        f"engine=zero{zero}",
        "optim.lr=1e-3",
        "schedule=constant",
        "eval=none",
        "export.at_end=false",
        f"run.root={folder}",
        f"run.name=zero{zero}-{time.time_ns()}",
    ]
    _, started, memory = run([*TORCHRUN, "-m", "launcher.train", *words], folder)
    records = lines(folder, words)
    first, last = records[2], records[-1]
    seconds = last["time"] - first["time"]
    return {
        "first_step_s": records[0]["time"] - started,
        "tokens_per_s": (last["tokens"] - first["tokens"]) / seconds,
        "target_tokens_per_s": (last["target_tokens"] - first["target_tokens"]) / seconds,
        "memory": memory,
    }


def table(results):
    """Lines of the table; ratios are taken turn by turn against the plain loop."""
    base = results["plain DDP"]
    ratio = f"{'ratio':>8}"
    yield f"{'':<14}{'tok/s':>8}{ratio}{'first step':>12}{ratio}{'memory':>10}{ratio}"
    for name, turns in results.items():
        cells = [f"{name:<14}"]
        for key, form in (
            ("tokens_per_s", "{:>8,.0f}"),
            ("first_step_s", "{:>10.1f} s"),
            ("memory", "{:>6.0f} MiB"),
        ):
            scale = 2**20 if key == "memory" else 1
            cells.append(form.format(statistics.median(turn[key] for turn in turns) / scale))
            ratios = [turn[key] / other[key] for turn, other in zip(turns, base, strict=True)]
            cells.append(f"{statistics.median(ratios):>7.2f}x")
        yield "".join(cells)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=os.path.abspath)
    parser.add_argument("chats", type=os.path.abspath)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--zero", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=COMMAND")
    options = parser.parse_args()
    plain = [*TORCHRUN, str(HERE / "plain_ddp.py"), options.model, options.chats]
    runs = {"plain DDP": lambda folder: peer([*plain, str(options.steps)], folder)}
    for entry in options.peer:
        name, _, command = entry.partition("=")
        runs[name] = functools.partial(peer, shlex.split(command))
    for zero in options.zero:
        runs[f"ours ZeRO-{zero}"] = lambda folder, zero=zero: ours(options, zero, folder)
    results = {name: [] for name in runs}
    with tempfile.TemporaryDirectory() as folder:
        ours(options, options.zero[0], Path(folder))  # warm caches: prepared data, page cache
        for turn in range(options.turns):
            for name, start in runs.items():
                results[name].append(start(Path(folder)))
                rate = results[name][-1]["tokens_per_s"]
                print(f"turn {turn + 1}: {name} {rate:,.0f} tok/s", file=sys.stderr, flush=True)
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
