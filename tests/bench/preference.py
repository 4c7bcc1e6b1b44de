"""Preferences and distillation beside TRL: the same losses and gradients, and tokens a second.

usage: python tests/bench/preference.py equal MODEL PAIRS.jsonl --trl PYTHON [--steps 5]
           [--only 'dpo, ipo' ...]
       python tests/bench/preference.py speed MODEL PAIRS.jsonl --trl PYTHON [--turns 5]

MODEL is a folder with a small causal language model, PAIRS.jsonl has {"prompt", "chosen",
"rejected"} as texts, PYTHON has trl (see `preference_trl.py`). `equal` trains each objective for
some steps from the same weights on the same records in the same order, on one rank, in fp32,
without packing, and prints the largest relative differences. Templates write what lies between
turns, which TRL learns and the launcher does not: both read the texts as they are. Reward models
begin with the same head, distillation has the model with noise on its weights as the teacher.
Rows that end in "as it is" are of what TRL defines otherwise: they are to differ, and say how far.

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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measured import TORCHRUN, TWO_RANKS, lines, peer, run

HERE = Path(__file__).resolve().parent


@dataclass
class Case:
    """One objective, here and there."""

    own: str
    """Overrides here; FOLDER stands for that of models and data."""
    trainer: str
    """Which one of `preference_trl.py`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Its options."""
    data: str = "preference"
    """Format of the records."""
    file: str = "pairs"
    model: str = "model"
    batch: int | None = None
    """Records of a step, where it is not that of the command line."""


SFT = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 1.0]}
KTO = {"beta": 0.3, "desirable_weight": 1.0, "undesirable_weight": 1.5}
KTO_HERE = "objective=kto objective.beta=0.3 objective.undesirable_weight=1.5"
DISTILL = "objective=distill objective.alpha=1 objective.teacher=FOLDER/teacher"
GKD = {"lmbda": 0.0, "teacher": "FOLDER/teacher"}
CASES = {
    "dpo": Case("objective=dpo", "dpo", {"loss_type": ["sigmoid"], "beta": 0.1}),
    "dpo, smoothing": Case(
        "objective=dpo objective.loss=robust objective.label_smoothing=0.1",
        "dpo",
        {"loss_type": ["robust"], "label_smoothing": 0.1, "beta": 0.1},
    ),
    "dpo, hinge": Case("objective=dpo objective.loss=hinge", "dpo", {"loss_type": ["hinge"]}),
    "dpo, ipo": Case("objective=dpo objective.loss=ipo", "dpo", {"loss_type": ["ipo"]}),
    "dpo, apo_zero": Case(
        "objective=dpo objective.loss=apo_zero", "dpo", {"loss_type": ["apo_zero"]}
    ),
    "dpo, apo_down": Case(
        "objective=dpo objective.loss=apo_down", "dpo", {"loss_type": ["apo_down"]}
    ),
    "dpo, sft": Case("objective=dpo objective.sft_weight=1", "dpo", SFT, batch=1),
    "dpo, sft, as it is": Case("objective=dpo objective.sft_weight=1", "dpo", SFT),
    "cpo, no sft": Case(
        "objective=cpo objective.sft_weight=0", "cpo", {"cpo_alpha": 0.0, "beta": 0.1}
    ),
    "cpo": Case("objective=cpo", "cpo", {"cpo_alpha": 1.0, "beta": 0.1}, batch=1),
    "cpo, as it is": Case("objective=cpo", "cpo", {"cpo_alpha": 1.0, "beta": 0.1}),
    "simpo": Case(
        "objective=simpo objective.beta=2 objective.gamma=1",
        "cpo",
        {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0},
    ),
    "orpo": Case("objective=orpo", "orpo of answers", {"beta": 0.1}),
    "orpo, as it is": Case("objective=orpo", "orpo", {"beta": 0.1}),
    "kto": Case(KTO_HERE, "kto", KTO, data="unpaired", file="verdicts"),
    "kto, as it is": Case(KTO_HERE, "kto", KTO, data="unpaired", file="answers"),
    "reward": Case("objective=reward", "reward", model="rewarding"),
    "reward, margins": Case(
        "objective=reward objective.margin_weight=1 objective.centering=0.01",
        "reward",
        {"center_rewards_coefficient": 0.01},
        file="rated",
        model="rewarding",
    ),
    "distill": Case(DISTILL, "gkd", {**GKD, "beta": 0.0}, data="prompt", file="chosen"),
    "distill, reverse": Case(
        f"{DISTILL} objective.divergence=reverse",
        "gkd",
        {**GKD, "beta": 1.0},
        data="prompt",
        file="chosen",
    ),
    "distill, jsd": Case(
        f"{DISTILL} objective.divergence=jsd objective.beta=0.3",
        "gkd",
        {**GKD, "beta": 0.3},
        data="prompt",
        file="chosen",
    ),
}


def words(options, model, data, records, folder, *more):
    return [
        *("model=hf", f"model.name={model}", f"data={data}", f"data.train={records}"),
        *("data.validation_share=0", "data.max_length=2048", f"data.cache={folder}/cache"),
        *("engine.precision=fp32", "optim.lr=1e-3", "schedule=constant", "optim.beta2=0.999"),
        *("optim.weight_decay=0", "eval=none", "export.at_end=false", "train.log_every_steps=1"),
        *("checkpoint.every_steps=null", f"train.steps={options.steps}", f"run.root={folder}"),
        *(f"run.name=run-{time.time_ns()}", *more),
    ]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def make_models(model, folder):
    """The model without a chat template, one with a head for rewards, and a teacher."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    for name in ("model", "rewarding", "teacher"):
        copy = folder / name
        shutil.copytree(model, copy)
        (copy / "chat_template.jinja").unlink(missing_ok=True)
        about = json.loads((copy / "tokenizer_config.json").read_text())
        about.pop("chat_template", None)
        (copy / "tokenizer_config.json").write_text(json.dumps(about))
    torch.manual_seed(0)
    rewarding = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    rewarding.save_pretrained(folder / "rewarding")
    teacher = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for weights in teacher.parameters():
            if weights.dim() > 1:
                weights += 0.5 * weights.std() * torch.randn_like(weights)
    teacher.save_pretrained(folder / "teacher")


def make_data(pairs, folder, steps, batch):
    """Files of records: pairs whose prompts end their line, as they are and rated; chosen answers;
    and answers that are good or bad, three of them to one."""
    records = [json.loads(line) for line in Path(pairs).read_text().splitlines()]
    for record in records:
        record["prompt"] = record["prompt"].rstrip() + "\n"
    write(folder / "pairs.jsonl", records)
    write(folder / "rated.jsonl", [{**r, "margin": 0.5 + i % 3} for i, r in enumerate(records)])
    write(
        folder / "chosen.jsonl",
        [{"prompt": r["prompt"], "completion": r["chosen"]} for r in records],
    )
    answers = []
    for i, record in enumerate({record["prompt"]: record for record in records}.values()):
        answer = record["rejected" if i % 4 == 1 else "chosen"]
        answers.append({"prompt": record["prompt"], "completion": answer, "label": i % 4 != 1})
    write(folder / "answers.jsonl", answers)
    # TRL's mismatched answer of a batch's first record is that of its last one, here that of the
    # record before it: the same where all batches end alike.
    last, others = answers[0], iter(answers[1:])
    ended = [[*(next(others) for _ in range(batch - 1)), last] for _ in range(steps)]
    write(folder / "verdicts.jsonl", [one for own in ended for one in own])


def differences(options, case, folder):
    """Largest relative differences of a step's loss and gradient norm."""
    batch, records = case.batch or options.batch, folder / f"{case.file}.jsonl"
    more = (*case.own.replace("FOLDER", str(folder)).split(), "data.shuffle=false")
    more += ("data.packing=false", "engine=zero0", f"batch.sequences={batch}")
    more += ("optim.clip_norm=0", "optim.lr=1e-4")
    chosen = words(options, folder / case.model, case.data, records, folder, *more)
    run([sys.executable, "-m", "launcher.train", *chosen], folder)
    script = [options.trl, str(HERE / "preference_trl.py"), "equal", str(folder / case.model)]
    theirs = json.dumps(case.options).replace("FOLDER", str(folder))
    rest = [str(records), case.trainer, theirs, str(options.steps), str(batch)]
    found, ours = peer([*script, *rest], folder), lines(folder, chosen)
    for key, their in (("loss", found["losses"]), ("grad_norm", found["norms"])):
        both = zip(ours, their, strict=True)
        yield max(abs(line[key] - other) / abs(other) for line, other in both)


def equal(options):
    print(f"{'':<20}{'loss':>10}{'gradient':>10}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(options.model, folder)
        make_data(options.pairs, folder, options.steps, options.batch)
        for title in options.only or CASES:
            cells = (f"{worst:>10.1e}" for worst in differences(options, CASES[title], folder))
            print(f"{title:<20}{''.join(cells)}", flush=True)


def ours(options, weights, folder):
    shutil.rmtree(folder / "cache" / "reference", ignore_errors=True)
    more = ["objective=dpo", "engine=zero2", f"batch.sequences={options.batch}"]
    more += ["peft=lora", "peft.rank=16"] if weights == "lora" else ["peft=none"]
    chosen = words(options, options.model, "preference", options.pairs, folder, *more)
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
    parser.add_argument("--only", nargs="+", choices=CASES, metavar="ROW", help="rows of `equal`")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4, help="sequences of ours a step")
    parser.add_argument("--pairs-a-rank", type=int, default=6, help="TRL's, about as many tokens")
    parser.add_argument("--weights", nargs="+", default=["full", "lora"])
    options = parser.parse_args()
    (equal if options.verb == "equal" else speed)(options)


if __name__ == "__main__":
    main()
