"""Projects that may use another's models: by admin keys, which are good for nothing else."""

from __future__ import annotations

import subprocess

import pytest
from openai import BadRequestError, NotFoundError, OpenAI, PermissionDeniedError
from sqlalchemy import select
from starlette.testclient import TestClient

from launcher.serve.db.tables import Audit, Job, JobState, Model, Permission, Project
from launcher.serve.http import access
from launcher.serve.jobs import outcome
from launcher.serve.jobs.measurements import Measured
from support import hints
from support.project import LAUNCHER
from support.ranks import environment

NAME = "ft:tiny:acme::abcd1234"


@pytest.fixture
def theirs(service) -> str:
    """A model of the project `theirs`; the id of `ours`."""
    with service.database.begin() as session:
        owner, other = (access.find_project(session, name) for name in ("theirs", "ours"))
        common = {"project_id": owner.id, "model": "tiny", "training_file": "f", "seed": 1}
        session.add(Job(id="ftjob-1", state=JobState.succeeded, **common))
        session.flush()
        made = {"project_id": owner.id, "job_id": "ftjob-1", "step": 9, "checkpoint_id": "c1"}
        session.add(Model(name=NAME, is_final=True, **made))
        return other.id


@pytest.fixture
def admin(service, client) -> OpenAI:
    """The official client with an admin key."""
    key = access.create_key(service.database, "root", "ops", is_admin=True)
    asked = TestClient(client.app, headers={"Authorization": f"Bearer {key}"})
    return OpenAI(api_key=key, base_url="http://testserver/v1", http_client=asked, max_retries=0)


def may(client) -> bool:
    listed = NAME in [one["id"] for one in client.get("/v1/models").json()["data"]]
    assert (client.get(f"/v1/models/{NAME}").status_code == 200) == listed
    return listed


def test_a_project_uses_what_it_has_a_permission_for(service, client, admin, theirs):
    permissions = admin.fine_tuning.checkpoints.permissions
    assert not may(client)
    [made] = permissions.create(NAME, project_ids=[theirs, theirs])
    assert (made.object, made.project_id) == ("checkpoint.permission", theirs)
    assert may(client)
    assert [one.id for one in permissions.create(NAME, project_ids=[theirs])] == [made.id]
    assert [one.id for one in permissions.list(NAME)] == [made.id]
    assert permissions.retrieve(NAME, project_id="proj_x").data == []
    file = client.post(
        "/v1/files", files={"file": ("a.jsonl", b"{}\n")}, data={"purpose": "fine-tune"}
    ).json()["id"]
    job = client.post("/v1/fine_tuning/jobs", json={"model": NAME, "training_file": file}).json()
    assert job["model"] == NAME
    assert permissions.delete(made.id, fine_tuned_model_checkpoint=NAME).deleted
    assert not may(client)
    refused = client.post("/v1/fine_tuning/jobs", json={"model": NAME, "training_file": file})
    assert refused.json()["error"]["code"] == "model_not_available"
    assert client.get(f"/v1/fine_tuning/jobs/{job['id']}").json()["status"] != "failed"


def test_it_deletes_no_model_of_another(service, client, stranger, admin, theirs):
    admin.fine_tuning.checkpoints.permissions.create(NAME, project_ids=[theirs])
    assert client.delete(f"/v1/models/{NAME}").status_code == 403
    with service.database.begin() as session:
        own = {"project_id": theirs, "model": NAME, "training_file": "f", "seed": 1}
        session.add(Job(id="ftjob-2", **own))
    refused = client.delete(f"/v1/models/{NAME}", headers=stranger)
    assert refused.status_code == 409
    assert "a job of another project" in refused.text
    assert "ftjob-2" not in refused.text


def test_who_was_permitted_what_is_in_the_audit(service, admin, theirs):
    permissions = admin.fine_tuning.checkpoints.permissions
    [made] = permissions.create(NAME, project_ids=[theirs])
    permissions.delete(made.id, fine_tuned_model_checkpoint=NAME)
    with service.database.read() as session:
        rows = session.scalars(select(Audit).order_by(Audit.number))
        found = [(row.action.split(" ")[0], row.object) for row in rows]
    assert found[-2:] == [("POST", f"{NAME} {theirs}"), ("DELETE", f"{NAME} {made.id}")]
    assert ("keys", "create") not in found


def test_a_checkpoint_that_turns_out_to_be_the_end_stays_permitted(service, admin, theirs):
    [made] = admin.fine_tuning.checkpoints.permissions.create(NAME, project_ids=[theirs])
    step = Measured(step=9, time=0.0, train_loss=1.0, tokens=1)
    with service.database.begin() as session:
        job = session.scalars(select(Job)).one()
        outcome._add_final(session, job, "ft:tiny:acme::final", step)
    with service.database.read() as session:
        [kept] = session.scalars(select(Permission))
        assert (kept.id, kept.model) == (made.id, "ft:tiny:acme::final")


def test_pages_go_both_ways(service, admin, theirs):
    permissions = admin.fine_tuning.checkpoints.permissions
    with service.database.begin() as session:
        ids = [access.find_project(session, f"p{n}").id for n in range(5)]
    made = [one.id for one in permissions.create(NAME, project_ids=ids)]
    assert [one.id for one in permissions.list(NAME, limit=2)] == made[::-1]
    assert [one.id for one in permissions.list(NAME, limit=2, order="ascending")] == made


def test_wrong_requests(service, client, admin, theirs):
    permissions = admin.fine_tuning.checkpoints.permissions
    with pytest.raises(NotFoundError):
        permissions.create("ft:none", project_ids=[theirs])
    with pytest.raises(BadRequestError, match="No such project: proj_x"):
        permissions.create(NAME, project_ids=[theirs, "proj_x"])
    assert list(permissions.list(NAME)) == []  # neither was made
    with pytest.raises(NotFoundError):
        permissions.delete("cp_x", fine_tuned_model_checkpoint=NAME)
    with pytest.raises(PermissionDeniedError):
        admin.models.list()
    path = f"/v1/fine_tuning/checkpoints/{NAME}/permissions"
    assert client.get(path).status_code == 403
    assert client.post(path, json={"project_ids": [theirs]}).status_code == 403
    with service.database.read() as session:
        assert session.scalars(select(Project).where(Project.name == "ops")).one()


def test_the_key_that_is_asked_for_is_made_as_told(service, client, theirs):
    path = f"/v1/fine_tuning/checkpoints/{NAME}/permissions"
    refused = client.get(path).json()["error"]["message"]
    [words] = hints.commands(refused)
    command = [*LAUNCHER, *words, "--home", str(service.home)]
    made = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    key = made.stdout.strip()
    assert key.startswith("sk-admin-")
    headers = {"Authorization": f"Bearer {key}"}
    assert client.get(path, headers=headers).status_code == 200
