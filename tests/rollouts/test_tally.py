"""What is logged of a rollout, and tokens as they are drawn."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launcher.evals.decoding import Decoding, SeededChoice
from launcher.rollouts.sampling import RecordedChoice
from launcher.rollouts.tally import rewards_of, tally
from support.rollouts import answered

ONE = answered(sub_scores={"form": 0.5})


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


@given(
    count=st.sampled_from([1, 5, 127, 128, 129, 1000, 1024]),
    draw=st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 1 - 2**-53])),
    ruled_out=st.floats(0, 1),
    spread=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 2**20),
)
def test_a_token_is_the_first_whose_sum_is_above_the_draw(count, draw, ruled_out, spread, seed):
    random = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(1, count, generator=random)
    banned = torch.rand(1, count, generator=random) < ruled_out
    banned[0, int(torch.randint(count, (1,), generator=random))] = False
    logits[banned] = -torch.inf
    decoding = Decoding(max_new_tokens=1, temperature=1.0)
    choice = RecordedChoice([(decoding, 0)], 0)
    choice._draws[0, 0] = draw
    token = int(choice.pick(logits, 0))
    shares = logits[0].double().softmax(-1)
    assert shares[token].float() > 0
    sums = shares.cumsum(-1)
    before = float(sums[token] - shares[token])
    assert before - 1e-6 <= draw <= float(sums[token]) + 1e-6
    expected = logits[0].double().log_softmax(-1)[token].float()
    torch.testing.assert_close(choice.log_probs[0][0], expected)


def test_a_name_of_several_numbers_has_a_stream_of_its_own():
    decoding = Decoding(max_new_tokens=1, temperature=1.0, seed=1)
    rows = [(decoding, name) for name in (5, (5,), (5, 1), (1, 5))]
    draws = SeededChoice(rows, 1)._draws[:, 0].tolist()
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3
