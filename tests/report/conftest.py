"""A run folder as a finished run leaves it, written by hand: the report reads only files."""

import copy
import json
import math
import random
from pathlib import Path

import pytest

from launcher.core.rundir import RunDir, State

CONFIG = """\
seed: 0
run:
  name: gsm8k-lora
model:
  kind: tiny
  name: null
data:
  train: data/gsm8k_train.jsonl
  columns:
    prompt: question
optim:
  name: adamw
  lr: 0.0002
eval:
  samples: 12
"""


def metrics_lines(steps: int, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    lines = []
    for step in range(1, steps + 1):
        rate = 2e-4 * min(1, step / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = 0.9 + 2.4 * math.exp(-step / 45) + rng.gauss(0, 0.07)
        lines.append(
            {
                "step": step,
                "time": 1.7e9 + step,
                "kind": "train",
                "loss": loss,
                "lr": rate,
                "grad_norm": 0.4 + math.exp(-step / 30) + abs(rng.gauss(0, 0.06)),
                "tokens": 7900 * step,
                "target_tokens": 4100 * step,
                "tokens_per_s": 3900 + rng.gauss(0, 90),
                "target_tokens_per_s": 2020 + rng.gauss(0, 45),
                "mfu": None,
                "step_time_s": 2.05,
                "memory_bytes": int(1.31e9 + min(step, 40) * 1.2e6),
                "epoch": step / 120,
            }
        )
        if step % 50 == 0:
            held_out = 1.0 + 2.1 * math.exp(-step / 60)
            lines.append(
                {"step": step, "time": 1.7e9 + step, "kind": "eval", "eval/loss": held_out}
            )
    return lines


def metric(base, tuned, low, high, verdict, *, higher=False, unit="", needs="loss", **counts):
    return {
        "base": base,
        "tuned": tuned,
        "difference": None if tuned is None else tuned - base,
        "interval": [low, high],
        "verdict": verdict,
        "records": 200,
        "improved": 188,
        "worsened": 12,
        "higher_is_better": higher,
        "unit": unit,
        "needs": needs,
        **counts,
    }


COMPARISON = {
    "metrics": {
        "loss": metric(3.212, 1.013, -2.301, -2.094, "better"),
        "perplexity": metric(24.83, 2.754, -24.6, -19.6, "better"),
        "token_accuracy": metric(
            0.412, 0.409, -0.011, 0.006, "no evidence", higher=True, unit="share"
        ),
        "exact_match": metric(
            0.035, 0.715, 0.61, 0.75, "better", higher=True, unit="share", needs="generation"
        ),
    },
    "confidence": 0.95,
    "resamples": 5000,
    "seed": 0,
}


def predictions(count: int) -> list[dict]:
    lines = []
    for i in range(count):
        right, before = i % 4 != 3, i % 5 == 4
        lines.append(
            {
                "id": i,
                "where": f"gsm8k_test.jsonl:{i + 1}",
                "prompt": f"A ferry carries {40 + i} cars on each of three trips. On the last one "
                "it takes five fewer. How many cars cross the river in all?",
                "reference": f"3 * {40 + i} = {120 + 3 * i}, less 5.\n#### {115 + 3 * i}",
                "base": f"#### {115 + 3 * i}" if before else "The ferry ferry trips of the the",
                "tuned": f"Three trips, five fewer.\n#### {115 + 3 * i if right else 7}",
                "base_match": before,
                "change": "same" if right is before else "better" if right else "worse",
                "tuned_match": right,
            }
        )
    return lines


def write_lines(path: Path, lines: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture
def finished_run(tmp_path) -> RunDir:
    """A run of 300 steps that got better, with every file that the report reads."""
    run = RunDir(tmp_path / "gsm8k-lora")
    run.path.mkdir()
    run.config.write_text(CONFIG)
    run.overrides.write_text('- "model=tiny"\n- "optim.lr=0.0002"\n')
    write(
        run.plan,
        {
            "world_size": 2,
            "device": "cpu",
            "precision": "fp32",
            "dtype": "fp32",
            "attention": "document",
            "max_length": 1024,
            "global_sequences": 8,
            "micro_batch": 2,
            "accumulation": 2,
            "steps": 300,
            "epochs": 2.5,
            "warmup_steps": 20,
            "decay_steps": 280,
            "parameters": 7_340_000,
            "trainable": 412_000,
            "memory": {"weights": 29_360_000, "gradients": 1_648_000, "activations": 998_000_000},
        },
    )
    write(
        run.environment,
        {"launcher": "0.1.0", "host": "node-7", "packages": {"torch": "2.13.0"}, "gpus": []},
    )
    cache = tmp_path / "cache"
    index = {"records": 7473, "tokens": 1_480_000, "target_tokens": 790_000, "longest": 611}
    counts = {"read": 7473, "skipped": 0, "truncated": 3, "dropped": 0, "split": 0}
    write(cache / "train" / "index.json", {**index, "counts": counts, "format": "prompt"})
    write(cache / "held" / "index.json", {**index, "records": 1319, "format": "prompt"})
    write(run.data, {"train": str(cache / "train"), "validation": str(cache / "held")})
    write_lines(run.metrics, metrics_lines(300))
    write(run.eval / "base.json", {"metrics": {"loss": 3.212}, "records": 200})
    write(run.eval / "tuned.json", {"metrics": {"loss": 1.013}, "records": 200})
    write(run.eval / "comparison.json", COMPARISON)
    write_lines(run.eval / "predictions.jsonl", predictions(40))
    run.log(1, 0).parent.mkdir(parents=True)
    run.log(1, 0).write_text("done\n")
    run.set_status(State.succeeded, exit_code=0, attempt=1, step=300, steps=300)
    return run


@pytest.fixture
def comparison() -> dict:
    """run-b against run-a, as `launcher compare --json` prints it."""
    names = {"base_name": "run-a", "tuned_name": "run-b"}
    return {**copy.deepcopy(COMPARISON), **names, "slices": [], "answers": predictions(40)}
