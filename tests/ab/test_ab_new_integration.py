"""`launcher ab new` with real models and with ready answers, and the link that it prints."""

from __future__ import annotations

import pytest

from launcher.ab.result import result
from launcher.ab.study import Study
from launcher.core.errors import ExitCode
from support.models import CHAT_TEMPLATE, make_llama, make_tokenizer
from support.studies import write_lines

pytestmark = pytest.mark.slow

CHAT = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]}
CHAT_TEXT = "System: Be brief.\n\nUser: Hi"


def test_two_folders_answer_and_a_judge_gets_a_link(run_ab, tmp_path):
    for seed, name in enumerate(("one", "other")):
        make_llama(tmp_path / name, seed=seed)
    write_lines(tmp_path / "prompts.jsonl", {"prompt": "How many apples?"}, CHAT)
    write_lines(
        tmp_path / "ready.jsonl",
        {"prompt": "How many apples?", "answer": "Nine."},
        {"prompt": CHAT_TEXT, "answer": ""},
    )
    new = ("new", "--data", "prompts.jsonl", "--max-new-tokens", 5, "--judges", "alice,bob")
    done = run_ab(*new, "one", "other", "-o", "study", "--url", "https://judge.example.org/")
    assert done.returncode == ExitCode.ok, done.stderr
    study = Study(tmp_path / "study")
    made = result(study.folder)
    assert (made["a"], made["b"], made["prompts"]) == ("one", "other", 2)
    (alice, link), (bob, _) = (line.split() for line in done.stdout.splitlines())
    assert (alice, bob) == ("alice", "bob")
    assert "2 of 2 answers are cut at --max-new-tokens 5" in done.stderr
    assert "too long" not in done.stderr
    base, _, token = link.partition("#")
    assert base == "https://judge.example.org/"
    judge = study.judge_of(token)
    assert judge.name == "alice"
    answers = {}
    for item in (1, 2):
        shown = study.shown(judge, item)
        answers[shown.pop("prompt")] = set(shown.values())
    assert list(answers) == ["How many apples?", CHAT_TEXT]

    again = run_ab(*new, "ready.jsonl", "one", "-o", "mixed")
    assert again.returncode == ExitCode.ok, again.stderr
    mixed = Study(tmp_path / "mixed")
    who = mixed.judge_of(mixed.invite("carol"))
    for item, ready in ((1, "Nine."), (2, "")):
        shown = mixed.shown(who, item)
        texts = {shown["left"], shown["right"]}
        assert ready in texts
        assert texts - {ready} <= answers[shown["prompt"]]


def test_long_prompts_are_counted_and_a_template_that_refuses_is_named(run_ab, tmp_path):
    folder = make_llama(tmp_path / "one")
    long = {"prompt": "How many apples? " * 100}
    write_lines(tmp_path / "prompts.jsonl", {"prompt": "Hi"}, long, CHAT)
    answers = [{"prompt": text, "answer": "x"} for text in ("Hi", long["prompt"], CHAT_TEXT)]
    write_lines(tmp_path / "ready.jsonl", *answers)
    new = ("new", "--data", "prompts.jsonl", "--max-new-tokens", 5, "ready.jsonl", "one")
    done = run_ab(*new, "-o", "study")
    assert done.returncode == ExitCode.ok, done.stderr
    assert "1 of 3 prompts are too long: the model saw only their end" in done.stderr

    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    make_tokenizer(folder, chat_template=refusing + CHAT_TEMPLATE)
    refused = run_ab(*new, "-o", "other")
    assert refused.returncode == ExitCode.data, refused.stderr
    assert "prompts.jsonl:3: the chat template refuses" in refused.stderr
    assert "no system" in refused.stderr
    assert "HINT" in refused.stderr
    assert "Traceback" not in refused.stderr
