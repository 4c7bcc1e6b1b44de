"""The typed config, one dataclass a group; the string under each field is its documentation. Each
module has the groups that it is named after; here are those that know of all others: objectives,
which judge the rest of a config, and the whole.

Rules that a test holds: keyword-only, slotted, every field documented, enums with lowercase member
names, and no derived value in here (those live in `launcher.config.derive.plan.Plan`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, make_dataclass
from typing import Any, ClassVar

from launcher.config.schema.data import (
    DataConfig,
    OnBadRecord,
    Overlong,
    Ranking,
    SpecialTokens,
    Thoughts,
)
from launcher.config.schema.eval import (
    EvalConfig,
    GradersConfig,
    JudgeConfig,
    MetricRow,
    SandboxLevel,
)
from launcher.config.schema.launch import ClusterConfig, LaunchConfig, WatchdogConfig
from launcher.config.schema.model import (
    Attention,
    Dtype,
    Kernels,
    ModelConfig,
    Quantization,
    TinyModelConfig,
)
from launcher.config.schema.optim import (
    Adamw8bitConfig,
    AdamwConfig,
    MuonConfig,
    OptimConfig,
    ScheduleConfig,
    WsdConfig,
)
from launcher.config.schema.peft import AdapterConfig, LoraConfig, PeftConfig
from launcher.config.schema.ranges import Seed, ShareBelowOne
from launcher.config.schema.rollout import RolloutConfig
from launcher.config.schema.sweep import SweepConfig
from launcher.config.schema.track import (
    TensorboardConfig,
    TrackConfig,
    TrackerConfig,
    WandbConfig,
    WandbMode,
)
from launcher.config.schema.train import (
    BatchConfig,
    CheckpointConfig,
    EarlyStopConfig,
    EngineConfig,
    ExportConfig,
    MicroBatch,
    OnNonFinite,
    TrainConfig,
    Weights,
)
from launcher.core.errors import Problem

__all__ = [
    "Adamw8bitConfig",
    "AdamwConfig",
    "AdapterConfig",
    "Attention",
    "BatchConfig",
    "CheckpointConfig",
    "ClassifyConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "Dtype",
    "EarlyStopConfig",
    "EngineConfig",
    "EvalConfig",
    "ExportConfig",
    "GradersConfig",
    "JudgeConfig",
    "Kernels",
    "LaunchConfig",
    "LoraConfig",
    "MicroBatch",
    "ModelConfig",
    "MuonConfig",
    "ObjectiveConfig",
    "OnBadRecord",
    "OnNonFinite",
    "OptimConfig",
    "Overlong",
    "PeftConfig",
    "Quantization",
    "Ranking",
    "RolloutConfig",
    "RunConfig",
    "ScheduleConfig",
    "SandboxLevel",
    "SftConfig",
    "SpecialTokens",
    "SweepConfig",
    "TensorboardConfig",
    "TextConfig",
    "Thoughts",
    "TinyModelConfig",
    "TrackConfig",
    "TrackerConfig",
    "TrainConfig",
    "WandbConfig",
    "WandbMode",
    "WatchdogConfig",
    "Weights",
    "WsdConfig",
]


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Identity of the run and where its folder lies."""

    name: str | None = None
    """Folder name of the run under `run.root`; made from recipe, model and time if not given."""
    root: str = "runs"
    """Folder that holds the run folders; on a cluster it must be on the shared file system."""
    tags: list[str] = field(default_factory=list)
    """Free labels, shown by `launcher status` and handed to the trackers."""


@dataclass(kw_only=True, slots=True)
class ObjectiveConfig:
    """What is learned from an example; what must be known of it before its code is imported."""

    #: Whether every token is learned, so that data needs no turns or prompts.
    learns_every_token: ClassVar[bool] = False
    #: Whether a head with outputs for a whole sequence takes the place of the LM head.
    has_sequence_head: ClassVar[bool] = False
    #: What a run has trained, where it is said what a model with a sequence head cannot do.
    model_kind: ClassVar[str] = "a model that makes no text"
    #: Kinds of examples that it takes (`kinds.KINDS`), the one that it is made for first.
    learns: ClassVar[tuple[str, ...]] = ("answers", "labels", "texts")
    #: Whether it learns from answers that the model in training gives, not from those of the data.
    samples: ClassVar[bool] = False
    #: Whether ranks can share its rows (`engine.sequence_parallel`): its losses are of targets, and
    #: what it asks of a model the LM head tells.
    shares_rows: ClassVar[bool] = False
    #: Sequences that are learned of each record.
    answers_per_record: ClassVar[int] = 1
    #: Further copies of a chunk of logits that the loss holds.
    logit_copies: ClassVar[int] = 0
    #: Whether an example becomes several documents, which stay in one pack.
    groups_documents: ClassVar[bool] = False
    #: What is measured on each held-out record (`variants.RECORDS`, or of its own).
    records: ClassVar[tuple[str, ...]] = ("loss", "tokens", "generation")
    #: What its held-out loss is, where other objectives have the same: their runs are compared.
    held_out_loss: ClassVar[str] = ""
    #: The metrics that are taken unless others are named.
    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "token_accuracy")
    #: Passes over held-out records that it brings along: name -> "module:attribute" of the class of
    #: their records (`launcher.evals.records.ScoredRecord`).
    own_records: ClassVar[Mapping[str, str]] = {}
    #: Metrics that it brings along: name -> `variants.MetricRow`, the class in its own file.
    own_metrics: ClassVar[Mapping[str, Any]] = {}

    name: str = "sft"
    """Objective: see the table in docs/config.md, or the path of a Python file with the classes
    `Objective` and `Options`."""

    @property
    def models(self) -> Mapping[str, tuple[str, str | None]]:
        """Further models that are learned from: option -> hub name or folder, and revision."""
        return {}

    @property
    def beside(self) -> Mapping[str, tuple[str, str | None]]:
        """Those of `models` that every rank holds whole while it trains."""
        return {}

    def copies_model(self, config: Config) -> bool:
        """Whether every rank holds the model before training whole beside that in training."""
        return False

    def asks_start(self, config: Config) -> bool:
        """Whether the model with the adapter that a run goes on from is asked until its end."""
        return False

    def refused(self, config: Config) -> Iterator[Problem]:
        """What is wrong with the rest of the config: what the facts above rule out, for whatever
        objective, and its `problems`."""
        if self.has_sequence_head and config.train.token_accuracy:
            scored = ", ".join(self.metrics)
            hint = f"it has no target tokens, and is scored by {scored}: train.token_accuracy=false"
            found = f"true with objective={self.name}"
            yield Problem("train.token_accuracy", found, hint)
        yield from self.problems(config)

    def problems(self, config: Config) -> Iterator[Problem]:
        """What this objective refuses, beside data of kinds that it does not learn from."""
        yield from ()

    def encoding(self, split: str) -> dict[str, Any]:
        """Those options that decide how examples of a split become tokens: part of the name of
        prepared data. Of an objective from elsewhere all count, unless it says which do."""
        return {}

    def label_names(self, labels: list[str]) -> list[str]:
        """What labels that are indices stand for, where `labels` are `data.labels`."""
        return labels

    def num_outputs(self, labels: list[str]) -> int:
        """Outputs of the sequence head as far as the config tells; 0 where it does not."""
        return 0


@dataclass(kw_only=True, slots=True)
class SftConfig(ObjectiveConfig):
    """Supervised fine-tuning: cross entropy on the target tokens (assistant turns, completions)."""

    held_out_loss: ClassVar[str] = "cross entropy of targets"
    shares_rows: ClassVar[bool] = True

    name: str = "sft"
    """Name of the objective."""
    label_smoothing: ShareBelowOne = 0.0
    """Share of the target's probability spread evenly over the vocabulary."""

    def problems(self, config: Config) -> Iterator[Problem]:
        """Plain text too, in which nothing is an answer."""
        if config.data.format == "text":
            hint = "plain text has no answers to learn: use objective=text"
            yield Problem("objective.name", f"{self.name} with data.format=text", hint)


@dataclass(kw_only=True, slots=True)
class TextConfig(ObjectiveConfig):
    """Continued pre-training: cross entropy on every token."""

    learns: ClassVar[tuple[str, ...]] = ("texts", "answers", "labels")
    learns_every_token: ClassVar[bool] = True
    shares_rows: ClassVar[bool] = True
    held_out_loss: ClassVar[str] = "cross entropy of targets"
    records: ClassVar[tuple[str, ...]] = ("loss", "tokens")

    name: str = "text"
    """Name of the objective."""

    def problems(self, config: Config) -> Iterator[Problem]:
        """Cutting prompts, where there is none."""
        if config.data.overlong is Overlong.cut_prompt:
            hint = "every token is learned, so nothing is a prompt: data.overlong=split"
            yield Problem("data.overlong", "cut_prompt with objective=text", hint)

    def encoding(self, split: str) -> dict[str, Any]:
        """All tokens are targets."""
        return {"all_targets": True}


_CLASSIFY = "launcher.objectives.classify"


def _of_scope(path: str) -> MetricRow:
    """A metric of texts that belong to no class."""
    scope = "objective.out_of_scope"
    path = f"{_CLASSIFY}.metrics.{path}"
    return MetricRow(path, "classes", wants=scope, example=f"{scope}=oos")


@dataclass(kw_only=True, slots=True)
class ClassifyConfig(ObjectiveConfig):
    """Classification: a head on the model names the class of a whole text."""

    learns: ClassVar[tuple[str, ...]] = ("labels",)
    has_sequence_head: ClassVar[bool] = True
    model_kind: ClassVar[str] = "a classifier"
    records: ClassVar[tuple[str, ...]] = ("loss", "classes")
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "f1_macro", "ece")
    own_records: ClassVar[Mapping[str, str]] = {"classes": f"{_CLASSIFY}.records:ClassRecord"}
    own_metrics: ClassVar[Mapping[str, Any]] = {
        "accuracy": MetricRow(f"{_CLASSIFY}.metrics.accuracy:Accuracy", "classes"),
        "in_scope_accuracy": _of_scope("accuracy:InScopeAccuracy"),
        "oos_recall": _of_scope("accuracy:OosRecall"),
        "f1_macro": MetricRow(f"{_CLASSIFY}.metrics.f1:F1Macro", "classes"),
        "f1_micro": MetricRow(f"{_CLASSIFY}.metrics.f1:F1Micro", "classes"),
        "ece": MetricRow(
            f"{_CLASSIFY}.metrics.ece:Ece",
            "classes",
            excludes="objective.multi_label",
            lower_is_better=True,
        ),
        "auroc": _of_scope("auroc:Auroc"),
    }

    name: str = "classify"
    """Name of the objective."""
    multi_label: bool = False
    """Any number of classes may apply to a text: labels are lists, each class has a sigmoid."""
    out_of_scope: str | None = None
    """Label of texts that belong to no class. It is not learned: a text is out of scope if its
    largest probability is below a threshold, which is chosen on held-out records."""
    class_weights: Any = None
    """What the loss of each class is multiplied by: {name: weight}, or `balanced`: records /
    (classes x records of the class). With `objective.multi_label` it is for records that have the
    class, and `balanced` makes them weigh as much as those without it."""
    new_head: bool = False
    """Start with a new head where the model has one, be it for the same number of classes."""

    def problems(self, config: Config) -> Iterator[Problem]:
        """Data and options that no classifier is trained on."""
        yield from self._of_data(config.data)
        if self.out_of_scope is not None and config.eval.name == "none":
            hint = "its threshold is chosen on held-out records: eval=default"
            yield Problem("objective.out_of_scope", "given with eval=none", hint)
        if self.multi_label and self.out_of_scope is not None:
            hint = (
                "a text of no class has an empty list of labels: leave objective.out_of_scope out"
            )
            yield Problem("objective.out_of_scope", "given with objective.multi_label=true", hint)
        weights = self.class_weights
        if weights is not None and weights != "balanced" and not _are_weights(weights):
            hint = "objective.class_weights=balanced, or a weight above 0 of each name:"
            yield Problem(
                "objective.class_weights",
                f"{weights!r} are no weights",
                f"{hint} {{spam: 2, ham: 1}}",
            )

    def _of_data(self, data: DataConfig) -> Iterator[Problem]:
        if data.system is not None:
            hint = "a classifier reads the text alone: leave data.system out"
            yield Problem("data.system", "a system message with objective=classify", hint)
        if data.special_tokens is SpecialTokens.text:
            hint = (
                "it reads texts as its tokenizer does, so that others can: data.special_tokens=auto"
            )
            yield Problem("data.special_tokens", "text with objective=classify", hint)
        if data.overlong is Overlong.split:
            hint = "a label is of the whole text: data.overlong=truncate or drop"
            yield Problem("data.overlong", "split with objective=classify", hint)
        if data.overlong is Overlong.cut_prompt:
            hint = "a classifier has no answers to keep: data.overlong=truncate or drop"
            yield Problem("data.overlong", "cut_prompt with objective=classify", hint)

    def encoding(self, split: str) -> dict[str, Any]:
        """How labels are read; those out of scope are left out of what is learned."""
        outside = [self.out_of_scope, split] if self.out_of_scope is not None else None
        return {"classes": [self.multi_label, outside]}

    def label_names(self, labels: list[str]) -> list[str]:
        """The classes, and the label of texts out of scope behind them."""
        return [*labels, self.out_of_scope] if labels and self.out_of_scope else labels

    def num_outputs(self, labels: list[str]) -> int:
        """One for each class."""
        return len([name for name in labels if name != self.out_of_scope])


def _are_weights(weights: object) -> bool:
    return (
        isinstance(weights, dict)
        and bool(weights)
        and all(
            isinstance(weight, int | float) and math.isfinite(weight) and weight > 0
            for weight in weights.values()
        )
    )


def add_tracker(name: str, options: type[TrackerConfig]) -> None:
    """Give `TrackConfig` a further section of these options, before any config is made."""
    global TrackConfig
    kept = {"__module__": __name__, "__doc__": TrackConfig.__doc__}
    section = (name, options, field(default_factory=options))
    TrackConfig = make_dataclass(  # type: ignore[misc, assignment]
        "TrackConfig", [section], bases=(TrackConfig,), namespace=kept, kw_only=True, slots=True
    )


@dataclass(kw_only=True, slots=True)
class Config:
    """One run, complete."""

    seed: Seed = 0
    """Seed of everything random: data order, initialisation, dropout, splits."""
    run: RunConfig = field(default_factory=RunConfig)
    """Identity of the run."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Base model."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data."""
    objective: ObjectiveConfig = field(default_factory=SftConfig)
    """Objective."""
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    """What draws the answers of objectives that learn from the model's own."""
    peft: PeftConfig = field(default_factory=PeftConfig)
    """Parameter-efficient method."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Global batch."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length of training and step policies."""
    optim: OptimConfig = field(default_factory=AdamwConfig)
    """Optimizer."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning-rate schedule."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """DeepSpeed."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """Export at the end."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Evaluation."""
    # Not the class itself: `add_tracker` may put another in its place.
    track: TrackConfig = field(default_factory=lambda: TrackConfig())
    """Trackers."""
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    """Watching for hung and slow ranks."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """What is particular to a site."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """Launch."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """Sweep."""
