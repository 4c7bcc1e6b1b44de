"""Odds ratio preference optimisation: answers and preference in one stage, without a reference.

With p an answer's probability a token (the exponential of the mean of its log-probabilities),
o = p / (1 - p) its odds, w the chosen and v the rejected answer, the loss of a pair is

    -log p_w + odds_weight * -log s(log o_w - log o_v)

with s the logistic function (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7). A reward is
odds_weight * log p, below 0. The loss of a batch is the mean over its pairs.
"""

from __future__ import annotations

from launcher.config.schema.preference import OrpoConfig
from launcher.objectives.preference.pairs import Answers, Judged, Pairs


class Orpo(Pairs):
    """Cross entropy of the chosen answer a token, and the odds ratio."""

    options: OrpoConfig

    def judge_pairs(self, answers: Answers) -> Judged:
        """Losses, and the weighted log-probabilities a token as rewards."""
        from torch.nn.functional import logsigmoid

        means = answers.log_probs / answers.tokens
        # log(1 - p) by what is exact where p is near 1.
        odds = means - (-means.expm1()).log()
        nats = -means[:, 0]
        weight = self.options.odds_weight
        return Judged(nats - weight * logsigmoid(odds[:, 0] - odds[:, 1]), weight * means)
