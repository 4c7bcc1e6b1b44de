"""chrF."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from launcher.evals.metric import Floats, Metric
from launcher.evals.records import Generation

_ORDER, _BETA = 6, 2.0


class ChrF(Metric[Generation]):
    """Corpus chrF2 in 0..100: F2 of shared runs of 1 to 6 characters, white space left out.

    Source: Popovic 2015, with the averaging of sacrebleu: precision and recall over the orders
    that both sides have. Suits languages whose words are not set apart by spaces.
    """

    name = "chrf"
    higher_is_better = True

    def statistics(self, records: Sequence[Generation]) -> Floats:
        """Of each order n-grams of answer, of reference, and shared ones: [records, 18]."""
        rows = [_counts(record.answer, record.reference) for record in records]
        return np.array(rows, dtype=np.float64).reshape(-1, 3 * _ORDER)

    def scores(self, sums: Floats) -> Floats:
        """chrF2 of each row of counts; 0 where nothing is shared."""
        given, wanted, shared = (sums.reshape(-1, _ORDER, 3)[:, :, i] for i in range(3))
        both = (given > 0) & (wanted > 0)
        orders = np.maximum(both.sum(axis=1), 1)
        precision, recall = (
            np.divide(shared, total, out=np.zeros_like(shared), where=both).sum(axis=1) / orders
            for total in (given, wanted)
        )
        below = _BETA**2 * precision + recall
        score = np.zeros(len(sums))
        np.divide((1 + _BETA**2) * precision * recall, below, out=score, where=below > 0)
        return 100 * score


def _counts(answer: str, reference: str) -> list[int]:
    answer, reference = "".join(answer.split()), "".join(reference.split())
    row = []
    for n in range(1, _ORDER + 1):
        given, wanted = _grams(answer, n), _grams(reference, n)
        # An answer is not held to runs longer than its reference.
        row += [given.total() if wanted else 0, wanted.total(), (given & wanted).total()]
    return row


def _grams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))
