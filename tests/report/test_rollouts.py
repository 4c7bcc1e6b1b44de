"""The page of a run whose model answers: its numbers, its answers, and what fell meanwhile."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.core.rundir import RunDir, State
from launcher.report import build, collect, rollouts, summary
from support.html import Page
from support.rollouts import NUMBERS, answer_lines, reinforce

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>"


@pytest.fixture
def reinforced(finished_run) -> RunDir:
    reinforce(finished_run)
    return finished_run


def shown(run: RunDir) -> dict[str, Any]:
    found = rollouts.view(collect.collect(run))
    assert found is not None
    return found


def test_every_number_of_a_rollout_has_a_curve_and_says_what_it_is(reinforced):
    groups = shown(reinforced)["groups"]
    drawings = [drawing for _, drawings in groups for drawing in drawings]
    labels = {label for own in drawings for label, *_ in own.chart.legend}
    assert len(drawings) == 16
    assert {"form", "sum", "clipped", "gap", "grading", "KL to the reference"} <= labels
    assert all(own.note.endswith(".") for own in drawings)
    points = sum(len(json.loads(own.chart.hover)) for own in drawings)
    assert points == len(NUMBERS)
    page = Page(build(reinforced).read_text())
    assert {f"chart-{own.chart.name}" for own in drawings} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_many_parts_of_a_score_are_cut_into_charts_that_can_be_read(reinforced):
    names = [f"score/part {i}" for i in range(9)]
    lines = [{"step": s, "kind": "train", **dict.fromkeys(names, 0.5)} for s in (1, 2)]
    reinforced.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ((_, drawings),) = shown(reinforced)["groups"]
    assert [len(own.chart.legend) for own in drawings] == [4, 4, 1]
    assert len({own.chart.name for own in drawings}) == 3


def test_another_run_has_none_of_it(finished_run):
    assert rollouts.view(collect.collect(finished_run)) is None
    page = Page(build(finished_run).read_text())
    assert not {"reinforcement", "drawn", "hacking"} & set(page.ids)


def test_some_rollouts_are_shown_evenly_spread_with_the_first_and_the_last(reinforced):
    steps = [own["step"] for own in shown(reinforced)["rollouts"]]
    assert steps[0] == 1
    assert steps[-1] == 40
    assert len(steps) == collect.ROLLOUTS
    gaps = [b - a for a, b in zip(steps, steps[1:], strict=False)]
    assert max(gaps) - min(gaps) <= 1


def test_answers_come_with_all_that_was_made_of_them(reinforced):
    page = Page(build(reinforced).read_text())
    first = shown(reinforced)["rollouts"][0]["groups"]
    assert len(first) == collect.PROMPTS
    assert [len(group["answers"]) for group in first] == [8, 8, 8]
    assert first[0]["more"] == 2
    one = first[0]["answers"][1]
    numbers = [("score", "0.5"), ("form", "1"), ("sum", "none"), ("reward", "0.25")]
    assert one["numbers"] == [*numbers, ("advantage", "+0.75"), ("tokens", "3")]
    assert one["chips"] == ["cut", "not learned"]
    assert one["errors"] == ["sample_parse_error: no JSON"]
    assert "2 more answers to this prompt" in page.text
    assert "sample_parse_error: no JSON" in page.text


def test_texts_stay_texts_and_long_ones_are_cut_with_their_length(reinforced):
    text = f"{HOSTILE}\x00\x1b[31m\u202e{'x' * 5000}"
    lines = answer_lines(0, text=text, prompt=text, errors=[HOSTILE], where=HOSTILE)
    path = reinforced.rollouts / "step-00000000.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = build(reinforced).read_text()
    page = Page(html)
    assert "<img" not in html
    assert html.count("<script>") == 1
    assert "⟨U+0000⟩⟨U+001B⟩[31m⟨U+202E⟩" in page.text
    assert f"{len(text) - rollouts.LONGEST:,} characters more" in page.text
    assert "x" * rollouts.LONGEST not in html


def test_the_page_has_its_size_however_many_answers_there_are(reinforced):
    for path in reinforced.rollouts.glob("*.jsonl"):
        lines = answer_lines(0, group=64, text="long " * 4000, prompt="why " * 4000)
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert build(reinforced).stat().st_size < 1_100_000


@pytest.mark.parametrize("content", ["", "{", "[]\n", '{"place": "x"}\n', '{"place": 0}\n'])
def test_what_cannot_be_read_is_left_out(reinforced, content):
    for path in reinforced.rollouts.glob("*.jsonl"):
        path.write_text(content)
    build(reinforced)


def test_a_measure_that_falls_while_the_reward_rises_is_flagged_with_examples(reinforced):
    comparison = json.loads((reinforced.eval / "comparison.json").read_text())
    fell = comparison["metrics"]["exact_match"] | {"base": 0.6, "tuned": 0.2, "verdict": "worse"}
    comparison["metrics"]["exact_match"] = fell | {"difference": -0.4, "interval": [-0.5, -0.3]}
    reward = {**fell, "name": "score", "on": "drawn answers", "base": 0.1, "tuned": 0.9}
    reward |= {"difference": 0.8, "interval": [0.7, 0.9], "verdict": "better", "unit": ""}
    texts = {"where": "held.jsonl:3", "prompt": HOSTILE, "reference": "7"}
    example = {**texts, "base": "7", "tuned": "eeee", "metric": "exact_match"}
    watch = {"reward": reward, "others": ["exact_match"], "falls": ["exact_match"]}
    watch["examples"] = [{**example, "values": [1.0, 0.0], "reward": [0.0, 1.0]}]
    (reinforced.eval / "comparison.json").write_text(json.dumps({**comparison, "watch": watch}))
    page = Page(build(reinforced).read_text())
    (line,) = summary.hacking({**comparison, "watch": watch})
    assert line.startswith("reward hacking? score rises from 0.1000 to 0.9000 (95 % interval")
    assert "while exact_match falls from 60.0 % to 20.0 %" in line
    assert line in page.text
    assert "hacking" in page.ids
    assert "held.jsonl:3" in page.text
    assert "0.0000 by the reward, 100.0 % by exact_match" in page.text
    assert "<img" not in reinforced.report.read_text()


def test_what_is_held_against_the_reward_is_said(reinforced):
    reward = {"name": "grader:g.yaml", "on": "held-out answers", "base": 0.1, "tuned": 0.9}
    reward |= {"verdict": "better", "interval": [0.7, 0.9], "difference": 0.8, "unit": "share"}
    path = reinforced.eval / "comparison.json"
    comparison = json.loads(path.read_text())
    for others, said in (
        (["exact_match"], "Of what stands beside it (exact_match) nothing got worse with it."),
        ([], "No other measure of held-out answers is beside it"),
    ):
        watch = {"reward": reward, "others": others, "falls": [], "examples": []}
        path.write_text(json.dumps({**comparison, "watch": watch}))
        told = shown(reinforced)["told"]
        assert "grader:g.yaml of held-out answers, rose: 10.0 % to 90.0 %" in told
        assert said in told
    assert summary.hacking(json.loads(path.read_text())) == []
    path.unlink()
    assert shown(reinforced)["told"].startswith("Nothing says whether the reward rose")
    reinforced.set_status(State.running)
    assert shown(reinforced)["told"] == ""
