"""The judge, asked over HTTP by the real client: fair to positions, patient, never fooled."""

from __future__ import annotations

import socket
import threading

import pytest

from launcher.config.schema import EvalConfig, JudgeConfig
from launcher.core.errors import ConfigError, DataError
from launcher.evals.comparison.paired import Resampling, compare
from launcher.evals.judge import RUBRIC, WinRate
from launcher.evals.metric import make_metrics, score_all
from launcher.evals.records import Generation, Results
from launcher.evals.store import predictions
from support.endpoint import longer, serve
from support.results import results_of

#: base -> tuned answers: longer three times, shorter once, alike in length, the same.
PAIRS = [("a", "aa"), ("b", "bbb"), ("c", "cc"), ("dd", "d"), ("ef", "fe"), ("same", "same")]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def sides(pairs=PAIRS, reference="") -> tuple[Results, Results]:
    def side(which: int) -> Results:
        made = [Generation(i, f"d:{i}", f"q{i}", reference, p[which]) for i, p in enumerate(pairs)]
        return results_of(generations=made)

    return side(0), side(1)


def judge(url: str, **options) -> WinRate:
    options = {"model": "m", "timeout_s": 5.0, "retries": 1, **options}
    config = EvalConfig(metrics=["judge"], judge=JudgeConfig(url=url, **options))
    return make_metrics(config)[0]


def row(made: WinRate, pair=None) -> dict:
    pair = pair or sides()
    return compare(*pair, [made], Resampling(count=200))["metrics"]["judge"]


def test_wins_count_one_ties_half():
    with serve() as served:
        made = judge(served.url)
        made.settle(*sides())
    found = row(made)
    assert found["tuned"] == pytest.approx((3 + 0.5 + 0.5) / 6)
    assert found["base"] == pytest.approx(1 - found["tuned"])
    assert (found["improved"], found["worsened"], found["records"]) == (3, 1, 6)
    assert len(served.requests) == 2 * 5  # equal answers cost nothing
    assert {body["temperature"] for body in served.requests} == {0}
    assert {body["path"] for body in served.requests} == {"/v1/chat/completions"}
    assert "5 of 5 pairs" in made.notes()[0]
    kept = {line["tuned"]: line["judge"] for line in predictions(*sides(), [made])}
    assert kept == {"aa": 1, "bbb": 1, "cc": 1, "d": 0, "fe": 0.5, "same": 0.5}


def test_a_judge_that_favours_a_position_decides_nothing():
    with serve(lambda *_: "Verdict: 1") as served:
        made = judge(served.url)
        made.settle(*sides())
    assert row(made)["tuned"] == 0.5
    assert "5 otherwise when swapped" in made.notes()[0]


def test_a_win_in_one_order_and_a_tie_in_the_other_is_a_tie():
    replies = {("a", "aa"): "Verdict: 2", ("aa", "a"): "verdict: Tie."}
    with serve(lambda prompt, *answers: replies[answers]) as served:
        made = judge(served.url)
        made.settle(*sides(PAIRS[:1]))
    assert set(made.shares.values()) == {0.5}


def test_verdicts_are_kept_so_that_asking_again_costs_nothing():
    with serve() as served:
        first = judge(served.url)
        first.settle(*sides())
        count = len(served.requests)
        again = judge(served.url)
        again.settle(*sides())
        assert len(served.requests) == count
        judge(served.url, model="other").settle(*sides())
        assert len(served.requests) == 2 * count
    assert again.shares == first.shares


def test_what_is_sent(monkeypatch, tmp_path):
    rubric = tmp_path / "rubric.txt"
    rubric.write_text("{prompt}|{reference}|{first}|{second}|{other}")
    monkeypatch.setenv("MY_KEY", "s3cret")
    pair = sides([("{prompt}", "{second}\n")], reference="known")
    with serve(lambda *_: "Verdict: tie") as served:
        extra = {"max_tokens": 9, "temperature": None}
        judge(served.url, key_variable="MY_KEY", prompt=str(rubric), extra=extra).settle(*pair)
    assert sorted(body["messages"][0]["content"] for body in served.requests) == [
        "q0|known|{prompt}|{second}\n|{other}",
        "q0|known|{second}\n|{prompt}|{other}",
    ]
    assert served.requests[0]["max_tokens"] == 9
    assert "temperature" not in served.requests[0]
    assert set(served.keys) == {"Bearer s3cret"}


def test_records_without_references_are_judged_by_the_prompt_alone():
    with serve() as served:
        judge(served.url).settle(*sides(PAIRS[:1]))
    text = served.requests[0]["messages"][0]["content"]
    assert "<reference>\n(none)\n</reference>" in text
    assert served.keys == [None, None]


def test_requests_run_side_by_side_within_the_bound():
    alive = []
    with serve(delay_s=0.1) as served:
        judge(served.url, concurrency=3).settle(*sides(), lambda: alive.append(None))
    assert 1 < served.most_at_once <= 3
    assert alive


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 500])
def test_passing_trouble_is_waited_out(status):
    turned_away = set()

    def busy(prompt, first, second):
        if (prompt, first) not in turned_away:
            turned_away.add((prompt, first))
            return status, {"Retry-After": "0"}
        return longer(prompt, first, second)

    with serve(busy) as served:
        made = judge(served.url)
        made.settle(*sides(PAIRS[:2]))
    assert len(served.requests) == 8
    assert row(made, sides(PAIRS[:2]))["tuned"] == 1


def test_a_little_nonsense_is_left_out_and_counted():
    def sometimes(prompt, first, second):
        return "I like both!" if prompt == "q0" else longer(prompt, first, second)

    with serve(sometimes) as served:
        made = judge(served.url)
        made.settle(*sides())
        found = row(made)
        asked = len(served.requests)
        judge(served.url).settle(*sides())
        assert len(served.requests) == asked + 2  # only what has no verdict is asked again
    assert found["records"] == 5
    assert "4 of 5 pairs" in made.notes()[0]


@pytest.mark.parametrize(
    "reply",
    [
        "**Verdict:** @",
        "Good.\n\n`Verdict: @`\n\n",
        "Verdict: tie?\n'verdict: @'.",
        "```\nVerdict: @\n```\n",
        pytest.param(f"{RUBRIC}\nVerdict: @", id="after an echo"),
        pytest.param("\ud83d\nVerdict: @", id="after half a character"),
    ],
)
def test_the_last_line_is_the_verdict(reply):
    def decided(prompt, first, second):
        return reply.replace("@", "1" if len(first) > len(second) else "2")

    with serve(decided) as served:
        made = judge(served.url)
        made.settle(*sides(PAIRS[:1]))
    assert made.shares == {(0, "aa"): 1, (0, "a"): 0}


ECHOES = {
    "rubric": RUBRIC,
    "rubric, cut short": RUBRIC.rstrip()[:-1].rpartition(" or ")[0],
    "reasons after it": "Verdict: 2\nBecause it is longer.",
    "cut short after one": 'I leaned to "Verdict: 1", but then',
    "cut short within": "The first is wrong.\nVerdict:",
}


@pytest.mark.parametrize("reply", ECHOES.values(), ids=ECHOES)
def test_a_verdict_elsewhere_is_none(reply):
    with serve(lambda *_: reply) as served, pytest.raises(DataError, match="5 of 5 pairs"):
        judge(served.url).settle(*sides())


@pytest.mark.parametrize("reply", ["Both are fine.", "", "Verdict: 12", "My verdict? Perhaps 1."])
def test_a_judge_that_talks_nonsense_is_an_error(reply):
    with serve(lambda *_: reply) as served:
        made = judge(served.url)
        with pytest.raises(DataError, match=r"5 of 5 pairs could not be judged(?s:.)*HINT"):
            made.settle(*sides())
    assert row(made)["records"] == 1  # the equal pair


@pytest.mark.parametrize("status", [401, 404])
def test_a_refusal_is_told_at_once(status):
    with serve(lambda *_: (status, {})) as served:
        with pytest.raises(ConfigError, match=rf"refuses: HTTP {status}(?s:.)*OPENAI_API_KEY is"):
            judge(served.url, concurrency=1, retries=9).settle(*sides())
        assert len(served.requests) == 1


def test_a_question_that_is_refused_is_one_answer_unjudged():
    def filtered(prompt, first, second):
        return (400, {}) if prompt == "q1" else longer(prompt, first, second)

    with serve(filtered) as served:
        made = judge(served.url)
        made.settle(*sides())
    assert "4 of 5 pairs" in made.notes()[0]


def test_questions_that_are_refused_in_a_row_are_no_dead_endpoint():
    def filtered(prompt, first, second):
        return (400, {}) if prompt in ("q0", "q1", "q2") else longer(prompt, first, second)

    with serve(filtered) as served:
        made = judge(served.url, concurrency=1)
        made.settle(*sides([("a", "aa")] * 20))
    assert "17 of 20 pairs" in made.notes()[0]


def test_a_request_that_is_never_right_is_shown():
    told = pytest.raises(DataError, match=r"5 of 5 pairs(?s:.)*HTTP 400(?s:.)*eval.judge.extra")
    with serve(lambda *_: (400, {})) as served, told:
        judge(served.url).settle(*sides())


def test_a_reply_nested_too_deep_is_one_answer_unjudged():
    def nested(prompt, first, second):
        return b"[" * 200_000 if prompt == "q0" else longer(prompt, first, second)

    with serve(nested) as served:
        made = judge(served.url, retries=0)
        made.settle(*sides())
    assert "4 of 5 pairs" in made.notes()[0]


def test_equal_records_may_be_judged_at_the_same_moment():
    count = 8
    together = threading.Barrier(count)

    def at_once(prompt, first, second):
        together.wait(20)
        return longer(prompt, first, second)

    def side(answer):
        return results_of(generations=[Generation(i, "d", "q", "", answer) for i in range(count)])

    with serve(at_once) as served:
        made = judge(served.url, concurrency=count, timeout_s=30)
        made.settle(side("a"), side("aa"))
    assert "8 of 8 pairs" in made.notes()[0]


def test_a_line_break_after_the_key_is_not_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-s3cret\n")
    with serve() as served:
        judge(served.url).settle(*sides(PAIRS[:1]))
    assert set(served.keys) == {"Bearer sk-s3cret"}


@pytest.mark.parametrize("key", ["sk-s3\ncret", "sk-s3cr\u00e9t", "\u201csk-s3cret\u201d"])
def test_a_key_that_cannot_be_sent_is_not_shown(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with serve() as served, pytest.raises(ConfigError, match="OPENAI_API_KEY") as told:
        judge(served.url, retries=0).settle(*sides())
    assert "s3" not in str(told.value)
    assert not served.requests


BRIEF = {"timeout_s": 0.1, "retries": 0, "concurrency": 2}


def test_a_dead_endpoint_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match="does not answer: URLError"):
        judge(f"http://127.0.0.1:{port}/v1", **BRIEF).settle(*sides())


def test_an_endpoint_that_is_too_slow_is_given_up():
    told = pytest.raises(ConfigError, match="does not answer: (?s:.)*timeout_s")
    with serve(delay_s=0.5) as served, told:
        judge(served.url, **BRIEF).settle(*sides())


def test_one_model_alone_has_no_score():
    made = judge("http://127.0.0.1:1/v1")
    assert score_all([made], sides()[0]) == {}


@pytest.mark.parametrize(("text", "found"), [(None, "No such file"), ("{prompt}", "no {first}")])
def test_a_rubric_that_cannot_be_used_is_refused(tmp_path, text, found):
    path = tmp_path / "rubric.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=found):
        judge("http://127.0.0.1:1/v1", prompt=str(path))
