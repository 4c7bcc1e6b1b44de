"""A rollout outlasts a model that grades and is away, and says why if it does not come back."""

from __future__ import annotations

import pytest

from launcher.config.schema import JudgeConfig
from launcher.core.errors import ExitCode, LauncherError
from launcher.evals.runner import EvaluationStopped
from launcher.graders import endpoint
from launcher.graders.grader import Setting
from launcher.graders.sample import Sample
from launcher.graders.wire import from_wire
from launcher.rollouts import patience
from launcher.rollouts.patience import GradingPatience
from support.endpoint import serve

AWAY = (503, {"Content-Length": "0"})
WORD = {"type": "string_check", "name": "w", "input": "{{ sample.output_text }}"}
WORD |= {"reference": "x", "operation": "eq"}
ASKING = {"type": "score_model", "name": "kind", "model": "ours"}
ASKING |= {"input": [{"role": "user", "content": "{{ item.q }} {{ sample.output_text }}"}]}
BOTH = {"type": "multi", "name": "both", "graders": {"w": WORD, "kind": ASKING}}
BOTH |= {"calculate_output": "w + kind"}


@pytest.fixture(autouse=True)
def _quick(tmp_path, monkeypatch):
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(endpoint, "_LEFT_ALONE_S", 0.0)
    monkeypatch.setattr(patience, "_FIRST_S", 0.01)
    monkeypatch.setattr(patience, "_LONGEST_S", 0.04)


class Asked:
    """A grader of six answers behind a patience, and what is seen of it."""

    def __init__(self, url, form=ASKING, most_s=60.0, stops=lambda: False):
        self.grader = from_wire(form, Setting(judge=JudgeConfig(url=url, retries=0, concurrency=1)))
        self.signs, self.said, self.tries = [], [], 0
        self.patience = GradingPatience(
            most_s, alive=lambda: self.signs.append(1), should_stop=stops, say=self.said.append
        )

    def _ask(self):
        self.tries += 1
        return self.grader.grade_all([({"q": str(i)}, Sample("x")) for i in range(6)])

    def scores(self):
        return [grade.score for grade in self.patience.grades(self._ask)]


@pytest.mark.parametrize(("form", "score"), [(ASKING, 0.5), (BOTH, 1.5)], ids=["alone", "multi"])
def test_a_model_that_comes_back_is_asked_again(form, score):
    replies = iter([AWAY] * 18)
    with serve(lambda *_: next(replies, "Score: 0.5")) as served:
        asked = Asked(served.url, form)
        assert asked.scores() == [score] * 6
    assert asked.tries == 4
    assert len(asked.said) == len(asked.signs) == 3
    assert "ours does not answer: HTTP 503; the rollout is graded again in" in asked.said[0]
    assert served.url not in "".join(asked.said)


def test_a_model_that_stays_away_ends_the_run_after_the_longest_wait():
    with serve(lambda *_: AWAY) as served, pytest.raises(LauncherError) as caught:
        Asked(served.url, most_s=0.3).scores()
    (problem,) = caught.value.problems
    assert (caught.value.exit_code, problem.where) == (ExitCode.internal, "objective.grader")
    assert problem.found.endswith("ours does not answer: HTTP 503")
    assert "objective.grader_wait_s" in problem.hint


def test_a_model_that_refuses_is_not_waited_for():
    with serve(lambda *_: (401, {"Content-Length": "0"})) as served:
        asked = Asked(served.url)
        with pytest.raises(LauncherError, match="ours does not answer: HTTP 401"):
            asked.scores()
    assert asked.tries == 1


@pytest.mark.parametrize("first", ["Score: 0.5", "I say nothing."])
def test_what_some_answers_have_is_taken(first):
    replies = iter([first])
    with serve(lambda *_: next(replies, AWAY)) as served:
        asked = Asked(served.url)
        assert asked.scores() == [0.5 if "Score" in first else None] + [None] * 5
    assert asked.tries == 1


def test_a_run_that_is_to_stop_does_not_wait():
    with serve(lambda *_: AWAY) as served, pytest.raises(EvaluationStopped):
        Asked(served.url, stops=lambda: True).scores()
