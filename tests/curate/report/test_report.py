"""`launcher data report`: exit codes for CI, and settings that are refused before data is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from launcher.cli import data
from launcher.config.check import checks
from launcher.config.compose import compose
from launcher.config.schema import Config, data_report
from launcher.core.errors import ConfigError
from launcher.curate.records import profiles
from launcher.curate.report import report
from launcher.curate.rules import limits
from support.curation import pairs

Write = Callable[..., str]
Configure = Callable[..., Config]


def test_config_and_report_know_the_same_rules() -> None:
    assert tuple(limits.RULES) == data_report.RULES
    assert {name: tuple(rules) for name, rules in profiles.FIXES.items()} == data_report.PROFILES
    assert set(data_report.DEFAULT_GATE) < set(data_report.RULES)


@pytest.mark.parametrize(
    ("override", "where", "hint"),
    [
        ("data.gate=[leak]", "data.gate", "leakage"),
        ("data.gate=[openai_roles]", "data.gate", "--profile"),
        ("data.report.fail={conflict: 0.1}", "data.report.fail", "conflicts"),
        ("data.report.warn={conflicts: 3}", "data.report.warn.conflicts", "0 to 1"),
        ("data.report.near_duplicate=0", "data.report.near_duplicate", "above 0"),
        ("data.report.leak_share=nan", "data.report.leak_share", "above 0"),
        ("data.report.leak_ngram=0", "data.report.leak_ngram", "at least 1"),
        ("data.report.sample=-1", "data.report.sample", "at least 0"),
    ],
)
def test_rules_and_numbers_are_checked_with_the_config(
    override: str, where: str, hint: str
) -> None:
    words = ["data.train=nowhere.jsonl", override]
    for verb in (data.report, data.prepare, data.clean):
        with pytest.raises(ConfigError) as caught:
            verb([*words, "-o", "out"] if verb is data.clean else words)
        assert [problem.where for problem in caught.value.problems] == [where]
        assert hint in caught.value.problems[0].hint
    config = compose.compose(words)
    assert where in [p.where for p in checks.check(config, world_size=1, has_gpu=False)]


def test_ci_fails_on_what_it_asks_for(write: Write, configure: Configure) -> None:
    records: list[Any] = pairs(60)
    records[40] = {**records[40], "prompt": records[40]["prompt"] + " Ask li@firma.de"}
    made = report.build(configure(train=write(records)))
    assert report.over(made, "never") == []
    assert report.over(made, "fail") == []
    assert report.over(made, "warn") == ["pii"]
    assert report.over(made, "warn", ["default"]) == []
    records[41] = records[3]
    made = report.build(configure(train=write(records)))
    assert report.over(made, "fail") == ["exact_duplicates"]
    assert report.over(made, "warn") == ["exact_duplicates", "pii"]
    assert report.over(made, "warn", ["secrets", "pii"]) == ["pii"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "code"), [([], 0), (["--fail-on", "fail"], 3), (["--fail-on=warn", "--json"], 3)]
)
def test_exit_codes(
    options: list[str], code: int, write: Write, tmp_path: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    records = pairs(20)
    words = [f"data.train={write([*records, records[3]])}", "data.validation_share=0"]
    assert data.report([*words, "-o", str(tmp_path / "report"), *options]) == code
    said = capfd.readouterr()
    assert "21 records, 42 turns" in said.out or "--json" in options
    assert ("exact_duplicates\n  HINT: " in said.err) == (code == 3)


@pytest.mark.slow
def test_one_is_no_several(write: Write, tmp_path: Any, capfd: pytest.CaptureFixture[str]) -> None:
    words = [f"data.train={write(pairs(1))}", "data.validation_share=0"]
    assert data.report([*words, "-o", str(tmp_path / "report")]) == 0
    assert capfd.readouterr().out.startswith("1 record, 2 turns, ")
    assert "1 records" not in (tmp_path / "report" / "report.html").read_text()
