"""Answers of two ranks under DeepSpeed are those of one process; a killed evaluation goes on."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from launcher.core.errors import ExitCode
from launcher.evals.journal import Journal
from launcher.evals.records import Generation
from launcher.evals.store import read_results
from support import project
from support.project import LAUNCHER, Project
from support.ranks import run_ranks

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("answers_worker.py")


def answers_of(model: Path, out: Path, ranks: int, *cases: str):
    run_ranks(WORKER, str(model), str(out), *cases, ranks=ranks, timeout_s=280)
    return json.loads(out.read_text())


def test_every_stage_gives_the_answers_of_one_process(tiny_llama, tmp_path):
    alone = answers_of(tiny_llama, tmp_path / "1.json", 1, "zero0")["zero0"]
    assert len({record["answer"] for record in alone["drawn"]}) > 3
    found = answers_of(tiny_llama, tmp_path / "2.json", 2, "zero2", "fits", "too large", "sharded")
    for name, made in found.items():
        assert made["greedy"] == alone["greedy"], name
        assert made["drawn"] == alone["drawn"], name
        assert made["losses"] == pytest.approx(alone["losses"], rel=1e-5), name
    assert found["zero2"]["said"] == []
    assert "gathered on every rank, by memory" in found["fits"]["said"][0]
    assert "left sharded, by memory" in found["too large"]["said"][0]
    assert "left sharded, as eval.gather_weights says" in found["sharded"]["said"][0]


RECIPE = (
    *("data.validation_share=0.5", "eval=exact_match", "eval.base=false", "eval.batch_tokens=1"),
    *("eval.max_new_tokens=32", "batch.sequences=4", "train.steps=1", "launch.processes=1"),
)


def test_a_killed_evaluation_goes_on_from_its_finished_answers(tmp_path):
    here = Project(tmp_path)
    here.write_data(project.conversations(80))
    done = here.run((*LAUNCHER, "train"), *here.words("undisturbed", *RECIPE))
    assert done.code == ExitCode.ok, done.output

    running = here.start((*LAUNCHER, "train"), *here.words("killed", *RECIPE))
    run = here.folder_of("killed")
    journal = run.eval / "journal" / "tuned.0.jsonl"

    def answers(name: str) -> list[Generation]:
        return read_results(here.folder_of(name).eval / "tuned.json").generations

    def finished() -> list[str]:
        return journal.read_text().splitlines()[1:] if journal.exists() else []

    running.wait_until(lambda: len(finished()) > 3, "some answers")
    project.kill_rank(run, 0, signal.SIGKILL)
    assert running.end().code != ExitCode.ok
    count = len(Journal(journal.parent, "tuned", json.loads(finished()[0])["key"], 0).read())
    total = len(answers("undisturbed"))
    assert 3 < count < total
    with open(journal, "a") as file:
        file.write('{"key": "cut sho')

    done = here.run((*LAUNCHER, "resume"), "killed")
    assert done.code == ExitCode.ok, done.output
    assert f"{count} of {total} answers were finished before" in done.output
    assert not journal.exists()
    assert answers("killed") == answers("undisturbed")
