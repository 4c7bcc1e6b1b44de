"""A judge in real runs: a dead one costs no run its comparison, a live one can be asked later."""

from __future__ import annotations

import json
import socket

import pytest

from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import State
from support import hints, project
from support.endpoint import longer, serve
from support.project import LAUNCHER, Project

pytestmark = pytest.mark.slow

RECIPE = (
    *("data.validation_share=0.5", "eval.metrics=[loss,judge]", "eval.max_new_tokens=8"),
    *("eval.judge.model=m", "eval.judge.retries=0", "eval.generate_limit=12"),
    *("eval=default", "batch.sequences=4", "train.steps=20", "optim.lr=1e-2"),
)


def test_a_run_outlives_its_judge_and_asks_another_one_later(tmp_path):
    here = Project(tmp_path)
    here.write_data(project.conversations(60))
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    words = here.words("run", *RECIPE, f"eval.judge.url={url}", "launch.processes=2")
    done = here.run((*LAUNCHER, "train"), *words)
    assert done.code == ExitCode.ok, done.output
    assert "warning: compared without a judge: eval.judge.url:" in done.output
    run = here.folder_of("run")
    assert run.status().state is State.succeeded
    assert list(read_json(run.eval / "comparison.json")["metrics"]) == ["loss"]

    (asked_again,) = hints.commands(done.output.partition("asks the judge again")[0])[-1:]
    assert asked_again == ["compare", f"{run}:base", str(run)]
    sides = (*asked_again, "--judge-url")
    done = here.run(LAUNCHER, *sides, url, "--judge-model", "m")
    assert done.code == ExitCode.usage, done.output
    assert "does not answer" in done.output
    with serve(longer) as served:
        done = here.run(LAUNCHER, *sides, served.url, "--judge-model", "m", "--json")
        assert done.code == ExitCode.ok, done.output
        asked = len(served.requests)
        again = here.run(LAUNCHER, *sides, served.url, "--judge-model", "m")
        assert len(served.requests) == asked > 0
    (made,) = json.loads(done.output[done.output.index("[") :])
    row = made["metrics"]["judge"]
    assert row["records"] == 12
    assert row["base"] + row["tuned"] == pytest.approx(1)
    assert "pairs of answers judged" in again.output
