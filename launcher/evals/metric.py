"""The metric seam: a metric turns the results of each record into numbers that add up.

To add one: a file with a subclass, a row in `launcher.config.schema.variants.METRICS`, a test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from launcher.config.schema import EvalConfig
from launcher.config.schema.variants import GRADED, GRADER, METRICS, RECORDS, MetricRow
from launcher.core.registry import load
from launcher.evals.records import Generation, Results, ScoredRecord, TokenizedPrompt

Floats = npt.NDArray[np.float64]
R = TypeVar("R", bound=ScoredRecord)


class Metric(ABC, Generic[R]):
    """A score that follows from the sums over records of what each record contributes.

    Because only sums enter, the score is exact over ranks and can be resampled by record.
    """

    name: str
    higher_is_better: ClassVar[bool]
    #: "share" for scores in 0..1 that people read as per cent, else "".
    unit: str = ""
    #: whether each record is either right or wrong.
    binary: ClassVar[bool] = False
    #: whether it is told first, before all others that are measured.
    leads: ClassVar[bool] = False
    #: whether it has part in what is said of a model over all metrics.
    decides: ClassVar[bool] = True
    #: whether it has values only for two models together.
    pairwise: ClassVar[bool] = False
    #: whether it learns from the answers of the first model, which then has to be the base.
    learns_from_base: ClassVar[bool] = False

    #: called about once a second by one that takes long over its values.
    sign_of_life: Callable[[], None] = staticmethod(lambda: None)

    #: what is known of it, where an objective has brought it.
    row: MetricRow | None = None

    def __init__(self, config: EvalConfig) -> None:
        self.config = config

    @property
    def needs(self) -> str:
        """Which pass gives its records: see `launcher.evals.records.passes`."""
        records = (self.row or METRICS[self.name]).records
        return RECORDS.get(records, records)

    @abstractmethod
    def statistics(self, records: Sequence[R]) -> Floats:
        """What each record contributes, float64 [records, K] with K > 0; any K of its own."""

    def paired(self, base: Sequence[R], tuned: Sequence[R]) -> tuple[Floats, Floats]:
        """The statistics of two models' results on the same records, in the same order."""
        return self.statistics(base), self.statistics(tuned)

    @abstractmethod
    def scores(self, sums: Floats) -> Floats:
        """Score of each row of summed statistics, [rows, K] -> [rows]; NaN if nothing counts."""

    def each(self, statistics: Floats) -> Floats:
        """Score of each record, [records]: by it records have improved or worsened."""
        return self.scores(statistics)

    def counts(self, statistics: Floats) -> npt.NDArray[np.bool_]:
        """Which records count, bool [records]."""
        return np.ones(len(statistics), dtype=bool)

    def score(self, records: Sequence[R]) -> float:
        """The score over all `records`; NaN if none of them counts."""
        return float(self.scores(self.statistics(records).sum(0, keepdims=True))[0])

    @property
    def state(self) -> str:
        """What its scores depend on besides the config; empty if on nothing."""
        return ""

    def check(self, prompts: Sequence[TokenizedPrompt]) -> None:
        """`DataError` if it could not score answers to these, before there are any."""

    def forget(self) -> None:
        """Let go of what is kept of the answers so far: the next ones are judged anew."""

    def notes(self) -> list[str]:
        """What a reader of the comparison should know besides the numbers, a sentence each."""
        return []

    def select(self, results: Results) -> Sequence[R]:
        """The records of the pass that this metric needs."""
        return results.passes.get(self.needs, [])


class Ratio(Metric[R]):
    """A score = transform(sum of numerators / sum of denominators) over records."""

    @abstractmethod
    def values(self, records: Sequence[R]) -> tuple[Floats, Floats]:
        """Numerators and denominators, float64 [records]; denominator 0: it does not count."""

    def transform(self, ratio: Floats) -> Floats:
        """The score of a ratio of sums, elementwise and monotone."""
        return ratio

    def statistics(self, records: Sequence[R]) -> Floats:
        """Numerators and denominators, [records, 2]."""
        return np.stack(self.values(records), axis=1)

    def scores(self, sums: Floats) -> Floats:
        """Transformed ratios; NaN where the denominator is 0."""
        numerators, denominators = sums[:, 0], sums[:, 1]
        ratio = np.full_like(numerators, np.nan)
        np.divide(numerators, denominators, out=ratio, where=denominators > 0)
        with np.errstate(over="ignore"):
            return self.transform(ratio)

    def counts(self, statistics: Floats) -> npt.NDArray[np.bool_]:
        """Records with a denominator."""
        return np.asarray(statistics[:, 1] > 0)


class Mean(Ratio[Generation]):
    """The mean over answers of what `of` makes of each; answers of which it makes None are out."""

    higher_is_better = True
    unit = "share"

    @abstractmethod
    def of(self, answer: str, reference: str) -> float | None:
        """The value of one answer; None if it cannot be judged."""

    def values(self, records: Sequence[Generation]) -> tuple[Floats, Floats]:
        """Values, and 1 for each answer that has one, each [records]."""
        found = [self.of(record.answer, record.reference) for record in records]
        return (
            np.array([value or 0.0 for value in found], dtype=np.float64),
            np.array([value is not None for value in found], dtype=np.float64),
        )


def make_metrics(
    config: EvalConfig, own: Mapping[str, MetricRow] | None = None
) -> list[Metric[Any]]:
    """The metrics of `eval.metrics` in order, each once; `own` are those that the objective brings.

    Raises `ConfigError` for an unknown name.
    """
    made: list[Metric[Any]] = []
    for name in dict.fromkeys(config.metrics or ()):
        metric: Metric[Any]
        row: MetricRow | None
        if name.startswith(GRADER):
            row, metric = GRADED, load(GRADED.path)(config, name)
        else:
            row = None if name in METRICS else (own or {}).get(name)
            metric = (load(row.path) if row else METRICS.load(name))(config)
        metric.row = row
        made.append(metric)
    return made


def score_all(metrics: Sequence[Metric[Any]], results: Results) -> dict[str, float]:
    """Name -> score, of the metrics of one model whose pass was made; `SET/NAME` of further
    sets, where it is a number."""
    scores = {
        metric.name: metric.score(metric.select(results))
        for metric in metrics
        if metric.select(results) and not metric.pairwise
    }
    for part, own in results.further.items():
        known = {name: x for name, x in score_all(metrics, own).items() if not np.isnan(x)}
        scores |= {f"{part}/{name}": score for name, score in known.items()}
    return scores


def score_draws(
    metrics: Sequence[Metric[Any]], draws: Sequence[Sequence[Generation]]
) -> dict[str, float]:
    """`score_all` over the answers of all draws together. Metrics keep nothing of them: who did not
    judge an answer now may do so the next time."""
    answers = [record for draw in draws for record in draw]
    try:
        return score_all(metrics, Results({"generation": answers}))
    finally:
        for metric in metrics:
            metric.forget()
