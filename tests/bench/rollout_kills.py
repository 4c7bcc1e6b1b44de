"""A run that answers is killed again and again, at random places, and ends with the same weights.

usage: PYTHONPATH=.:tests python tests/bench/rollout_kills.py [--kills 20] [--seed 0]

Each start of the run gets SIGKILL while it draws answers, grades them, writes them down, updates
weights or makes a checkpoint valid, at a random call there. Printed are the kills by place, and
whether the last checkpoint is, bit for bit, that of a run that was never killed.
"""

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rollouts.killed_rank import PLACES
from support import project
from support.models import make_llama
from support.project import DIRECT, Project

ROOT = Path(__file__).resolve().parents[1]
STEPS = 40
GRADER = (
    "objective.grader={type: string_check, name: has, input: '{{sample.output_text}}',"
    " reference: e, operation: ilike}"
)
WORDS = (
    *("objective=grpo", GRADER, "objective.group_size=4", "objective.max_new_tokens=8"),
    *("objective.updates_per_rollout=2", "objective.beta=0.1", "objective.max_redraws=1"),
    *("batch.sequences=16", f"train.steps={STEPS}", "data.max_length=64", "optim.lr=1e-2"),
    *("peft=none", "seed=3", "engine.precision=fp32", "checkpoint.every_steps=2"),
)


def weights(run):
    return {
        name: digest
        for name, digest in project.checkpoint_files(run).get(STEPS, {}).items()
        if name.startswith(("weights", "optimizer"))
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, kills = random.Random(options.seed), Counter()
    # One rank without an environment.
    places = [place for place in PLACES if place not in ("sharded update", "turn")]
    with tempfile.TemporaryDirectory() as folder:
        here = Project(Path(folder), make_llama(Path(folder) / "model", initializer_range=0.1))
        here.write_data({"prompt": f"Say {i}.", "completion": "e"} for i in range(24))
        done = here.run(DIRECT, *here.words("straight", *WORDS))
        assert done.code == 0, done.output
        name, killed = "killed", here.folder_of("killed")
        script = (sys.executable, str(ROOT / "rollouts" / "killed_rank.py"))
        while sum(kills.values()) < options.kills:
            place, number = draw.choice(places), draw.randint(1, 3)
            words = [str(killed)] if killed.exists() else here.words(name, *WORDS)
            done = here.run((*script, place, str(number)), *words)
            assert done.code == -9, done.output
            kills[place] += 1
        done = here.run(DIRECT, str(killed))
        assert done.code == 0, done.output
        same = weights(killed) == weights(here.folder_of("straight")) != {}
        said = ", ".join(f"{place} {count}" for place, count in sorted(kills.items()))
        print(f"{sum(kills.values())} kills ({said}): weights are {'' if same else 'NOT '}the same")
        raise SystemExit(not same)


if __name__ == "__main__":
    main()
