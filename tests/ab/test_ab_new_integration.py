"""`launcher ab new` with real models and with ready answers, and the link that it prints."""

from __future__ import annotations

import pytest

from launcher.ab.result import result
from launcher.ab.study import Study
from launcher.errors import ExitCode
from support.models import make_llama
from support.studies import write_lines

pytestmark = pytest.mark.slow

CHAT = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]}


def test_two_folders_answer_and_a_judge_gets_a_link(run_ab, tmp_path):
    for seed, name in enumerate(("one", "other")):
        make_llama(tmp_path / name, seed=seed)
    write_lines(tmp_path / "prompts.jsonl", {"prompt": "How many apples?"}, CHAT)
    write_lines(
        tmp_path / "ready.jsonl",
        {"prompt": "How many apples?", "answer": "Nine."},
        {"prompt": "System: Be brief.\n\nUser: Hi", "answer": ""},
    )
    new = ("new", "--data", "prompts.jsonl", "--max-new-tokens", 5, "--judges", "alice,bob")
    done = run_ab(*new, "one", "other", "-o", "study", "--url", "https://judge.example.org/")
    assert done.returncode == ExitCode.ok, done.stderr
    study = Study(tmp_path / "study")
    made = result(study.folder)
    assert (made["a"], made["b"], made["prompts"]) == ("one", "other", 2)
    (alice, link), (bob, _) = (line.split() for line in done.stdout.splitlines())
    assert (alice, bob) == ("alice", "bob")
    base, _, token = link.partition("#")
    assert base == "https://judge.example.org/"
    judge = study.judge_of(token)
    assert judge.name == "alice"
    answers = {}
    for item in (1, 2):
        shown = study.shown(judge, item)
        answers[shown.pop("prompt")] = set(shown.values())
    assert list(answers) == ["How many apples?", "System: Be brief.\n\nUser: Hi"]

    again = run_ab(*new, "ready.jsonl", "one", "-o", "mixed")
    assert again.returncode == ExitCode.ok, again.stderr
    mixed = Study(tmp_path / "mixed")
    who = mixed.judge_of(mixed.invite("carol"))
    for item, ready in ((1, "Nine."), (2, "")):
        shown = mixed.shown(who, item)
        texts = {shown["left"], shown["right"]}
        assert ready in texts
        assert texts - {ready} <= answers[shown["prompt"]]
