"""Runs that ask a model of a running server, which is killed in their midst; all is told once."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from launcher.account.answers import file_of
from launcher.account.layout import Folder
from serve.webhooks.receiver import Receiver, receiving
from support.endpoint import serve
from support.project import LAUNCHER
from support.ranks import environment
from support.served import Served, start, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

COUNT = 24
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ASKED = {
    "type": "template",
    "template": [
        {"role": "developer", "content": "Sums."},
        {"role": "user", "content": {"type": "input_text", "text": "{{ item.a }} + 1?"}},
    ],
}
CRITERIA: list[Any] = [
    {
        "type": "python",
        "name": "length",
        "source": "def grade(sample, item):\n    return len(sample['output_text']) / 10",
        "pass_threshold": 0.0,
    },
    {
        "type": "string_check",
        "name": "never",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.a }}",
        "operation": "eq",
    },
]
JUDGED = {
    "type": "label_model",
    "name": "judged",
    "model": "ours",
    "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
    "labels": ["good", "bad"],
    "passing_labels": ["good"],
}


@dataclass
class Told:
    """What a client has seen."""

    openai: OpenAI
    server: Served
    receiver: Receiver
    eval_id: str
    run_id: str
    before: list[Any]


def ended(openai: OpenAI, eval_id: str, run_id: str) -> Any:
    found: list[Any] = [None]

    def has_ended() -> bool:
        found[0] = openai.evals.runs.retrieve(run_id, eval_id=eval_id)
        return found[0].status not in ("queued", "in_progress")

    wait_until(has_ended, "the run's end", 120)
    return found[0]


def asking(source: dict[str, Any], kind: str = "completions", **sampling: Any) -> Any:
    return {
        "type": kind,
        "source": source,
        "input_messages": ASKED,
        "model": "tiny",
        "sampling_params": {"max_completion_tokens": 8, "seed": 3, **sampling},
    }


def content(count: int) -> dict[str, Any]:
    return {"type": "file_content", "content": [{"item": {"a": a}} for a in range(count)]}


def items(openai: OpenAI, eval_id: str, run_id: str) -> list[Any]:
    return list(openai.evals.runs.output_items.list(run_id, eval_id=eval_id))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """A run whose server was killed after some of its items, and the next server."""
    folder = tmp_path_factory.mktemp("evals")
    home = folder / "home"
    home.mkdir()
    file = folder / "items.jsonl"
    file.write_text("".join(json.dumps({"item": {"a": a}}) + "\n" for a in range(COUNT)))

    def judge(*_: str) -> str:
        return "Well.\nLabel: good"

    with receiving() as receiver, serve(judge) as endpoint:
        settings = {
            "webhooks": {"allow": [receiver.url]},
            "models": {"tiny": {"overrides": ["model=tiny"]}},
            "judges": {"ours": {"url": endpoint.url}},
            "graders": {"sandbox": "auto", "at_once": 1},
        }
        (home / "serve.yaml").write_text(json.dumps(settings))
        server = start(home)
        try:
            openai = OpenAI(base_url=server.base_url, api_key=server.key)
            kinds: Any = [f"eval.run.{end}" for end in ("succeeded", "failed", "canceled")]
            openai.webhooks.create(name="mine", url=receiver.url, event_types=kinds)
            name = openai.files.create(file=file, purpose="evals").id
            made = openai.evals.create(
                data_source_config={
                    "type": "custom",
                    "item_schema": SCHEMA,
                    "include_sample_schema": True,
                },
                testing_criteria=CRITERIA,
            )
            source = {"type": "file_id", "id": name}
            run = openai.evals.runs.create(made.id, data_source=asking(source))
            wait_until(lambda: items(openai, made.id, run.id), "first answers", 60)
            server.kill()
            server = start(home)
            openai = OpenAI(base_url=server.base_url, api_key=server.key)
            before = items(openai, made.id, run.id)
            ended(openai, made.id, run.id)  # model and graders stay in the server's memory
            yield Told(openai, server, receiver, made.id, run.id, before)
        finally:
            server.stop()


def test_it_goes_on_after_a_kill(told: Told) -> None:
    run = ended(told.openai, told.eval_id, told.run_id)
    assert run.status == "completed", run.error
    assert 0 < len(told.before) < COUNT
    counts = run.result_counts
    assert (counts.total, counts.passed, counts.failed, counts.errored) == (COUNT, 0, COUNT, 0)
    found = {one.testing_criteria: one for one in run.per_testing_criteria_results}
    assert (found["length"].passed, found["never"].failed) == (COUNT, COUNT)
    after = items(told.openai, told.eval_id, told.run_id)
    assert [one.datasource_item_id for one in after] == list(range(COUNT))
    assert {one.id for one in told.before} <= {one.id for one in after}
    kept = {one.id: one.model_dump() for one in after}
    assert all(kept[one.id] == one.model_dump() for one in told.before)
    [usage] = run.per_model_usage
    assert (usage.run_model_name, usage.invocation_count) == ("tiny", COUNT)
    assert usage.total_tokens == sum(one.sample.usage.total_tokens for one in after)
    sample = after[1].sample
    assert [(one.role, one.content) for one in sample.input] == [
        ("developer", "Sums."),
        ("user", "1 + 1?"),
    ]
    assert (sample.model, sample.seed, sample.max_completion_tokens) == ("tiny", 3, 8)
    assert sample.finish_reason in ("stop", "length")
    page = told.server.client().get(run.report_url, headers={"Authorization": ""})
    assert page.status_code == 200
    assert "0.0 to 13.8 %" in page.text  # Wilson's, of none of 24


def test_its_end_is_told_once(told: Told) -> None:
    ended(told.openai, told.eval_id, told.run_id)
    wait_until(lambda: told.receiver.requests, "the event")
    events = [json.loads(one.body) for one in told.receiver.requests]
    mine = [one for one in events if one["data"]["id"] == told.run_id]
    assert {one["type"] for one in mine} == {"eval.run.succeeded"}
    assert len({one["id"] for one in mine}) == 1


def test_a_response_is_asked_and_judged(told: Told) -> None:
    config: Any = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
    judged: Any = [JUDGED]
    made = told.openai.evals.create(data_source_config=config, testing_criteria=judged)
    run = told.openai.evals.runs.create(
        made.id, data_source=asking(content(2), "responses", temperature=0.0)
    )
    run = ended(told.openai, made.id, run.id)
    assert (run.status, run.result_counts.passed) == ("completed", 2)
    [first, _] = items(told.openai, made.id, run.id)
    assert first.results[0].sample["reply"].endswith("Label: good")
    refused: Any = [{**JUDGED, "model": "gpt-4o"}]
    with pytest.raises(Exception, match="no judge that may be asked"):
        told.openai.evals.create(data_source_config=config, testing_criteria=refused)


def test_a_run_is_canceled_or_deleted_in_its_midst(told: Told) -> None:
    openai, source = told.openai, content(200)
    runs = openai.evals.runs
    canceled = runs.create(told.eval_id, data_source=asking(source)).id
    gone = runs.create(told.eval_id, data_source=asking(source)).id
    wait_until(lambda: items(openai, told.eval_id, canceled), "first answers", 60)
    assert runs.cancel(canceled, eval_id=told.eval_id).status == "canceled"
    assert runs.delete(gone, eval_id=told.eval_id).deleted
    count = len(items(openai, told.eval_id, canceled))
    counts = runs.retrieve(canceled, eval_id=told.eval_id).result_counts
    assert counts.passed + counts.failed + counts.errored == count < counts.total
    with pytest.raises(Exception, match="No such run"):
        runs.retrieve(gone, eval_id=told.eval_id)
    # The next run has its turn at once.
    last = runs.create(told.eval_id, data_source=asking(content(1))).id
    assert ended(openai, told.eval_id, last).status == "completed"
    assert len(items(openai, told.eval_id, canceled)) == count
    wanted = ("eval.run.canceled", canceled)

    def is_told() -> bool:
        events = [json.loads(one.body) for one in told.receiver.requests]
        return wanted in [(one["type"], one["data"]["id"]) for one in events]

    wait_until(is_told, "the event")


def test_an_account_of_ours_is_pulled(told: Told, tmp_path: Path) -> None:
    run = ended(told.openai, told.eval_id, told.run_id)
    environ = {"OPENAI_API_KEY": told.server.key, "OPENAI_BASE_URL": told.server.base_url}
    done = subprocess.run(
        [*LAUNCHER, "openai", "pull", "account"],
        env=environment(**environ),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    kept = Folder(tmp_path / "account")
    [record] = [one for one in kept.records("evals") if one["id"] == told.eval_id]
    assert record["testing_criteria"] == CRITERIA
    [mine] = [one for one in kept.records(f"evals/{told.eval_id}/runs") if one["id"] == told.run_id]
    assert mine == run.to_dict()
    assert kept.counts(f"evals/{told.eval_id}/runs", told.run_id)["items"] == COUNT
    answers = file_of(kept, told.run_id).read_text().splitlines()
    assert [json.loads(one)["a"] for one in answers] == list(range(COUNT))
