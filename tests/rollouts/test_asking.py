"""What a grader is given of an answer that was drawn."""

from __future__ import annotations

from types import SimpleNamespace

from launcher.rollouts.answer import Episode, Question
from launcher.rollouts.asking import Asker


def test_calls_in_an_answer_are_read_by_its_record():
    asker = Asker.__new__(Asker)
    asker._calls = SimpleNamespace(calls=lambda record, text: [record["tools"], text])
    question = Question(0, 0, 0, 0, (1,), (2,))
    one = asker._sample(Episode(question, [3], text="said"), {"tools": "f"})
    assert (one.output_text, one.output_tools) == ("said", ("f", "said"))
    turns = [{"role": "assistant", "content": "said", "tool_calls": ["g"]}]
    several = Episode(question, [3], turns=[[0, 1]], messages=turns, text="said")
    assert asker._sample(several, {}).output_tools == ("g",)
