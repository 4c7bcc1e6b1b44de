"""GRPO and its kin beside TRL's GRPOTrainer, RLOOTrainer and GKDTrainer: the same losses and
gradients on the same answers, and answers a second.

usage: python tests/bench/reinforce.py equal MODEL PROMPTS.jsonl --trl PYTHON [--steps 5]
           [--only 'grpo, k3' ...]
       python tests/bench/reinforce.py speed MODEL PROMPTS.jsonl --trl PYTHON [--turns 5]

MODEL is a folder with a small causal language model, PROMPTS.jsonl has {"prompt", "completion"},
PYTHON has trl (see `reinforce_trl.py`).

`equal`: each loss is trained for some steps by the launcher, on one
rank, in fp32; TRL is then given the answers that were drawn and their scores, and makes advantages,
losses and updates of its own. Printed are the largest difference of a step's loss and the largest
relative one of its gradient norm. An answer's score grows with its share of the letter e. The
teacher is the model with noise on its weights. TRL has no REINFORCE: `reinforce` is its RLOO with
all answers of a step as one group and normalised advantages, which has the same gradient before
any update, but another value.

`speed` runs whole steps (rollout, grading, update) on two ranks of one thread each at ZeRO-2, in
turn: groups of 8, equally many answers a step, drawn by each tool itself at temperature 1 without a
reference, and scored by whether they have "the" in them. The first two steps do not count. Printed
are medians, and the median of turn-by-turn ratios.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from measured import TORCHRUN, TWO_RANKS, lines, peer, run

HERE = Path(__file__).resolve().parent
CODE = """def grade(sample, item):
    text = sample["output_text"]
    return min(1.0, 5 * text.count("e") / max(1, len(text)))
"""
GROUP, ANSWERS, NEW = 4, 32, 24
TAUGHT = "objective.loss=dapo objective.teacher=FOLDER/teacher objective.teacher_divergence"
#: Name -> overrides here, options there.
LOSSES = {
    "grpo": ("objective.loss=grpo", {"loss_type": "grpo"}),
    "grpo, k3": (
        "objective.loss=grpo objective.beta=0.2",
        {"loss_type": "grpo", "beta": 0.2, "use_bias_correction_kl": False},
    ),
    "grpo, batch": (
        "objective.loss=grpo objective.advantage=batch",
        {"loss_type": "grpo", "scale_rewards": "batch"},
    ),
    "dr_grpo": ("objective.loss=dr_grpo", {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    "dapo": ("objective.loss=dapo", {"loss_type": "dapo", "epsilon_high": 0.28}),
    "gspo": (
        "objective.loss=gspo",
        {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "epsilon": 3e-4,
            "epsilon_high": 4e-4,
        },
    ),
    "cispo": ("objective.loss=cispo", {"loss_type": "cispo", "epsilon_high": 5.0}),
    "rloo": ("objective.loss=rloo", {"trainer": "rloo"}),
    "reinforce": (
        "objective.loss=reinforce",
        {"trainer": "rloo", "num_generations": ANSWERS, "normalize_advantages": True},
    ),
    "gkd, forward": (f"{TAUGHT}=forward", {"trainer": "gkd", "beta": 0.0}),
    "gkd, reverse": (f"{TAUGHT}=reverse", {"trainer": "gkd", "beta": 1.0}),
    "gkd, jsd": (f"{TAUGHT}=jsd objective.teacher_beta=0.3", {"trainer": "gkd", "beta": 0.3}),
}
#: Rows whose losses are another number there.
OTHER_VALUE = ("reinforce",)


def make_teacher(model, folder):
    """The model with noise on its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(model, folder)
    torch.manual_seed(0)
    teacher = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        for weights in teacher.parameters():
            if weights.dim() > 1:
                weights += 0.5 * weights.std() * torch.randn_like(weights)
    teacher.save_pretrained(folder)


def words(options, model, folder, *more):
    return [
        *("model=hf", f"model.name={model}", f"data.train={options.prompts}"),
        *("data.validation_share=0", f"data.cache={folder}/cache", "objective=grpo"),
        *("peft=none", "engine.precision=fp32", "optim.lr=1e-4", "schedule=constant"),
        *("optim.beta2=0.999", "optim.weight_decay=0", "eval=none", "export.at_end=false"),
        *("train.log_every_steps=1", f"train.steps={options.steps}", "checkpoint.every_steps=null"),
        *(f"run.root={folder}", f"run.name=run-{time.time_ns()}", *more),
    ]


def differences(options, title, folder):
    """Largest difference of a step's loss, and largest relative one of its gradient norm."""
    own, theirs = LOSSES[title]
    own = own.replace("FOLDER", str(folder))
    wire = {"type": "python", "name": "letters", "source": CODE}
    (folder / "grader.yaml").write_text(json.dumps(wire))
    grader = "null" if "teacher" in own else "grader.yaml"
    more = (f"objective.grader={grader}", f"objective.group_size={GROUP}", "optim.clip_norm=0")
    more += (f"objective.max_new_tokens={NEW}", f"batch.sequences={ANSWERS}", "data.max_length=256")
    chosen = words(options, options.model, folder, *more, *own.split())
    run([sys.executable, "-m", "launcher.train", *chosen], folder)
    name = chosen[-len(more) - len(own.split()) - 1].partition("=")[2]
    given = {"num_generations": GROUP, "max_completion_length": NEW, "temperature": 1.0}
    given |= {"beta": 0.0, "teacher": str(folder / "teacher")}
    script = [options.trl, str(HERE / "reinforce_trl.py"), "equal", options.model]
    what = json.dumps({**given, **theirs})
    found, mine = (
        peer([*script, str(folder / name / "rollouts"), what], folder),
        lines(folder, chosen),
    )
    both = zip(mine, found["losses"], found["norms"], strict=True)
    apart = [(abs(x["loss"] - y), abs(x["grad_norm"] - z) / z) for x, y, z in both]
    return [max(own) for own in zip(*apart, strict=True)]


def equal(options):
    print(f"{'':<14}{'loss':>10}{'gradient':>10}")
    with tempfile.TemporaryDirectory() as name:
        make_teacher(options.model, Path(name) / "teacher")
        for title in options.only or LOSSES:
            loss, norm = differences(options, title, Path(name))
            shown = "-" if title in OTHER_VALUE else f"{loss:.1e}"
            print(f"{title:<14}{shown:>10}{norm:>10.1e}", flush=True)


def ours(options, model, folder):
    wire = {"type": "string_check", "name": "the", "input": "{{sample.output_text}}"}
    wire |= {"reference": "the", "operation": "ilike"}
    (folder / "speed.yaml").write_text(json.dumps(wire))
    more = ("objective.grader=speed.yaml", "objective.group_size=8", "engine=zero2")
    more += (f"objective.max_new_tokens={options.new}", f"batch.sequences={options.answers}")
    more += ("data.max_length=1024", "data.overlong=drop", *options.words)
    chosen = words(options, model, folder, *more)
    started = run([*TORCHRUN, "-m", "launcher.train", *chosen], folder)
    kept = lines(folder, chosen)[1:]
    seconds = (kept[-1]["time"] - kept[0]["time"]) / (len(kept) - 1)
    length = statistics.mean(line["answer_tokens"] for line in kept[1:])
    return {"step_s": seconds, "length": length, "memory": started.memory}


def speed(options):
    results = {"TRL": [], "ours": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model"  # both read texts as they are
        shutil.copytree(options.model, model, ignore=shutil.ignore_patterns("chat_template*"))
        about = json.loads((model / "tokenizer_config.json").read_text())
        about.pop("chat_template", None)
        (model / "tokenizer_config.json").write_text(json.dumps(about))
        script = [options.trl, *TWO_RANKS, str(HERE / "reinforce_trl.py"), "speed", str(model)]
        script += [options.prompts, str(options.steps), str(options.answers // 2)]
        for turn in range(options.turns):
            found = {"TRL": peer([*script, str(options.new)], folder)}
            found["ours"] = ours(options, model, folder)
            for tool, own in found.items():
                results[tool].append(own)
                said = f"turn {turn + 1}: {tool} {own['step_s']:.2f} s a step"
                print(said, file=sys.stderr, flush=True)
    print(f"{'':<8}{'step':>8}{'answers/s':>12}{'length':>8}{'tokens/s':>10}{'ratio':>8}")
    for tool, turns in results.items():
        step, length = (statistics.median(x[key] for x in turns) for key in ("step_s", "length"))
        pairs = zip(results["TRL"], turns, strict=True)
        ratio = statistics.median(one["step_s"] / other["step_s"] for one, other in pairs)
        rate = options.answers / step
        cells = f"{step:>6.2f} s{rate:>12.1f}{length:>8.1f}{rate * length:>10,.0f}{ratio:>7.2f}x"
        print(f"{tool:<8}{cells}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("verb", choices=["equal", "speed"])
    parser.add_argument("model", type=os.path.abspath)
    parser.add_argument("prompts", type=os.path.abspath)
    parser.add_argument("--trl", required=True, metavar="PYTHON", help="a Python that has trl")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=LOSSES, metavar="ROW", help="rows of `equal`")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--answers", type=int, default=64, help="of a step, in `speed`")
    parser.add_argument("--new", type=int, default=256, help="most tokens of an answer there")
    parser.add_argument("--words", nargs="+", default=[], help="more overrides of ours there")
    options = parser.parse_args()
    (equal if options.verb == "equal" else speed)(options)


if __name__ == "__main__":
    main()
