"""Evals through the official client, graded without a model: what is measured, refused and kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from starlette.testclient import TestClient

from launcher.serve.app import create_app
from launcher.serve.http import access
from launcher.serve.service import Service
from support.served import wait_until

SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
}
CONFIG = {"type": "custom", "item_schema": SCHEMA, "include_sample_schema": True}
SAME = {
    "type": "string_check",
    "name": "same",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
NEAR = {
    "type": "text_similarity",
    "name": "near",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "evaluation_metric": "fuzzy_match",
    "pass_threshold": 0.6,
}


@pytest.fixture
def openai(client: TestClient) -> OpenAI:
    """The official client of the project `ours`."""
    key = client.headers["authorization"].removeprefix("Bearer ")
    return OpenAI(api_key=key, base_url="http://testserver/v1", http_client=client, max_retries=0)


def line(question: str, answer: str, said: str | None) -> dict[str, Any]:
    sample = {} if said is None else {"sample": {"output_text": said}}
    return {"item": {"question": question, "answer": answer}, **sample}


def jsonl(*content: dict[str, Any]) -> dict[str, Any]:
    return {"type": "jsonl", "source": {"type": "file_content", "content": [*content]}}


def made(openai: OpenAI, *criteria: dict[str, Any], **config: Any) -> Any:
    return openai.evals.create(
        data_source_config={**CONFIG, **config}, testing_criteria=[*criteria] or [SAME, NEAR]
    )


def ended(openai: OpenAI, eval_id: str, run_id: str) -> Any:
    found: list[Any] = [None]

    def has_ended() -> bool:
        found[0] = openai.evals.runs.retrieve(run_id, eval_id=eval_id)
        return found[0].status not in ("queued", "in_progress")

    wait_until(has_ended, "the run's end")
    return found[0]


def test_answers_of_the_data_are_graded(openai: OpenAI, client: TestClient) -> None:
    named = openai.evals.create(
        name="sums", data_source_config=CONFIG, testing_criteria=[SAME, NEAR], metadata={"a": "b"}
    )
    assert (named.object, named.name, named.metadata) == ("eval", "sums", {"a": "b"})
    assert named.data_source_config.schema_["properties"]["item"] == SCHEMA
    content = [line("1+1", "two", "two"), line("2+2", "four", "fours"), line("3+3", "six", "x")]
    run = openai.evals.runs.create(named.id, name="first", data_source=jsonl(*content))
    assert (run.object, run.eval_id, run.name) == ("eval.run", named.id, "first")
    run = ended(openai, named.id, run.id)
    assert (run.status, run.error) == ("completed", None)
    counts = run.result_counts
    assert (counts.total, counts.passed, counts.failed, counts.errored) == (3, 1, 2, 0)
    found = {one.testing_criteria: one for one in run.per_testing_criteria_results}
    assert (found["same"].passed, found["same"].failed) == (1, 2)
    assert (found["near"].passed, found["near"].failed) == (2, 1)
    items = list(openai.evals.runs.output_items.list(run.id, eval_id=named.id, limit=2))
    assert [one.datasource_item_id for one in items] == [0, 1, 2]
    assert [one.status for one in items] == ["pass", "fail", "fail"]
    first = items[0]
    assert first.datasource_item == content[0]["item"]
    assert first.sample.output[0].content == "two"
    assert [(one.name, one.score, one.passed) for one in first.results] == [
        ("same", 1.0, True),
        ("near", 1.0, True),
    ]
    again = openai.evals.runs.output_items.retrieve(first.id, eval_id=named.id, run_id=run.id)
    assert again.model_dump() == first.model_dump()
    only = openai.evals.runs.output_items.list(
        run.id, eval_id=named.id, status="pass", order="desc"
    )
    assert [one.id for one in only] == [first.id]
    page = client.get(run.report_url)
    assert page.status_code == 200, page.text
    assert "33.3 %" in page.text
    assert "6.1 to 79.2 %" in page.text  # Wilson's, of one of three
    assert run.report_url == openai.evals.runs.retrieve(run.id, eval_id=named.id).report_url
    assert openai.evals.runs.delete(run.id, eval_id=named.id).run_id == run.id
    assert client.get(run.report_url).status_code == 404
    assert openai.evals.delete(named.id).eval_id == named.id
    with pytest.raises(NotFoundError):
        openai.evals.retrieve(named.id)


WRONG_EVALS = [
    ({"data_source_config": {"type": "logs"}}, "data_source_config", "no stored completions"),
    (
        {"data_source_config": {**CONFIG, "item_schema": {"type": "objekt"}}},
        "data_source_config.item_schema.type",
        "'objekt'",
    ),
    (
        {"data_source_config": {**CONFIG, "item_schema": {"$ref": "http://127.0.0.1:9/x"}}},
        "data_source_config.item_schema.$ref",
        "is not in this schema",
    ),
    ({"data_source_config": {**CONFIG, "itemschema": {}}}, "data_source_config.itemschema", ""),
    ({"testing_criteria": []}, "testing_criteria", ""),
    ({"testing_criteria": [{**SAME, "type": "multi"}]}, "testing_criteria[0].type", "multi"),
    ({"testing_criteria": [{**SAME, "operation": "is"}]}, "testing_criteria[0].operation", ""),
    ({"testing_criteria": [SAME, SAME]}, "testing_criteria[1].name", "results name them"),
    (
        {"testing_criteria": [{**SAME, "pass_threshold": 1}]},
        "testing_criteria[0].pass_threshold",
        "",
    ),
    (
        {"testing_criteria": [{**NEAR, "pass_threshold": None}]},
        "testing_criteria[0].pass_threshold",
        "Missing",
    ),
    (
        {"testing_criteria": [{**NEAR, "pass_threshold": 10**400}]},
        "testing_criteria[0].pass_threshold",
        "too large",
    ),
    (
        {"testing_criteria": [{**SAME, "reference": "{{ item.anser }}"}]},
        "testing_criteria[0]",
        "did you mean 'answer'",
    ),
    (
        {"testing_criteria": [{**SAME, "reference": "{{ thing.answer }}"}]},
        "testing_criteria[0].reference",
        "thing",
    ),
    (
        {"data_source_config": {**CONFIG, "include_sample_schema": False}},
        "testing_criteria[0]",
        "include_sample_schema",
    ),
    (
        {
            "testing_criteria": [
                {
                    "type": "score_model",
                    "name": "judged",
                    "model": "gpt-4o",
                    "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
                    "pass_threshold": 0.5,
                }
            ]
        },
        "testing_criteria[0].model",
        "no judge that may be asked",
    ),
]


@pytest.mark.parametrize(("changes", "param", "said"), WRONG_EVALS)
def test_a_wrong_eval_is_refused_by_name(
    client: TestClient, changes: dict[str, Any], param: str, said: str
) -> None:
    asked = {"data_source_config": CONFIG, "testing_criteria": [SAME], **changes}
    answer = client.post("/v1/evals", json=asked)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert said in answer.json()["error"]["message"]


ASKED = {"type": "template", "template": [{"role": "user", "content": "{{ item.question }}"}]}
ITEM = line("1+1", "two", None)
COMPLETIONS = {
    "type": "completions",
    "source": {"type": "file_content", "content": [ITEM]},
    "input_messages": ASKED,
    "model": "tiny",
}
WRONG_RUNS = [
    ({"type": "stored"}, "data_source", "'jsonl' or 'completions' or 'responses'"),
    (
        {"source": {"type": "stored_completions"}},
        "data_source.source",
        "Nothing is stored here",
    ),
    ({"source": {"type": "file_id", "id": "file-x"}}, "data_source.source.id", "file-x"),
    (
        {"source": {"type": "file_content", "content": [ITEM, {"item": {"question": 1}}]}},
        "data_source.source.content",
        "content[1] does not fit item_schema: item",
    ),
    ({"model": "gpt-9"}, "model", "gpt-9"),
    ({"sampling_params": {"temperature": 9}}, "data_source.sampling_params.temperature", ""),
    (
        {"sampling_params": {"reasoning_effort": "low"}},
        "data_source.sampling_params.reasoning_effort",
        "",
    ),
    (
        {"sampling_params": {"max_completion_tokens": 1 << 20}},
        "data_source.sampling_params.max_completion_tokens",
        "too large",
    ),
    ({"sampling_params": {"topp": 1}}, "data_source.sampling_params.topp", "top_p"),
    (
        {"input_messages": {"type": "item_reference", "item_reference": "item.messages"}},
        "data_source.input_messages",
        "item.messages",
    ),
    (
        {
            "input_messages": {
                "type": "template",
                "template": [{"role": "user", "content": "{{ sample.output_text }}"}],
            }
        },
        "data_source.input_messages",
        "before a model answers",
    ),
    (
        {
            "input_messages": {
                "type": "template",
                "template": [{"role": "user", "content": "{{ item }}"}],
            }
        },
        "data_source.input_messages.template[0]",
        "names nothing",
    ),
]


@pytest.mark.parametrize("kind", ["completions", "responses"])
def test_a_wrong_run_is_refused_by_name(openai: OpenAI, client: TestClient, kind: str) -> None:
    named = made(openai, SAME)
    for changes, param, said in WRONG_RUNS:
        data = {**COMPLETIONS, "type": kind, **changes}
        answer = client.post(f"/v1/evals/{named.id}/runs", json={"data_source": data})
        where = f"{changes}: {answer.text}"
        assert answer.status_code == (404 if "model" in changes else 400), where
        assert answer.json()["error"]["param"] == param, where
        assert said in answer.json()["error"]["message"], where
    assert not openai.evals.runs.list(named.id).data


def uploaded(openai: OpenAI, *lines: Any, purpose: Any = "evals") -> str:
    text = "".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines)
    return openai.files.create(file=("items.jsonl", text.encode()), purpose=purpose).id


def file_id(name: str) -> dict[str, Any]:
    return {"type": "jsonl", "source": {"type": "file_id", "id": name}}


def test_what_is_wrong_with_a_file_is_told_by_line(openai: OpenAI) -> None:
    named = made(openai, SAME)
    good = line("1+1", "two", "two")
    bad = uploaded(openai, good, "", line("a", "b", None), "{", {"item": {}, "sample": None}, good)
    run = openai.evals.runs.create(named.id, data_source=file_id(bad))
    run = ended(openai, named.id, run.id)
    assert (run.status, run.error.code) == ("failed", "invalid_file_format")
    said = run.error.message
    for found in (
        'Line 3 has no "sample"',
        "Line 4 is not valid JSON",
        "Line 5 does not fit item_schema: item: 'question' is a required property",
    ):
        assert found in said
    assert "Line 1 " not in said
    assert not openai.evals.runs.output_items.list(run.id, eval_id=named.id).data
    gone = uploaded(openai, good)
    run = openai.evals.runs.create(named.id, data_source=file_id(gone))
    assert ended(openai, named.id, run.id).result_counts.passed == 1
    openai.files.delete(gone)
    with pytest.raises(BadRequestError, match="No such file"):
        openai.evals.runs.create(named.id, data_source=file_id(gone))


def test_training_files_are_items_too(openai: OpenAI) -> None:
    checked = {**SAME, "input": "{{ item.messages[1].content }}", "reference": "yes"}
    named = made(openai, checked, item_schema={"type": "object"}, include_sample_schema=False)
    turns = [{"role": "user", "content": "well?"}, {"role": "assistant", "content": "yes"}]
    name = uploaded(openai, {"messages": turns}, {"messages": turns[:1]}, purpose="fine-tune")
    run = openai.evals.runs.create(named.id, data_source=file_id(name))
    run = ended(openai, named.id, run.id)
    assert (run.result_counts.passed, run.result_counts.errored) == (1, 1)
    [_, second] = openai.evals.runs.output_items.list(run.id, eval_id=named.id).data
    assert second.status == "error"
    assert second.results[0].sample["errors"][0]["code"] == "invalid_variable_error"


def test_evals_are_a_projects_own(
    openai: OpenAI, client: TestClient, stranger: dict[str, str]
) -> None:
    named = made(openai, SAME)
    run = openai.evals.runs.create(named.id, data_source=jsonl(line("a", "b", "b")))
    ended(openai, named.id, run.id)
    one = f"/v1/evals/{named.id}"
    items = f"{one}/runs/{run.id}/output_items"
    [item] = client.get(items).json()["data"]
    for path in (one, f"{one}/runs", f"{one}/runs/{run.id}", items, f"{items}/{item['id']}"):
        assert client.get(path).status_code == 200
        assert client.get(path, headers=stranger).status_code == 404
    for path in (one, f"{one}/runs/{run.id}"):
        assert client.post(path, headers=stranger, json={}).status_code == 404
        assert client.delete(path, headers=stranger).status_code == 404
    assert client.get("/v1/evals", headers=stranger).json()["data"] == []


def test_lists_are_paged_and_ordered(openai: OpenAI) -> None:
    names = [made(openai, SAME).id for _ in range(3)]
    assert [one.id for one in openai.evals.list(limit=2)] == names
    assert [one.id for one in openai.evals.list(order="desc", limit=1)] == names[::-1]
    openai.evals.update(names[0], name="changed", metadata={"k": "v"})
    assert openai.evals.update(names[0], metadata=None).metadata is None
    assert openai.evals.retrieve(names[0]).name == "changed"
    last = [one.id for one in openai.evals.list(order_by="updated_at", limit=2)]
    assert sorted(last) == sorted(names)
    content = line("a", "b", "b")
    runs = [openai.evals.runs.create(names[0], data_source=jsonl(content)).id for _ in range(3)]
    for run in runs:
        ended(openai, names[0], run)
    assert [one.id for one in openai.evals.runs.list(names[0], limit=2)] == runs
    canceled = openai.evals.runs.list(names[0], status="canceled")
    assert canceled.data == []
    with pytest.raises(BadRequestError, match="No item of this list"):
        openai.evals.list(after="eval_x")


FOR_EVER = json.dumps({"item": {"a": "b" * 60 + "!"}}).encode()


def test_a_schema_that_takes_for_ever_holds_nobody_up(service: Service) -> None:
    service.site.graders.request_s = 1.0
    key = access.create_key(service.database, "test", "ours")
    with TestClient(create_app(service), headers={"Authorization": f"Bearer {key}"}) as client:
        slow = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(b+)+$"}}}
        config = {"type": "custom", "item_schema": slow}
        criterion = {**SAME, "input": "{{ item.a }}", "reference": ""}
        asked = {"data_source_config": config, "testing_criteria": [criterion]}
        made = client.post("/v1/evals", json=asked).json()["id"]
        run = {"data_source": jsonl({"item": {"a": "b" * 60 + "!"}})}
        refused = client.post(f"/v1/evals/{made}/runs", json=run)
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "invalid_schema"
        assert "cannot be read in time" in refused.text
        named = client.post("/v1/files", data={"purpose": "evals"}, files={"file": ("a", FOR_EVER)})
        run = {"data_source": file_id(named.json()["id"])}
        path = (
            f"/v1/evals/{made}/runs/{client.post(f'/v1/evals/{made}/runs', json=run).json()['id']}"
        )
        wait_until(lambda: client.get(path).json()["status"] == "failed", "its end")
        assert client.get(path).json()["error"]["code"] == "invalid_schema"
