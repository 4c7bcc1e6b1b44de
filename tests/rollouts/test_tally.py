"""What is logged of a rollout, and tokens as they are drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from launcher.evals.decoding import Decoding, SeededChoice
from launcher.rollouts.answer import ScoredAnswer
from launcher.rollouts.sampling import RecordedChoice
from launcher.rollouts.tally import rewards_of, tally

ONE = ScoredAnswer(
    place=0,
    number=0,
    draw=0,
    record=0,
    where="",
    prompt="",
    text="",
    cut=False,
    score=1.0,
    reward=1.0,
    advantage=0.0,
    is_learned=True,
    sub_scores={"form": 0.5},
    errors=[],
    prompt_tokens=[1],
    tokens=[2, 3],
    sampler_log_probs=[-1.0, -1.0],
)


def test_means_are_over_what_there_is():
    answers = [
        ONE,
        replace(ONE, score=0.0, reward=-0.5, cut=True, tokens=[2, 3, 4, 5]),
        replace(ONE, score=None, reward=None, is_learned=False, errors=["e"], sub_scores={}),
        ONE,
    ]
    found = {name: one / other for name, (one, other) in tally(answers, 2).items()}
    assert found == pytest.approx(
        {
            "score": 2 / 3,
            "score/form": 0.5,
            "answer_tokens": 10 / 4,
            "cut_share": 0.25,
            "flat_groups": 0.5,
            "left_out": 0.25,
            "grader_errors": 0.25,
        }
    )
    assert "flat_groups" not in tally(answers, 1)
    np.testing.assert_array_equal(rewards_of(answers, 2), [[1.0, -0.5], [np.nan, 1.0]])


@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_tokens_are_drawn_by_their_probabilities_which_are_noted(top_p):
    heat, count = 0.8, 3000
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0, -30.0])
    decoding = Decoding(max_new_tokens=1, temperature=heat, top_p=top_p, seed=4)
    choice = RecordedChoice([(decoding, (0, 0, i, 0)) for i in range(count)], 2)
    chosen = choice(torch.zeros(count, 2), logits.repeat(count, 1)).argmax(-1)
    shares = torch.softmax(logits / heat, -1)
    (noted,) = choice.log_probs
    torch.testing.assert_close(noted, shares.log()[chosen])
    kept = shares.clone()
    if top_p < 1:
        kept[shares < shares[2]] = 0  # the two likeliest hold more than 0.8
    frequencies = torch.bincount(chosen, minlength=5) / count
    torch.testing.assert_close(frequencies, kept / kept.sum(), atol=0.03, rtol=0)
    again = RecordedChoice([(decoding, (0, 0, 7, 0))], 2)(torch.zeros(1, 2), logits[None])
    assert int(again.argmax()) == int(chosen[7])


def test_a_name_of_several_numbers_has_a_stream_of_its_own():
    decoding = Decoding(max_new_tokens=1, temperature=1.0, seed=1)
    rows = [(decoding, name) for name in (5, (5,), (5, 1), (1, 5))]
    draws = SeededChoice(rows, 1)._draws[:, 0].tolist()
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3
