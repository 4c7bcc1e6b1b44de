"""Memory of a rank and time of a step by length of a sequence, and by the ranks that share it.

usage: python tests/bench/sequence_parallel.py MODEL [--ranks 4] [--lengths 1024 4096 16384]

MODEL is a folder with a small causal language model. A step is one sequence of each length, a
document of random tokens of which all but the first are learned, on so many ranks of one thread
each at ZeRO-2: of ranks that do not share it each has a sequence of its own, so that as many tokens
take as many times the memory. Printed are the highest memory of a rank beyond what it has before
its first step, and seconds of a step for as many tokens as one sequence has.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from measured import TORCHRUN, lines, run


def measured(options, shared, length, folder):
    """Bytes of the fullest rank in a step, and seconds of a step for one sequence."""
    vocabulary = json.loads((Path(options.model) / "config.json").read_text())["vocab_size"]
    data = folder / f"data-{length}.jsonl"
    if not data.exists():
        words = " ".join(str(n * n % vocabulary) for n in range(length))
        data.write_text("".join(json.dumps({"text": words}) + "\n" for _ in range(64)))
    groups = options.ranks // shared
    name = f"run-{shared}-{length}"
    chosen = [
        *("model=hf", f"model.name={options.model}", "data=text", f"data.train={data}"),
        *("objective=text", "data.validation_share=0", f"data.cache={folder}/cache", "eval=none"),
        *(f"data.max_length={length}", "data.overlong=truncate", f"batch.sequences={groups}"),
        *("batch.micro=1", "peft=none", "engine=zero2", "engine.precision=fp32"),
        *(f"engine.sequence_parallel={shared}", f"train.steps={options.steps}"),
        *("train.log_every_steps=1", "checkpoint.every_steps=null", "export.at_end=false"),
        *(f"run.root={folder}", f"run.name={name}"),
    ]
    ranks = [*TORCHRUN[:-1], str(options.ranks)]
    run([*ranks, "-m", "launcher.train", *chosen], folder)
    kept = lines(folder, chosen)
    seconds = (kept[-1]["time"] - kept[1]["time"]) / (len(kept) - 2)
    ranks = json.loads((folder / name / "memory.json").read_text())["ranks"]
    return max(rank["peak"] for rank in ranks), seconds / groups


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=os.path.abspath)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384])
    parser.add_argument("--steps", type=int, default=4)
    options = parser.parse_args()
    sizes = [n for n in (1, 2, 4, 8) if n <= options.ranks and options.ranks % n == 0]
    print(f"{'tokens':>8}" + "".join(f"{n:>8} MiB{'s':>8}" for n in sizes))
    with tempfile.TemporaryDirectory() as name:
        for length in options.lengths:
            cells = [measured(options, shared, length, Path(name)) for shared in sizes]
            shown = "".join(f"{peak / 2**20:>12.0f}{seconds:>8.2f}" for peak, seconds in cells)
            print(f"{length:>8}{shown}", flush=True)


if __name__ == "__main__":
    main()
