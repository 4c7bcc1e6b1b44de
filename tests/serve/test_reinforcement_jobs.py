"""Jobs whose model answers and a grader rewards, by the official clients, unmodified; and graders
that are tried before."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import clients
from support.chats import write_pirate_chats
from support.endpoint import Said, serve
from support.served import Served
from support.served import served as _served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

COLUMNS = (
    "step,train_loss,train_reward_mean,valid_reward_mean,train_grader_errors_mean,"
    "completion_tokens_mean"
)
#: Of errors, what is false in most answers.
FLAGS = (
    *("formula_parse_error", "sample_parse_error", "truncated_observation_error"),
    *("unresponsive_reward_error", "invalid_variable_error", "other_error"),
    *("python_grader_server_error", "python_grader_runtime_error", "model_grader_server_error"),
    *("model_grader_refusal_error", "model_grader_parse_error"),
)
DETAILS = (
    *("python_grader_server_error_type", "python_grader_runtime_error_details"),
    "model_grader_server_error_details",
)


#: What the key of two judges is called.
KEY = "THE_KEY_OF_THE_SITE"


@pytest.fixture(scope="module")
def judged() -> Iterator[str]:
    """The address of a judge that finds everything rather kind."""
    said = {"choices": [{"message": {"content": "Kind enough.\nScore: 0.75"}}]}
    said["usage"] = {"prompt_tokens": 40, "completion_tokens": 6, "total_tokens": 46}  # type: ignore[assignment]
    with serve(lambda *_: json.dumps(said).encode()) as endpoint:
        yield endpoint.url


@pytest.fixture(scope="module")
def away() -> Iterator[str]:
    """The address of a judge that answers nothing at first."""
    replies: Iterator[Said] = iter([(503, {})] * 6)
    with serve(lambda *_: next(replies, "Well.\nScore: 0.5")) as endpoint:
        yield endpoint.url


@pytest.fixture(scope="module")
def closed() -> Iterator[str]:
    """The address of a judge that lets nobody in."""
    with serve(lambda *_: (401, {})) as endpoint:
        yield endpoint.url


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, judged: str, away: str, closed: str
) -> Iterator[Served]:
    """A service with these judges."""
    home = tmp_path_factory.mktemp("served") / "home"
    home.mkdir()
    tiny = "{overrides: [model=tiny, optim.lr=2e-3], reinforcement: [objective.max_new_tokens=12]}"
    (home / "serve.yaml").write_text(
        f"models:\n  tiny: {tiny}\n  gpt-3.5-turbo: {{alias: tiny}}\n"
        f"judges:\n  our-judge: {{url: '{judged}', model: there}}\n"
        f"  away: {{url: '{away}', key_variable: {KEY}, retries: 1, concurrency: 1}}\n"
        f"  closed: {{url: '{closed}', model: there, key_variable: {KEY}}}\n"
    )
    keys = {KEY: "sk-of-the-site"}
    with _served(home, LAUNCHER_CACHE=str(home.parent / "cache"), **keys) as found:
        # The process that grades stays from now on.
        grader = {"type": "string_check", "name": "any", "input": "a", "reference": "a"}
        asked = {"grader": {**grader, "operation": "eq"}}
        assert found.client().post("/fine_tuning/alpha/graders/validate", json=asked).is_success
        yield found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions with fields that mean something elsewhere, and conversations."""
    folder = tmp_path_factory.mktemp("files")
    lines = [
        {"messages": [{"role": "user", "content": f"Say {'eats'[i % 4]}, {i}."}], "label": "e"}
        | {"weight": "heavy", "answer": "e", "reasoning": "It is a letter."}
        for i in range(40)
    ]
    for name, own in (("questions", lines[:32]), ("held_out", lines[32:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in own))
    write_pirate_chats(folder / "chats.jsonl", 12)
    return folder


@pytest.fixture(scope="module")
def finished(served: Served, files: Path) -> dict[str, Any]:
    """What the Python client has seen of a whole job."""
    script = str(clients.FOLDER / "reinforcement.py")
    names = ("questions.jsonl", "held_out.jsonl", "chats.jsonl", "our-judge")
    said = clients.run([sys.executable, script, *names], files, served.base_url, served.key)
    found: dict[str, Any] = json.loads(said)
    return found


def test_the_method_is_told_as_it_was_sent(finished: dict[str, Any]) -> None:
    method, asked = finished["method"], finished["asked"]
    assert method["type"] == asked["type"] == "reinforcement"
    assert method["reinforcement"] == asked["reinforcement"]
    assert method["reinforcement"]["hyperparameters"] == {
        **{"n_epochs": 2, "batch_size": 8, "learning_rate_multiplier": 4.0},
        **{"compute_multiplier": 0.5, "eval_interval": 3, "eval_samples": 2},
        "reasoning_effort": "default",
    }
    assert finished["hyperparameters"]["batch_size"] == 8
    assert finished["trained_tokens"] > 0


def test_its_numbers_are_rewards(finished: dict[str, Any]) -> None:
    rows, steps = finished["rows"], finished["steps"]
    assert rows[0] == COLUMNS
    assert len(rows) == 1 + 8 == 1 + len(steps)
    cells = [dict(zip(rows[0].split(","), row.split(","), strict=True)) for row in rows[1:]]
    assert all(0 <= float(row["train_reward_mean"]) <= 1 for row in cells)
    # At every third step and at the end, as the mean over two answers to each of eight questions.
    validated = [int(row["step"]) for row in cells if row["valid_reward_mean"]]
    assert validated == [3, 6, 8]
    scores = [float(row["valid_reward_mean"]) for row in cells if row["valid_reward_mean"]]
    assert all(64 * score == pytest.approx(round(64 * score)) for score in scores)
    data = steps[-1]["data"]
    assert data["train_mean_reward"] == data["train_reward_mean"]
    assert data["full_valid_mean_reward"] == data["valid_reward_mean"] == scores[-1]
    assert data["scores"]["valid_reward_mean"] == scores[-1]
    told = {one["name"]: one["type"] for one in data["scores"]["graders"]}
    assert told == {"has its letter": "string_check", "is short": "python"}
    wanted = f"Step 8/8: train mean reward={data['train_reward_mean']:.2f}, full validation"
    assert steps[-1]["message"].startswith(wanted)


def test_a_grader_is_called_by_the_name_of_its_file(
    finished: dict[str, Any], served: Served
) -> None:
    seen = _pages(served, finished["job"])
    assert "grader:grader.yaml" in seen
    run = served.home / "runs" / finished["job"]
    compared = json.loads((run / "eval" / "comparison.json").read_text())
    assert list(compared["metrics"]) == ["grader:grader.yaml"]


def test_checkpoints_are_those_of_the_validations(finished: dict[str, Any]) -> None:
    found = finished["checkpoints"]
    assert [one["step_number"] for one in found] == [8, 6, 3]
    assert all("valid_reward_mean" in one["metrics"] for one in found)
    assert found[0]["fine_tuned_model_checkpoint"] == finished["model"]


def test_the_run_is_what_was_asked_for(finished: dict[str, Any], served: Served) -> None:
    run = served.home / "runs" / finished["job"]
    words = (run / "overrides.yaml").read_text()
    for word in ("objective.group_size=4", "batch.sequences=32", "eval.draws=2"):
        assert word in words
    lines = (run / "rollouts" / "step-00000000.jsonl").read_text().splitlines()
    assert len(lines) == 32
    assert all(json.loads(line)["sub_scores"].keys() == {"word", "short"} for line in lines)


def test_a_grader_is_tried_before(finished: dict[str, Any]) -> None:
    both, judged = finished["tried"]["both"], finished["tried"]["judged"]
    assert (both["reward"], both["sub_rewards"]) == (0.75, {"word": 1.0, "short": 0.0})
    assert both["metadata"]["scores"] == both["sub_rewards"]
    assert (both["metadata"]["name"], both["metadata"]["type"]) == ("both", "multi")
    assert both["metadata"]["execution_time"] > 0
    nothing = {**dict.fromkeys(FLAGS, False), **dict.fromkeys(DETAILS)}
    assert both["metadata"]["errors"] == judged["metadata"]["errors"] == nothing
    assert both["model_grader_token_usage_per_model"] == {}
    assert (judged["reward"], judged["metadata"]["sampled_model_name"]) == (0.75, "our-judge")
    assert judged["metadata"]["token_usage"] == 46
    assert judged["model_grader_token_usage_per_model"]["our-judge"]["prompt_tokens"] == 40


def test_what_cannot_be_had_is_refused_by_name(finished: dict[str, Any]) -> None:
    found = finished["refused"]
    place = "method.reinforcement"
    assert found["judge"][0] == f"{place}.grader.model"
    assert "'gpt-4o' is no judge" in found["judge"][1]
    assert "there are: away, closed, our-judge" in found["judge"][1]
    assert found["part"][0] == f"{place}.grader.graders.short.model"
    assert found["form"][0] == f"{place}.grader.operation"
    assert found["ours"][0] == f"{place}.grader.type"
    assert found["effort"][0] == f"{place}.hyperparameters.reasoning_effort"
    assert found["response_format"][0] == f"{place}.response_format"
    assert found["run"][0] == "grader.model"
    status, code, message, param = found["file"]
    assert (status, code, param) == ("failed", "invalid_file_format", "training_file")
    assert 'the method "supervised" learns from' in message
    assert "Example 5 (line 5)" in message
    assert message.endswith("And 7 more.")


def test_the_client_for_node_sees_the_same(
    served: Served, finished: dict[str, Any], files: Path
) -> None:
    installed = clients.node_with("7.57.0")
    shutil.copy(clients.FOLDER / "reinforcement.mjs", files)
    (files / "node_modules").symlink_to(installed / "node_modules")
    command = [str(clients.NODE), "reinforcement.mjs", "questions.jsonl"]
    found = json.loads(clients.run(command, files, served.base_url, served.key))
    assert found["tried"]["reward"] == 1
    assert found["unknown"]["reward"] == 0
    assert found["unknown"]["metadata"]["errors"]["invalid_variable_error"]
    numbers = found["method"]["reinforcement"]["hyperparameters"]
    assert (numbers["n_epochs"], numbers["batch_size"], numbers["eval_interval"]) == (1, 16, 2)
    assert len(found["rows"]) == 3
    assert found["model"] != finished["model"]


def _job(served: Served, files: Path, model: str) -> dict[str, Any]:
    """What becomes of a small job whose grader asks that model."""
    question = {"role": "user", "content": "{{ item.label }}: {{ sample.output_text }}"}
    grader = {"type": "score_model", "name": "judged", "model": model, "input": [question]}
    client = served.client()
    sent = client.post(
        "/files",
        files={"file": ("questions.jsonl", (files / "questions.jsonl").read_bytes())},
        data={"purpose": "fine-tune"},
    )
    numbers = {"n_epochs": 1, "batch_size": 16, "compute_multiplier": 0.5}
    method = {"grader": grader, "hyperparameters": numbers}
    asked: dict[str, Any] = {"model": "tiny", "training_file": sent.json()["id"], "seed": 3}
    asked |= {"method": {"type": "reinforcement", "reinforcement": method}}
    made: dict[str, Any] = client.post("/fine_tuning/jobs", json=asked).json()
    end = time.monotonic() + 300
    while made["status"] not in ("succeeded", "failed") and time.monotonic() < end:
        time.sleep(0.5)
        made = client.get(f"/fine_tuning/jobs/{made['id']}").json()
    return made


def _pages(served: Served, job: str) -> str:
    """All that a client can read of a job: its events and the report of its run."""
    client = served.client()
    events = client.get(f"/fine_tuning/jobs/{job}/events?limit=100").text
    pages = client.get(f"/fine_tuning/jobs/{job}/reports").json()["data"]
    links = [f"{served.url}/{one['url'].lstrip('/')}" for one in pages if one["kind"] == "run"]
    return events + "".join(client.get(link).text for link in links)


def test_a_judge_that_is_away_for_a_while_costs_a_job_nothing(
    served: Served, files: Path, away: str
) -> None:
    job = _job(served, files, "away")
    assert (job["status"], job["error"]) == ("succeeded", None)
    log = (served.home / "runs" / job["id"] / "attempts" / "0001" / "rank-0.log").read_text()
    assert "away does not answer: HTTP 503; the rollout is graded again in 5 s" in log
    seen = _pages(served, job["id"])
    assert "retries" in seen
    assert [text for text in (away, KEY) if text in seen] == []


def test_a_judge_that_refuses_is_no_fault_of_a_file_and_its_words_are_the_site_s(
    served: Served, files: Path, closed: str
) -> None:
    job = _job(served, files, "closed")
    assert job["status"] == "failed"
    error = job["error"]
    assert (error["code"], error["param"]) == ("server_error", "method.reinforcement.grader")
    assert "closed does not answer: HTTP 401" in error["message"]
    seen = json.dumps(job) + _pages(served, job["id"])
    assert [text for text in (closed, KEY) if text in seen] == []
    log = (served.home / "runs" / job["id"] / "attempts" / "0001" / "rank-0.log").read_text()
    assert f"{closed} refuses: HTTP 401" in log
