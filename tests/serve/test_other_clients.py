"""Other people's clients, unmodified, against one server and one job of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import clients
from support.chats import write_pirate_chats
from support.ranks import environment
from support.served import Served, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ANSWER = "Arr, matey! Ask the parrot."
QUESTION = "Anna has 3 apples and gets 4 more. How many?"
#: The last one with a command: later ones of Python have none.
COMMAND = "1.109.1"


@pytest.fixture(scope="module")
def job(served: Served, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A job that the official client has made and that has succeeded, and its file."""
    folder = tmp_path_factory.mktemp("job")
    data = write_pirate_chats(folder / "training_data.jsonl")
    command = [sys.executable, str(clients.FOLDER / "flow.py"), data.name]
    found: dict[str, Any] = json.loads(clients.run(command, folder, served.base_url, served.key))
    assert found["answer"] == ANSWER
    return {**found, "data": data}


def test_the_command_of_openai(served: Served, job: dict[str, Any]) -> None:
    program = str(Path(clients.python_with(COMMAND)).parent / "openai")

    def said(*words: str) -> str:
        command = [program, "api", *words]
        return clients.run(command, job["data"].parent, served.base_url, served.key)

    file = json.loads(said("files.create", "-f", job["data"].name, "-p", "fine-tune"))
    assert file["status"] == "processed"
    jobs = "fine_tuning.jobs"
    made = json.loads(said(f"{jobs}.create", "-m", "gpt-3.5-turbo", "-F", file["id"], "-s", "cli"))
    assert json.loads(said(f"{jobs}.cancel", "-i", made["id"]))["status"] == "cancelled"
    listed = json.loads(said(f"{jobs}.list", "-l", "1"))
    assert ([one["id"] for one in listed["data"]], listed["has_more"]) == ([made["id"]], True)
    assert json.loads(said(f"{jobs}.retrieve", "-i", job["job"]))["status"] == "succeeded"
    events = json.loads(said(f"{jobs}.list_events", "-i", job["job"], "-l", "2"))["data"]
    assert events[0]["message"] == "The job has successfully completed"
    model = job["model"]
    assert json.loads(said("models.retrieve", "-i", model))["id"] == model
    asked = ("-m", model, "-g", "user", QUESTION, "-t", "0", "-M", "60")
    assert said("chat.completions.create", *asked, "--stream").strip() == ANSWER


def test_langchain(served: Served, job: dict[str, Any], tmp_path: Path) -> None:
    python = clients.python_of("langchain-openai-1.7.4", "langchain-openai==1.7.4")
    command = [python, str(clients.FOLDER / "langchain_answers.py"), job["model"]]
    found = json.loads(clients.run(command, tmp_path, served.base_url, served.key))
    ways = ("text", "streamed", "likely", "responses", "responses_streamed")
    assert {way: found[way] for way in ways} == dict.fromkeys(ways, ANSWER)
    assert len(found["used"]) == 1
    assert found["used"][0]["output_tokens"] > 0
    assert (found["call"], found["responses_call"]) == (["move", ["on"]], "move")
    assert found["structured"] == ["Point", "Point"]
    assert found["history"]
    assert found["completed"]


def test_litellm(served: Served, job: dict[str, Any], tmp_path: Path) -> None:
    python = clients.python_of("litellm-1.110.2", "litellm==1.110.2")
    command = [python, str(clients.FOLDER / "litellm_flow.py"), str(job["data"]), job["job"]]
    # Or it fetches a list of prices from elsewhere at its import.
    local = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    output = clients.run(command, tmp_path, served.base_url, served.key, **local)
    found = json.loads(output.strip().splitlines()[-1])
    assert found["listed"]
    assert (found["retrieved"], found["cancelled"]) == ("processed", "cancelled")
    assert found["jobs"][0] == found["made"]
    assert found["model"] == job["model"]
    assert found["text"] == found["streamed"] == found["responses"] == ANSWER
    assert list(json.loads(found["arguments"])) == ["on"]
    assert found["deleted"]
    assert "The model 'none' does not exist" in found["error"]


def test_promptfoo(served: Served, job: dict[str, Any], tmp_path: Path) -> None:
    installed = clients.installed("promptfoo-0.121.20", "promptfoo@0.121.20")
    provider = {
        "id": f"openai:chat:{job['model']}",
        "config": {"max_tokens": 60, "temperature": 0},
    }
    asserted = [
        {"vars": {"question": QUESTION}, "assert": [{"type": "equals", "value": value}]}
        for value in (ANSWER, "7")
    ]
    settings = {"prompts": ["{{question}}"], "providers": [provider], "tests": asserted}
    (tmp_path / "eval.json").write_text(json.dumps(settings))
    program = str(installed / "node_modules" / ".bin" / "promptfoo")
    quiet = {
        "PROMPTFOO_CONFIG_DIR": str(tmp_path / "home"),
        "PROMPTFOO_DISABLE_TELEMETRY": "1",
        "PROMPTFOO_DISABLE_UPDATE": "1",
        "PROMPTFOO_DISABLE_REMOTE_GENERATION": "true",
        # Or an assertion that fails is an exit code, like an error.
        "PROMPTFOO_FAILED_TEST_EXIT_CODE": "0",
    }
    command = [program, "eval", "-c", "eval.json", "--no-cache", "--no-table", "-o", "out.json"]
    clients.run(command, tmp_path, served.base_url, served.key, **quiet)
    found = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [one["response"]["output"] for one in found["results"]] == [ANSWER, ANSWER]
    assert sorted(one["success"] for one in found["results"]) == [False, True]
    assert found["stats"]["errors"] == 0


def test_llama_index(served: Served, job: dict[str, Any], tmp_path: Path) -> None:
    name = "llama-index-finetuning"
    needed = ("llama-index-llms-openai", "llama-index-postprocessor-cohere-rerank")
    python = clients.python_of(f"{name}-0.4.2", *needed, alone=f"{name}==0.4.2")
    command = [python, str(clients.FOLDER / "llama_index_flow.py"), str(job["data"]), job["job"]]
    base = {"OPENAI_API_BASE": served.base_url}
    output = clients.run(command, tmp_path, served.base_url, served.key, **base)
    found = json.loads(output.strip().splitlines()[-1])
    assert found["states"][1:] == ["cancelled", "succeeded"]
    assert found["model"] == job["model"]
    assert found["text"] == found["streamed"] == ANSWER


def test_instructor(served: Served, job: dict[str, Any]) -> None:
    python = clients.python_of("instructor-1.17.0", "instructor==1.17.0", "tqdm")
    program = [python, "-c", "from instructor.cli.cli import app; app()"]
    folder = job["data"].parent
    # The tables that it draws are as wide as the terminal.
    wide = {"COLUMNS": "250"}

    def said(*words: str) -> str:
        return clients.run([*program, *words], folder, served.base_url, served.key, **wide)

    with served.client() as http:
        before = {one["id"] for one in http.get("/files").json()["data"]}
        assert "uploaded successfully" in said("files", "upload", job["data"].name)
        (file,) = {one["id"] for one in http.get("/files").json()["data"]} - before
        assert file in said("files", "list")
        said("files", "status", file)

        def newest() -> dict[str, Any]:
            found: dict[str, Any] = http.get("/fine_tuning/jobs", params={"limit": 1}).json()
            return found["data"][0]

        last = newest()["id"]
        wanted = ("jobs", "create-from-id", file, "--model", "gpt-3.5-turbo", "--n-epochs", "2")
        # It watches jobs without end.
        watching = subprocess.Popen(
            [*program, *wanted],
            env=environment(OPENAI_BASE_URL=served.base_url, OPENAI_API_KEY=served.key, **wide),
            stdout=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: newest()["id"] != last, "a job", 60)
        finally:
            watching.terminate()
            watching.wait(30)
        made = newest()
        assert (made["training_file"], made["hyperparameters"]["n_epochs"]) == (file, 2)
        assert "cancelled successfully" in said("jobs", "cancel", made["id"])
        assert newest()["status"] == "cancelled"
        assert "deleted successfully" in said("files", "delete", file)
        assert http.get(f"/files/{file}").status_code == 404
