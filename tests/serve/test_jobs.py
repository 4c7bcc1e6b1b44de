"""Routes of jobs: rows in, rows out, and what is refused."""

from __future__ import annotations

import time

import pytest
from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent
from openai.types.fine_tuning.jobs import FineTuningJobCheckpoint
from sqlalchemy import select

from launcher.serve import naming
from launcher.serve.db.tables import Job, JobState, Model, Project
from launcher.serve.jobs import journal
from launcher.serve.jobs.journal import Note
from support.workshop import JOBS, examples

OF_DPO = "method.dpo.hyperparameters"


@pytest.fixture
def file(client) -> str:
    return upload(client)


def upload(client, purpose: str = "fine-tune", headers: dict[str, str] | None = None) -> str:
    sent = {"file": ("data.jsonl", examples(10))}
    answer = client.post("/v1/files", files=sent, data={"purpose": purpose}, headers=headers)
    return answer.json()["id"]


def create(client, file, **asked):
    return client.post(JOBS, json={"training_file": file, "model": "gpt-3.5-turbo", **asked})


REWARDED = "method.reinforcement.grader"
OF_REWARDED = "method.reinforcement.hyperparameters"


def rewarded(**numbers: object) -> dict[str, object]:
    """A method that is refused before its grader is looked at."""
    inner = {"grader": {}, "hyperparameters": numbers}
    return {"method": {"type": "reinforcement", "reinforcement": inner}}


def dpo(**numbers):
    return {"method": {"type": "dpo", "dpo": {"hyperparameters": numbers}}}


def set_state(service, job_id, state, **changes):
    with service.database.begin() as session:
        job = session.scalars(select(Job).where(Job.id == job_id)).one()
        job.state = state
        for name, value in changes.items():
            setattr(job, name, value)


def test_a_new_job(client, file):
    asked = {
        "suffix": "mine",
        "seed": 5,
        "metadata": {"a": "b"},
        "validation_file": file,
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
    }
    answer = create(client, file, **asked)
    assert answer.status_code == 200
    job = FineTuningJob.model_validate(answer.json(), strict=True)
    assert (job.status, job.model, job.seed, job.metadata) == (
        "validating_files",
        "tiny",
        5,
        {"a": "b"},
    )
    assert job.hyperparameters.n_epochs == 3
    assert job.method.supervised.hyperparameters.batch_size == "auto"
    assert (job.error, job.finished_at, job.result_files, job.trained_tokens) == (
        None,
        None,
        [],
        None,
    )
    assert client.get(f"{JOBS}/{job.id}").json() == answer.json()
    found = client.get(f"{JOBS}/{job.id}/events").json()
    assert [event["message"] for event in found["data"]] == [
        f"Validating training file: {file} and validation file: {file}",
        f"Created fine-tuning job: {job.id}",
    ]
    for event in found["data"]:
        FineTuningJobEvent.model_validate(event, strict=True)


@pytest.mark.parametrize(
    ("method", "path", "param"),
    [
        ("GET", "/v1/fine_tuning/jobs?limt=1", "limt"),
        ("GET", "/v1/fine_tuning/jobs?metadat[a]=1", "metadat[a]"),
        ("GET", "/v1/fine_tuning/jobs?limit=1&limit=2", "limit"),
        ("GET", "/v1/files?purposes=x", "purposes"),
        ("GET", "/v1/models?owner=x", "owner"),
        ("POST", "/v1/fine_tuning/jobs/x/cancel?force=1", "force"),
        ("DELETE", "/v1/files/x?force=1", "force"),
    ],
)
def test_parameters_that_nobody_knows_are_refused(client, method, path, param):
    answer = client.request(method, path)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_body_where_none_is_read_is_refused(client, file):
    path = f"{JOBS}/{create(client, file).json()['id']}/pause"
    answer = client.post(path, json={"reason": "x"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "reason")
    assert client.post(path, json={}).status_code == 200
    assert client.get(f"{JOBS}?limit=1&metadata[a]=b&metadata=").status_code == 200


def test_a_job_for_an_alias_makes_a_model_of_that_name(client, file, service):
    made = create(client, file, suffix="s").json()
    assert made["model"] == "tiny"
    with service.database.begin() as session:
        job = session.query(Job).filter_by(id=made["id"]).one()
        name = naming.final_name(job, "local")
        assert name.startswith("ft:gpt-3.5-turbo:local:s:")
        assert naming.checkpoint_name(job, "local", 2).startswith("ft:gpt-3.5-turbo:local:s:")
        assert naming.offer_of(job) == "tiny"
        common = {"project_id": job.project_id, "job_id": job.id, "checkpoint_id": "c"}
        session.add(Model(name=name, step=1, is_final=True, **common))
    further = create(client, file, model=name).json()
    assert further["model"] == name
    with service.database.read() as session:
        job = session.query(Job).filter_by(id=further["id"]).one()
        assert naming.offer_of(job) == "tiny"
        assert naming.final_name(job, "local").startswith("ft:gpt-3.5-turbo:local:")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"method": {"type": "dpo"}}, {}),
        ({"method": {"type": "dpo", "dpo": {"hyperparameters": None}}}, {}),
        (dpo(beta="auto", n_epochs="auto"), {}),
        (dpo(beta=0.5, n_epochs=2), {"beta": 0.5, "n_epochs": 2}),
        (dpo(beta=1), {"beta": 1}),
        ({"hyperparameters": {"n_epochs": 2}, "method": {"type": "dpo"}}, {"n_epochs": 2}),
        (
            {"hyperparameters": {"n_epochs": 2}, **dpo(n_epochs=2, beta=0.5)},
            {"n_epochs": 2, "beta": 0.5},
        ),
    ],
)
def test_a_new_job_of_preferences(client, file, asked, found):
    answer = create(client, file, **asked)
    job = FineTuningJob.model_validate(answer.json(), strict=True)
    assert (job.method.type, job.method.supervised) == ("dpo", None)
    auto = dict.fromkeys(("n_epochs", "batch_size", "learning_rate_multiplier", "beta"), "auto")
    assert job.method.dpo.hyperparameters.model_dump() == {**auto, **found}
    shared = {name: value for name, value in {**auto, **found}.items() if name != "beta"}
    assert answer.json()["hyperparameters"] == shared


def test_old_clients_give_hyperparameters_beside(client, file):
    job = create(client, file, hyperparameters={"n_epochs": 2, "batch_size": "auto"}).json()
    assert job["hyperparameters"] == {
        "n_epochs": 2,
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
    }


@pytest.mark.parametrize(
    ("asked", "param", "found"),
    [
        ({"training_file": None}, "training_file", "string"),
        ({"model": None}, "model", "string"),
        ({"model": "gpt-9"}, "model", "Model gpt-9 is not available for fine-tuning or does not"),
        ({"training_file": "file-x"}, "training_file", "invalid training_file: file-x"),
        ({"validation_file": "file-x"}, "validation_file", "invalid validation_file: file-x"),
        ({"method": {"type": "reinforcement"}}, "method", "with a 'grader' is a required"),
        ({"method": {"type": "reinforcement", "reinforcement": {}}}, REWARDED, "required"),
        (rewarded(compute_multiplier=0), f"{OF_REWARDED}.compute_multiplier", "greater than 0"),
        (rewarded(compute_multiplier=11), f"{OF_REWARDED}.compute_multiplier", "equal to 10"),
        (rewarded(eval_interval=0), f"{OF_REWARDED}.eval_interval", "greater than or equal to 1"),
        (rewarded(eval_samples=65), f"{OF_REWARDED}.eval_samples", "less than or equal to 64"),
        (rewarded(eval_samples=1.5), f"{OF_REWARDED}.eval_samples", "integer"),
        (rewarded(reasoning_effort="max"), f"{OF_REWARDED}.reasoning_effort", "'high'"),
        (rewarded(beta=0.1), f"{OF_REWARDED}.beta", "Unknown parameter"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method", "'supervised'"),
        (dpo(beta=0), f"{OF_DPO}.beta", "greater than 0"),
        (dpo(beta=-0.1), f"{OF_DPO}.beta", "greater than 0"),
        (dpo(beta=2.5), f"{OF_DPO}.beta", "less than or equal to 2"),
        (dpo(beta=True), f"{OF_DPO}.beta", "number"),
        (dpo(beta="0.1"), f"{OF_DPO}.beta", "number"),
        (dpo(beta=None), f"{OF_DPO}.beta", "number"),
        (dpo(betta=0.1), f"{OF_DPO}.betta", "'beta'"),
        (dpo(n_epochs=0), f"{OF_DPO}.n_epochs", "greater"),
        (dpo(learning_rate_multiplier=0), f"{OF_DPO}.learning_rate_multiplier", "greater"),
        ({"method": {"type": "dpo", "dpo": {"beta": 0.1}}}, "method.dpo.beta", "hyperparameters"),
        (
            {"method": {"type": "dpo", "beta": 0.1}},
            "method.beta",
            "'dpo.hyperparameters.beta'",
        ),
        ({"beta": 0.1}, "beta", "'method.dpo.hyperparameters.beta'"),
        ({"hyperparameters": {"beta": 0.1}}, "hyperparameters.beta", "Unknown parameter"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"beta": 1.0}}}},
            "method.supervised.hyperparameters.beta",
            "Unknown parameter",
        ),
        ({"hyperparameters": {"n_epochs": 2}, **dpo(n_epochs=3)}, None, "different things"),
        ({"method": {"type": "magic"}}, "method.type", "supervised"),
        ({"method": {"dpo": {}}}, "method.type", "required"),
        ({"method": {"type": "supervised", "dpo": {}}}, "method", "'dpo'"),
        ({"nepochs": 2}, "nepochs", "Unknown parameter: 'nepochs'"),
        ({"n_epochs": 2}, "n_epochs", "'method.supervised.hyperparameters.n_epochs'"),
        ({"hyperparameters": {"nepochs": 2}}, "hyperparameters.nepochs", "'n_epochs'"),
        (
            {"method": {"type": "supervised", "supervised": {"hyperparameters": {"epochs": 2}}}},
            "method.supervised.hyperparameters.epochs",
            "'n_epochs'",
        ),
        (
            {"integrations": [{"type": "wandb", "wandb": {"project": "a", "tag": []}}]},
            "integrations.0.wandb.tag",
            "'tags'",
        ),
        (
            {
                "hyperparameters": {"n_epochs": 2},
                "method": {"type": "supervised", "supervised": {"hyperparameters": {}}},
            },
            None,
            "different things",
        ),
        ({"hyperparameters": {"n_epochs": 0}}, "hyperparameters.n_epochs", "greater"),
        ({"hyperparameters": {"n_epochs": 51}}, "hyperparameters.n_epochs", "less"),
        ({"hyperparameters": {"n_epochs": True}}, "hyperparameters.n_epochs", "integer"),
        ({"hyperparameters": {"batch_size": 257}}, "hyperparameters.batch_size", "less"),
        ({"hyperparameters": {"batch_size": 1.5}}, "hyperparameters.batch_size", "integer"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 0}},
            "hyperparameters.learning_rate_multiplier",
            "greater",
        ),
        (
            {"hyperparameters": {"learning_rate_multiplier": 1e300}},
            "hyperparameters.learning_rate_multiplier",
            "less",
        ),
        (
            {"hyperparameters": {"learning_rate_multiplier": -1}},
            "hyperparameters.learning_rate_multiplier",
            "greater",
        ),
        ({"suffix": ""}, "suffix", "at least 1"),
        ({"suffix": "a" * 65}, "suffix", "at most 64"),
        ({"seed": -1}, "seed", "greater"),
        ({"seed": 1 << 31}, "seed", "less"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "16"),
        ({"metadata": {"a" * 65: ""}}, None, "64"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a", "512"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
        ({"integrations": [{"type": "other"}]}, None, "wandb"),
        ({"integrations": [{"type": "wandb", "wandb": {}}]}, None, "required"),
    ],
)
def test_what_is_refused(client, file, asked, param, found):
    answer = create(client, file, **asked)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert found in error["message"]
    assert param is None or error["param"] == param
    assert client.get(JOBS).json()["data"] == []


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b'"a"'])
def test_bodies_that_are_none(client, body):
    answer = client.post(JOBS, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_unknown_models_are_told_which_there_are(client, file):
    error = create(client, file, model="gpt-9").json()["error"]
    assert error["code"] == "model_not_available"
    assert "tiny, gpt-3.5-turbo" in error["message"]


def test_files_for_something_else(client):
    error = create(client, upload(client, "batch")).json()["error"]
    assert "has purpose 'batch'" in error["message"]


def test_wandb_is_refused_where_it_would_come_to_nothing(client, file, service, monkeypatch):
    wandb = [{"type": "wandb", "wandb": {"project": "p", "tags": ["a"]}}]
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert create(client, file, integrations=wandb).json()["integrations"][0]["type"] == "wandb"
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", "/nowhere")
    answer = create(client, file, integrations=wandb)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "integrations")
    assert "not logged in" in answer.json()["error"]["message"]
    service.site.overrides.append("track.wandb.mode=offline")  # the site has settled it
    assert create(client, file, integrations=wandb).status_code == 200


def test_when_a_job_is_expected_to_end(client, file, service):
    job_id = create(client, file).json()["id"]

    def expected(state, at):
        set_state(service, job_id, state, estimated_finish=at)
        return client.get(f"{JOBS}/{job_id}").json()["estimated_finish"]

    later = int(time.time()) + 1000
    assert expected(JobState.queued, later) is None
    assert expected(JobState.running, None) is None
    assert expected(JobState.running, later) == later
    assert abs(expected(JobState.running, 1) - time.time()) < 10  # what comes after the last step
    assert expected(JobState.running, later) == later
    assert client.post(f"{JOBS}/{job_id}/pause").json()["estimated_finish"] is None
    set_state(service, job_id, JobState.running)
    assert client.get(f"{JOBS}/{job_id}").json()["estimated_finish"] is None


def test_strangers_see_nothing(client, stranger, file, service):
    job_id = create(client, file).json()["id"]
    theirs = upload(client, headers=stranger)
    for method, path in [
        ("GET", ""),
        ("POST", "/cancel"),
        ("POST", "/pause"),
        ("POST", "/resume"),
        ("GET", "/events"),
        ("GET", "/checkpoints"),
    ]:
        answer = client.request(method, f"{JOBS}/{job_id}{path}", headers=stranger)
        assert answer.status_code == 404
        assert answer.json()["error"] == {
            "message": f"Could not find fine tune: {job_id}",
            "type": "invalid_request_error",
            "param": "fine_tune_id",
            "code": "fine_tune_not_found",
        }
    assert client.get(JOBS, headers=stranger).json()["data"] == []
    assert client.get(JOBS, params={"after": job_id}, headers=stranger).status_code == 400
    refused = client.post(JOBS, json={"training_file": file, "model": "tiny"}, headers=stranger)
    assert refused.json()["error"]["message"] == f"invalid training_file: {file}"
    add_model(service, job_id, "ft:tiny:local::mine", is_final=True)
    asked = {"training_file": theirs, "model": "ft:tiny:local::mine"}
    assert client.post(JOBS, json=asked, headers=stranger).status_code == 400


def add_model(service, job_id, name, *, step=10, is_final=False):
    with service.database.begin() as session:
        job = session.scalars(select(Job).where(Job.id == job_id)).one()
        session.add(
            Model(
                name=name,
                project_id=job.project_id,
                job_id=job.id,
                step=step,
                checkpoint_id=f"ftckpt_{step}",
                metrics={"step": step, "train_loss": 0.5},
                is_final=is_final,
            )
        )


def test_fine_tuned_models_of_ones_own_can_be_tuned_further(client, file, service):
    first = create(client, file).json()["id"]
    add_model(service, first, "ft:tiny:local::done", step=20, is_final=True)
    add_model(service, first, "ft:tiny:local::on-the-way", step=10)
    answer = create(client, file, model="ft:tiny:local::done")
    assert answer.json()["model"] == "ft:tiny:local::done"
    answer = create(client, file, model="ft:tiny:local::on-the-way")
    assert answer.json()["model"] == "ft:tiny:local::on-the-way"
    assert client.delete("/v1/models/ft:tiny:local::on-the-way").status_code == 409  # it is used
    with service.database.begin() as session:
        session.query(Job).filter_by(id=answer.json()["id"]).one().state = JobState.cancelled
    assert client.delete("/v1/models/ft:tiny:local::on-the-way").status_code == 200
    answer = create(client, file, model="ft:tiny:local::on-the-way")
    assert answer.json()["error"]["code"] == "model_not_available"


def test_pages(client, file):
    ids = [create(client, file, metadata={"n": str(n % 2)}).json()["id"] for n in range(5)][::-1]
    first = client.get(JOBS, params={"limit": 2}).json()
    assert [job["id"] for job in first["data"]] == ids[:2]
    assert first["has_more"] is True
    rest = client.get(JOBS, params={"limit": 3, "after": ids[1]}).json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (ids[2:], False)
    assert (rest["first_id"], rest["last_id"]) == (ids[2], ids[4])
    last = client.get(JOBS, params={"after": ids[4]}).json()
    assert (last["data"], last["has_more"], last["first_id"]) == ([], False, None)
    assert len(client.get(JOBS, params={"after": ""}).json()["data"]) == 5
    for bad in ({"limit": 0}, {"limit": "x"}, {"after": "ftjob-x"}, {"after": "\0"}):
        assert client.get(JOBS, params=bad).status_code == 400


def test_jobs_by_metadata(client, file):
    named = [create(client, file, metadata={"a b": "1", "c": n}).json()["id"] for n in "xyx"]
    bare = create(client, file).json()["id"]

    def ids(**params):
        return [job["id"] for job in client.get(JOBS, params=params).json()["data"]]

    assert ids(**{"metadata[a b]": "1"}) == named[::-1]
    assert ids(**{"metadata[a b]": "1", "metadata[c]": "x"}) == [named[2], named[0]]
    assert ids(**{"metadata[c]": "x", "after": named[2]}) == [named[0]]
    assert ids(**{"metadata[c]": "w"}) == []
    assert ids(metadata="null") == ids(metadata="") == [bare]
    page = client.get(JOBS, params={"metadata[c]": "x", "limit": 1}).json()
    assert (page["data"][0]["id"], page["has_more"]) == (named[2], True)


def test_cancel_pause_and_resume(client, file, service):
    job_id = create(client, file).json()["id"]

    def ask(action):
        return client.post(f"{JOBS}/{job_id}/{action}")

    assert ask("pause").json()["status"] == ask("pause").json()["status"] == "paused"
    assert ask("resume").json()["status"] == "validating_files"
    assert ask("resume").json()["status"] == "validating_files"  # asked again, the same
    set_state(service, job_id, JobState.queued, hyperparameters={"n_epochs": 1}, wanted=None)
    assert ask("pause").json()["status"] == "paused"
    assert ask("resume").json()["status"] == "queued"
    job = ask("cancel").json()
    assert (job["status"], ask("cancel").json()) == ("cancelled", job)
    FineTuningJob.model_validate(job, strict=True)
    assert job["finished_at"] >= job["created_at"]
    for action in ("pause", "resume"):
        assert ask(action).status_code == 400


@pytest.mark.parametrize("state", [JobState.succeeded, JobState.failed])
def test_what_has_ended_cannot_be_cancelled(client, file, service, state):
    job_id = create(client, file).json()["id"]
    set_state(service, job_id, state)
    error = client.post(f"{JOBS}/{job_id}/cancel").json()["error"]
    assert error["message"] == (
        f'Cannot cancel a job {job_id} that already has status "{state.value}".'
    )
    assert (error["param"], error["code"]) == (None, None)


def test_events_are_noted_once_and_paged(client, file, service):
    job_id = create(client, file).json()["id"]
    notes = [Note(f"step-{n}", f"Step {n}", {"step": n}, type="metrics") for n in range(1, 1001)]
    for some in (notes[:10], notes):
        with service.database.begin() as session:
            journal.write(session, job_id, some)
    seen, after = [], None
    while True:
        params = {"limit": 300, **({"after": after} if after else {})}
        page = client.get(f"{JOBS}/{job_id}/events", params=params).json()
        seen += [event["message"] for event in page["data"]]
        if not page["has_more"]:
            break
        after = page["data"][-1]["id"]
    assert seen[:1000] == [f"Step {n}" for n in range(1000, 0, -1)]
    assert len(seen) == 1002
    assert client.get(f"{JOBS}/{job_id}/events", params={"after": "x"}).status_code == 400


def test_checkpoints(client, file, service):
    job_id = create(client, file).json()["id"]
    for step in (10, 20, 30):
        add_model(service, job_id, f"ft:tiny:local::{step}", step=step, is_final=step == 30)
    page = client.get(f"{JOBS}/{job_id}/checkpoints", params={"limit": 2}).json()
    assert [one["step_number"] for one in page["data"]] == [30, 20]
    assert page["has_more"] is True
    for one in page["data"]:
        FineTuningJobCheckpoint.model_validate(one, strict=True)
    rest = client.get(f"{JOBS}/{job_id}/checkpoints", params={"after": page["last_id"]}).json()
    assert [one["fine_tuned_model_checkpoint"] for one in rest["data"]] == ["ft:tiny:local::10"]


def test_projects_share_a_database_and_nothing_else(service, client, stranger):
    with service.database.read() as session:
        assert {p.name for p in session.scalars(select(Project))} == {"ours", "theirs"}
