"""A sweep of real training: a wrong config and a trial that diverges beside one that works."""

from __future__ import annotations

import json

import pytest

from launcher.core.errors import ExitCode
from launcher.sweeps.folder import SweepDir
from support import project
from support.project import LAUNCHER, Project

pytestmark = pytest.mark.slow


def test_wrong_trials_fail_once_and_the_others_succeed(tmp_path, tiny_llama):
    here = Project(tmp_path, tiny_llama)
    here.write_data(project.conversations(40))
    words = (f"model.name={tiny_llama}", *project.WORDS, "data.validation_share=0.2")
    size = ("batch.sequences=4", "train.steps=4", "eval=default", "eval.base=false", "run.name=s")
    swept = ("optim.lr=1e-3,-1,1e30", "optim.clip_norm=0", "launch.max_parallel=2")
    done = here.run((*LAUNCHER, "train", "-m"), *words, *size, *swept)
    assert done.code == ExitCode.ok, done.output
    trials = SweepDir(tmp_path / "runs" / "s").trials()
    codes = [trial.run.status().exit_code for trial in trials]
    assert codes == [ExitCode.ok, ExitCode.usage, ExitCode.diverged], done.output
    assert [trial.run.attempts() for trial in trials] == [[1], [], [1]]
    rows = json.loads(here.run((*LAUNCHER, "sweep", "status"), "s", "--json").output)
    assert (
        rows[0]["value"]
        == json.loads((trials[0].run.eval / "tuned.json").read_text())["metrics"]["loss"]
    )
    assert here.run((*LAUNCHER, "sweep", "best"), "s").output.endswith("optim.lr=1e-3\n")
    assert here.run((*LAUNCHER, "status"), "s/trial-0000").code == ExitCode.ok
