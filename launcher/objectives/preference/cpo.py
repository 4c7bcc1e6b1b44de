"""Contrastive preference optimisation: DPO with a reference that gives all answers the same chance.

With l the sum of an answer's log-probabilities, n its tokens, w the chosen and v the rejected
answer, e the label smoothing and d = beta * (l_w - l_v), the loss of a pair is

    -(1 - e) log s(d) - e log s(-d) - sft_weight * l_w / n_w

with s the logistic function (Xu et al. 2024, arXiv:2401.08417, eq. 3 to 5, the cross entropy taken
a token). A reward is beta * l, below 0. The loss of a batch is the mean over its pairs.
"""

from __future__ import annotations

from launcher.config.schema.preference import CpoConfig
from launcher.objectives.preference.pairs import Answers, Judged, Pairs


class Cpo(Pairs):
    """Loss per pair, of the answers' log-probabilities."""

    options: CpoConfig

    def judge_pairs(self, answers: Answers) -> Judged:
        """Losses, and beta times the log-probabilities as rewards."""
        from torch.nn.functional import logsigmoid

        options = self.options
        rewards = options.beta * answers.log_probs
        lead, wrong = rewards[:, 0] - rewards[:, 1], options.label_smoothing
        losses = -(1 - wrong) * logsigmoid(lead) - wrong * logsigmoid(-lead)
        nats = -answers.log_probs[:, 0] / answers.tokens[:, 0]
        return Judged(losses + options.sft_weight * nats, rewards)
