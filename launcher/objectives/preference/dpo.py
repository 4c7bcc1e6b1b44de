"""Direct preference optimisation: the better answer gains more on the model before training.

With l the sum of an answer's log-probabilities under the model, r that under the reference (the
model before training), g = l - r the gain, w the chosen and v the rejected answer, and
d = beta * (g_w - g_v) - margin_weight * (rating_w - rating_v), the loss of a pair is

sigmoid   -(1 - e) log s(d) - e log s(-d), s the logistic function, e the label smoothing; without
          it DPO (Rafailov et al. 2023, arXiv:2305.18290, eq. 7), with it cDPO (Mitchell 2023)
robust    (-(1 - e) log s(d) + e log s(-d)) / (1 - 2 e), unbiased where a share e of the pairs is
          labelled the wrong way round (Chowdhury et al. 2024, arXiv:2403.00409)
hinge     max(0, 1 - d) (SLiC-HF, Zhao et al. 2023, arXiv:2305.10425, as in arXiv:2309.06657)
ipo       (h - 1 / (2 beta))^2, h the difference of the gains a token (Azar et al. 2023,
          arXiv:2310.12036, eq. 17; a token, as its authors have run it)
apo_zero  (1 - s(beta g_w)) + s(beta g_v) (D'Oosterlinck et al. 2024, arXiv:2408.06266, eq. 7)
apo_down  s(beta g_w) + (1 - s(beta (g_w - g_v))) (the same, eq. 8)

A reward is beta * g: positive where the model gives the answer more than the reference does.
With `length_normalization` gains are divided by the answer's tokens. `sft_weight` adds the cross
entropy of the chosen answer a token (RPO, Pang et al. 2024, arXiv:2404.19733, eq. 2);
`margin_weight` asks for a lead that grows with the ratings (ODPO, Amini et al. 2024,
arXiv:2402.10571). The loss of a batch is the mean over its pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from launcher.config.schema.preference import DpoConfig, DpoLoss
from launcher.data.cache import Column
from launcher.objectives.preference import drift
from launcher.objectives.preference.pairs import REFERENCE, Answers, Judged, Pairs

if TYPE_CHECKING:
    from torch import Tensor


class Dpo(Pairs):
    """Loss per pair, against the reference."""

    options: DpoConfig
    reference: ClassVar[Sequence[Column]] = (Column(REFERENCE),)
    held_out_reference: ClassVar[Sequence[Column]] = (*reference, *drift.COLUMNS)

    @property
    def margin_weight(self) -> float:
        """As asked for."""
        return self.options.margin_weight

    def judge_pairs(self, answers: Answers) -> Judged:
        """Losses, and beta times the gains as rewards."""
        options = self.options
        gains = answers.gains / answers.tokens if options.normalizes else answers.gains
        losses = self._losses(gains, self.margin_weight * answers.margins)
        if options.sft_weight:
            nats = -answers.log_probs[:, 0] / answers.tokens[:, 0]
            losses = losses + options.sft_weight * nats
        return Judged(losses, options.beta * gains)

    def _losses(self, gains: Tensor, margins: Tensor) -> Tensor:
        """fp32 [pairs], of gains [pairs, 2] and the margins [pairs] that are asked for."""
        from torch.nn.functional import logsigmoid, relu

        beta, wrong = self.options.beta, self.options.label_smoothing
        chosen, rejected = gains.unbind(1)
        lead = beta * (chosen - rejected) - margins
        match self.options.loss:
            case DpoLoss.sigmoid:
                return -(1 - wrong) * logsigmoid(lead) - wrong * logsigmoid(-lead)
            case DpoLoss.robust:
                return (-(1 - wrong) * logsigmoid(lead) + wrong * logsigmoid(-lead)) / (
                    1 - 2 * wrong
                )
            case DpoLoss.hinge:
                return relu(1 - lead)
            case DpoLoss.ipo:
                return (chosen - rejected - 1 / (2 * beta)).square()
            case DpoLoss.apo_zero:
                return 1 - (beta * chosen).sigmoid() + (beta * rejected).sigmoid()
            case DpoLoss.apo_down:
                return (beta * chosen).sigmoid() + 1 - (beta * (chosen - rejected)).sigmoid()
