"""The gate stops on the rules that it names, and on no others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config.schema import Config
from launcher.core.errors import ConfigError, DataError
from launcher.curate.report import gate, report
from support.curation import pairs

Write = Callable[..., str]
Configure = Callable[..., Config]


def test_without_a_gate_nothing_is_read(configure: Configure) -> None:
    assert gate.check(configure(train="nowhere.jsonl")) is None


@pytest.mark.thorough
def test_what_fails_is_named_with_line_and_fix(write: Write, configure: Configure) -> None:
    records = pairs(40)
    config = configure(train=write([*records, records[3], '{"prompt":']), gate=["default"])
    with pytest.raises(DataError) as caught:
        gate.check(config)
    found = {problem.where: problem for problem in caught.value.problems}
    assert set(found) == {"data.gate: broken", "data.gate: exact_duplicates"}
    copy = found["data.gate: exact_duplicates"]
    assert "train.jsonl:41" in copy.found
    assert "train.jsonl:4" in copy.found
    assert "--drop duplicates" in copy.hint


def test_other_rules_may_fail(write: Write, configure: Configure) -> None:
    records = pairs(40)
    config = configure(train=write([*records, records[3]]), gate=["pii", "secrets"])
    passed = gate.check(config)
    assert passed is not None
    assert passed["verdict"] == "fail"
    written = json.loads(Path(passed["path"]).read_text())
    assert report.digest(written) == passed["hash"]
    assert Path(passed["path"]).with_name("report.html").is_file()


def test_a_report_is_made_once_for_the_same_data(write: Write, configure: Configure) -> None:
    config = configure(train=write(pairs(40)), gate=["default"])
    first = gate.check(config)
    assert first is not None
    page = Path(first["path"]).with_name("report.html")
    page.unlink()
    assert gate.check(config) == first
    assert not page.exists()
    write([*pairs(40), *pairs(40)])
    with pytest.raises(DataError, match="exact_duplicates"):
        gate.check(config)


def test_a_rule_that_is_named_must_have_been_checked(write: Write, configure: Configure) -> None:
    config = configure(train=write(pairs(40)), gate=["leakage"])
    with pytest.raises(DataError, match="not checked: nothing is held out"):
        gate.check(config)
    assert gate.check(configure(train=write(pairs(40)), gate=["default"])) is not None


def test_benchmarks_have_a_layout_of_their_own(write: Write, configure: Configure) -> None:
    records = [{"question": r["prompt"], "answer": r["completion"]} for r in pairs(40)]
    asked = [{"prompt": r["question"], "completion": r["answer"]} for r in records[:3]]
    config = configure(
        train=write(records),
        columns={"prompt": "question", "completion": "answer"},
        report={"benchmarks": write(asked, "bench.jsonl")},
        gate=["leakage"],
    )
    with pytest.raises(DataError, match="3 of 3 evaluation records"):
        gate.check(config)


def test_a_rule_that_never_fails_is_no_gate(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="class_balance only warns"):
        gate.check(configure(train="nowhere.jsonl", gate=["class_balance"]))


def test_a_rule_that_does_not_exist(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="no rule 'leak'"):
        gate.check(configure(train="nowhere.jsonl", gate=["leak"]))
