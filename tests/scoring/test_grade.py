"""`launcher grade`: answers in a file, their grades, and how far people agree with them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from launcher.core.errors import ExitCode
from launcher.scoring.grade import CHUNK, main
from support.ranks import environment

GRADER = {
    "type": "multi",
    "name": "sums",
    "graders": {
        "right": {"type": "numeric_match", "name": "right", "reference": "{{ item.answer }}"},
        "short": {
            "type": "string_check",
            "name": "short",
            "input": "{{ sample.output_text }}",
            "reference": "because",
            "operation": "ne",
        },
    },
    "calculate_output": "right + 0 * short",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("g.json", GRADER)
    return tmp_path


def write(name: str, *lines: object) -> None:
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def told(capsys, *words: str) -> dict:
    assert main(["a.jsonl", "--grader", "g.json", "--json", *words]) == ExitCode.ok
    return json.loads(capsys.readouterr().out)


def test_samples_of_an_item_and_their_mean(here, capsys):
    write(
        "a.jsonl",
        {"item": {"answer": 5}, "sample": "5"},
        {"item": {"answer": 6}, "samples": ["6", {"output_text": "it is 7"}]},
    )
    made = told(capsys, "--out", "out.jsonl")
    assert made["score"]["value"] == pytest.approx(2 / 3)
    assert made["sub_scores"]["short"]["value"] == 1
    assert (made["answers"], made["graded"], made["errors"]) == (3, 3, {})
    lines = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert [(line["line"], line["sample"], line["score"]) for line in lines] == [
        (1, 0, 1.0),
        (2, 0, 1.0),
        (2, 1, 0.0),
    ]


def test_answers_in_a_field_of_the_item_and_a_table_for_people(here, capsys):
    write("a.jsonl", *({"answer": n, "run": {"tuned": f"{n}"}} for n in range(40)))
    assert main(["a.jsonl", "--grader", "g.json", "--answer", "run.tuned"]) == ExitCode.ok
    assert capsys.readouterr().out.startswith("sums: 1.000 [1.000, 1.000], 40 answers\n")


def test_errors_are_counted_and_do_not_enter_the_mean(here, capsys):
    write("a.jsonl", *({"item": {"answer": text}, "sample": "5"} for text in ("5", "none")))
    made = told(capsys)
    assert (made["score"]["value"], made["graded"]) == (1, 1)
    assert made["errors"] == {"invalid_variable_error": 1}
    assert "no number in the reference" in made["example"]


@pytest.mark.parametrize(
    ("labels", "figures"),
    [
        ([True, False, True, True], {"accuracy": 0.75, "kappa": 0.5}),
        ([1, 0, 1, 0], {"accuracy": 1.0, "kappa": 1.0}),
        ([0.9, 0.2, 0.8, 0.1], {"spearman": 0.894, "pearson": 0.99}),
    ],
)
def test_agreement_with_people(here, capsys, labels, figures):
    answers = ("5", "6", "5", "7")
    write(
        "a.jsonl",
        *(
            {"item": {"answer": 5, "human": label}, "sample": text}
            for label, text in zip(labels, answers, strict=True)
        ),
    )
    found = told(capsys, "--labels", "human")["agreement"]
    assert found.pop("answers") == 4
    assert {name: one["value"] for name, one in found.items()} == pytest.approx(figures, abs=1e-2)


def test_a_gate(here, capsys):
    write("a.jsonl", *({"item": {"answer": n}, "sample": "1"} for n in (1, 2)))
    assert main(["a.jsonl", "--grader", "g.json", "--at-least", "0.5"]) == ExitCode.ok
    assert main(["a.jsonl", "--grader", "g.json", "--at-least", "0.6"]) == ExitCode.data


@pytest.mark.parametrize(
    ("lines", "words", "code", "found"),
    [
        ([], [], 3, "there is no answer in it"),
        ([{"item": {}}], [], 3, "a.jsonl:1: no sample"),
        ([[1]], [], 3, "a.jsonl:1: the line is no object"),
        ([{"item": {}, "sample": 3}], [], 3, "the answer is no text: 3"),
        ([{"item": {}, "sample": {"text": "x"}}], [], 3, "output_text is to be a text"),
        ([{"item": 3, "sample": "x"}], [], 3, "item is no object"),
        ([{"item": {}, "sample": "x"}], [], 3, "a.jsonl:1: no field item.answer"),
        ([{"answer": 3}], ["--answer", "anser"], 3, "did you mean 'answer'?"),
        ([{"answer": "3"}], ["--answer", "answer", "--labels", "x"], 3, "which --labels names"),
        ([{"item": {"answer": "?"}, "sample": "x"}], [], 3, "no answer has a score"),
        ([{"item": {"answer": 1}, "sample": "x"}], ["--judge-url", "x"], 2, "is no address"),
    ],
)
def test_what_is_wrong_is_said(here, capsys, lines, words, code, found):
    write("a.jsonl", *lines)
    assert main(["a.jsonl", "--grader", "g.json", *words]) == code
    said = capsys.readouterr().err
    assert found in said
    assert "HINT: " in said


def test_a_line_that_is_no_json(here, capsys):
    (here / "a.jsonl").write_text('{"item": {}, "sample": "x"}\n{"item": \n')
    assert main(["a.jsonl", "--grader", "g.json"]) == ExitCode.data
    assert "a.jsonl:2: broken JSON at column" in capsys.readouterr().err


SLOW = {
    "type": "python",
    "name": "slow",
    "source": "import time\ndef grade(sample, item):\n    time.sleep(item['s'])\n    return 1\n",
}


@pytest.mark.slow
def test_a_command_that_is_interrupted_goes_on_from_what_is_graded(here):
    write("g.json", SLOW)
    write("a.jsonl", *({"item": {"s": 0.3 * (n > CHUNK)}, "sample": ""} for n in range(2 * CHUNK)))
    words = ["-m", "launcher.scoring.grade", "a.jsonl", "--grader", "g.json", "--out", "o.jsonl"]
    command = [sys.executable, *words, "--workers=2", "--json"]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    assert started.stderr is not None
    kept = here / "o.jsonl"
    while not kept.exists() or len(kept.read_text().splitlines()) < CHUNK:
        assert started.poll() is None
    started.send_signal(signal.SIGINT)
    assert f"{CHUNK} grades are in o.jsonl" in started.stderr.read()
    started.stderr.close()
    assert started.wait() == ExitCode.interrupted
    write("a.jsonl", *({"item": {"s": 0.0}, "sample": ""} for _ in range(CHUNK)))
    before = kept.read_text().split()
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), check=True)
    assert json.loads(done.stdout)["graded"] == CHUNK
    assert kept.read_text().split() == before  # none was graded again: their times are the same


def test_another_grader_grades_anew(here, capsys):
    write("a.jsonl", {"item": {"answer": 5}, "sample": "6"})
    assert told(capsys, "--out", "o.jsonl")["score"]["value"] == 0
    write("g.json", GRADER | {"calculate_output": "right + short"})
    assert told(capsys, "--out", "o.jsonl")["score"]["value"] == 1
