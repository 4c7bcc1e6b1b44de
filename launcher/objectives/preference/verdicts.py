"""Held-out answers that are good or bad: what a model makes of each, metrics, and a section for the
report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from launcher.evals.metric import Floats, Metric, Ratio
from launcher.evals.records import Results
from launcher.objectives.preference import drift
from launcher.objectives.preference.outcome import FALL


@dataclass(frozen=True, slots=True)
class VerdictRecord:
    """One answer; sums are of log-probabilities in nats over its tokens."""

    id: int
    is_good: bool
    reward: float = field(metadata={"digits": 6})
    log_prob: float = field(metadata={"digits": 6})
    reference: float = field(metadata={"digits": 6})
    """The sum of the model before training."""
    tokens: int
    mismatched: float = field(metadata={"digits": 6})
    """Log-ratio to the reference of another answer behind the same prompt."""
    divergence: float = field(default=math.nan, metadata={"digits": 6})
    """From the model before training, summed over the answer's tokens; NaN where nothing is known
    of that."""

    @property
    def task(self) -> tuple[bool, int]:
        """The verdict, and the length."""
        return self.is_good, self.tokens

    @property
    def rightness(self) -> float:
        """1 where a good answer gains, or a bad one loses; 1/2 where nothing has changed."""
        return float(1 + np.sign(self.reward if self.is_good else -self.reward)) / 2

    @property
    def change(self) -> float:
        """Change on the reference, in nats."""
        return self.log_prob - self.reference


def verdict_records(results: Results) -> list[VerdictRecord]:
    """What a model makes of the answers; [] where none was asked."""
    return results.passes.get("verdicts", [])


class VerdictAccuracy(Ratio[VerdictRecord]):
    """Share of answers that gain if they are good, and lose if they are bad; half counts an answer
    that does neither, as all do of the model before training."""

    name = "verdict_accuracy"
    higher_is_better = True
    unit = "share"
    leads = True

    def values(self, records: Sequence[VerdictRecord]) -> tuple[Floats, Floats]:
        """1, 1/2 or 0 of each answer."""
        return np.array([record.rightness for record in records]), np.ones(len(records))


class RewardGap(Metric[VerdictRecord]):
    """Mean reward of good answers less that of bad ones."""

    name = "reward_gap"
    higher_is_better = True

    def statistics(self, records: Sequence[VerdictRecord]) -> Floats:
        """Rewards and numbers of good answers and of bad ones, [records, 4]."""
        good = np.array([float(record.is_good) for record in records])
        rewards = np.array([record.reward for record in records])
        return np.stack([rewards * good, good, rewards * (1 - good), 1 - good], axis=1)

    def scores(self, sums: Floats) -> Floats:
        """NaN where there are answers of one kind alone."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]

    def each(self, statistics: Floats) -> Floats:
        """The reward of a good answer, the negative one of a bad answer."""
        return statistics[:, 0] - statistics[:, 2]


class _Change(Ratio[VerdictRecord]):
    """Mean change of log-probability on the model before training, in nats a token."""

    higher_is_better = True
    of_good: bool

    def values(self, records: Sequence[VerdictRecord]) -> tuple[Floats, Floats]:
        """Change and tokens of the answers of one kind."""
        own = np.array([record.is_good == self.of_good for record in records])
        changes = np.array([record.change for record in records])
        return changes * own, np.array([float(record.tokens) for record in records]) * own


class GoodChange(_Change):
    """That of good answers: below 0, the model has become less likely to give them."""

    name = "good_change"
    of_good = True


class BadChange(_Change):
    """That of bad answers, of which less is better."""

    name = "bad_change"
    higher_is_better = False
    of_good = False


def means(records: Sequence[VerdictRecord]) -> dict[str, float]:
    """Of good and of bad answers: number, mean reward, and change on the reference in nats a
    token."""
    found: dict[str, float] = {}
    for name, is_good in (("good", True), ("bad", False)):
        own = [record for record in records if record.is_good == is_good]
        found[name] = len(own)
        if own:
            found[f"reward_{name}"] = float(np.mean([record.reward for record in own]))
            tokens = sum(record.tokens for record in own)
            found[f"{name}_change"] = sum(record.change for record in own) / tokens
    return found


def warnings(records: Sequence[VerdictRecord]) -> list[str]:
    """A sentence where good answers have become less likely."""
    change = means(records).get("good_change")
    if change is None or change > -FALL:
        return []
    return [
        f"good answers have become less likely: {change:+.3f} nats a token. HINT: a lower optim.lr"
        " or a higher objective.beta moves the model less; objective.desirable_weight=2 counts"
        " good answers more"
    ]


def section(records: Sequence[VerdictRecord]) -> dict[str, Any]:
    """A section of the report: what became of good and bad answers."""
    found = means(records)
    rows = [
        [
            name.capitalize(),
            f"{found[name]:.0f}",
            f"{found[f'reward_{name}']:.3f}",
            f"{found[f'{name}_change']:+.3f}",
        ]
        for name in ("good", "bad")
        if found[name]
    ]
    columns = ["Answers", "Number", "Mean reward", "Change on the reference, nats a token"]
    blocks = [{"columns": columns, "rows": rows}, *drift.sentence(records)]
    return {"title": "Good and bad answers", "blocks": blocks}


def lines(
    base: Results | None,
    tuned: Results,
    where: Callable[[int], str],
    text: Callable[[int], str],
) -> list[dict[str, Any]]:
    """Each answer as a line of predictions.jsonl."""
    before = {record.id: record.reward for record in verdict_records(base)} if base else {}
    return [
        {
            "id": record.id,
            "where": where(record.id),
            "prompt": text(record.id),
            "reference": "good" if record.is_good else "bad",
            "base": f"reward {before[record.id]:.3f}" if record.id in before else "",
            "tuned": f"reward {record.reward:.3f}",
        }
        for record in verdict_records(tuned)
    ]
