"""Azure's official client against the app: what it sends otherwise than OpenAI's."""

from __future__ import annotations

from typing import Any

import httpx2
import openai
import pytest
from starlette.testclient import TestClient

from support.workshop import examples

VERSION = "2024-10-21"


class Through(httpx2.BaseTransport):
    """Sends requests to an app in this process."""

    def __init__(self, client: TestClient) -> None:
        self._client = client
        self.paths: list[str] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.paths.append(request.url.raw_path.decode())
        headers = {k: v for k, v in request.headers.items() if k.lower() != "host"}
        own = self._client.headers.pop("authorization", None)
        try:
            answer = self._client.request(
                request.method, self.paths[-1], content=request.content, headers=headers
            )
        finally:
            if own:
                self._client.headers["authorization"] = own
        said = {"content-type": answer.headers["content-type"]}
        return httpx2.Response(answer.status_code, content=answer.content, headers=said)


@pytest.fixture
def asked(client: TestClient) -> Through:
    return Through(client)


def azure(client: TestClient, through: Through, **where: Any) -> openai.AzureOpenAI:
    key = client.headers["authorization"].removeprefix("Bearer ")
    sent = httpx2.Client(transport=through)
    return openai.AzureOpenAI(
        api_key=key, api_version=VERSION, http_client=sent, max_retries=0, **where
    )


@pytest.mark.parametrize(
    "where",
    [
        {"azure_endpoint": "http://testserver"},
        {"azure_endpoint": "http://testserver", "azure_deployment": "tiny"},
        {"base_url": "http://testserver/v1"},
    ],
    ids=["endpoint", "deployment", "base_url"],
)
def test_its_client_works_as_it_is(client: TestClient, asked: Through, where: dict) -> None:
    ours = azure(client, asked, **where)
    file = ours.files.create(file=("a.jsonl", examples(12)), purpose="fine-tune")
    job = ours.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    assert ours.fine_tuning.jobs.retrieve(job.id).id == job.id
    assert [one.id for one in ours.fine_tuning.jobs.list(limit=1)] == [job.id]
    assert ours.files.content(file.id).content == examples(12)
    assert [model.id for model in ours.models.list()][0] == "tiny"
    ours.fine_tuning.jobs.cancel(job.id)
    assert all(f"api-version={VERSION}" in path for path in asked.paths)
    # The model is found: what is refused is what the body asks for.
    with pytest.raises(openai.BadRequestError, match="'store'"):
        ours.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a"}], store=True
        )
    assert asked.paths[-1].partition("?")[0].endswith("/deployments/tiny/chat/completions")
    with pytest.raises(openai.BadRequestError, match="'echo'"):
        ours.completions.create(model="tiny", prompt="a", echo=True)
    with pytest.raises(openai.BadRequestError, match="'background'"):
        ours.responses.create(model="tiny", input="a", background=True)


def test_a_deployment_is_the_model_that_the_body_names(client: TestClient) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
    path = "/openai/deployments/other/chat/completions"
    refused = client.post(path, json=body, params={"api-version": VERSION})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
    assert "'other'" in refused.json()["error"]["message"]


def test_its_key_is_looked_at(client: TestClient) -> None:
    for headers in ({"api-key": "sk-wrong"}, {"api-key": " "}, {"api-key": ""}):
        answer = client.get("/openai/models", headers={**headers, "authorization": ""})
        assert answer.status_code == 401
    assert client.get("/openai/models/").status_code == 404
    assert client.get("/openai/v1/models").status_code == 200
    assert client.get("/v1/models?api_version=1").status_code == 400
