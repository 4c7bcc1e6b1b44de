"""ROUGE: overlap of an answer with the reference, as summaries are judged."""

from __future__ import annotations

from typing import Any, ClassVar

from launcher.config.schema import EvalConfig
from launcher.evals.metric import Mean
from launcher.evals.metrics.libraries import need


class Rouge(Mean):
    """Mean F-measure over answers, words stemmed (Lin 2004), by Google's rouge-score."""

    kind: ClassVar[str]

    def __init__(self, config: EvalConfig) -> None:
        """Raises `ConfigError` if rouge-score is not installed."""
        super().__init__(config)
        scorer: Any = need("rouge_score.rouge_scorer", self.name)
        self._scorer = scorer.RougeScorer([self.kind], use_stemmer=True)

    def of(self, answer: str, reference: str) -> float | None:
        """F-measure in 0..1; None if there is no reference."""
        if not reference.strip():
            return None
        return float(self._scorer.score(reference, answer)[self.kind].fmeasure)


class Rouge1(Rouge):
    """Shared words."""

    name, kind = "rouge1", "rouge1"


class Rouge2(Rouge):
    """Shared pairs of words."""

    name, kind = "rouge2", "rouge2"


class RougeL(Rouge):
    """Longest common subsequence."""

    name, kind = "rougeL", "rougeL"
