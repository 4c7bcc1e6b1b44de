"""Losses of sampled answers against plain numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from launcher.config.schema.reinforce import GrpoConfig, KlEstimator, PolicyLoss
from launcher.objectives.grpo.loss import AnswerTokens, judge

#: Two answers, of two tokens and of one: log-probabilities of model, old model and sampler.
NEW = [[-0.5, -1.0], [-2.0]]
OLD = [[-0.6, -1.3], [-1.5]]
SAMPLER = [[-0.9, -1.2], [-1.4]]
REFERENCE = [[-0.7, -0.4], [-2.5]]
ENTROPY = [[0.3, 0.9], [1.1]]
ADVANTAGES = [2.0, -0.5]
WEIGHTS = [1.0, 3.0]


def flat(values: list[list[float]]) -> torch.Tensor:
    return torch.tensor([x for own in values for x in own], dtype=torch.float64)


def answers(**changes: Any) -> AnswerTokens:
    found: dict[str, Any] = {
        "log_probs": flat(NEW).requires_grad_(),
        "entropies": flat(ENTROPY).requires_grad_(),
        "old": flat(OLD),
        "sampler": flat(SAMPLER),
        "reference": None,
        "teacher": None,
        "divergences": None,
        "documents": torch.tensor([0, 0, 1]),
        "lengths": torch.tensor([2.0, 1.0], dtype=torch.float64),
        "advantages": torch.tensor(ADVANTAGES, dtype=torch.float64),
        "weights": torch.tensor(WEIGHTS, dtype=torch.float64),
    }
    return AnswerTokens(**{**found, **changes})


def options(loss: str, **changes: Any) -> GrpoConfig:
    given = {"clip_low": 0.2, "clip_high": 0.3, "sampler_cap": None, **changes}
    return GrpoConfig(loss=PolicyLoss[loss], **given)


def clipped(ratio: float, advantage: float) -> float:
    return -min(ratio * advantage, min(max(ratio, 0.8), 1.3) * advantage)


def surrogates() -> list[list[float]]:
    """Of each token of each answer."""
    return [
        [clipped(math.exp(n - o), a) for n, o in zip(new, old, strict=True)]
        for new, old, a in zip(NEW, OLD, ADVANTAGES, strict=True)
    ]


def of_answers(level: Any) -> list[float]:
    """Surrogates of whole answers, by a level of their tokens' differences."""
    return [
        clipped(math.exp(level([n - o for n, o in zip(new, old, strict=True)])), a)
        for new, old, a in zip(NEW, OLD, ADVANTAGES, strict=True)
    ]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def expected(loss: str) -> float:
    if loss == "grpo":
        return sum(w * mean(own) for w, own in zip(WEIGHTS, surrogates(), strict=True))
    if loss in ("dr_grpo", "dapo"):
        return sum(w * sum(own) for w, own in zip(WEIGHTS, surrogates(), strict=True))
    if loss == "gspo":
        return sum(w * one for w, one in zip(WEIGHTS, of_answers(mean), strict=True))
    if loss == "rloo":
        return sum(w * one for w, one in zip(WEIGHTS, of_answers(sum), strict=True))
    total = 0.0
    for w, new, old, a in zip(WEIGHTS, NEW, OLD, ADVANTAGES, strict=True):
        for n, o in zip(new, old, strict=True):
            factor = min(math.exp(n - o), 1.3) if loss == "cispo" else 1.0
            total -= w * factor * a * n
    return total


@pytest.mark.parametrize("loss", [one.name for one in PolicyLoss])
def test_the_policy_part_is_that_of_the_formula(loss):
    changes = {} if loss != "reinforce" else {"clip_low": None, "clip_high": None}
    changes |= {"clip_low": None} if loss == "cispo" else {}
    judged = judge(answers(), options(loss, **changes))
    assert float(judged.total.detach()) == pytest.approx(expected(loss), rel=1e-12)


@pytest.mark.parametrize("loss", [one.name for one in PolicyLoss])
def test_at_the_first_update_all_losses_push_by_the_advantage(loss):
    made = answers(old=flat(NEW), sampler=flat(NEW))
    judged = judge(made, GrpoConfig(loss=PolicyLoss[loss]))
    judged.total.backward()
    lengths = [2, 2, 1]
    share = [1.0, 1.0, 1.0]
    if loss in ("grpo", "gspo"):
        share = [1 / n for n in lengths]
    known = [-s * w * a for s, w, a in zip(share, [1, 1, 3], [2.0, 2.0, -0.5], strict=True)]
    assert made.log_probs.grad is not None
    assert made.log_probs.grad.tolist() == pytest.approx(known, rel=1e-12)
    assert float(judged.clipped) == 0


def test_clipped_tokens_push_no_more():
    made = answers()
    judged = judge(made, options("dapo"))
    judged.total.backward()
    assert made.log_probs.grad is not None
    ratios = [
        math.exp(n - o)
        for new, old in zip(NEW, OLD, strict=True)
        for n, o in zip(new, old, strict=True)
    ]
    # The second has gone up beyond 1.3 with a good answer; the last down beyond 0.8 with a bad one.
    assert made.log_probs.grad.tolist() == pytest.approx([-2 * ratios[0], 0.0, 0.0], rel=1e-12)
    assert float(judged.clipped) == 1 + 3


def test_the_sampler_is_corrected_up_to_the_cap():
    judged = judge(answers(), options("dapo", sampler_cap=1.2))
    weights = [
        [min(math.exp(o - s), 1.2) for o, s in zip(old, drawn, strict=True)]
        for old, drawn in zip(OLD, SAMPLER, strict=True)
    ]
    assert weights[0][0] == 1.2  # e^0.3 is above it
    known = sum(
        w * t * one
        for w, own, tis in zip(WEIGHTS, surrogates(), weights, strict=True)
        for one, t in zip(own, tis, strict=True)
    )
    assert float(judged.total.detach()) == pytest.approx(known, rel=1e-12)
    gap = abs(-0.6 + 0.9) + abs(-1.3 + 1.2) + 3 * abs(-1.5 + 1.4)
    assert float(judged.gap) == pytest.approx(gap)
    assert float(judged.tokens) == 5


def test_a_whole_answer_has_one_correction():
    judged = judge(answers(), options("gspo", sampler_cap=10.0))
    drift = [math.exp(mean([0.3, -0.1])), math.exp(-0.1)]
    known = sum(w * d * one for w, d, one in zip(WEIGHTS, drift, of_answers(mean), strict=True))
    assert float(judged.total.detach()) == pytest.approx(known, rel=1e-12)


@pytest.mark.parametrize("kl", [one.name for one in KlEstimator])
def test_the_divergence_is_that_of_its_estimator(kl):
    made = answers(reference=flat(REFERENCE), advantages=torch.zeros(2, dtype=torch.float64))
    judged = judge(made, options("dapo", beta=0.4, kl=KlEstimator[kl]))
    ahead = [
        n - r
        for new, ref in zip(NEW, REFERENCE, strict=True)
        for n, r in zip(new, ref, strict=True)
    ]
    value = {"k1": lambda d: d, "k2": lambda d: d * d / 2, "k3": lambda d: math.exp(-d) - 1 + d}
    slope = {"k1": lambda d: d, "k2": lambda d: d, "k3": lambda d: 1 - math.exp(-d)}
    weights = [1, 1, 3]
    known = sum(w * value[kl](d) for w, d in zip(weights, ahead, strict=True))
    assert float(judged.divergence) == pytest.approx(known, rel=1e-9)
    assert float(judged.total.detach()) == pytest.approx(0.4 * known, rel=1e-9)
    judged.total.backward()
    assert made.log_probs.grad is not None
    slopes = [0.4 * w * slope[kl](d) for w, d in zip(weights, ahead, strict=True)]
    assert made.log_probs.grad.tolist() == pytest.approx(slopes, rel=1e-9)


def test_entropy_is_kept_high_with_the_same_weights():
    plain = judge(answers(), options("grpo"))
    with_bonus = judge(answers(), options("grpo", entropy_bonus=0.1))
    bonus = 0.1 * (mean(ENTROPY[0]) + 3 * ENTROPY[1][0])
    assert float((plain.total - with_bonus.total).detach()) == pytest.approx(bonus, rel=1e-9)
    assert float(plain.entropy) == pytest.approx(0.3 + 0.9 + 3 * 1.1)


@pytest.mark.parametrize("loss", [one.name for one in PolicyLoss])
def test_a_teachers_divergence_stands_beside_the_policy_with_the_same_weights(loss):
    made = answers(divergences=flat([[0.2, 0.7], [1.5]]).requires_grad_())
    given = GrpoConfig(loss=PolicyLoss[loss], teacher_weight=0.5)
    judged, plain = judge(made, given), judge(answers(), given)
    over_answer = loss in ("grpo", "gspo", "rloo")
    known = 0.5 * ((mean if over_answer else sum)([0.2, 0.7]) + 3 * 1.5)
    assert float((judged.total - plain.total).detach()) == pytest.approx(known, rel=1e-9)
    judged.total.backward()
    assert made.divergences is not None
    assert made.divergences.grad is not None
    share = 0.25 if over_answer else 0.5
    assert made.divergences.grad.tolist() == pytest.approx([share, share, 1.5], rel=1e-12)
    assert float(judged.from_teacher) == pytest.approx(0.2 + 0.7 + 3 * 1.5)
    assert float(judged.behind_teacher) == 0
