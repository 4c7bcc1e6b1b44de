"""Simple preference optimisation: log-probabilities a token as rewards, without a reference.

With m the mean of an answer's log-probabilities, w the chosen and v the rejected answer, e the
label smoothing and d = beta * (m_w - m_v) - gamma, the loss of a pair is

    -(1 - e) log s(d) - e log s(-d)

with s the logistic function (Meng et al. 2024, arXiv:2405.14734, eq. 6). A reward is beta * m,
below 0. `sft_weight` adds the cross entropy of the chosen answer a token. The loss of a batch is
the mean over its pairs.
"""

from __future__ import annotations

from launcher.config.schema.preference import SimpoConfig
from launcher.objectives.preference.pairs import Answers, Judged, Pairs


class Simpo(Pairs):
    """Loss per pair, of answers' log-probabilities a token."""

    options: SimpoConfig

    def judge_pairs(self, answers: Answers) -> Judged:
        """Losses, and beta times the log-probabilities a token as rewards."""
        from torch.nn.functional import logsigmoid

        options = self.options
        means = answers.log_probs / answers.tokens
        rewards = options.beta * means
        lead = rewards[:, 0] - rewards[:, 1] - options.gamma
        wrong = options.label_smoothing
        losses = -(1 - wrong) * logsigmoid(lead) - wrong * logsigmoid(-lead)
        return Judged(losses - options.sft_weight * means[:, 0], rewards)
