"""Preference tuning beside TRL: the same losses and gradients, and tokens a second.

usage: python tests/bench/preference.py equal MODEL PAIRS.jsonl --trl PYTHON [--steps 5]
       python tests/bench/preference.py speed MODEL PAIRS.jsonl --trl PYTHON [--turns 5]

MODEL is a folder with a small causal language model, PAIRS.jsonl has {"prompt", "chosen",
"rejected"} as texts, PYTHON has trl (see `preference_trl.py`). `equal` trains each objective for
some steps from the same weights on the same records in the same order, on one rank, in fp32,
without packing, and prints the largest relative differences. Templates write what lies between
turns, which TRL learns and the launcher does not: both read the texts as they are.

`speed` runs on two ranks of one thread each at ZeRO-2, in turn, and prints medians and the median
of turn-by-turn ratios. Tokens are those without padding, prompts and answers. The time of the
launcher has in it that of asking the reference for the records of its steps, though runs that
follow find it in the cache; a fresh one is made for each turn.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from measured import TORCHRUN, TWO_RANKS, lines, peer, run

HERE = Path(__file__).resolve().parent
TRAIN = [sys.executable, "-m", "launcher.train"]
#: Name -> overrides here; objective and options there.
OBJECTIVES = {
    "dpo": ("objective=dpo", "dpo", {"loss_type": ["sigmoid"], "beta": 0.1}),
    "dpo, smoothing": (
        "objective=dpo objective.loss=robust objective.label_smoothing=0.1",
        "dpo",
        {"loss_type": ["robust"], "label_smoothing": 0.1, "beta": 0.1},
    ),
    "dpo, hinge": ("objective=dpo objective.loss=hinge", "dpo", {"loss_type": ["hinge"]}),
    "dpo, ipo": ("objective=dpo objective.loss=ipo", "dpo", {"loss_type": ["ipo"]}),
    "dpo, apo_zero": ("objective=dpo objective.loss=apo_zero", "dpo", {"loss_type": ["apo_zero"]}),
    "dpo, apo_down": ("objective=dpo objective.loss=apo_down", "dpo", {"loss_type": ["apo_down"]}),
    "cpo": ("objective=cpo objective.sft_weight=0", "cpo", {"cpo_alpha": 0.0, "beta": 0.1}),
    "simpo": (
        "objective=simpo objective.beta=2 objective.gamma=1",
        "cpo",
        {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0},
    ),
}


def words(options, model, pairs, folder, *more):
    return [
        *("model=hf", f"model.name={model}", "data=preference", f"data.train={pairs}"),
        *("data.validation_share=0", "data.max_length=2048", f"data.cache={folder}/cache"),
        *("engine.precision=fp32", "optim.lr=1e-3", "schedule=constant", "optim.beta2=0.999"),
        *("optim.weight_decay=0", "eval=none", "export.at_end=false", "train.log_every_steps=1"),
        *("checkpoint.every_steps=null", f"train.steps={options.steps}", f"run.root={folder}"),
        *(f"run.name=run-{time.time_ns()}", *more),
    ]


def plain(model, pairs, folder):
    """The model without a chat template, and prompts that end their line."""
    copy = folder / "model"
    shutil.copytree(model, copy)
    (copy / "chat_template.jinja").unlink(missing_ok=True)
    about = json.loads((copy / "tokenizer_config.json").read_text())
    about.pop("chat_template", None)
    (copy / "tokenizer_config.json").write_text(json.dumps(about))
    records = [json.loads(line) for line in Path(pairs).read_text().splitlines()]
    for record in records:
        record["prompt"] = record["prompt"].rstrip() + "\n"
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return copy, folder / "pairs.jsonl"


def equal(options):
    print(f"{'':<16}{'loss':>10}{'gradient':>10}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, pairs = plain(options.model, options.pairs, folder)
        for title, (own, objective, theirs) in OBJECTIVES.items():
            more = (*own.split(), "data.shuffle=false", "data.packing=false", "engine=zero0")
            more += (f"batch.sequences={options.batch}", "optim.clip_norm=0", "optim.lr=1e-4")
            chosen = words(options, model, pairs, folder, *more)
            run([*TRAIN, *chosen], folder)
            ours = lines(folder, chosen)
            script = [options.trl, str(HERE / "preference_trl.py"), "equal", str(model), str(pairs)]
            rest = [objective, json.dumps(theirs), str(options.steps), str(options.batch)]
            found = peer([*script, *rest], folder)
            cells = [f"{title:<16}"]
            for key, their in (("loss", found["losses"]), ("grad_norm", found["norms"])):
                pairs_of = zip(ours, their, strict=True)
                worst = max(abs(line[key] - other) / abs(other) for line, other in pairs_of)
                cells.append(f"{worst:>10.1e}")
            print("".join(cells), flush=True)


def ours(options, weights, folder):
    shutil.rmtree(folder / "cache" / "reference", ignore_errors=True)
    more = ["objective=dpo", "engine=zero2", f"batch.sequences={options.batch}"]
    more += ["peft=lora", "peft.rank=16"] if weights == "lora" else ["peft=none"]
    chosen = words(options, options.model, options.pairs, folder, *more)
    text, started, memory = run([*TORCHRUN, "-m", "launcher.train", *chosen], folder)
    records = lines(folder, chosen)
    first, last = records[2], records[-1]
    asked = sum(map(float, re.findall(r"reference: .*, ([0-9.]+) s", text)))
    seconds = last["time"] - first["time"] + asked * (len(records) - 3) / len(records)
    return {
        "tokens_per_s": (last["tokens"] - first["tokens"]) / seconds,
        "first_step_s": records[0]["time"] - started,
        "memory": memory,
    }


def speed(options):
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours(options, "full", folder)  # warm caches: prepared data, page cache
        script = [options.trl, *TWO_RANKS, str(HERE / "preference_trl.py"), "speed"]
        for turn in range(options.turns):
            for weights in options.weights:
                args = [options.model, options.pairs, weights, str(options.steps)]
                theirs = peer([*script, *args, str(options.pairs_a_rank)], folder)
                for tool, found in (("TRL", theirs), ("ours", ours(options, weights, folder))):
                    results.setdefault((weights, tool), []).append(found)
                    rate = found["tokens_per_s"]
                    said = f"turn {turn + 1}: {weights}, {tool} {rate:,.0f} tok/s"
                    print(said, file=sys.stderr, flush=True)
    print(f"{'':<12}{'tok/s':>8}{'ratio':>8}{'first step':>12}{'memory':>12}{'ratio':>8}")
    for (weights, tool), turns in results.items():
        cells = [f"{weights + ', ' + tool:<12}"]
        keys = (("tokens_per_s", "{:>8,.0f}"), ("first_step_s", "{:>10.1f} s"), ("memory", ""))
        for key, form in keys:
            middle = statistics.median(turn[key] for turn in turns)
            cells.append(form.format(middle) if form else f"{middle / 2**20:>8.0f} MiB")
            if key != "first_step_s":
                both = zip(turns, results[weights, "TRL"], strict=True)
                ratio = statistics.median(one[key] / other[key] for one, other in both)
                cells.append(f"{ratio:>7.2f}x")
        print("".join(cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=["equal", "speed"])
    parser.add_argument("model", type=os.path.abspath)
    parser.add_argument("pairs", type=os.path.abspath)
    parser.add_argument("--trl", required=True, metavar="PYTHON", help="a Python that has trl")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4, help="sequences of ours a step")
    parser.add_argument("--pairs-a-rank", type=int, default=6, help="TRL's, about as many tokens")
    parser.add_argument("--weights", nargs="+", default=["full", "lora"])
    options = parser.parse_args()
    (equal if options.verb == "equal" else speed)(options)


if __name__ == "__main__":
    main()
