"""How well held-out pairs are told apart, and what became of the answers themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launcher.evals.metric import Floats, Ratio
from launcher.objectives.preference.records import PairRecord, Rewarded


class PreferenceAccuracy(Ratio[Rewarded]):
    """Share of pairs whose chosen answer has the higher reward; equal rewards count half.

    Of an objective with a reference, the model before training rewards all answers with 0: half of
    its pairs are right.
    """

    name = "preference_accuracy"
    higher_is_better = True
    unit = "share"
    leads = True

    def values(self, records: Sequence[Rewarded]) -> tuple[Floats, Floats]:
        """1, 1/2 or 0 of each pair."""
        signs = np.sign([record.margin for record in records])
        return (1 + signs) / 2, np.ones(len(records))


class PreferenceMargin(Ratio[Rewarded]):
    """Mean lead of the chosen answer's reward."""

    name = "preference_margin"
    higher_is_better = True

    def values(self, records: Sequence[Rewarded]) -> tuple[Floats, Floats]:
        """The lead in each pair."""
        return np.array([record.margin for record in records]), np.ones(len(records))


class _Change(Ratio[PairRecord]):
    """Mean change of an answer's log-probability on the model before training, in nats a token."""

    higher_is_better = True
    side: int

    def values(self, records: Sequence[PairRecord]) -> tuple[Floats, Floats]:
        """Change and tokens of each answer; none where nothing is known of the reference."""
        changes, tokens = np.zeros(len(records)), np.zeros(len(records))
        for i, record in enumerate(records):
            if record.reference is not None:
                now = (record.chosen, record.rejected)[self.side]
                changes[i] = now - record.reference[self.side]
                tokens[i] = record.tokens[self.side]
        return changes, tokens


class ChosenChange(_Change):
    """That of chosen answers: below 0, the model has become less likely to give them."""

    name = "chosen_change"
    side = 0


class RejectedChange(_Change):
    """That of rejected answers, of which less is better."""

    name = "rejected_change"
    higher_is_better = False
    side = 1
