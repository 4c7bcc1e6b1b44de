"""From rewards to advantages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from launcher.config.schema.reinforce import Advantage, GrpoConfig, PolicyLoss
from launcher.objectives.grpo.advantages import EPSILON, advantages, penalties, without_spread

REWARDS = np.array([[1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.5]])
scores = st.floats(-5, 5).map(lambda x: round(x, 3))
groups = arrays.arrays(
    np.float64,
    st.tuples(st.integers(1, 5), st.integers(2, 6)),
    elements=st.one_of(scores, st.just(float("nan"))),
)
NORMS = st.sampled_from(list(Advantage))
LOSSES = st.sampled_from([one for one in PolicyLoss if one is not PolicyLoss.reinforce])


def test_by_group():
    found = advantages(REWARDS, GrpoConfig())
    one = 0.5 / (np.sqrt(1 / 3) + EPSILON)
    np.testing.assert_allclose(found, [[one, -one, -one, one], [0, 0, 0, 0]])


def test_by_batch_and_by_nothing():
    deviation = REWARDS.std(ddof=1) + EPSILON
    found = advantages(REWARDS, GrpoConfig(advantage=Advantage.batch))
    np.testing.assert_allclose(found[0], np.array([0.5, -0.5, -0.5, 0.5]) / deviation)
    found = advantages(REWARDS, GrpoConfig(loss=PolicyLoss.dr_grpo))
    np.testing.assert_allclose(found[0], [0.5, -0.5, -0.5, 0.5])


def test_against_the_others():
    found = advantages(REWARDS, GrpoConfig(loss=PolicyLoss.rloo))
    np.testing.assert_allclose(found[0], [1 - 1 / 3, -2 / 3, -2 / 3, 1 - 1 / 3])


def test_without_groups():
    options = GrpoConfig(loss=PolicyLoss.reinforce, group_size=1)
    rewards = np.array([[1.0], [0.0], [np.nan], [5.0]])
    known = np.array([1.0, 0.0, 5.0])
    expected = (known - 2) / (known.std(ddof=1) + EPSILON)
    np.testing.assert_allclose(advantages(rewards, options)[[0, 1, 3], 0], expected)
    options.advantage = Advantage.none
    np.testing.assert_allclose(advantages(rewards, options)[:, 0], [1, 0, 0, 5])


@given(groups, NORMS, LOSSES)
def test_better_answers_of_a_group_have_the_larger_advantage(rewards, norm, loss):
    found = advantages(rewards, GrpoConfig(loss=loss, advantage=norm))
    assert np.isfinite(found).all()
    assert (found[np.isnan(rewards)] == 0).all()
    for own, given_ in zip(found, rewards, strict=True):
        known = np.isfinite(given_)
        if known.sum() < 2:
            assert (own == 0).all()
            continue
        assert own[known].sum() == pytest.approx(0, abs=1e-6 * max(1, np.abs(own).max()))
        order = np.argsort(given_[known], kind="stable")
        assert (np.diff(own[known][order]) >= -1e-9).all()


@given(groups, LOSSES, st.floats(-3, 3).map(lambda x: round(x, 2)), st.integers(1, 4))
def test_a_shift_of_scores_changes_nothing_and_a_scale_nothing_by_group(rewards, loss, by, times):
    options = GrpoConfig(loss=loss, advantage=Advantage.none)
    np.testing.assert_allclose(
        advantages(rewards + by, options), advantages(rewards, options), atol=1e-9
    )
    np.testing.assert_allclose(
        advantages(rewards * times, options), times * advantages(rewards, options), atol=1e-9
    )


@given(groups)
def test_a_group_without_spread_teaches_nothing(rewards):
    flat = without_spread(rewards)
    found = advantages(rewards, GrpoConfig())
    for own, given_, is_flat in zip(found, rewards, flat, strict=True):
        known = given_[np.isfinite(given_)]
        assert is_flat == (len(known) == 0 or known.max() - known.min() <= 1e-9)
        if is_flat:
            assert np.abs(own).max() < 1e-4


def test_long_answers_lose_softly():
    options = GrpoConfig(max_new_tokens=100, soft_penalty=20)
    found = penalties(np.array([1, 80, 90, 100]), options)
    np.testing.assert_allclose(found, [0, 0, -0.5, -1])
    assert not penalties(np.array([100]), GrpoConfig(max_new_tokens=100)).any()
