"""Rules on pairs of answers, and on answers that are good or bad."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.schema import Config
from launcher.curate.clean.clean import CleanOptions, clean
from launcher.curate.report import report
from launcher.curate.rules import judged
from support.curation import pairs
from support.models import make_tokenizer

Write = Callable[..., str]
Configure = Callable[..., Config]


def preferences(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs whose better answer is the longer one as often as the shorter."""
    better, worse = pairs(count, seed=seed), pairs(count, seed=seed + 77)
    made = []
    for number, (one, other) in enumerate(zip(better, worse, strict=True)):
        sides = sorted((one["completion"], other["completion"]), key=len, reverse=number % 2 == 0)
        made.append({"prompt": one["prompt"], "chosen": sides[0], "rejected": sides[1]})
    return made


def verdicts(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Answers of which every second is a good one."""
    return [{**record, "label": i % 2 == 0} for i, record in enumerate(pairs(count, seed=seed))]


def rules(config: Config) -> dict[str, dict[str, Any]]:
    return {rule["name"]: rule for rule in report.build(config)["rules"]}


def found(config: Config) -> dict[str, str]:
    """Rules that do not pass, with the lines of their examples."""
    return {
        name: " ".join(example["where"].rpartition(":")[2] for example in rule["examples"])
        for name, rule in rules(config).items()
        if rule["verdict"] in ("warn", "fail")
    }


@pytest.mark.parametrize("make", [preferences, verdicts])
def test_clean_judgements_pass(make: Any, write: Write, configure: Configure) -> None:
    held_out = write(make(20, seed=1), "validation.jsonl")
    made = rules(configure(train=write(make(60)), validation=held_out))
    assert [n for n, rule in made.items() if rule["verdict"] in ("warn", "fail")] == []
    assert made["chosen_held_out"]["verdict"] == "pass"


FAULTS: dict[str, Callable[[list[dict[str, Any]], dict[str, Any]], dict[str, Any]]] = {
    "equal_answers": lambda _, own: {**own, "rejected": own["chosen"]},
    "tied_ratings": lambda _, own: {**own, "score_chosen": 7, "score_rejected": 7},
    "blank_differences": lambda _, own: {**own, "rejected": own["chosen"].replace(" ", "\n ")},
    "broken": lambda _, own: {**own, "score_chosen": 6, "score_rejected": 7},
}


@pytest.mark.parametrize("rule", FAULTS)
def test_a_planted_fault_of_pairs_is_found_and_cleaned(
    rule: str, write: Write, configure: Configure, tmp_path: Path
) -> None:
    records = preferences(60)
    records[40] = FAULTS[rule](records, records[40])
    config = configure(train=write(records))
    assert found(config) == {rule: "41"}
    told = clean(config, tmp_path / "out", CleanOptions(drop=(rule,)))
    assert told["dropped"] == {rule: 1}
    assert told["written"] == 59
    again = configure(train=str(tmp_path / "out" / "train.jsonl"))
    assert found(again) == {}


def test_answers_that_are_the_same_are_told_as_that_in_ranked_data_too(
    write: Write, configure: Configure
) -> None:
    records: list[Any] = [
        {"prompt": own["prompt"], "answers": [own["chosen"], own["rejected"]], "scores": [2, 1]}
        for own in preferences(60)
    ]
    records[40] = {**records[40], "scores": [1, 1]}
    records[41] = {**records[41], "answers": ["The same answer."] * 2}
    shown = found(configure(train=write(records)))
    assert shown == {"equal_answers": "42", "tied_ratings": "41"}


def test_pairs_in_both_orders_and_answers_judged_both_ways_contradict(
    write: Write, configure: Configure, tmp_path: Path
) -> None:
    records = preferences(60)
    own = records[10]
    records[40] = {**own, "chosen": own["rejected"], "rejected": own["chosen"].upper()}
    shown = rules(configure(train=write(records)))["conflicts"]
    assert shown["verdict"] == "fail"
    assert shown["count"] == 2
    assert "the same pair as" in shown["examples"][0]["why"]
    assert "train.jsonl:11, the other way round" in shown["examples"][0]["why"]
    judged_twice = verdicts(60)
    judged_twice[40] = {**judged_twice[10], "label": not judged_twice[10]["label"]}
    config = configure(train=write(judged_twice))
    shown = rules(config)["conflicts"]
    assert "train.jsonl:11, judged otherwise" in shown["examples"][0]["why"]
    told = clean(config, tmp_path / "out", CleanOptions(drop=("conflicts",)))
    assert told["dropped"] == {"conflicts": 2}


def test_one_prompt_may_have_several_good_answers(write: Write, configure: Configure) -> None:
    records = verdicts(60)
    records[40] = {**records[40], "prompt": records[10]["prompt"]}
    assert found(configure(train=write(records))) == {}


def longer(share: float, count: int = 200) -> list[dict[str, Any]]:
    records = preferences(count)
    for number, own in enumerate(records):
        sides = sorted((own["chosen"], own["rejected"] + " so"), key=len)
        if len(sides[0]) == len(sides[1]):
            sides[1] += "!"
        worse, better = sides if number < share * count else sides[::-1]
        own.update(chosen=better, rejected=worse)
    return records


@pytest.mark.parametrize(("share", "verdict"), [(0.5, "pass"), (0.9, "warn"), (0.1, "warn")])
def test_length_alone_may_tell_what_is_chosen(
    share: float, verdict: str, write: Write, configure: Configure
) -> None:
    rule = rules(configure(train=write(longer(share))))["length_bias"]
    assert rule["verdict"] == verdict
    score = max(share, 1 - share)
    assert f"the longer answer is chosen in {share:.1%} of 200 pairs" in rule["found"]
    assert f"the shorter in {1 - share:.1%}" in rule["found"]
    assert f"is right in {score:.1%}" in rule["found"]
    low, high = judged.wilson(score, 200)
    assert f"(95 % interval {low:.1%} to {high:.1%})" in rule["found"]
    assert rule["share"] == pytest.approx(low)


@given(st.integers(0, 400), st.integers(1, 400))
def test_wilsons_interval_is_where_the_share_is_just_possible(right: int, count: int) -> None:
    """Its ends p are those with |share - p| = z sqrt(p (1 - p) / count)."""
    share = min(right, count) / count
    low, high = judged.wilson(share, count)
    assert -1e-9 <= low <= share + 1e-9
    assert share - 1e-9 <= high <= 1 + 1e-9
    for end in (low, high):
        deviation = 1.959964 * math.sqrt(max(0.0, end * (1 - end)) / count)
        assert abs(share - end) == pytest.approx(deviation, abs=1e-7)


def test_answers_of_one_length_are_a_coin_toss() -> None:
    bias = judged.LengthBias(10, longer=0.5, shorter=0.1)
    assert bias.score == pytest.approx(0.7)


def test_prompts_with_one_side_and_verdicts_of_one_kind(write: Write, configure: Configure) -> None:
    records = verdicts(60)
    for number in (1, 3, 5):  # bad answers to prompts that have a good one
        records[number]["prompt"] = records[number - 1]["prompt"].upper()
    made = rules(configure(train=write(records)))
    found_here = made["one_sided_prompts"]["found"]
    assert found_here == "of 57 prompts 27 have good answers alone, 27 bad ones alone"
    assert made["one_sided_prompts"]["share"] == pytest.approx(54 / 57)
    assert made["one_sided_prompts"]["verdict"] == "pass"
    assert made["verdict_balance"]["found"] == "30 good answers, 30 bad ones"
    good = [{**record, "label": "good"} for record in verdicts(60)]
    rule = rules(configure(train=write(good)))["verdict_balance"]
    assert (rule["verdict"], rule["found"]) == ("fail", "60 good answers, 0 bad ones")


def test_better_answers_that_are_held_out_are_found_and_dropped(
    write: Write, configure: Configure, tmp_path: Path
) -> None:
    records, held = preferences(60), preferences(20, seed=1)
    other = preferences(60, seed=5)
    # The better answer to the same prompt as in the evaluation data, and its worse one.
    records[40] = {**held[3], "chosen": held[3]["chosen"].upper(), "rejected": other[0]["chosen"]}
    records[41] = {**held[4], "chosen": held[4]["rejected"], "rejected": other[1]["chosen"]}
    # The same answer to another prompt, and another answer to the same prompt, are none of these.
    records[42] = {**records[42], "chosen": held[5]["chosen"]}
    config = configure(train=write(records), validation=write(held, "held.jsonl"))
    rule = rules(config)["chosen_held_out"]
    assert rule["verdict"] == "fail"
    assert rule["found"] == "2 of 60 chosen answers held out too"
    assert [example["where"].rpartition(":")[2] for example in rule["examples"]] == ["41", "42"]
    assert "held.jsonl:4" in rule["examples"][0]["why"]
    told = clean(config, tmp_path / "out", CleanOptions(drop=("chosen_held_out",)))
    assert told["dropped"] == {"chosen_held_out": 2}
    # A bad answer in training teaches nothing of it; a good one does.
    judged_held = verdicts(20, seed=1)
    train = verdicts(60)
    train[40] = {**judged_held[3], "label": True}
    train[41] = {**judged_held[4], "label": False}
    config = configure(train=write(train), validation=write(judged_held, "held.jsonl"))
    assert rules(config)["chosen_held_out"]["found"] == "1 of 30 chosen answers held out too"


def test_both_answers_count_for_the_length(
    write: Write, configure: Configure, tmp_path: Path
) -> None:
    (own,) = preferences(1)
    alone = [{"prompt": own["prompt"], "completion": own[side]} for side in ("chosen", "rejected")]
    tokens = []
    for records in ([own], alone):
        config = configure(train=write(records))
        config.model.name = str(make_tokenizer(tmp_path / "tokenizer"))
        tokens.append(report.build(config)["counts"])
    assert tokens[0]["tokens"] == tokens[1]["tokens"]
    assert tokens[0]["target_tokens"] == tokens[1]["target_tokens"]


def test_bad_answers_may_say_anything(write: Write, configure: Configure) -> None:
    records = verdicts(60)
    records[41] = {**records[41], "completion": "I'm sorry, but I can't help with that."}
    assert found(configure(train=write(records))) == {}
    records[40] = {**records[40], "completion": "I'm sorry, but I can't help you with that."}
    assert found(configure(train=write(records))) == {"refusals": "41"}
