"""The official clients, unmodified: upload, create, poll, events, checkpoints, result, chat."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from support import clients
from support.chats import write_pirate_chats
from support.served import Served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STYLE = "Arr"
PYTHON = ("2.54.0", "1.109.1")
NODE = ("6.49.0", "5.23.2", "4.104.0")
STATES = ["validating_files", "queued", "running", "succeeded"]
ERRORS = [
    "404 NotFoundError None",
    "404 NotFoundError fine_tune_not_found",
    "400 BadRequestError None",
    "400 BadRequestError None",
    "404 NotFoundError model_not_found",
    "401 AuthenticationError invalid_api_key",
]
EVAL = {
    "name": "ours",
    "status": "completed",
    "passed": [1, 2],
    "items": ["pass", "fail"],
    "score": 1.0,
    "said": "7",
    "canceled": True,
    "listed": True,
    "gone": [True, True],
}
REFUSED = ["previous_response_id", "text.format", "tool_choice", "store"]


# Whole jobs are done in fixtures of the module: models and graders stay in the server's memory.


@pytest.fixture(scope="module")
def finished(served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the current Python client has seen of a whole job."""
    return by_python(sys.executable, served, tmp_path_factory.mktemp("python"))


@pytest.fixture(scope="module")
def finished_by_node(served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the current client for node has seen of a whole job."""
    return by_node("7.57.0", served, tmp_path_factory.mktemp("node"))


@pytest.fixture(scope="module")
def measured(served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the current Python client has seen of an eval."""
    return eval_by_python(sys.executable, served, tmp_path_factory.mktemp("eval"))


def eval_by_python(python: str, served: Served, folder: Path) -> dict[str, Any]:
    command = [python, str(clients.FOLDER / "evals.py")]
    found: dict[str, Any] = json.loads(clients.run(command, folder, served.base_url, served.key))
    return found


def by_python(python: str, served: Served, folder: Path, *job: str) -> dict[str, Any]:
    data = write_pirate_chats(folder / "training_data.jsonl")
    command = [python, str(clients.FOLDER / "flow.py"), data.name, *job]
    return told(clients.run(command, folder, served.base_url, served.key))


def by_node(version: str, served: Served, folder: Path, *job: str) -> dict[str, Any]:
    installed = clients.node_with(version)
    data = write_pirate_chats(folder / "training_data.jsonl")
    shutil.copy(clients.FOLDER / "flow.mjs", folder)
    (folder / "node_modules").symlink_to(installed / "node_modules")
    command = [str(clients.NODE), "flow.mjs", data.name, *job]
    return told(clients.run(command, folder, served.base_url, served.key))


def told(output: str) -> dict[str, Any]:
    """What a program has seen, checked for what holds of every job that succeeds."""
    found: dict[str, Any] = json.loads(output)
    assert found["trained_tokens"] > 0
    assert found["messages"][0] == f"Created fine-tuning job: {found['job']}"
    assert found["messages"][-1] == "The job has successfully completed"
    assert found["checkpoints"][0] == found["model"]
    assert len(found["checkpoints"]) == 3
    assert {found["model"], *found["checkpoints"], "gpt-3.5-turbo"} <= set(found["models"])
    steps = [message for message in found["messages"] if message.startswith("Step ")]
    assert found["rows"][0].startswith("step,train_loss")
    assert len(found["rows"]) == 1 + len(steps)
    assert found["answer"] == found["streamed"]
    assert found["answer"].startswith(STYLE)
    assert (found["reason"], found["plain"]) == ("stop", 3)
    assert found["errors"] == ERRORS
    return found


def test_python_current(finished: dict[str, Any]) -> None:
    assert finished["states"] == STATES


def answered(output: str) -> dict[str, Any]:
    """What a program has seen of answers, checked for what holds of every client."""
    found: dict[str, Any] = json.loads(output)
    assert found["text"].startswith(STYLE)
    assert (found["status"], found["errors"]) == ("completed", REFUSED)
    assert found["answered"] in ("completed", "incomplete")
    assert found["batch"] == ["completed", 2, {"a": "b"}, "good", "bad", 400]
    assert found["kinds"] == [
        f"response.{kind}" for kind in ("created", "in_progress", "completed")
    ]
    return found


@pytest.mark.parametrize("version", [None, *PYTHON])
def test_answers_in_python(
    version: str | None, served: Served, finished: dict[str, Any], tmp_path: Path
) -> None:
    python = clients.python_with(version) if version else sys.executable
    command = [python, str(clients.FOLDER / "answers.py"), finished["model"]]
    found = answered(clients.run(command, tmp_path, served.base_url, served.key))
    assert version in (None, found["version"])


@pytest.mark.parametrize("version", ["7.57.0", *NODE])
def test_answers_in_node(
    version: str, served: Served, finished: dict[str, Any], tmp_path: Path
) -> None:
    installed = clients.node_with(version)
    shutil.copy(clients.FOLDER / "answers.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(installed / "node_modules")
    command = [str(clients.NODE), "answers.mjs", finished["model"]]
    answered(clients.run(command, tmp_path, served.base_url, served.key))


@pytest.mark.parametrize("version", PYTHON)
def test_python_earlier(
    version: str, served: Served, finished: dict[str, Any], tmp_path: Path
) -> None:
    found = by_python(clients.python_with(version), served, tmp_path, finished["job"])
    assert found["version"] == version


def test_node_current(finished_by_node: dict[str, Any]) -> None:
    assert finished_by_node["states"] == STATES


@pytest.mark.parametrize("version", NODE)
def test_node_earlier(
    version: str, served: Served, finished: dict[str, Any], tmp_path: Path
) -> None:
    found = by_node(version, served, tmp_path, finished["job"])
    assert found["model"] == finished["model"]


def test_an_eval_in_python_current(measured: dict[str, Any]) -> None:
    assert measured == {"version": measured["version"], **EVAL}


@pytest.mark.parametrize("version", PYTHON)
def test_an_eval_in_python_earlier(
    version: str, served: Served, measured: dict[str, Any], tmp_path: Path
) -> None:
    found = eval_by_python(clients.python_with(version), served, tmp_path)
    assert found == {**measured, "version": version}


@pytest.mark.parametrize("version", ["7.57.0", *NODE])
def test_an_eval_in_node(
    version: str, served: Served, measured: dict[str, Any], tmp_path: Path
) -> None:
    installed = clients.node_with(version)
    shutil.copy(clients.FOLDER / "evals.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(installed / "node_modules")
    said = clients.run([str(clients.NODE), "evals.mjs"], tmp_path, served.base_url, served.key)
    assert json.loads(said) == {**measured, "version": version}
