"""What clients are told of a run's numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.serve.jobs import measurements
from launcher.serve.jobs.measurements import Measured, Place
from launcher.serve.jobs.methods import DPO, SUPERVISED, TrainingMethod


def train(step: int, loss: object = 1.0, **more: object) -> str:
    numbers = {"loss": loss, "tokens": 10 * step, "time": 5.0}
    return json.dumps({"step": step, "kind": "train", **numbers, **more})


def held_out(step: int) -> str:
    return json.dumps({"step": step, "kind": "eval", "eval/loss": 2.0, "eval/token_accuracy": 0.5})


def never(step: int) -> bool:
    return False


def read_of(path: Path, place: Place = measurements.BEGIN) -> tuple[list[Measured], Place]:
    return measurements.read(path, place, SUPERVISED, evaluates=never, ended=False)


def whole(path: Path, method: TrainingMethod = SUPERVISED) -> list[Measured]:
    return measurements.read(path, measurements.BEGIN, method, evaluates=never, ended=True)[0]


def write(path: Path, *lines: str) -> None:
    with open(path, "a") as file:
        file.write("".join(line + "\n" for line in lines))


def test_steps_are_read_as_they_come_each_once(tmp_path):
    path, place, seen = tmp_path / "metrics.jsonl", measurements.BEGIN, []

    def read(ended: bool = False) -> list[tuple[int, float | None]]:
        nonlocal place
        found, place = measurements.read(
            path, place, SUPERVISED, evaluates=lambda step: step % 2 == 0, ended=ended
        )
        seen.extend(found)
        return [(one.step, one.valid_loss) for one in found]

    assert read() == []
    write(path, held_out(0), train(1))
    assert read() == [(1, None)]
    write(path, train(2))
    assert read() == []  # its validation is to come
    assert read() == []
    write(path, held_out(2))
    assert read() == [(2, 2.0)]
    write(path, train(3), train(4), train(5))
    assert read() == [(3, None), (4, None), (5, None)]
    write(path, train(6))
    with open(path, "a") as file:
        file.write('{"step": 7, "ki')
    assert read() == []
    assert read(ended=True) == [(6, None)]
    assert [one.step for one in seen] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("kept", [0, 1, 3])
@pytest.mark.parametrize("made", [1, 3, 30])
def test_what_a_resumed_run_writes_anew_is_read_anew(tmp_path, kept, made):
    """Shorter than before, as long, or longer by the time that somebody looks again."""
    path = tmp_path / "metrics.jsonl"
    lines = [train(step, time=1.25 * step) for step in range(1, 7)]
    write(path, *lines)
    _, place = read_of(path)
    assert read_of(path, place) == ([], place)
    path.unlink()
    assert read_of(path, place)[0] == []
    anew = [train(step, time=7.5 * step) for step in range(kept + 1, kept + 1 + made)]
    write(path, *lines[:kept], *anew)
    found, place = read_of(path, place)
    assert [one.step for one in found] == list(range(1, kept + 1 + made))
    write(path, train(99))
    found, _ = read_of(path, place)
    assert [one.step for one in found] == [99]


def test_torn_lines_and_numbers_that_are_none(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, train(1, "nan"), '{"torn', "[]", '"a"', train(2))
    steps = whole(path)
    assert [one.metrics() for one in steps] == [{"step": 1}, {"step": 2, "train_loss": 1.0}]
    assert steps[0].message(2) == "Step 1/2: training loss=n/a"


def test_the_result_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, train(1), train(2, token_accuracy=0.25), held_out(2))
    steps = whole(path)
    assert steps[1].metrics()["train_mean_token_accuracy"] == 0.25
    assert measurements.table(steps, SUPERVISED).decode().splitlines() == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy",
        "1,1.0,,,",
        "2,1.0,0.25,2.0,0.5",
    ]
    assert steps[1].message(2) == (
        "Step 2/2: training loss=1.00, validation loss=2.00, full validation loss=2.00"
    )


def test_a_job_with_preferences_tells_how_the_better_answer_does(tmp_path):
    path = tmp_path / "metrics.jsonl"
    learned = {"preference_accuracy": 0.75, "reward_margin": 0.5, "token_accuracy": 0.1}
    seen = {"eval/loss": 0.6, "eval/preference_accuracy": 1.0, "eval/preference_margin": 0.25}
    write(path, train(1), train(2, **learned))
    write(path, json.dumps({"step": 2, "kind": "eval", **seen}))
    steps = whole(path, DPO)
    assert steps[0].metrics() == {"step": 1, "train_loss": 1.0}
    assert steps[1].metrics() == {
        "step": 2,
        "train_loss": 1.0,
        "train_reward_accuracy": 0.75,
        "train_reward_margin": 0.5,
        "valid_loss": 0.6,
        "valid_reward_accuracy": 1.0,
        "valid_reward_margin": 0.25,
        "full_valid_loss": 0.6,
        "full_valid_reward_accuracy": 1.0,
        "full_valid_reward_margin": 0.25,
    }
    assert measurements.table(steps, DPO).decode().splitlines() == [
        "step,train_loss,train_reward_accuracy,train_reward_margin,"
        "valid_loss,valid_reward_accuracy,valid_reward_margin",
        "1,1.0,,,,,",
        "2,1.0,0.75,0.5,0.6,1.0,0.25",
    ]


def test_the_end_is_expected_at_the_pace_of_the_last_steps():
    def made(step: int, seconds: float | None) -> measurements.Measured:
        return measurements.Measured(step, 100.0 + step, 1.0, 0, seconds=seconds)

    assert measurements.expected_end([made(1, None)], 10) is None
    assert measurements.expected_end([made(4, 1.0), made(5, 2.0)], 10) == 113
    assert measurements.expected_end([made(10, 1.0)], 10) == 110
    slow = [made(n, 9.0) for n in range(1, 10)]
    assert measurements.expected_end([*slow, *(made(n, 1.0) for n in range(10, 30))], 30) == 130
