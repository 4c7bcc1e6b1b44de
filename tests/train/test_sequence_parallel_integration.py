"""Whole runs whose ranks share sequences: the same losses, results and checkpoints as without."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from safetensors.torch import load_file

from launcher.core.errors import ExitCode
from support import project
from support.project import LAUNCHER, Project

pytestmark = pytest.mark.slow

STEPS = 12
WORDS = (
    *("data.max_length=160", "batch.sequences=4", f"train.steps={STEPS}", "seed=3"),
    *("optim.lr=1e-3", "checkpoint.every_steps=2", "checkpoint.keep_last=9"),
    *("engine.precision=fp32", "peft=none", "train.log_every_steps=1", "export.at_end=true"),
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    made = Project(tmp_path_factory.mktemp("shared"))
    draw = random.Random(0)
    words = ["red", "blue", "green", "seven", "eight", "nine", "apple", "pear"]
    texts = [" ".join(draw.choices(words, k=draw.randint(2, 8))) for _ in range(3 * 72)]
    threes = list(zip(texts[::3], texts[1::3], texts[2::3], strict=True))
    records = {
        "preference": [
            {"prompt": one, "chosen": other + " so", "rejected": third}
            for one, other, third in threes
        ],
        "chat": [project.chat(one, other) for one, other, _ in threes],
    }
    for name, lines in records.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (made.folder / f"{name}.jsonl").write_text(text)
    return made


def trained(here, run, *words):
    ended = here.run((*LAUNCHER, "train"), *here.words(run, *WORDS, *words))
    assert ended.code == ExitCode.ok, ended.output
    return here.folder_of(run)


def lines_of(run):
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def assert_alike(run, other, *, rtol=1e-5):
    """The same numbers at every step, but those of time."""
    pairs = list(zip(lines_of(run), lines_of(other), strict=True))
    for one, two in pairs:
        assert one.keys() == two.keys()
        for name in set(one) & {"loss", "grad_norm", "tokens", "target_tokens", "reward_accuracy"}:
            np.testing.assert_allclose(two[name], one[name], rtol=rtol, err_msg=name)
        for name in (name for name in one if name.startswith("eval/")):
            np.testing.assert_allclose(two[name], one[name], rtol=rtol, atol=1e-6, err_msg=name)
    weights = [load_file(own.export / "model.safetensors") for own in (run, other)]
    for name, expected in weights[0].items():
        np.testing.assert_allclose(weights[1][name], expected, atol=2e-5, err_msg=name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "sft",
            ("data=chat", "data.train=chat.jsonl", "engine=zero2", "train.token_accuracy=true"),
        ),
        (
            "dpo",
            (
                *("data=preference", "data.train=preference.jsonl", "objective=dpo"),
                *("engine=zero3", "objective.sft_weight=0.5"),
            ),
        ),
    ],
)
def test_a_run_is_the_same_however_many_ranks_share_a_sequence(here, name, words):
    """Training, a reference, evaluation in the middle and at the end, the comparison."""
    own = (
        *("launch.processes=2", "data.validation_share=0.2", "eval=default", "eval.every_steps=5"),
        *("eval.generate_limit=4", *words),
    )
    whole = trained(here, f"{name}-1", *own)
    shared = trained(here, f"{name}-2", *own, "engine.sequence_parallel=2")
    assert_alike(whole, shared)
    ended = here.run((*LAUNCHER, "eval", f"{name}-2"))  # on one rank, which shares nothing
    assert ended.code == ExitCode.ok, ended.output
    results = [json.loads((run.eval / "comparison.json").read_text()) for run in (whole, shared)]
    for metric, expected in results[0]["metrics"].items():
        for side in ("base", "tuned"):
            found = results[1]["metrics"][metric][side]
            np.testing.assert_allclose(found, expected[side], rtol=1e-4, atol=1e-6, err_msg=metric)


def test_a_run_goes_on_where_ranks_share_sequences_otherwise(here):
    """Two ranks share a sequence, then none, then four."""
    data = ("data=chat", "data.train=chat.jsonl", "eval=none", "engine=zero2", "schedule=constant")
    whole = trained(here, "whole", *data, "launch.processes=2")
    shared = ("launch.processes=2", "engine.sequence_parallel=2", "train.steps=4")
    run = trained(here, "moved", *data, *shared)
    for more in (
        ("engine.sequence_parallel=1", "train.steps=8"),
        ("engine.sequence_parallel=4", f"train.steps={STEPS}", "--processes", "4"),
    ):
        ended = here.run((*LAUNCHER, "resume", "moved", *more))
        assert ended.code == ExitCode.ok, ended.output
    assert_alike(whole, run)


@pytest.mark.parametrize(
    ("words", "found", "hint"),
    [
        (
            ("engine.sequence_parallel=3", "launch.processes=3", "batch.sequences=3"),
            "3 ranks a sequence, which cannot share 4 attention heads",
            "engine.sequence_parallel=1",
        ),
        (
            ("engine.sequence_parallel=4", "launch.processes=2"),
            "4 ranks a sequence, which do not divide 2 ranks",
            "engine.sequence_parallel=2",
        ),
        (("engine.sequence_parallel=2", "objective=grpo"), "objective=grpo", "=1"),
        (("engine.sequence_parallel=2", "model.attention=eager"), "eager with", "auto"),
        (("engine.sequence_parallel=2", "batch.micro=auto"), "auto with", "batch.micro=null"),
        (("engine.sequence_parallel=2", "model.compile=true"), "true with", "compile=false"),
    ],
)
def test_what_ranks_cannot_share_is_refused_before_the_start(here, words, found, hint):
    base = ("launch.processes=2", "data=chat", "data.train=chat.jsonl")
    ended = here.run((*LAUNCHER, "train"), *here.words("refused", *WORDS, *base, *words))
    assert ended.code == ExitCode.usage
    assert found in ended.output
    assert hint in ended.output.partition("HINT")[2]
    assert not here.folder_of("refused").path.exists()
