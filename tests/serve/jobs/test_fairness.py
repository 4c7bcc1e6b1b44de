"""What projects share: turns in the queue, quotas, and requests that are sent twice."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import h11
import pytest
from sqlalchemy import event, select

from launcher.serve.db.tables import Job, JobState, Project
from launcher.serve.http import access
from launcher.serve.http.protocol import _Strict
from launcher.serve.jobs import ownership
from launcher.serve.jobs.admission import overlap
from launcher.serve.jobs.controller import _LOG, Controller
from launcher.serve.jobs.ownership import Owner, claim, owned
from launcher.serve.jobs.reports import DataReports
from launcher.serve.jobs.workspace import Workplace
from launcher.serve.site import ProjectSettings, Quota

LINE = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
JOBS = "/v1/fine_tuning/jobs"


def upload(client, content: bytes = LINE, **headers: str):
    sent = {"file": ("a.jsonl", content)}
    return client.post("/v1/files", files=sent, data={"purpose": "fine-tune"}, headers=headers)


def order(service, most=lambda _: None) -> list[str]:
    """Ids of all jobs in the order in which they run, one at a time."""
    me, ran = Owner.here(), []
    while ids := claim(service.database, me, 1, most):
        ran += ids
        for job_id in ids:
            with owned(service.database, me, job_id) as (_, job):
                job.state = JobState.succeeded
                ownership.give_up_place(job)
    return ran


def queue(service, **counts: int) -> None:
    with service.database.begin() as session:
        session.add_all([Project(id=name, name=name) for name in counts])
        session.flush()
        for name, count in counts.items():
            for number in range(count):
                row = Job(id=f"{name}{number}", project_id=name, model="tiny", training_file="f")
                row.seed, row.state, row.cursor = 1, JobState.queued, {"launch": "local"}
                session.add(row)


def test_projects_take_turns(service) -> None:
    queue(service, red=4, green=2, blue=1)
    assert order(service) == ["red0", "green0", "blue0", "red1", "green1", "red2", "red3"]


def test_a_project_runs_no_more_than_it_may(service) -> None:
    queue(service, red=3, green=1)
    me, most = Owner.here(), {"red": 1}.get
    assert claim(service.database, me, 3, most) == ["red0", "green0"]
    assert claim(service.database, me, 3, most) == ["red0", "green0"]


@pytest.mark.parametrize("most", [lambda _: None, {"red": 1, "blue": 0}.get])
def test_the_line_is_the_order_in_which_places_are_given(service, most) -> None:
    queue(service, red=4, green=2, blue=1)
    with service.database.begin() as session:
        line = list(ownership.line(session, most))
    ran = order(service, most)
    assert line[: len(ran)] == ran if most("red") is None else line[0] == ran[0]
    assert sorted(line) == sorted([*ran, *(["blue0"] if most("blue") == 0 else [])])


def test_a_long_line_is_told_without_reading_the_jobs_in_it(service) -> None:
    queue(service, red=3000, green=2)
    read = Counter()

    @event.listens_for(Job, "load")
    def count(job, _) -> None:
        read[job.project_id] += 1

    try:
        with service.database.read() as session:
            line = ownership.line(session)
        assert not read
        assert claim(service.database, Owner.here(), 2) == ["red0", "green0"]
    finally:
        event.remove(Job, "load", count)
    assert read == {"red": 1, "green": 1}
    first = {"red0": 1, "green0": 2, "red1": 3, "green1": 4, "red2": 5}
    assert dict(list(line.items())[:5]) == first
    assert (line["red2999"], len(line)) == (3002, 3002)


def test_a_place_in_the_line_counts_what_runs_and_what_slurm_has(service) -> None:
    queue(service, red=2, green=2, blue=2)
    with service.database.begin() as session:
        jobs = {job.id: job for job in session.scalars(select(Job))}
        jobs["red0"].cursor = {"launch": "local", "slot": 0, "host": "a", "started": True}
        jobs["red0"].state = JobState.running
        jobs["green0"].cursor = {"launch": "slurm", "started": True}
        jobs["blue0"].cursor = {"launch": "slurm"}
        jobs["blue1"].wanted = JobState.paused
    with service.database.read() as session:
        assert list(ownership.line(session)) == ["red1", "green1"]
    # No place is free here, which is nothing to Slurm.
    assert "blue0" in claim(service.database, Owner.here(), 1)


def test_a_project_has_quotas(client, service, stranger) -> None:
    service.site.quota = Quota(queued_jobs=1, stored_bytes=2 * len(LINE))
    service.site.projects["theirs"] = ProjectSettings(stored_bytes=len(LINE) - 1)
    file = upload(client).json()["id"]
    assert upload(client).status_code == 200
    full = upload(client)
    assert full.status_code == 429
    error = full.json()["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert full.headers["x-should-retry"] == "false"
    assert upload(client, **stranger).status_code == 429
    asked = {"model": "tiny", "training_file": file}
    assert client.post(JOBS, json=asked).status_code == 200
    more = client.post(JOBS, json=asked)
    assert (more.status_code, more.headers["retry-after"]) == (429, "30")
    assert more.json()["error"]["code"] == "rate_limit_exceeded"


def test_the_keys_of_a_project_share_its_requests(client, service, stranger) -> None:
    service.site.projects["ours"] = ProjectSettings(requests_per_minute=3)
    other = {"Authorization": f"Bearer {access.create_key(service.database, 'b', 'ours')}"}
    left = [client.get("/v1/models", headers=one) for one in ({}, other, {}, other)]
    assert [answer.status_code for answer in left] == [200, 200, 200, 429]
    remaining = [answer.headers["x-ratelimit-remaining-requests"] for answer in left]
    assert remaining == ["2", "1", "0", "0"]
    assert left[3].json()["error"]["code"] == "rate_limit_exceeded"
    assert int(left[3].headers["retry-after"]) in range(1, 21)
    assert client.get("/v1/models", headers=stranger).status_code == 200


@pytest.mark.parametrize("kind", ["reading", "writing"])
def test_uploads_of_a_project_hold_up_no_other(client, service, stranger, kind) -> None:
    with service.database.read() as session:
        ours = session.scalar(select(Project.id).where(Project.name == "ours"))
    threads = getattr(client.app.state.workers, kind)(ours)
    busy = range(int(threads.total_tokens))
    for name in busy:
        client.portal.call(threads.acquire_on_behalf_of, name)
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(upload, client)
        assert upload(client, **stranger).status_code == 200
        time.sleep(0.2)
        assert not waiting.done()
        for name in busy:
            client.portal.call(threads.release_on_behalf_of, name)
        assert waiting.result(30).status_code == 200


def test_data_reports_of_a_project_hold_up_no_other(service) -> None:
    queue(service, red=2, green=1)
    begun: list[str] = []

    class Slow(DataReports):
        async def _make(self, run, folder) -> None:
            begun.append(run.path.name)
            await end.wait()
            folder.mkdir()
            (folder / "report.html").write_text("")

    async def run() -> None:
        nonlocal end
        end = asyncio.Event()
        made = Slow(service)
        asked = [asyncio.create_task(made.page(job)) for job in ("red0", "red1", "green0")]
        await asyncio.wait(asked, timeout=0.3)
        assert begun == ["red0", "green0"]
        end.set()
        assert [page.parent.name for page in await asyncio.gather(*asked)] == [
            *("red0", "red1", "green0")
        ]
        assert begun == ["red0", "green0", "red1"]

    end = asyncio.Event()
    asyncio.run(asyncio.wait_for(run(), 30))


def test_a_request_with_a_key_makes_one_thing(client, service, stranger) -> None:
    key = {"Idempotency-Key": "once"}
    file = upload(client, **key).json()
    assert upload(client, **key).json() == file
    asked = {"model": "tiny", "training_file": file["id"]}
    named = {"Idempotency-Key": "job"}
    made = [client.post(JOBS, json=asked, headers=named).json()["id"] for _ in range(2)]
    assert made[0] == made[1]
    assert client.post(JOBS, json=asked).json()["id"] != made[0]
    other = client.post(JOBS, json={**asked, "suffix": "b"}, headers=named)
    assert (other.status_code, other.json()["error"]["param"]) == (400, "Idempotency-Key")
    assert upload(client, **stranger, **key).json()["id"] != file["id"]
    with service.database.read() as session:
        assert len(list(session.scalars(select(Job)))) == 2


def test_examples_that_are_in_both_files_are_counted(tmp_path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    lines = [json.dumps({"a": n, "b": 1}) + "\n" for n in range(4)]
    one.write_text("".join(lines))
    two.write_text('{"b":1,"a":2}\n' + lines[3] + lines[3] + '{"a": 9}\n')
    assert overlap(one, two) == 3
    assert overlap(one, one) == 4


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 3\r\nTransfer-Encoding: chunked",
        b"Transfer-Encoding: chunked\r\nContent-Length: 3",
        b"Content-Length: 3\r\nContent-Length: 4",
        b"X: a\r\n b\r\nContent-Length: 3",
        b"Transfer-Encoding: gzip, chunked",
    ],
)
def test_a_body_that_may_end_elsewhere_is_refused(head) -> None:
    connection = _Strict(h11.SERVER)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n\r\n")
    with pytest.raises(h11.RemoteProtocolError):
        connection.next_event()


@pytest.mark.parametrize("path", ["/healthz", "/metrics"])
def test_health_is_asked_with_head(client, path) -> None:
    assert client.head(path).status_code == 200


def test_a_job_whose_launch_back_end_is_gone_waits_and_is_told(service, caplog) -> None:
    queue(service, red=1)
    with service.database.begin() as session:
        gone = {"launch": "gone", "started": True, "attempts": 1}
        session.scalars(select(Job)).one().cursor = gone
        waiting = Job(id="later", project_id="red", model="tiny", training_file="f", seed=1)
        waiting.state, waiting.cursor = JobState.queued, {"launch": "gone"}
        session.add(waiting)
    controller = Controller(Workplace(service, Owner.here()))
    for _ in range(2):
        controller.look()
        for step in list(controller._busy.values()):
            step.result(20)
    controller.close()
    told = [record.getMessage() for record in caplog.records if record.name == _LOG.name]
    assert len(told) == 2  # once for each: it is not tried again at once
    assert all("launch=gone is not installed here" in text for text in told)
    with service.database.read() as session:
        jobs = {job.id: job for job in session.scalars(select(Job))}
    assert {job.state for job in jobs.values()} == {JobState.queued}
    assert jobs["red0"].cursor == gone
    assert "slot" not in jobs["later"].cursor
