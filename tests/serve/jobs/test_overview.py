"""What the page reads of jobs: how far they are, behind whom, which of them, and their curves."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from launcher.core.files import write_json
from launcher.core.rundir import RunDir
from launcher.serve.db.tables import Event, File, Job, JobState, Model, Project
from launcher.serve.jobs import curves
from launcher.serve.jobs.curves import Curves
from launcher.serve.site import SiteJudge

OVERVIEW = "/v1/fine_tuning/overview"


@pytest.fixture
def made(client, service, stranger):
    """Write a job of the client's project, or of another, into the database; returns its id."""
    client.get("/v1/models", headers=stranger)

    def make(project: str = "ours", **columns: Any) -> str:
        with service.database.begin() as session:
            owner = session.scalars(select(Project).where(Project.name == project)).one()
            number = len(list(session.scalars(select(Job.number))))
            columns = {"model": "tiny", "training_file": "file-a", "cursor": {}, **columns}
            job = Job(id=f"ftjob-{number}", project_id=owner.id, seed=1, **columns)
            session.add(job)
        return job.id

    return make


def record(path: Path, steps: range, **numbers: float | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        for step in steps:
            known = {"kind": "train", "loss": 1 / step, "token_accuracy": 0.5, "lr": 1e-4}
            file.write(json.dumps({"step": step, **known, **numbers}) + "\n")


def begun(service, job: str, steps: range, total: int, attempt: int = 1) -> RunDir:
    run = RunDir(service.runs / job)
    record(run.metrics, steps)
    run.config.write_text("")
    write_json(run.status_file, {"state": "running", "attempt": attempt, "steps": total})
    return run


def listed(client, **params: Any) -> list[str]:
    answer = client.get(OVERVIEW, params=params)
    assert answer.status_code == 200, answer.text
    return [job["id"] for job in answer.json()["data"]]


def test_a_row_tells_progress_files_and_the_last_losses(client, service, made) -> None:
    with service.database.begin() as session:
        owner = session.scalars(select(Project).where(Project.name == "ours")).one()
        about = {"sha256": "0", "bytes": 1, "purpose": "fine-tune", "filename": "größe.jsonl"}
        session.add(File(id="file-a", project_id=owner.id, **about))
    job = made(state=JobState.running, validation_file="file-gone")
    begun(service, job, range(1, 41), 120)
    [row] = client.get(OVERVIEW).json()["data"]
    assert row["progress"] == {"step": 40, "total_steps": 120}
    assert row["files"] == {"file-a": "größe.jsonl"}
    assert row["spark"][0] == [1, 1.0]
    assert row["spark"][-1] == [40, 0.025]
    assert row["queue"] is None


def test_the_queue_counts_the_jobs_of_all_projects_and_shows_only_ones_own(client, made) -> None:
    first = made(state=JobState.queued)
    made("theirs", state=JobState.queued)
    made(state=JobState.queued, cursor={"launch": "slurm"})
    made(state=JobState.queued, cursor={"slot": 0})  # it has its place
    last = made(state=JobState.queued)
    rows = {job["id"]: job["queue"] for job in client.get(OVERVIEW).json()["data"]}
    assert rows[first] == {"position": 2, "length": 3}  # one of its project has a place
    assert rows[last] == {"position": 3, "length": 3}
    assert [place for job, place in rows.items() if job not in (first, last)] == [None, None]


def test_jobs_are_found_by_state_model_metadata_and_words(client, made) -> None:
    error = {"code": "invalid_file_format", "message": "Line 3 has no MESSAGES", "param": None}
    bad = made(state=JobState.failed, error=error, labels={"team": "b&b", "try": "1"})
    other = made(state=JobState.paused, suffix="Grün", model="big", labels={"team": "x"})
    final = made(state=JobState.succeeded, fine_tuned_model="ft:tiny:local::abc")
    made("theirs", state=JobState.failed, suffix="Grün")
    assert listed(client) == [final, other, bad]
    assert listed(client, state="failed") == [bad]
    assert listed(client, state=["failed", "paused"]) == [other, bad]
    assert listed(client, model="big") == [other]
    assert listed(client, model="ft:tiny:local::abc") == [final]
    assert listed(client, metadata="team") == [other, bad]
    assert listed(client, metadata="team=b&b") == [bad]
    assert listed(client, metadata=["team=b&b", "try=2"]) == []
    assert listed(client, q="messages LINE") == [bad]
    assert listed(client, q="grün") == [other]
    assert listed(client, q="grün failed") == []
    found = client.get(OVERVIEW, params={"limit": 1}).json()
    assert (found["total"], len(found["data"]), found["project"]) == (3, 1, "ours")
    assert found["states"] == {"failed": 1, "paused": 1, "succeeded": 1}
    assert found["models"] == ["big", "tiny"]
    assert client.get(OVERVIEW, params={"state": "lost"}).status_code == 400


def test_what_has_not_changed_is_not_sent_again(client, service, made) -> None:
    job = made(state=JobState.running)
    run = begun(service, job, range(1, 3), 10)
    for path in (OVERVIEW, f"{OVERVIEW}/{job}", f"/v1/fine_tuning/jobs/{job}/curve"):
        first = client.get(path)
        again = client.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        record(run.metrics, range(3, 4))
        changed = client.get(path, headers={"If-None-Match": first.headers["etag"]})
        assert changed.status_code == 200
        assert abs(changed.json()["now"] - time.time()) < 5
        run.metrics.unlink()
        record(run.metrics, range(1, 3))


def test_a_strangers_job_is_not_there(client, made, stranger) -> None:
    job = made()
    for path in (
        f"{OVERVIEW}/{job}",
        *(f"/v1/fine_tuning/jobs/{job}/{x}" for x in ("curve", "downloads")),
    ):
        assert client.get(path).status_code == 200
        assert client.get(path, headers=stranger).status_code == 404
        assert client.get(path, headers={"Authorization": ""}).status_code == 401
    assert client.get(OVERVIEW, headers=stranger).json()["data"] == []


def test_events_of_a_job_leave_out_steps(client, service, made) -> None:
    job = made(state=JobState.running)
    with service.database.begin() as session:
        for number in range(300):
            kind = {"type": "metrics"} if number % 2 else {}
            session.add(Event(id=f"e{number}", job_id=job, key=str(number), message="x", **kind))
    events = client.get(f"{OVERVIEW}/{job}").json()["events"]
    assert [event["id"] for event in events] == [f"e{number}" for number in range(298, 99, -2)]


def test_a_curve_grows_and_begins_anew_with_another_file(client, service, made) -> None:
    job = made(state=JobState.running)
    run = begun(service, job, range(1, 6), 10)
    path = f"/v1/fine_tuning/jobs/{job}/curve"
    assert client.get(path).json()["train"][-1] == [5, 0.2, 0.5, 0.0001, None, None]
    with open(run.metrics, "a") as file:
        file.write('{"step": 5, "kind": "eval", "eval/loss": 0.3, "eval/token_accuracy": "nan"}\n')
        file.write('{"step": 6, "kind": "train", "loss": "nan"}\n{"step": 7, "kind": "tra')
    more = client.get(path, params={"first": 5}).json()
    assert [point[0] for point in more["train"]] == [5, 6]
    assert more["train"][1] == [6, None, None, None, None, None]
    assert more["valid"] == [[5, 0.3, None, None]]
    # It goes on from step 3 in the same file: what was behind it counts no more.
    with open(run.metrics, "a") as file:
        file.write("\n")
    record(run.metrics, range(4, 6), loss=9)
    assert [point[:2] for point in client.get(path).json()["train"]][2:] == [
        [3, 0.333333],
        [4, 9],
        [5, 9],
    ]
    # A file in its place is longer already than what was read of the one before.
    version = client.get(path).json()["version"]
    other = run.path / "other"
    record(other, range(1, 50), loss=2)
    other.rename(run.metrics)
    found = client.get(path).json()
    assert found["version"] != version
    assert [point[1] for point in found["train"]] == [2] * 49


def test_the_accuracy_of_a_job_of_preferences_is_theirs(client, service, made) -> None:
    job = made(state=JobState.running, method="dpo")
    run = RunDir(service.runs / job)
    run.path.mkdir(parents=True)
    told = {"kind": "train", "loss": 0.7, "preference_accuracy": 0.75, "lr": 1e-4}
    seen = {"kind": "eval", "eval/loss": 0.6, "eval/preference_accuracy": 0.5}
    run.metrics.write_text("".join(json.dumps({"step": 1, **one}) + "\n" for one in (told, seen)))
    curve = client.get(f"/v1/fine_tuning/jobs/{job}/curve").json()
    assert curve["train"] == [[1, 0.7, 0.75, 0.0001, None, None]]
    assert curve["valid"] == [[1, 0.6, 0.5, None]]


def test_a_job_of_answers_has_rewards(client, service, made) -> None:
    job = made(state=JobState.running, method="reinforcement")
    run = RunDir(service.runs / job)
    run.path.mkdir(parents=True)
    told = {"kind": "train", "loss": 0.01, "lr": 1e-4, "score": 0.5, "grader_errors": 0.25}
    seen = {"kind": "eval", "eval/grader:grader.yaml": 0.75}
    lines = [{"step": step, **one} for step in (1, 2) for one in (told, seen)]
    run.metrics.write_text("".join(json.dumps(one) + "\n" for one in lines))
    curve = client.get(f"/v1/fine_tuning/jobs/{job}/curve").json()
    assert curve["train"][0] == [1, 0.01, None, 0.0001, 0.5, 0.25]
    assert curve["valid"][0] == [1, None, None, 0.75]
    [row] = client.get(OVERVIEW).json()["data"]
    assert row["spark"] == [[1, 0.5], [2, 0.5]]


def test_a_project_sees_who_has_changed_what_in_it_alone(client, service, stranger) -> None:
    path = "/v1/fine_tuning/audit"
    assert client.get(path).json()["data"][0]["action"] == "keys create"
    assert client.delete("/v1/files/file-none").status_code == 404
    asked = {"name": "x", "url": "http://elsewhere/", "event_types": ["no such"]}
    assert client.post("/v1/webhook_endpoints", json=asked, headers=stranger).status_code == 400
    own = client.get(path).json()["data"]
    told = [(one["action"], one["object"], one["status"], one["key"]) for one in own]
    assert told[0] == ("DELETE /v1/files/{file_id}", "file-none", 404, "test")
    assert [one["action"] for one in own] == ["DELETE /v1/files/{file_id}", "keys create"]
    assert [one["is_own_key"] for one in own] == [True, False]
    theirs = client.get(path, headers=stranger).json()["data"]
    assert [one["action"] for one in theirs] == ["POST /v1/webhook_endpoints", "keys create"]
    first = client.get(path, params={"limit": 1}).json()
    rest = client.get(path, params={"before": first["data"][0]["number"]}).json()
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert [one["action"] for one in rest["data"]] == ["keys create"]


def test_the_names_of_judges_are_told_and_nothing_else_of_them(client, service) -> None:
    judge = {"url": "http://127.0.0.1:9/v1", "key_variable": "SECRET"}
    service.site.judges = {name: SiteJudge(**judge) for name in ("b-judge", "a-judge")}
    found = client.get("/v1/fine_tuning/judges").json()
    assert found["data"] == ["a-judge", "b-judge"]
    assert "SECRET" not in str(found)


def test_a_file_written_anew_is_read_anew_whatever_its_inode(tmp_path: Path) -> None:
    run, known = RunDir(tmp_path), Curves()
    record(run.metrics, range(1, 31))
    before = known.of(run, 0, 1 << 40)
    run.metrics.write_text("")  # the same inode, and soon a longer file
    record(run.metrics, range(1, 61), loss=2)
    found = known.of(run, 0, 1 << 40)
    assert found["version"] != before["version"]
    assert [tuple(point[:2]) for point in found["train"]] == [(step, 2) for step in range(1, 61)]


def test_a_curve_that_takes_long_to_read_holds_up_no_other(tmp_path: Path) -> None:
    slow, quick = RunDir(tmp_path / "slow"), RunDir(tmp_path / "quick")
    slow.path.mkdir()
    os.mkfifo(slow.metrics)  # opening it waits for somebody who writes
    record(quick.metrics, range(1, 4))
    known = Curves()
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(known.of, slow, 0, 9)
        other = threads.submit(known.of, quick, 0, 9)
        try:
            assert len(other.result(20)["train"]) == 3
            assert not waiting.done()
        finally:
            slow.metrics.write_bytes(b"")


def test_no_more_points_are_remembered_than_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "_REMEMBERED_POINTS", 50)
    known, runs = Curves(), [RunDir(tmp_path / str(n)) for n in range(4)]
    for run in runs:
        record(run.metrics, range(1, 21))
        assert len(known.of(run, 0, 99)["train"]) == 20
    assert list(known._curves) == [run.metrics for run in runs[2:]]
    record(runs[3].metrics, range(21, 101))
    assert len(known.of(runs[3], 0, 999)["train"]) == 100  # one alone is remembered all the same
    assert list(known._curves) == [runs[3].metrics]


def test_a_curve_that_is_not_there_yet_is_the_same_one_again(client, made) -> None:
    path = f"/v1/fine_tuning/jobs/{made()}/curve"
    first = client.get(path)
    again = client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304


@pytest.mark.slow
def test_a_long_curve_keeps_its_spikes_and_shows_a_part_as_it_is(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    record(run.metrics, range(1, 50_000))
    record(run.metrics, range(50_000, 50_001), loss=77)
    record(run.metrics, range(50_001, 100_001))
    known = Curves()
    found = known.of(run, 0, 1 << 40)
    assert len(found["train"]) <= curves.MOST + 2
    assert found["is_thinned"]
    assert max(point[1] for point in found["train"]) == 77
    assert [found["train"][0][0], found["train"][-1][0]] == [1, 100_000]
    begun_s = time.perf_counter()
    part = known.of(run, 49_900, 50_100)
    assert time.perf_counter() - begun_s < 0.5  # it is not read again
    assert [point[0] for point in part["train"]] == list(range(49_900, 50_101))
    assert not part["is_thinned"]
    spark = curves.spark(run.metrics)
    assert len(spark) == 32
    assert spark[0] == [1, 1.0]


def test_a_model_that_a_job_starts_from_is_not_deleted(client, service, made) -> None:
    source = made(state=JobState.succeeded)
    name = "ft:tiny:local::abc"
    with service.database.begin() as session:
        owner = session.scalars(select(Project).where(Project.name == "ours")).one()
        about = {"step": 3, "checkpoint_id": "c", "is_final": True, "metrics": {"train_loss": 1}}
        session.add(Model(name=name, project_id=owner.id, job_id=source, **about))
    user = made(state=JobState.queued, model=name)
    assert client.get("/v1/fine_tuning/models").json()["data"][0]["used_by"] == [user]
    refused = client.delete(f"/v1/models/{name}")
    assert refused.status_code == 409
    assert user in refused.json()["error"]["message"]
    client.post(f"/v1/fine_tuning/jobs/{user}/cancel")
    assert client.get("/v1/fine_tuning/models").json()["data"][0]["used_by"] == []
    assert client.delete(f"/v1/models/{name}").json()["deleted"]
    assert client.get("/v1/fine_tuning/models").json()["data"] == []


def test_five_hundred_jobs_are_looked_through_at_once(client, service, made) -> None:
    with service.database.begin() as session:
        owner = session.scalars(select(Project).where(Project.name == "ours")).one()
        session.add_all(
            Job(
                id=f"ftjob-{n}",
                project_id=owner.id,
                model="tiny",
                training_file="file-a",
                seed=1,
                state=JobState.succeeded,
                suffix=f"run {n}",
            )
            for n in range(500)
        )
    begun_s = time.perf_counter()
    assert listed(client, q="run 4", limit=500)[0] == "ftjob-499"
    assert len(listed(client)) == 50
    assert time.perf_counter() - begun_s < 2
