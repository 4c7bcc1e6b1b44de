"""BLEU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from launcher.config.schema import EvalConfig
from launcher.evals.metric import Floats, Metric
from launcher.evals.metrics.libraries import need
from launcher.evals.records import Generation

_ORDER = 4


class Bleu(Metric[Generation]):
    """Corpus BLEU in 0..100 (Papineni et al. 2002), by sacrebleu with its defaults.

    Signature: nrefs:1, case:mixed, tok:13a, smooth:exp. It is no mean over answers: n-grams are
    counted over all of them.
    """

    name = "bleu"
    higher_is_better = True

    def __init__(self, config: EvalConfig) -> None:
        """Raises `ConfigError` if sacrebleu is not installed."""
        super().__init__(config)
        library: Any = need("sacrebleu.metrics.bleu", self.name)
        self._bleu = library.BLEU(effective_order=False)
        self._compute = library.BLEU.compute_bleu

    def statistics(self, records: Sequence[Generation]) -> Floats:
        """Lengths of answer and reference, matches and n-grams of order 1 to 4: [records, 10]."""
        rows = []
        for record in records:
            one = self._bleu.sentence_score(record.answer, [record.reference])
            rows.append([one.sys_len, one.ref_len, *one.counts, *one.totals])
        return np.array(rows, dtype=np.float64).reshape(-1, 2 + 2 * _ORDER)

    def scores(self, sums: Floats) -> Floats:
        """BLEU of each row of counts."""
        return np.array([self._score(row) for row in sums.astype(np.int64).tolist()])

    def _score(self, row: list[int]) -> float:
        given, wanted, counts = row[0], row[1], row[2:]
        matches, totals = counts[:_ORDER], counts[_ORDER:]
        return float(self._compute(matches, totals, given, wanted, smooth_method="exp").score)
