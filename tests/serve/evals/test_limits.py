"""What one item, one criterion or one look at a page may cost, and whom a fault falls on."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI
from sqlalchemy import func, inspect, select
from starlette.testclient import TestClient

from launcher.graders.sample import Sample
from launcher.graders.template import Template, TooLongError
from launcher.scoring import criteria
from launcher.serve.db.tables import Audit, EvalItem, EvalRun, File
from launcher.serve.evals import lines, worker
from launcher.serve.evals.questions import Questions, Unaskable
from launcher.serve.grading.schemas import Schema
from launcher.serve.http import paging
from launcher.serve.http.failure import ApiError
from launcher.serve.service import Service
from launcher.serve.site import Offer
from serve.evals.test_evals import COMPLETIONS, SAME, ended, file_id, jsonl, line, made, uploaded
from serve.evals.test_evals import openai as openai
from support.served import wait_until


def asked(*texts: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": text} for text in texts]
    return {**COMPLETIONS, "input_messages": {"type": "template", "template": messages}}


def test_a_template_is_not_built_beyond_its_bound() -> None:
    template = Template("a{{ item.x }}{{ item.x }}", "here")
    assert template.fill({"x": "éé"}, Sample(""), 9) == "aéééé"
    with pytest.raises(TooLongError):
        template.fill({"x": "éé"}, Sample(""), 8)


def test_a_question_is_bounded_over_all_its_messages() -> None:
    questions = Questions(asked("{{ item.x }}", "{{ item.x }}"), 16, 1000)
    assert len(questions.of({"x": "a" * 500}).messages) == 2
    for item in ({"x": "a" * 501}, {"x": ["a" * 500]}):
        with pytest.raises(Unaskable, match="longer than 1,000 bytes") as caught:
            questions.of(item)
        assert caught.value.code == "context_length_exceeded"


def test_messages_of_an_item_are_bounded_too() -> None:
    reference = {"type": "item_reference", "item_reference": "item.m"}
    questions = Questions({**COMPLETIONS, "input_messages": reference}, 16, 100)
    assert questions.of({"m": [{"role": "user", "content": "a"}]}).messages
    with pytest.raises(Unaskable) as caught:
        questions.of({"m": [{"role": "user", "content": "a" * 100}]})
    assert caught.value.code == "context_length_exceeded"


def test_places_are_counted_over_all_messages() -> None:
    text = "{{ item.x }}" * 500
    Questions(asked(text, text), 16, 1000)
    with pytest.raises(ApiError, match="more than 1,000 places") as caught:
        Questions(asked(text, text, "{{ item.x }}"), 16, 1000)
    assert caught.value.code == "invalid_template"


def test_a_number_that_no_float_holds_is_a_fault_of_its_line() -> None:
    faults = lines.ItemFaults()
    text = io.BytesIO(b'{"item": {"x": 1e308}}\n{"item": {"x": 1e999}}\n')
    read = [one for part in lines.chunks(text, 100, bare=False, faults=faults) for one in part]
    assert [one.item for one in read] == [{"x": 1e308}]
    assert faults.text == "Line 2 has the number 1e999, which is too large."


def test_a_number_that_a_schema_cannot_reckon_with_does_not_fit() -> None:
    schema = Schema({"properties": {"x": {"multipleOf": 0.5}}}, "schema")
    assert schema.misfit({"x": 1.5}) == ""
    assert "cannot be applied: OverflowError" in schema.misfit({"x": 10**400})


def test_the_interval_of_a_mean_of_many_is_the_normal_one() -> None:
    many = criteria.MANY
    found = criteria.measured([0.0, 1.0] * (many // 2), [False, True] * (many // 2))
    half = 1.959964 * (0.25 * many / (many - 1) / many) ** 0.5
    assert found["mean_interval"] == pytest.approx([0.5 - half, 0.5 + half], abs=1e-6)
    fewer = criteria.measured([0.0, 1.0] * (many // 2 - 1), [False, True] * (many // 2 - 1))
    assert fewer["mean_interval"] == pytest.approx(found["mean_interval"], abs=2e-3)
    assert fewer["mean_interval"] != found["mean_interval"]


def test_pauses_grow_to_minutes() -> None:
    assert [worker.pause_s(count) for count in (1, 2, 3, 9, 10_000)] == [2, 4, 8, 300, 300]


def test_what_no_other_try_mends_is_told_before_all_else() -> None:
    async def fail(error: Exception) -> None:
        raise error

    async def both() -> None:
        errors = [OSError("disk"), worker.RunFault("model_not_found", "gone"), OSError("disk")]
        done, _ = await asyncio.wait({asyncio.create_task(fail(error)) for error in errors})
        worker._raise_first(done)

    with pytest.raises(worker.RunFault, match="gone"):
        asyncio.run(both())


@pytest.fixture
def told(service: Service, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Questions to a model that has an answer to all but `bad`, and at which `busy` fails once."""
    service.site.models["tiny"] = Offer(overrides=["model=tiny"])
    monkeypatch.setattr(worker, "_RETRY_S", 0.0)
    seen: list[str] = []

    async def tell(
        _pool: Any, _service: Any, _project: str, model: str, wanted: Any, *_: Any
    ) -> Any:
        text = wanted["messages"][0]["content"]
        seen.append(text)
        if text == "bad" or seen.count("busy") == (text == "busy"):
            raise ApiError(503, "The model cannot answer at present.", code="model_unavailable")
        if text == "dies":
            raise worker.Died("it has died")
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice = {"message": {"content": "two"}, "finish_reason": "stop"}
        return {"model": model, "choices": [choice], "usage": usage}

    monkeypatch.setattr(worker.asking, "told", tell)
    return seen


def test_an_item_that_the_model_fails_at_fails_alone(
    openai: OpenAI, client: TestClient, told: list[str]
) -> None:
    named = made(openai, SAME)
    texts = ["busy", "bad", "dies", *map(str, range(6))]
    source = {"type": "file_content", "content": [line(one, "two", None) for one in texts]}
    run: Any = openai.evals.runs.create(named.id, data_source={**COMPLETIONS, "source": source})  # type: ignore[typeddict-item]
    run = ended(openai, named.id, run.id)
    assert (run.status, run.error) == ("completed", None)
    counts = run.result_counts
    assert (counts.total, counts.passed, counts.errored) == (9, 7, 2)
    assert [told.count(one) for one in ("busy", "bad", "dies", "0")] == [2, 5, 5, 1]
    items = openai.evals.runs.output_items.list(run.id, eval_id=named.id).data
    wrong = [one.sample.error for one in items if one.status == "error"]
    assert [(one.code, one.message) for one in wrong] == [
        ("server_error", "The model has failed at this 5 times.")
    ] * 2
    page = client.get(run.report_url).text
    assert "graded of 9, 2 not" in page  # as the API counts them
    [criterion] = run.per_testing_criteria_results
    assert (criterion.passed, criterion.errored) == (7, 2)  # type: ignore[attr-defined]


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how many items may be graded; none at first."""
    allowed = [0]
    graded = worker._Run._graded

    async def wait(self: Any, *what: Any) -> dict[str, Any]:
        while allowed[0] <= 0:
            await asyncio.sleep(0.02)
        allowed[0] -= 1
        return await graded(self, *what)

    monkeypatch.setattr(worker._Run, "_graded", wait)

    def let(count: int) -> None:
        allowed[0] += count

    return let


def shown(page: str) -> list[int]:
    return [int(one) for one in re.findall(r"<dd>(\d+)</dd>", page)]


def test_a_page_from_the_midst_of_a_run_is_not_that_of_its_end(
    openai: OpenAI, client: TestClient, service: Service, gate: Callable[[int], None]
) -> None:
    named = made(openai, SAME)
    content = [line(str(number), "two", "two") for number in range(8)]
    run: Any = openai.evals.runs.create(named.id, data_source=jsonl(*content))  # type: ignore[arg-type]
    gate(3)

    def some() -> bool:
        found = openai.evals.runs.retrieve(run.id, eval_id=named.id)
        return found.result_counts.passed == 3

    wait_until(some, "three items")
    assert shown(client.get(run.report_url).text) == [8, 3, 0, 0]
    gate(5)
    run = ended(openai, named.id, run.id)
    page = client.get(run.report_url).text
    assert shown(page) == [8, 8, 0, 0]
    assert "completed" in page
    folder = service.home / "reports" / run.id
    assert json.loads((folder / "results.json").read_text())["has_ended"]
    openai.evals.runs.delete(run.id, eval_id=named.id)
    assert client.get(run.report_url).status_code == 404
    assert not folder.exists()


def stored(service: Service, run_id: str) -> tuple[EvalRun, int]:
    """A run's row, and the bytes of its items by their own rows."""
    with service.database.read() as session:
        run = session.scalars(select(EvalRun).where(EvalRun.id == run_id)).one()
        own = select(func.sum(EvalItem.bytes)).where(EvalItem.run_id == run_id)
        return run, session.scalar(own) or 0


def test_what_a_run_was_sent_is_read_only_where_it_is_wanted(
    openai: OpenAI, client: TestClient, service: Service
) -> None:
    named = made(openai, SAME)
    content = [line("1+1", "two", "two"), line("2+2", "four", "x")]
    run: Any = openai.evals.runs.create(named.id, data_source=jsonl(*content))  # type: ignore[arg-type]
    ended(openai, named.id, run.id)
    row, in_items = stored(service, run.id)
    assert "source" in inspect(row).unloaded
    source = jsonl(*content)
    assert row.source_bytes == len(json.dumps(source))
    assert row.item_bytes == in_items > sum(len(json.dumps(one["item"])) for one in content)
    path = f"/v1/evals/{named.id}/runs"
    assert client.get(f"{path}/{run.id}").json()["data_source"] == source
    [listed] = client.get(path).json()["data"]
    assert listed["data_source"] == source


def test_items_that_are_never_graded_are_not_stored(
    openai: OpenAI, service: Service, gate: Callable[[int], None]
) -> None:
    named = made(openai, SAME)
    content = [line(str(number), "two", "two") for number in range(8)]
    run: Any = openai.evals.runs.create(named.id, data_source=jsonl(*content))  # type: ignore[arg-type]
    gate(1)

    def one() -> bool:
        return len(openai.evals.runs.output_items.list(run.id, eval_id=named.id).data) == 1

    wait_until(one, "an item")
    assert openai.evals.runs.cancel(run.id, eval_id=named.id).status == "canceled"
    row, in_items = stored(service, run.id)
    assert 0 < row.item_bytes == in_items < 1000


def test_pages_end_at_bytes(
    openai: OpenAI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = made(openai, SAME)
    content = [line("1+1", "two", "two"), line("?" * 5000, "two", "two"), line("3", "two", "two")]
    runs = []
    for _ in range(2):
        run: Any = openai.evals.runs.create(named.id, data_source=jsonl(*content))  # type: ignore[arg-type]
        runs.append(ended(openai, named.id, run.id).id)
    monkeypatch.setattr(paging, "MOST_BYTES", 4000)
    path = f"/v1/evals/{named.id}/runs"
    pages = client.get(f"{path}/{runs[0]}/output_items?limit=1000").json()
    assert ([one["datasource_item_id"] for one in pages["data"]], pages["has_more"]) == ([0], True)
    found = list(openai.evals.runs.output_items.list(runs[0], eval_id=named.id, limit=1000))
    assert [one.datasource_item_id for one in found] == [0, 1, 2]
    last = openai.evals.runs.output_items.list(runs[0], eval_id=named.id, order="desc", limit=1000)
    assert [one.datasource_item_id for one in last.data] == [2]
    page = client.get(path).json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (runs[:1], True)
    page = client.get(f"{path}?after={runs[0]}").json()
    assert ([one["id"] for one in page["data"]], page["has_more"]) == (runs[1:], False)


def test_runs_and_items_count_as_stored(
    openai: OpenAI, client: TestClient, service: Service
) -> None:
    named = made(openai, SAME)
    content = [line(str(number), "two", "two") for number in range(4)]
    name = uploaded(openai, *content)
    with service.database.read() as session:
        in_files = session.scalars(select(File.bytes)).one()
    service.site.quota.stored_bytes = in_files + 600
    path = f"/v1/evals/{named.id}/runs"
    refused = client.post(path, json={"data_source": jsonl(*content * 10)})
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "insufficient_quota"
    run: Any = openai.evals.runs.create(named.id, data_source=file_id(name))  # type: ignore[arg-type]
    run = ended(openai, named.id, run.id)
    assert (run.status, run.error.code) == ("failed", "insufficient_quota")
    row, in_items = stored(service, run.id)
    assert row.item_bytes == in_items < 600
    openai.evals.runs.delete(run.id, eval_id=named.id)
    service.site.quota.stored_bytes = in_files + 60_000
    run = openai.evals.runs.create(named.id, data_source=file_id(name))  # type: ignore[arg-type]
    assert ended(openai, named.id, run.id).result_counts.passed == 4


def test_the_audit_names_the_run_that_was_made(
    openai: OpenAI, client: TestClient, service: Service
) -> None:
    named = made(openai, SAME)
    run: Any = openai.evals.runs.create(named.id, data_source=jsonl(line("a", "b", "b")))  # type: ignore[arg-type]
    with service.database.read() as session:
        noted = session.scalars(select(Audit.object).order_by(Audit.number.desc())).first()
    assert noted == f"{named.id} {run.id}"
