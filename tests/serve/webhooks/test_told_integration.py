"""A running server tells of jobs that end, through SIGKILL; the official clients verify it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from openai import OpenAI

from serve.webhooks.receiver import Received, receiving
from support import clients
from support.chats import write_pirate_chats
from support.served import served, start, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CANCELLED = "fine_tuning.job.cancelled"
NODE = ("7.57.0", "6.49.0", "5.23.2")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What is sent of a cancelled job by a server that is killed meanwhile: job, secret, and the
    requests."""
    folder = tmp_path_factory.mktemp("told")
    data = write_pirate_chats(folder / "chats.jsonl")
    home = folder / "home"
    home.mkdir()
    with receiving() as receiver:
        receiver.status = lambda number: (-30, 200)[number > 0]
        settings = {"webhooks": {"allow": [receiver.url], "timeout_s": 1}}
        (home / "serve.yaml").write_text(json.dumps(settings))
        first = start(home)
        client = OpenAI(base_url=first.base_url, api_key=first.key)
        made = client.webhooks.create(name="mine", url=receiver.url, event_types=[CANCELLED])
        file = client.files.create(file=data, purpose="fine-tune")
        job = client.fine_tuning.jobs.create(model="gpt-3.5-turbo", training_file=file.id)
        client.fine_tuning.jobs.cancel(job.id)
        wait_until(lambda: len(receiver.requests) == 1, "the first try")
        first.kill()
        with served(home) as second:
            wait_until(lambda: len(receiver.requests) == 2, "the next try")
            client = OpenAI(base_url=second.base_url, api_key=second.key)
            assert [one.id for one in client.webhooks.list()] == [made.id]
            assert CANCELLED in client.webhooks.event_types.list().data
            client.webhooks.delete(made.id)
        return job.id, made.signing_secret, list(receiver.requests)


def test_it_is_sent_again_after_a_kill(told: tuple[str, str, list[Received]]) -> None:
    job, secret, requests = told
    assert len({one.headers["webhook-id"] for one in requests}) == 1
    for one in requests:
        event = OpenAI(api_key="x").webhooks.unwrap(one.body, one.headers, secret=secret)
        assert (event.type, event.data.id) == (CANCELLED, job)


@pytest.mark.parametrize("version", NODE)
def test_node_verifies_it(
    version: str, told: tuple[str, str, list[Received]], tmp_path: Path
) -> None:
    job, secret, requests = told
    installed = clients.node_with(version)
    shutil.copy(clients.FOLDER / "unwrap.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(installed / "node_modules")
    last = requests[-1]
    event = {"body": last.body, "headers": last.headers, "secret": secret}
    (tmp_path / "event.json").write_text(json.dumps(event))
    said = clients.run([str(clients.NODE), "unwrap.mjs"], tmp_path, "http://localhost/v1", "x")
    assert said.strip() == f"{CANCELLED} {job} true"
