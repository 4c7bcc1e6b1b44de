"""Jobs with preferences by the official clients, unmodified: from conversations to a model that
answers as preferred."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import clients
from support.chats import write_pirate_chats
from support.project import LAUNCHER
from support.ranks import environment
from support.served import Served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

USUAL, RARE = "Arr, matey! Ask the parrot.", "I cannot tell you that."
COLUMNS = (
    "step,train_loss,train_reward_accuracy,train_reward_margin,"
    "valid_loss,valid_reward_accuracy,valid_reward_margin"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations in which one answer is usual and another rare, and preferences for the rare."""
    folder = tmp_path_factory.mktemp("files")
    lines = write_pirate_chats(folder / "chats.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    pairs = []
    for number, record in enumerate(records):
        question, answer = record["messages"]
        rare = {"role": "assistant", "content": RARE}
        pair = {"preferred_output": [rare], "non_preferred_output": [answer]}
        pairs.append({"input": {"messages": [question]}, **pair})
        if number % 8 == 5:
            record["messages"] = [question, rare]
    for name, made in (("chats", records), ("pairs", pairs[:32]), ("held_out", pairs[32:])):
        text = "".join(json.dumps(one) + "\n" for one in made)
        (folder / f"{name}.jsonl").write_text(text)
    return folder


@pytest.fixture(scope="module")
def finished(served: Served, files: Path) -> dict[str, Any]:
    """What the Python client has seen of both jobs."""
    script = str(clients.FOLDER / "preferences.py")
    command = [sys.executable, script, "chats.jsonl", "pairs.jsonl", "held_out.jsonl"]
    found: dict[str, Any] = json.loads(clients.run(command, files, served.base_url, served.key))
    return found


def test_a_model_comes_to_prefer_the_rare_answer(finished: dict[str, Any]) -> None:
    assert (finished["before"], finished["after"]) == (USUAL, RARE)
    used = finished["method"]["dpo"]["hyperparameters"]
    assert used == {"n_epochs": 10, "batch_size": 4, "learning_rate_multiplier": 3.0, "beta": 0.2}
    assert finished["method"]["type"] == "dpo"
    assert finished["trained_tokens"] > 0


def test_its_numbers_are_those_of_preferences(finished: dict[str, Any]) -> None:
    rows, last = finished["rows"], finished["metrics"]
    assert rows[0] == COLUMNS
    first, end = (row.split(",") for row in (rows[1], rows[-1]))
    # A model rewards nothing before it has moved: log 2, and no lead.
    assert float(first[1]) == pytest.approx(0.693147, abs=1e-5)
    assert float(first[3]) == pytest.approx(0, abs=1e-5)
    assert float(end[1]) < 0.5
    assert float(end[5]) == 1.0
    assert float(end[6]) > 0.5
    assert len(rows) == 1 + last["total_steps"] == 1 + int(end[0])
    assert last["valid_reward_accuracy"] == last["full_valid_reward_accuracy"] == 1.0
    assert last["train_reward_margin"] > 0.5
    assert [found["step"] for found in finished["checkpoints"]] == [80, 72, 64]
    assert all(found["valid_reward_margin"] > 0 for found in finished["checkpoints"])


def test_what_is_wrong_is_said_as_for_conversations(finished: dict[str, Any]) -> None:
    found = finished["refused"]
    assert found["beta"] == "method.dpo.hyperparameters.beta"
    assert (found["status"], found["code"]) == ("failed", "invalid_file_format")
    assert found["param"] == "training_file"
    assert 'which the method "dpo" learns from' in found["message"]


def test_it_is_exported_and_compared_with_the_model_before(
    finished: dict[str, Any], served: Served, tmp_path: Path
) -> None:
    run = served.home / "runs" / finished["job"]
    out = tmp_path / "model"
    command = [*LAUNCHER, "export", str(run), "-o", str(out)]
    subprocess.run(command, check=True, env=environment(), capture_output=True, timeout=120)
    assert json.loads((out / "config.json").read_text())["architectures"]
    with served.client() as client:
        path = f"/fine_tuning/jobs/{finished['job']}/reports"
        rows = {row["metric"]: row for row in client.get(path).json()["comparison"]}
    assert rows["preference_accuracy"]["base"] == 0.5
    assert rows["preference_accuracy"]["tuned"] == 1.0
    assert rows["preference_accuracy"]["verdict"] == "better"


def test_the_client_for_node_sees_the_same(
    finished: dict[str, Any], served: Served, files: Path
) -> None:
    installed = clients.node_with("7.57.0")
    shutil.copy(clients.FOLDER / "preferences.mjs", files)
    (files / "node_modules").symlink_to(installed / "node_modules")
    command = [str(clients.NODE), "preferences.mjs", finished["base"], "pairs.jsonl"]
    found = json.loads(clients.run(command, files, served.base_url, served.key))
    assert (found["method"], found["after"]) == (finished["method"], RARE)
    # The same seed over the same pairs: the same numbers, whoever asks.
    losses = [[row.split(",")[1] for row in one["rows"]] for one in (found, finished)]
    assert losses[0] == losses[1]
