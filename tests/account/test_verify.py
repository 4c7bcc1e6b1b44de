"""Answers of an old model against those of another one, with a verdict and an exit code."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launcher.account.answers import file_of
from launcher.account.connection import Connection
from launcher.account.layout import Folder
from launcher.account.manifest import make
from launcher.account.pull import Pull
from launcher.config.schema import EvalConfig
from launcher.core.errors import ConfigError, DataError, ExitCode
from launcher.core.files import write_json
from launcher.evals.records import Generation
from launcher.scoring import verify
from support import account as accounts
from support import endpoint
from support.account import KEY
from support.project import LAUNCHER
from support.ranks import environment


@pytest.fixture
def folder(tmp_path) -> Folder:
    """What a pull has left, with a run of an eval."""
    found = Folder(tmp_path / "account")
    with accounts.served(accounts.small(1)) as account:
        items = account.lists["/evals/eval_1/runs/evalrun_1/output_items"]
        items[0]["sample"]["output"][0]["content"] = [{"type": "output_text", "text": "0"}]
        items[1]["sample"] = None
        seen = Pull(Connection(account.url, KEY, first_wait_s=0.01), found).run()
        write_json(found.manifest, make(found, account.url, seen))
    return found


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_a_pulled_run_of_an_eval_is_a_file_of_answers(folder):
    path = file_of(folder, "evalrun_1")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 4  # one has no answer
    assert lines[0] == {
        "question": "What is 0 + 0?",
        "messages": [{"role": "user", "content": "What is 0 + 0?"}],
        "answer": "0",
        "model": "gpt-4o-mini",
        "reference": "0",
    }
    old = verify.read(path)
    assert [(one.answer, one.reference, one.model) for one in old][-1] == ("8", "8", "gpt-4o-mini")
    mine = write(folder.path / "mine.jsonl", {"prompt": "a", "answer": "b"})
    assert file_of(folder, str(mine)) == mine
    with pytest.raises(ConfigError, match="evalrun_1"):
        file_of(folder, "evalrun_2")


def test_lines_are_prompts_or_conversations_with_what_is_right(tmp_path):
    turns = [{"role": "user", "content": "Colour?"}, {"role": "assistant", "content": "Red."}]
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": "Colour?", "answer": "Blue."},
        {"messages": turns, "answer": "Blue.", "model": "ft:x"},
        {"messages": turns[:1], "answer": "Blue.", "reference": "Green."},
    )
    old = verify.read(path)
    assert [one.messages for one in old] == [turns[:1]] * 3
    assert [one.reference for one in old] == ["", "Red.", "Green."]
    assert [one.model for one in old] == ["", "ft:x", ""]


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "a"},
        {"answer": "b"},
        {"prompt": "a", "answer": None},
        {"prompt": 3, "answer": "b"},
        {"messages": [], "answer": "b"},
        {"messages": [{"role": "assistant", "content": "x"}], "answer": "b"},
        {"prompt": "a", "answer": "b", "reference": 3},
        ["a", "b"],
    ],
)
def test_lines_that_are_no_answers_are_named(tmp_path, line):
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "answer": "b"}, line)
    with pytest.raises(DataError) as caught:
        verify.read(path)
    assert str(caught.value).startswith(f"{path}:2")


def test_what_is_measured_follows_from_what_is_there(tmp_path):
    bare = verify.read(write(tmp_path / "a.jsonl", {"prompt": "a", "answer": "b"}))
    full = verify.read(
        write(tmp_path / "b.jsonl", {"prompt": "a", "answer": "b", "reference": "c"})
    )
    assert [m.name for m in verify.metrics_of(EvalConfig(), full)] == ["exact_match", "chrf"]
    with pytest.raises(ConfigError, match="--grader"):
        verify.metrics_of(EvalConfig(), bare)
    with pytest.raises(ConfigError, match="needs a reference"):
        verify.metrics_of(EvalConfig(metrics=["f1"]), bare)
    with pytest.raises(ConfigError, match="exact_match"):
        verify.metrics_of(EvalConfig(metrics=["exact_macth"]), full)
    with pytest.raises(ConfigError, match="no metric of answers alone"):
        verify.metrics_of(EvalConfig(metrics=["json_schema"]), full)
    assert verify.metrics_of(EvalConfig(metrics=["json_valid"]), bare)


def compared(old: list[str], new: list[str], metric: str = "exact_match") -> dict[str, Any]:
    lines = [
        verify.OldAnswer(f"a:{i}", [], None, answer, "right", "") for i, answer in enumerate(old)
    ]
    answers = [Generation(i, f"a:{i}", "?", "right", answer) for i, answer in enumerate(new)]
    metrics = verify.metrics_of(EvalConfig(metrics=[metric]), lines)
    return verify.against(lines, "new", answers, metrics, "old")


def test_no_evidence_of_a_loss_is_no_evidence_of_none():
    """Of four answers nobody knows; of 400 they do."""
    few = compared(["right"] * 3 + ["wrong"], ["right"] * 2 + ["wrong", "right"])
    assert few["metrics"]["exact_match"]["verdict"] == "no evidence"
    assert not verify.is_within(few, 0.05)
    many = compared(["right"] * 300 + ["wrong"] * 100, ["right"] * 299 + ["wrong"] * 101)
    assert verify.is_within(many, 0.05)
    for count, within in ((1, False), (4, False), (71, False), (72, True)):
        same = compared(["right"] * count, ["right"] * count)
        assert verify.is_within(same, 0.05) == within
        assert not verify.is_within(same, 0.0)
    assert verify.is_within(compared(["wrong"] * 4, ["wrong"] * 4), 0.0)  # nothing to lose
    assert not verify.is_within(compared(["right", "wrong"] * 2, ["right"] * 4), 0.05)
    assert verify.is_within(compared(["wrong"] * 60 + ["right"] * 10, ["right"] * 70), 0.05)
    worse = compared(["right"] * 400, ["right"] * 300 + ["wrong"] * 100)
    assert worse["metrics"]["exact_match"]["verdict"] == "worse"
    assert not verify.is_within(worse, 0.2)
    assert verify.is_within(worse, 0.4)


# ---- the command


def run(folder: Folder, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [*LAUNCHER, "openai", "verify", str(folder.path), *words, "--max-new-tokens", "4"]
    return subprocess.run(command, env=environment(**environ), capture_output=True, text=True)


@pytest.mark.slow
def test_a_worse_model_is_told_and_ends_with_its_code(folder, tiny_llama, tmp_path):
    lines = [
        {"prompt": f"{i}?", "answer": f"right {i}", "reference": f"right {i}"} for i in range(12)
    ]
    path = write(tmp_path / "old.jsonl", *lines)
    words = ("--model", str(tiny_llama), "--answers", str(path))
    done = run(folder, *words, "--html", str(tmp_path / "page.html"))
    assert done.returncode == ExitCode.data, done.stderr
    assert "verdict: worse" in done.stdout
    assert "good enough: no" in done.stdout
    assert "right 3" in (tmp_path / "page.html").read_text()
    lines = [line | {"answer": "zzz"} for line in lines]
    write(path, *lines)
    done = run(folder, *words, "--metric", "exact_match", "--json")
    assert done.returncode == ExitCode.ok, done.stderr
    (made,) = json.loads(done.stdout)
    assert made["good_enough"] is True
    assert made["metrics"]["exact_match"]["base"] == 0
    assert run(folder, *words, "--require", "better").returncode == ExitCode.data


@pytest.mark.slow
def test_a_grader_and_a_judge_need_no_reference(folder, tiny_llama, tmp_path):
    path = write(
        tmp_path / "old.jsonl",
        *({"prompt": f"{i}?", "answer": f"blue {i}", "colour": "blue"} for i in range(8)),
    )
    grader = tmp_path / "grader.yaml"
    grader.write_text(
        "type: string_check\nname: colour\ninput: '{{sample.output_text}}'\n"
        "operation: like\nreference: '{{item.colour}}'\n"
    )
    words = ("--model", str(tiny_llama), "--answers", str(path), "--json")
    done = run(folder, *words, "--grader", str(grader))
    assert done.returncode == ExitCode.data, done.stderr
    (row,) = json.loads(done.stdout)[0]["metrics"].values()
    assert (row["base"], row["tuned"], row["verdict"]) == (1.0, 0.0, "worse")
    assert run(folder, *words).returncode == ExitCode.usage
    with endpoint.serve(lambda prompt, first, second: _prefers_blue(first, second)) as judge:
        done = run(folder, *words, "--judge-url", judge.url, "--judge-model", "j")
    assert done.returncode == ExitCode.data, done.stderr
    assert json.loads(done.stdout)[0]["metrics"]["judge"]["verdict"] == "worse"


def _prefers_blue(first: str, second: str) -> str:
    return f"Verdict: {1 if 'blue' in first else 2}"


@pytest.mark.slow
def test_each_old_model_is_compared_with_the_one_in_its_place(folder, tiny_llama, tmp_path):
    """As a replay has noted them; a model's folder stands for its run."""
    row = {"id": "ftjob-1", "state": "succeeded", "run": str(tiny_llama)}
    jobs = [{**row, "model": "ft:a"}, {**row, "model": "ft:b"}, {**row, "model": None}]
    write_json(tmp_path / "new" / "replay.json", {"jobs": jobs})
    lines = [
        {"prompt": "?", "answer": answer, "reference": f"right {i}", "model": model}
        for i in range(8)
        for model, answer in (("ft:a", f"right {i}"), ("ft:b", "zzz"))
    ]
    path = write(tmp_path / "old.jsonl", *lines)
    words = ("--model", str(tmp_path / "new"), "--answers", str(path), "--json")
    done = run(folder, *words, "--metric", "exact_match")
    assert done.returncode == ExitCode.data, done.stderr
    first, second = json.loads(done.stdout)
    assert (first["base_name"], first["good_enough"]) == ("ft:a", False)
    assert (second["base_name"], second["good_enough"]) == ("ft:b", True)
    assert first["metrics"]["exact_match"]["records"] == 8
    write(path, *lines, {"prompt": "?", "answer": "x", "reference": "y", "model": "ft:c"})
    done = run(folder, *words)
    assert done.returncode == ExitCode.usage
    assert "no job there has made 'ft:c'" in done.stderr


@pytest.mark.slow
def test_what_is_no_model_or_no_file_is_told(folder, tmp_path):
    path = write(tmp_path / "old.jsonl", {"prompt": "a", "answer": "b", "reference": "c"})
    done = run(folder, "--model", "no-such", "--answers", str(path))
    assert done.returncode == ExitCode.usage
    done = run(folder, "--model", "x", "--answers", "no-such")
    assert done.returncode == ExitCode.usage
    assert "no run that was pulled" in done.stderr
    done = run(folder, "--model", "x", "--answers", str(path), "--margin", "-1")
    assert done.returncode == ExitCode.usage
