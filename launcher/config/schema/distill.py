"""Options of `objective=distill`: learning from a teacher's probabilities beside the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, ClassVar

from launcher.config.schema import Config, ObjectiveConfig, Overlong
from launcher.config.schema.eval import MetricRow
from launcher.config.schema.ranges import PositiveFloat, PositiveInt, Range, ShareAboveZero
from launcher.core.errors import Problem

_HERE = "launcher.objectives.distill"
_FOLDER = "objective.teacher=FOLDER, the folder of a Hugging Face model such as a run's export"


class Divergence(Enum):
    """How the student's distribution is held against the teacher's."""

    forward = "forward"
    reverse = "reverse"
    jsd = "jsd"


@dataclass(kw_only=True, slots=True)
class DistillConfig(ObjectiveConfig):
    """Distillation: cross entropy on the target tokens, mixed with a divergence from what a larger
    model (the teacher) would say there."""

    own_records: ClassVar[Mapping[str, str]] = {
        "divergence": f"{_HERE}.records:DivergenceRecord",
    }
    own_metrics: ClassVar[Mapping[str, Any]] = {
        "divergence": MetricRow(
            f"{_HERE}.records:TeacherDivergence", "divergence", lower_is_better=True
        ),
    }
    held_out_loss: ClassVar[str] = "cross entropy of targets"
    logit_copies: ClassVar[int] = 3
    records: ClassVar[tuple[str, ...]] = ("loss", "tokens", "generation", "divergence")
    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "token_accuracy", "divergence")

    name: str = "distill"
    """Name of the objective."""
    teacher: str | None = None
    """Folder or hub name of the model that is learned from; it has the student's tokenizer."""
    teacher_revision: str | None = None
    """Branch, tag or commit of a teacher from the hub."""
    divergence: Divergence = Divergence.forward
    """forward: KL(teacher || student), reverse: KL(student || teacher), jsd: the generalised
    Jensen-Shannon divergence."""
    beta: Annotated[float, Range(0, 1, open_low=True, open_high=True)] | None = None
    """Weight of the teacher in the mixture that jsd compares both with; null: 0.5."""
    alpha: ShareAboveZero = 0.5
    """Share of the divergence in the loss; the rest is cross entropy on the data."""
    temperature: PositiveFloat = 1.0
    """What the logits of both are divided by before they are compared: above 1 more of what the
    teacher thinks unlikely counts."""
    top_k: PositiveInt | None = None
    """Compare the teacher's most likely tokens, so many, and the rest as one: they are made once
    and kept in the cache. null: the teacher runs beside the student, and all are compared."""
    all_tokens: bool = False
    """Learn at every token instead of answers alone, as plain text needs it."""

    @property
    def learns_every_token(self) -> bool:  # type: ignore[override]
        """As `all_tokens` says."""
        return self.all_tokens

    @property
    def models(self) -> Mapping[str, tuple[str, str | None]]:
        """The teacher."""
        return {"teacher": (self.teacher, self.teacher_revision)} if self.teacher else {}

    @property
    def beside(self) -> Mapping[str, tuple[str, str | None]]:
        """The teacher, unless all that counts of it is in the cache."""
        return self.models if self.top_k is None else {}

    def encoding(self, split: str) -> dict[str, Any]:
        """As the objectives `sft` and `text` do: their prepared data is the same."""
        return {"all_targets": True} if self.all_tokens else {}

    def problems(self, config: Config) -> Iterator[Problem]:
        """A teacher that is not there, and what nothing is learned from."""
        if self.teacher is None:
            yield Problem("objective.teacher", "no teacher is given", _FOLDER)
        if self.beta is not None and self.divergence is not Divergence.jsd:
            found = f"{self.beta} with objective.divergence={self.divergence.name}"
            hint = "objective.beta=null, or objective.divergence=jsd"
            yield Problem("objective.beta", found, hint)
        if config.data.format == "text" and not self.all_tokens:
            hint = "plain text has no answers to learn: objective.all_tokens=true"
            yield Problem("data.format", "text with objective=distill", hint)
        if config.data.overlong is Overlong.cut_prompt and self.all_tokens:
            hint = "every token is learned, so nothing is a prompt: data.overlong=split"
            yield Problem("data.overlong", "cut_prompt with objective.all_tokens=true", hint)
