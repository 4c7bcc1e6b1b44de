"""Graders that ask a model over HTTP: patient, never fooled, and errors are told, not raised."""

from __future__ import annotations

import json
import socket

import pytest
from openai.types import graders as api

from launcher.config.schema import JudgeConfig
from launcher.core.errors import ConfigError
from launcher.graders import endpoint
from launcher.graders.grader import Setting
from launcher.graders.sample import Sample
from launcher.graders.usage import Usage
from launcher.graders.wire import from_wire
from support.endpoint import serve

SCORE = {
    "type": "score_model",
    "name": "quality",
    "model": "judge-1",
    "range": [0, 10],
    "input": [
        {"role": "developer", "content": "You grade answers."},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "Question: {{ item.q }}"},
                {"type": "output_text", "text": "Answer: {{ sample.output_text }}"},
            ],
        },
    ],
    "sampling_params": {"temperature": 0.5, "max_completions_tokens": 99, "seed": 7},
}
LABEL = {
    "type": "label_model",
    "name": "polite",
    "model": "judge-1",
    "labels": ["Good", "so so", "bad"],
    "passing_labels": ["Good", "so so"],
    "input": [{"role": "user", "content": "{{ sample.output_text }}", "type": "message"}],
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def grader(form, url, **options):
    options = {"timeout_s": 5.0, "retries": 0, **options}
    return from_wire(form, Setting(judge=JudgeConfig(url=url, **options)))


@pytest.mark.parametrize(
    ("form", "kind"), [(SCORE, api.ScoreModelGrader), (LABEL, api.LabelModelGrader)]
)
def test_the_wire_form_is_the_api_s(form, kind):
    ours = grader(form, "http://localhost/v1").to_wire()
    assert ours == form
    assert kind.model_validate(ours).name == form["name"]
    assert kind.construct(**form).to_dict() == kind.construct(**ours).to_dict()


def test_what_is_asked_and_read():
    with serve(lambda *_: "It is fine.\n**Score: 7.5**.") as served:
        grade = grader(SCORE, served.url).grade({"q": "2 + 3?"}, "5")
    assert (grade.score, grade.errors) == (7.5, ())
    assert grade.metadata["reply"].startswith("It is fine")
    (body,) = served.requests
    assert body["model"] == "judge-1"
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"].startswith("Question: 2 + 3?\nAnswer: 5\n\nGive your")
    assert "a number from 0 to 10" in body["messages"][1]["content"]
    assert (body["temperature"], body["max_completion_tokens"], body["seed"]) == (0.5, 99, 7)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score: 0", 0.0),
        ("score: 10.", 10.0),
        ("Score: 3\nScore: 4\n\n", 4.0),
        ("Score: 11", None),
        ("Score: -1", None),
        ("Score: nan", None),
        ("Score: 7/10", None),
        ("Score: 7\nbecause it is good", None),
        ("7", None),
        ("", None),
    ],
)
def test_only_a_last_line_within_the_range_is_a_score(reply, score):
    with serve(lambda *_: reply) as served:
        grade = grader(SCORE, served.url).grade({"q": "x"}, "Score: 9")
    assert grade.score == score
    assert [error.kind for error in grade.errors] == ["model_grader_parse_error"] * (score is None)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Label: Good", 1.0),
        ("Kind.\nlabel: `so so`.", 1.0),
        ("Label: BAD", 0.0),
        ("Label: unknown", None),
        ("Good", None),
    ],
)
def test_labels(reply, score):
    with serve(lambda *_: reply) as served:
        grade = grader(LABEL, served.url).grade({}, "Label: Good")
    assert grade.score == score


def test_replies_are_kept_and_what_cannot_be_read_is_asked_again():
    replies = iter(["no score", "Score: 1", "Score: 2"])
    with serve(lambda *_: next(replies)) as served:
        made = grader(SCORE, served.url)
        assert made.grade({"q": "x"}, "a").score is None
        assert [made.grade({"q": "x"}, "a").score for _ in range(3)] == [1, 1, 1]
        assert made.grade({"q": "x"}, "b").score == 2
    assert len(served.requests) == 3


def test_requests_run_side_by_side_and_come_back_in_order():
    def judge(*_):
        return "Score: 1"

    with serve(judge, delay_s=0.05) as served:
        made = grader(SCORE, served.url, concurrency=4)
        grades = made.grade_all([({"q": str(n)}, Sample("")) for n in range(12)])
    assert [grade.score for grade in grades] == [1] * 12
    assert 1 < served.most_at_once <= 4


@pytest.mark.slow
@pytest.mark.parametrize("trouble", [(429, {"Retry-After": "0.1"}), (503, {}), b"no JSON"])
def test_passing_trouble_is_waited_out(trouble):
    said = iter([trouble, "Score: 3"])
    with serve(lambda *_: next(said)) as served:
        assert grader(SCORE, served.url, retries=1).grade({"q": "x"}, "").score == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "model_grader_refusal_error"),
        (401, "model_grader_server_error"),
        (404, "model_grader_server_error"),
        (500, "model_grader_server_error"),
    ],
)
def test_trouble_is_told_of_each_answer(status, kind):
    with serve(lambda *_: (status, {})) as served:
        grades = grader(SCORE, served.url).grade_all([({"q": str(n)}, Sample("")) for n in (1, 2)])
    assert [(grade.score, grade.errors[0].kind) for grade in grades] == [(None, kind)] * 2
    assert f"HTTP {status}" in grades[0].errors[0].message


@pytest.mark.slow
def test_who_stops_a_batch_does_not_wait_for_new_tries():
    def stop():
        raise KeyboardInterrupt

    with serve(lambda *_: (503, {"Retry-After": "50"})) as served:
        made = grader(SCORE, served.url, retries=5)
        with pytest.raises(KeyboardInterrupt):
            made.grade_all([({"q": str(n)}, Sample("")) for n in range(30)], stop)
        assert len(served.requests) < 30


def test_an_endpoint_that_is_away_does_not_hold_up_a_batch():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made = grader(SCORE, f"http://127.0.0.1:{port}/v1", concurrency=1, retries=1)
    grades = made.grade_all([({"q": str(n)}, Sample("")) for n in range(200)])
    assert {grade.errors[0].kind for grade in grades} == {"model_grader_server_error"}
    found = "judge-1 does not answer: ConnectionRefusedError"
    assert {grade.errors[0].message for grade in grades} == {found}


@pytest.mark.parametrize("status", [400, 401, 503])
def test_where_an_endpoint_is_and_what_it_says_of_itself_is_for_the_log(
    status, capsys, monkeypatch
):
    monkeypatch.setenv("THE_SITES_KEY", "sk-of-the-site")
    with serve(lambda *_: (status, {"X-Reason": "none", "Content-Length": "0"})) as served:
        grade = grader(SCORE, served.url, key_variable="THE_SITES_KEY").grade({"q": "x"}, "5")
    (error,) = grade.errors
    does = "declines" if status == 400 else "does not answer"
    assert error.message == f"judge-1 {does}: HTTP {status}"
    said = capsys.readouterr().err
    assert said.startswith("warning: the grader quality has no answer of judge-1: ")
    assert f"HTTP {status} " in said
    assert (served.url in said, "THE_SITES_KEY" in said) == ((status == 401,) * 2)


def test_a_key_that_is_none_is_named_to_who_keeps_it(monkeypatch, capsys):
    monkeypatch.setenv("THE_SITES_KEY", "sk-é")
    judge = JudgeConfig(url="http://localhost/v1", key_variable="THE_SITES_KEY")
    with pytest.raises(ConfigError, match="'judge-1' cannot be asked") as caught:
        from_wire(SCORE, Setting(judges={"judge-1": judge}))
    assert "THE_SITES_KEY" not in str(caught.value)
    assert "THE_SITES_KEY" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="THE_SITES_KEY"):
        from_wire(SCORE, Setting(judge=judge))


def test_what_is_told_of_many_questions_is_told_once(capsys):
    with serve(lambda *_: b'{"from": "judge-7.example"}') as served:
        made = grader(SCORE, served.url)
        grades = [made.grade({"q": str(n)}, "") for n in range(endpoint._SILENT + 1)]
    assert {own.errors[0].message for own in grades} == {
        "judge-1 does not answer: no chat completion"
    }
    assert capsys.readouterr().err.count("judge-7.example") == 1


@pytest.mark.parametrize(
    ("form", "change", "found"),
    [
        (SCORE, {"input": []}, "no messages"),
        (SCORE, {"input": "text"}, "no messages"),
        (SCORE, {"input": [{"role": "tool", "content": "x"}]}, r"input\[0\].role"),
        (SCORE, {"input": [{"role": "user", "content": "x", "name": "y"}]}, r"input\[0\].name"),
        (SCORE, {"input": [{"role": "user", "content": "{{ x }}"}]}, "names nothing"),
        (
            SCORE,
            {"input": [{"role": "user", "content": {"type": "input_image", "image_url": "x"}}]},
            "no images and sounds",
        ),
        (SCORE, {"range": [1, 0]}, "no range"),
        (SCORE, {"range": [0, 2e6]}, "wider than"),
        (SCORE, {"sampling_params": {"top_k": 3}}, "sampling_params.top_k"),
        (LABEL, {"sampling_params": {"top_p": 1}}, "sampling_params"),
        (LABEL, {"passing_labels": ["fine"]}, "'fine'"),
        (LABEL, {"labels": ["a", "A"], "passing_labels": ["a"]}, "cannot be told apart"),
    ],
)
def test_wrong_members(form, change, found):
    with pytest.raises(ConfigError, match=found):
        grader(form | change, "http://localhost/v1")


def test_without_an_endpoint_it_says_how_to_name_one():
    with pytest.raises(ConfigError, match="--judge-url"):
        grader(SCORE, None)


def test_models_have_endpoints_of_their_own_where_there_is_a_list():
    multi = {"type": "multi", "name": "both", "calculate_output": "a + b"}
    forms = {"a": {**SCORE, "model": "first"}, "b": {**SCORE, "model": "second"}}
    with serve(lambda *_: "Score: 1") as one, serve(lambda *_: "Score: 2") as other:
        judges = {
            "first": JudgeConfig(url=one.url, retries=0),
            "second": JudgeConfig(url=other.url, model="its-name-there", retries=0),
        }
        both = from_wire({**multi, "graders": forms}, Setting(judges=judges))
        grade = both.grade({"q": ""}, "x")
    assert grade.score == 3.0
    assert [body["model"] for body in one.requests] == ["first"]
    assert [body["model"] for body in other.requests] == ["its-name-there"]


@pytest.mark.parametrize("form", [SCORE, LABEL])
def test_a_model_that_is_not_in_the_list_is_refused_by_name(form):
    listed = Setting(judge=JudgeConfig(url="http://localhost/v1"), judges={"other": JudgeConfig()})
    with pytest.raises(ConfigError, match=r"grader\.model: 'judge-1' is no judge") as caught:
        from_wire(form, listed)
    assert "there are: other" in str(caught.value)


def test_tokens_are_counted_as_the_endpoint_says():
    said = {"choices": [{"message": {"content": "Score: 1"}}]}
    said["usage"] = {"prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 34}
    said["usage"]["prompt_tokens_details"] = {"cached_tokens": 16}
    with serve(lambda *_: json.dumps(said).encode()) as served:
        asked = grader(SCORE, served.url)
        for question in ("a", "b", "a"):  # the last one is in the cache
            asked.grade({"q": question}, "5")
    assert asked.usage() == {"judge-1": Usage(60, 8, 32)}


@pytest.mark.parametrize("usage", [None, 7, {"prompt_tokens": "many", "completion_tokens": True}])
def test_an_endpoint_that_counts_nothing_counts_none(usage):
    said = {"choices": [{"message": {"content": "Score: 1"}}], "usage": usage}
    with serve(lambda *_: json.dumps(said).encode()) as served:
        asked = grader(SCORE, served.url)
        assert asked.grade({"q": str(usage)}, "5").score == 1.0
    assert asked.usage() == {"judge-1": Usage()}
