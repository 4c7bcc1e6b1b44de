"""Options of the objectives that learn which of two answers is the better."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, ClassVar

from launcher.config.schema import Config, ObjectiveConfig
from launcher.config.schema.data import Overlong
from launcher.config.schema.eval import MetricRow
from launcher.config.schema.ranges import NonNegativeFloat, PositiveFloat, Range
from launcher.core.errors import Problem

_HERE = "launcher.objectives.preference"


@dataclass(kw_only=True, slots=True)
class PairsConfig(ObjectiveConfig):
    """What all objectives over pairs of answers share."""

    learns: ClassVar[tuple[str, ...]] = ("pairs",)
    shares_rows: ClassVar[bool] = True
    groups_documents: ClassVar[bool] = True
    records: ClassVar[tuple[str, ...]] = ("loss", "pairs", "generation")
    metrics: ClassVar[tuple[str, ...]] = ("loss", "preference_accuracy", "preference_margin")
    own_records: ClassVar[Mapping[str, str]] = {"pairs": f"{_HERE}.records:PairRecord"}
    own_metrics: ClassVar[Mapping[str, Any]] = {
        "preference_accuracy": MetricRow(f"{_HERE}.metrics:PreferenceAccuracy", "pairs"),
        "preference_margin": MetricRow(f"{_HERE}.metrics:PreferenceMargin", "pairs"),
    }

    def problems(self, config: Config) -> Iterator[Problem]:
        """Answers that would be torn apart."""
        if config.data.overlong is Overlong.split:
            hint = "a preference is of whole answers: data.overlong=cut_prompt, truncate or drop"
            yield Problem("data.overlong", f"split with objective={self.name}", hint)

    def encoding(self, split: str) -> dict[str, Any]:
        """Both answers are documents of one record."""
        return {"pairs": True}


class DpoLoss(Enum):
    """What `objective=dpo` makes of a pair."""

    sigmoid = "sigmoid"
    hinge = "hinge"
    ipo = "ipo"
    robust = "robust"
    apo_zero = "apo_zero"
    apo_down = "apo_down"


@dataclass(kw_only=True, slots=True)
class DpoConfig(PairsConfig):
    """Direct preference optimisation: of two answers, the better one gains more on the model
    before training (the reference)."""

    metrics: ClassVar[tuple[str, ...]] = (
        *PairsConfig.metrics,
        *("chosen_change", "rejected_change", "reference_kl"),
    )
    own_metrics: ClassVar[Mapping[str, Any]] = {
        **PairsConfig.own_metrics,
        "chosen_change": MetricRow(f"{_HERE}.metrics:ChosenChange", "pairs"),
        "rejected_change": MetricRow(
            f"{_HERE}.metrics:RejectedChange", "pairs", lower_is_better=True
        ),
        "reference_kl": MetricRow(f"{_HERE}.drift:ReferenceKl", "pairs", lower_is_better=True),
    }

    name: str = "dpo"
    """Name of the objective."""
    loss: DpoLoss = DpoLoss.sigmoid
    """Loss of a pair: docs/preference.md says which to take when."""
    beta: PositiveFloat = 0.1
    """What a step away from the reference costs: the smaller, the further the model may move."""
    label_smoothing: Annotated[float, Range(0, 0.5, open_high=True)] = 0.0
    """Share of pairs that are believed to be labelled the wrong way round (sigmoid, robust)."""
    length_normalization: bool | None = None
    """Divide log-ratios by the tokens of their answer; null does so with loss=ipo alone."""
    sft_weight: NonNegativeFloat = 0.0
    """Weight of the cross entropy of the chosen answer, per token of it, beside the loss (RPO)."""
    margin_weight: NonNegativeFloat = 0.0
    """Weight of the difference of both ratings, by which the chosen answer has to lead (ODPO;
    sigmoid, hinge, robust)."""

    @property
    def normalizes(self) -> bool:
        """Whether log-ratios are divided by the lengths of their answers."""
        if self.length_normalization is None:
            return self.loss is DpoLoss.ipo
        return self.length_normalization

    def problems(self, config: Config) -> Iterator[Problem]:
        """Options that the loss has no use for."""
        yield from PairsConfig.problems(self, config)
        loss = self.loss.name
        if self.label_smoothing and self.loss not in (DpoLoss.sigmoid, DpoLoss.robust):
            hint = "it knows no wrong labels: objective.label_smoothing=0, or objective.loss=robust"
            found = f"{self.label_smoothing} with objective.loss={loss}"
            yield Problem("objective.label_smoothing", found, hint)
        if self.margin_weight and self.loss.name not in ("sigmoid", "hinge", "robust"):
            hint = "it asks for no margin: objective.margin_weight=0, or objective.loss=sigmoid"
            found = f"{self.margin_weight} with objective.loss={loss}"
            yield Problem("objective.margin_weight", found, hint)


@dataclass(kw_only=True, slots=True)
class OrpoConfig(PairsConfig):
    """Odds ratio preference optimisation: chosen answers and the preference learned in one stage,
    without a reference."""

    name: str = "orpo"
    """Name of the objective."""
    odds_weight: PositiveFloat = 0.1
    """Weight of the odds ratio beside the cross entropy of the chosen answer."""


@dataclass(kw_only=True, slots=True)
class SimpoConfig(PairsConfig):
    """Simple preference optimisation: answers compared by their log-probability a token, without a
    reference."""

    name: str = "simpo"
    """Name of the objective."""
    beta: PositiveFloat = 2.0
    """What a nat a token is worth as a reward."""
    gamma: NonNegativeFloat = 1.0
    """By how much the chosen answer's reward has to lead."""
    label_smoothing: Annotated[float, Range(0, 0.5, open_high=True)] = 0.0
    """Share of pairs that are believed to be labelled the wrong way round."""
    sft_weight: NonNegativeFloat = 0.0
    """Weight of the cross entropy of the chosen answer, per token of it, beside the loss."""


@dataclass(kw_only=True, slots=True)
class CpoConfig(PairsConfig):
    """Contrastive preference optimisation: answers compared by their log-probability, without a
    reference."""

    name: str = "cpo"
    """Name of the objective."""
    beta: PositiveFloat = 0.1
    """What a nat is worth as a reward."""
    label_smoothing: Annotated[float, Range(0, 0.5, open_high=True)] = 0.0
    """Share of pairs that are believed to be labelled the wrong way round."""
    sft_weight: NonNegativeFloat = 1.0
    """Weight of the cross entropy of the chosen answer, per token of it, beside the loss."""


@dataclass(kw_only=True, slots=True)
class RewardConfig(PairsConfig):
    """A reward model: a head with one output, higher for the better of two answers."""

    has_sequence_head: ClassVar[bool] = True
    shares_rows: ClassVar[bool] = False
    model_kind: ClassVar[str] = "a reward model"
    records: ClassVar[tuple[str, ...]] = ("loss", "pairs")
    own_records: ClassVar[Mapping[str, str]] = {"pairs": f"{_HERE}.records:RewardRecord"}

    name: str = "reward"
    """Name of the objective."""
    margin_weight: NonNegativeFloat = 0.0
    """Weight of the difference of both ratings, by which the chosen answer's reward has to lead."""
    centering: NonNegativeFloat = 0.0
    """Weight of the square of the sum of both rewards, which holds their mean at 0."""

    def encoding(self, split: str) -> dict[str, Any]:
        """A pair that is too long keeps its ends."""
        return {**PairsConfig.encoding(self, split), "keeps": "ends"}

    def num_outputs(self, labels: list[str]) -> int:
        """The reward."""
        return 1


@dataclass(kw_only=True, slots=True)
class KtoConfig(ObjectiveConfig):
    """Kahneman-Tversky optimisation: answers of which each is good or bad, against the model before
    training (the reference)."""

    learns: ClassVar[tuple[str, ...]] = ("unpaired",)
    shares_rows: ClassVar[bool] = True
    groups_documents: ClassVar[bool] = True
    records: ClassVar[tuple[str, ...]] = ("loss", "verdicts", "generation")
    metrics: ClassVar[tuple[str, ...]] = (
        *("loss", "verdict_accuracy", "reward_gap", "good_change", "bad_change", "reference_kl"),
    )
    own_records: ClassVar[Mapping[str, str]] = {"verdicts": f"{_HERE}.verdicts:VerdictRecord"}
    own_metrics: ClassVar[Mapping[str, Any]] = {
        "verdict_accuracy": MetricRow(f"{_HERE}.verdicts:VerdictAccuracy", "verdicts"),
        "reward_gap": MetricRow(f"{_HERE}.verdicts:RewardGap", "verdicts"),
        "good_change": MetricRow(f"{_HERE}.verdicts:GoodChange", "verdicts"),
        "bad_change": MetricRow(f"{_HERE}.verdicts:BadChange", "verdicts", lower_is_better=True),
        "reference_kl": MetricRow(f"{_HERE}.drift:ReferenceKl", "verdicts", lower_is_better=True),
    }

    name: str = "kto"
    """Name of the objective."""
    beta: PositiveFloat = 0.1
    """What a step away from the reference costs: the smaller, the further the model may move."""
    desirable_weight: PositiveFloat = 1.0
    """Weight of good answers. With weights, good and bad answers should count about alike."""
    undesirable_weight: PositiveFloat = 1.0
    """Weight of bad answers."""

    def problems(self, config: Config) -> Iterator[Problem]:
        """Answers that would be torn apart."""
        if config.data.overlong is Overlong.split:
            hint = "a verdict is of a whole answer: data.overlong=cut_prompt, truncate or drop"
            yield Problem("data.overlong", f"split with objective={self.name}", hint)

    def encoding(self, split: str) -> dict[str, Any]:
        """An answer and a mismatched one are documents of one record."""
        return {"verdicts": True}
