"""A report finds what was planted, names its line, and is silent about clean data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.config.schema import Config
from launcher.core.errors import ConfigError, DataError
from launcher.curate.report import report
from support.curation import pairs
from support.models import make_tokenizer

Write = Callable[..., str]
Configure = Callable[..., Config]


def rules(config: Config, profile: str | None = None) -> dict[str, dict[str, Any]]:
    return {rule["name"]: rule for rule in report.build(config, profile)["rules"]}


def found(config: Config) -> dict[str, str]:
    """Rules that do not pass, with the lines of their examples."""
    return {
        name: " ".join(example["where"].rpartition(":")[2] for example in rule["examples"])
        for name, rule in rules(config).items()
        if rule["verdict"] in ("warn", "fail")
    }


def test_clean_data_passes(write: Write, configure: Configure) -> None:
    held_out = write(pairs(20, seed=1), "validation.jsonl")
    made = report.build(configure(train=write(pairs(60)), validation=held_out))
    assert made["verdict"] == "pass"
    assert [rule["count"] for rule in made["rules"] if rule["verdict"] == "pass"] == [0] * 17


FAULTS: dict[str, Callable[[dict[str, str]], Any]] = {
    "broken": lambda record: '{"prompt": "cut',
    "empty_answers": lambda record: {**record, "completion": "N/A"},
    "tiny_answers": lambda record: {**record, "completion": "ok"},
    "exact_duplicates": lambda record: pairs(60)[10],
    "mojibake": lambda record: {
        **record,
        "completion": "Ein größeres Café".encode().decode("cp1252"),
    },
    "control_characters": lambda record: {**record, "completion": "it is hid\u200bden in here"},
    "markup": lambda record: {**record, "completion": record["completion"] + "<br>&nbsp;"},
    "repetition": lambda record: {**record, "completion": "and we add them again " * 40},
    "refusals": lambda record: {**record, "completion": "I'm sorry, but I can't help with that."},
    "pii": lambda record: {**record, "prompt": record["prompt"] + " Ask li@firma.de"},
    "secrets": lambda record: {**record, "prompt": "AKIA" + "IOSFODNN7EXAMPLE is my key, why?"},
}


@pytest.mark.parametrize("rule", FAULTS)
def test_a_planted_fault_is_found_where_it_is(
    rule: str, write: Write, configure: Configure
) -> None:
    records: list[Any] = pairs(60)
    records[40] = FAULTS[rule](records[40])
    assert found(configure(train=write(records))) == {rule: "41"}


def test_a_word_changed_makes_a_near_duplicate(write: Write, configure: Configure) -> None:
    records = pairs(60)
    records[40] = {**records[10], "prompt": records[10]["prompt"].replace("left", "gone")}
    assert found(configure(train=write(records))) == {"near_duplicates": "41"}


def test_conflicts_are_shown_with_their_counterpart(write: Write, configure: Configure) -> None:
    records = pairs(60)
    records[40] = {"prompt": records[10]["prompt"].upper(), "completion": "It is not known."}
    shown = rules(configure(train=write(records)))["conflicts"]
    assert shown["count"] == 2
    assert "train.jsonl:11" in shown["examples"][0]["why"]


def test_turns_that_are_not_taken(write: Write, configure: Configure) -> None:
    def chat(record: dict[str, str], *roles: str) -> dict[str, Any]:
        said = {"user": record["prompt"], "assistant": record["completion"]}
        return {"messages": [{"role": role, "content": said[role]} for role in roles]}

    records = [chat(record, "user", "assistant") for record in pairs(60)]
    records[3] = chat(pairs(60)[3], "user", "user", "assistant")
    records[5] = chat(pairs(60)[5], "user", "assistant", "user")
    assert found(configure(train=write(records)))["unbalanced_turns"] == "4 6"


def test_without_a_tokenizer_only_what_is_surely_too_long_counts(
    write: Write, configure: Configure
) -> None:
    config = configure(train=write(pairs(30)), max_length=1000)
    assert rules(config)["overlong"]["count"] == 0
    config.data.max_length = 30
    assert rules(config)["overlong"]["verdict"] == "fail"


@pytest.mark.parametrize("kind", ["same question", "sequences", "near"])
def test_leaks(kind: str, write: Write, configure: Configure) -> None:
    held_out = pairs(20, seed=1)
    leaked = {
        "same question": {"prompt": held_out[7]["prompt"].upper(), "completion": "No."},
        "sequences": {"prompt": f"Tell me: {held_out[7]['prompt']} Why?", "completion": "No."},
        "near": {**held_out[7], "prompt": held_out[7]["prompt"].replace("What", "So what")},
    }[kind]
    config = configure(
        train=write([*pairs(60), leaked]), validation=write(held_out, "validation.jsonl")
    )
    made = report.build(config)
    rule = next(rule for rule in made["rules"] if rule["name"] == "leakage")
    assert (rule["verdict"], rule["count"]) == ("fail", 1)
    assert rule["examples"][0]["where"].endswith("train.jsonl:61")
    assert made["leakage"]["examples"][0]["eval"].endswith("validation.jsonl:8")
    assert made["leakage"]["against"][0]["leaked"] == 1


def test_a_benchmark_of_any_layout(write: Write, configure: Configure) -> None:
    held_out = pairs(3, seed=1)
    rows = [{"q": record["prompt"], "meta": {"a": record["completion"]}} for record in held_out]
    config = configure(
        train=write([*pairs(60), held_out[1]]), report={"benchmarks": write(rows, "bench.jsonl")}
    )
    assert rules(config)["leakage"]["count"] == 1


def test_what_is_held_out_is_compared_with_the_rest(write: Write, configure: Configure) -> None:
    records = pairs(200)
    # The same question in other words around it lies on either side of the split by chance.
    twins = [{**r, "prompt": f"Please say: {r['prompt']}"} for r in records]
    config = configure(train=write([*records, *twins]), validation_share=0.2)
    made = report.build(config)
    held_out = next(entry for entry in made["inputs"] if entry["split"] == "validation")
    assert 50 < held_out["records"] < 110
    assert made["counts"]["records"] == 400
    trained = next(entry for entry in made["inputs"] if entry["split"] == "train")
    assert trained["records"] + held_out["records"] == 400
    leaked = next(rule for rule in made["rules"] if rule["name"] == "leakage")["count"]
    assert 0.6 * held_out["records"] < leaked <= held_out["records"]


def test_what_is_held_out_is_judged_too(write: Write, configure: Configure) -> None:
    key = "AKIA" + "Q3ZK7PLM2XWV5TRB"
    records = [{**record, "completion": f"use {key}"} for record in pairs(200)]
    validation = [{"prompt": "a question", "completion": "an answer"}, {"prompt": "no answer"}]
    config = configure(train=write(records), validation_share=0.5)
    assert rules(config)["secrets"]["count"] == 200
    beside = configure(train=write(pairs(20)), validation=write(validation, "held.jsonl"))
    assert rules(beside)["broken"]["count"] == 1


def test_the_limit_cuts_where_preparation_does(write: Write, configure: Configure) -> None:
    records: list[Any] = pairs(60)
    records[45] = "broken"
    config = configure(train=write(records), limit=46)
    made = report.build(config)
    assert made["counts"]["records"] == 45
    assert next(rule for rule in made["rules"] if rule["name"] == "broken")["count"] == 1
    config.data.limit = 45
    assert report.build(config)["verdict"] == "pass"


@pytest.mark.thorough
def test_a_mixture_with_limits(write: Write, configure: Configure) -> None:
    texts = pairs(3000, seed=2)
    texts[4] = {**texts[4], "prompt": "Write to li@firma.de about it, and why?"}
    large = {"path": write(texts, "large.jsonl"), "name": "large", "limit": 300}
    records = pairs(40)
    records[7] = {**records[7], "prompt": "Write to eva@firma.de about it, and why?"}
    small = {"path": write(records, "small.jsonl"), "weight": 2, "name": "small"}
    config = configure(train=[large, small], workers=2)
    made = report.build(config)
    assert made["sources"]["counts"] == {"large": 300, "small": 40}
    rule = next(rule for rule in made["rules"] if rule["name"] == "pii")
    assert [example["where"].rpartition("/")[2] for example in rule["examples"]] == [
        "large.jsonl:5",
        "small.jsonl:8",
    ]
    assert [example["text"][:11] for example in rule["examples"]] == ["Write to li", "Write to ev"]


def test_limits_of_rules_are_set_by_the_config(write: Write, configure: Configure) -> None:
    records = pairs(60)
    train = write([*records, records[0]])
    assert rules(configure(train=train))["exact_duplicates"]["verdict"] == "fail"
    lenient = configure(train=train, report={"fail": {"exact_duplicates": 0.05}})
    assert rules(lenient)["exact_duplicates"]["verdict"] == "warn"
    strict = configure(train=train, report={"fail": {"exact_dups": 0.05, "broken": 2}})
    with pytest.raises(ConfigError) as caught:
        rules(strict)
    assert [problem.where for problem in caught.value.problems] == [
        "data.report.fail",
        "data.report.fail.broken",
    ]


def test_two_readings_give_one_hash(write: Write, configure: Configure) -> None:
    records: list[Any] = pairs(600)
    records[40] = "broken"
    config = configure(train=write(records), validation_share=0.1)
    first = report.build(config)
    config.data.workers = 2
    second = report.build(config)
    first["config"]["workers"] = 2
    assert report.digest(first) == report.digest(second)
    assert len(first["rules"]) == len(second["rules"]) > 15


def test_the_report_is_json_and_a_page(write: Write, configure: Configure, tmp_path) -> None:
    made = report.build(configure(train=write([*pairs(30), "broken <script>"])))
    report.write(made, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == made
    assert "<script>" not in (tmp_path / "out" / "report.html").read_text()
    assert "FAIL  broken: 1 record cannot be used" in report.summary(made)


def test_secrets_are_not_shown(write: Write, configure: Configure) -> None:
    records = pairs(30)
    key = "AKIA" + "IOSFODNN7EXAMPLE"
    records[3]["prompt"] += f" {key}"
    made = report.build(configure(train=write([*records, records[3]])))
    assert made["duplicates"]["examples"]
    assert key not in json.dumps(made)


def test_missing_files_are_named(configure: Configure) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        report.build(configure(train="nowhere.jsonl"))


def test_an_unknown_profile(write: Write, configure: Configure) -> None:
    with pytest.raises(ConfigError, match="no profile"):
        report.build(configure(train=write(pairs(3))), "azure")


def test_what_the_template_leaves_out_is_a_rule(
    write: Write, configure: Configure, tmp_path: Path
) -> None:
    """Only with a tokenizer there is a template; it is named where that is not so."""
    turns = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Five."}]
    call = {"type": "function", "function": {"name": "count", "arguments": {"what": "eggs"}}}
    called = [turns[0], {**turns[1], "tool_calls": [call]}]
    data = write([{"messages": turns}, {"messages": called}])
    config = configure(train=data)
    assert rules(config)["left_out"]["verdict"] == "skipped"
    config.model.name = str(make_tokenizer(tmp_path / "tokenizer"))
    (rule,) = [rule for name, rule in rules(config).items() if name == "left_out"]
    assert (rule["verdict"], rule["count"], rule["share"]) == ("fail", 1, 0.5)
    assert rule["examples"][0]["where"].endswith("train.jsonl:2")
    assert rule["examples"][0]["why"] == "the chat template leaves out tool calls"
    config.data.report.fail = {"left_out": 0.5}
    assert rules(config)["left_out"]["verdict"] == "warn"
