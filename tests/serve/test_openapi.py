"""The OpenAPI document, and requests made up from it against a real server."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from support.ranks import environment
from support.served import served

#: A request may fit the schema and yet be refused, with 400: a file that is no JSONL, an upload
#: that has ended, a model that is not offered; or with 403: for admin keys alone.
SETTINGS = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "401", "403", "404", "429"]
"""


def test_every_route_says_which_errors_it_has(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["info"]["title"] == "launcher"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["security"] == [{"key": []}], where
            assert {"400", "401", "403", "404", "429"} <= set(operation["responses"]), where
            good = {"200", "201"} & set(operation["responses"])
            assert len(good) == 1, where
            assert "requestBody" not in operation or "413" in operation["responses"], where
            assert "422" not in operation["responses"], where
            for status in set(operation["responses"]) - good:
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Envelope"}, where


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "serve.yaml").write_text("limits: {requests_per_minute: 1000000}\n")
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    with served(home) as server:
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--no-color"),
                *("--config-file", "schemathesis.toml", "run", f"{server.url}/openapi.json"),
                *("-H", f"Authorization: Bearer {server.key}", "--checks", "all"),
                # One worker: its generator shares state between threads, and then is flaky.
                *("--max-examples", "5", "--seed", "1", "--workers", "1", "--no-shrink"),
            ],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=540,
        )
        log = server.log.read_text()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Traceback" not in log
    assert not re.search(r"status=5\d\d", log)
    assert re.search(r"Tested: \d", ended.stdout), json.dumps(ended.stdout)
