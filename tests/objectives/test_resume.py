"""Runs of every objective that has something of its own to remember, killed at random steps and
gone on with, end with the weights of one that nobody has disturbed, to the bit."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import time
from typing import Any

import pytest

from launcher.core.errors import ExitCode
from support import project
from support.models import make_llama
from support.project import LAUNCHER, Project

pytestmark = pytest.mark.slow

STEPS = 24
WORDS = (
    *(
        "data.max_length=160",
        "batch.sequences=4",
        "batch.micro=1",
        f"train.steps={STEPS}",
        "seed=3",
    ),
    *("optim.lr=1e-3", "checkpoint.every_steps=4", "launch.processes=2", "engine.precision=fp32"),
)
LORA = ("peft=lora", "peft.rank=4", "peft.dropout=0.1")
#: Name -> data, and what is said of objective, adapters and engine.
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "dpo": ("preference", ("objective=dpo", *LORA, "engine=zero3")),
    "kto": ("unpaired", ("objective=kto", "peft=none", "engine=zero2")),
    "orpo": ("preference", ("objective=orpo", *LORA, "engine=zero1")),
    "reward": ("preference", ("objective=reward", "peft=none", "engine=zero3")),
    "distill": (
        "chat",
        ("objective=distill", "objective.teacher=teacher", "objective.top_k=8", "peft=none"),
    ),
    "beside": ("chat", ("objective=distill", "objective.teacher=teacher", *LORA, "engine=zero2")),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    made = Project(tmp_path_factory.mktemp("resume"))
    make_llama(made.folder / "teacher", seed=1)
    draw = random.Random(0)
    words = ["red", "blue", "green", "seven", "eight", "nine", "apple", "pear"]
    texts = [" ".join(draw.choices(words, k=draw.randint(2, 8))) for _ in range(3 * 96)]
    threes = list(zip(texts[::3], texts[1::3], texts[2::3], strict=True))
    records: dict[str, list[dict[str, Any]]] = {
        "preference": [
            {"prompt": one, "chosen": other + " so", "rejected": third}
            for one, other, third in threes
        ],
        "unpaired": [
            {"prompt": one, "completion": other, "label": i % 3 > 0}
            for i, (one, other, _) in enumerate(threes)
        ],
        "chat": [project.chat(one, other) for one, other, _ in threes],
    }
    for name, lines in records.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (made.folder / f"{name}.jsonl").write_text(text)
    return made


def words_of(here: Project, run: str, name: str) -> tuple[str, ...]:
    data, own = CASES[name]
    return here.words(run, *WORDS, f"data={data}", f"data.train={data}.jsonl", *own)


def disturbed(here: Project, run: str, name: str, draw: random.Random, kills: int = 1) -> int:
    """Train, with a rank killed so often in the midst of steps drawn at random; how often it was
    not too late."""
    command, done = ((*LAUNCHER, "train"), *words_of(here, run, name)), 0
    folder = here.folder_of(run)

    def step() -> int:
        return folder.status().step or 0

    for _ in range(kills):
        wanted = draw.randint(min(step() + 1, STEPS - 1), STEPS - 1)
        started = here.start(*command)
        while started.process.poll() is None and step() < wanted:
            time.sleep(0.01)
        time.sleep(draw.random() * 0.1)
        with contextlib.suppress(ProcessLookupError):
            project.kill_rank(folder, draw.randrange(2), signal.SIGKILL)
        done += started.end().code != ExitCode.ok
        command = ((*LAUNCHER, "resume", run),)
    last = here.run(*command)
    assert last.code == ExitCode.ok, last.output
    return done


@pytest.mark.parametrize("name", list(CASES))
def test_a_killed_run_goes_on_to_the_bit(here, name):
    whole = here.run((*LAUNCHER, "train"), *words_of(here, f"{name}-whole", name))
    assert whole.code == ExitCode.ok, whole.output
    assert disturbed(here, f"{name}-killed", name, random.Random(name)) == 1
    runs = [here.folder_of(f"{name}-{end}") for end in ("whole", "killed")]
    assert project.losses(runs[0]) == project.losses(runs[1])
    ends = [project.checkpoint_files(run)[STEPS] for run in runs]
    assert ends[0] == ends[1]
