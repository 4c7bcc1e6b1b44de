"""GRPO and its kin beside TRL's GRPOTrainer: the same losses and gradients on the same answers.

usage: python tests/bench/reinforce.py MODEL PROMPTS.jsonl --trl PYTHON [--steps 5]

MODEL is a folder with a small causal language model, PROMPTS.jsonl has {"prompt", "completion"},
PYTHON has trl (see `reinforce_trl.py`). Each loss is trained for some steps by the launcher, on one
rank, in fp32; TRL is then given the answers that were drawn and their scores, and makes advantages,
losses and updates of its own. Printed are the largest difference of a step's loss and the largest
relative one of its gradient norm. An answer's score is how often it has the letter e.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CODE = "def grade(sample, item):\n    return min(1.0, sample['output_text'].count('e') / 4)\n"
GROUP, ANSWERS, NEW = 4, 32, 24
#: Name -> overrides here, options there.
LOSSES = {
    "grpo": ("objective.loss=grpo", {"loss_type": "grpo"}),
    "grpo, k3": ("objective.loss=grpo objective.beta=0.2", {"loss_type": "grpo", "beta": 0.2}),
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
}


def output(command, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=folder, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def ours(options, folder, name, words):
    """Losses and norms of a run, and the folder of its answers."""
    wire = {"type": "python", "name": "letters", "source": CODE}
    (folder / "grader.yaml").write_text(json.dumps(wire))
    words = [
        *("model=hf", f"model.name={options.model}", f"data.train={options.prompts}"),
        *("data.validation_share=0", f"data.cache={folder}/cache", "data.max_length=256"),
        *("objective=grpo", "objective.grader=grader.yaml", f"objective.group_size={GROUP}"),
        *(f"objective.max_new_tokens={NEW}", f"batch.sequences={ANSWERS}", "peft=none"),
        *("engine.precision=fp32", "optim.lr=1e-4", "schedule=constant", "optim.beta2=0.999"),
        *("optim.weight_decay=0", "optim.clip_norm=0", "eval=none", "export.at_end=false"),
        *("train.log_every_steps=1", f"train.steps={options.steps}", "checkpoint.every_steps=null"),
        *(f"run.root={folder}", f"run.name={name}", *words),
    ]
    output([sys.executable, "-m", "launcher.train", *words], folder)
    text = (folder / name / "metrics.jsonl").read_text()
    lines = [line for line in map(json.loads, text.splitlines()) if line["kind"] == "train"]
    found = {"losses": [x["loss"] for x in lines], "norms": [x["grad_norm"] for x in lines]}
    return found, folder / name / "rollouts"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=os.path.abspath)
    parser.add_argument("prompts", type=os.path.abspath)
    parser.add_argument("--trl", required=True, metavar="PYTHON", help="a Python that has trl")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--losses", nargs="+", default=list(LOSSES))
    options = parser.parse_args()
    print(f"{'':<14}{'loss':>10}{'gradient':>10}")
    with tempfile.TemporaryDirectory() as name:
        for number, title in enumerate(options.losses):
            words, theirs = LOSSES[title]
            mine, rollouts = ours(options, Path(name), f"run-{number}", words.split())
            more = {"num_generations": GROUP, "max_completion_length": NEW, "temperature": 1.0}
            script = [options.trl, str(HERE / "reinforce_trl.py"), options.model, str(rollouts)]
            text = output([*script, json.dumps({"beta": 0.0, **more, **theirs})], Path(name))
            line = next(line for line in text.splitlines() if line.startswith("RESULT "))
            found = json.loads(line.removeprefix("RESULT "))
            loss = max(abs(a - b) for a, b in zip(mine["losses"], found["losses"], strict=True))
            norms = zip(mine["norms"], found["norms"], strict=True)
            norm = max(abs(a - b) / b for a, b in norms)
            print(f"{title:<14}{loss:>10.1e}{norm:>10.1e}", flush=True)


if __name__ == "__main__":
    main()
