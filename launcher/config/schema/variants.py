"""Plug-in tables: which options class and which implementation a name stands for.

Implementations are strings, so reading a config imports none of them.
"""

from __future__ import annotations

from typing import Any

from launcher.config import schema
from launcher.config.schema import (
    Config,
    distill,
    launch,
    plugins,
    preference,
    reinforce,
    rollout,
    sweep,
)
from launcher.config.schema.eval import RECORDS as RECORDS
from launcher.config.schema.eval import MetricRow as MetricRow
from launcher.config.schema.kinds import KINDS, FormatRow, readable
from launcher.core.errors import ConfigError
from launcher.core.registry import PluginTable

#: section of the config -> variant name -> options class; sections not listed have one class.
OPTIONS: dict[str, dict[str, type]] = {
    "model": {"hf": schema.ModelConfig, "tiny": schema.TinyModelConfig},
    "objective": {
        "sft": schema.SftConfig,
        "text": schema.TextConfig,
        "classify": schema.ClassifyConfig,
        "distill": distill.DistillConfig,
        "grpo": reinforce.GrpoConfig,
        "dpo": preference.DpoConfig,
        "orpo": preference.OrpoConfig,
        "simpo": preference.SimpoConfig,
        "cpo": preference.CpoConfig,
        "kto": preference.KtoConfig,
        "reward": preference.RewardConfig,
    },
    "rollout": {"local": rollout.RolloutConfig, "vllm": rollout.VllmRolloutConfig},
    "peft": {"none": schema.PeftConfig, "lora": schema.LoraConfig},
    "optim": {
        "adamw": schema.AdamwConfig,
        "adamw8bit": schema.Adamw8bitConfig,
        "muon": schema.MuonConfig,
    },
    "schedule": {
        "constant": schema.ScheduleConfig,
        "linear": schema.ScheduleConfig,
        "cosine": schema.ScheduleConfig,
        "wsd": schema.WsdConfig,
    },
    "launch": {
        "local": launch.LaunchConfig,
        "torchrun": launch.TorchrunConfig,
        "deepspeed": launch.DeepspeedConfig,
        "slurm": launch.SlurmConfig,
    },
    "sweep": {
        "grid": sweep.SweepConfig,
        "random": sweep.RandomSweepConfig,
        "optuna": sweep.OptunaSweepConfig,
    },
}


def learners(kind: str) -> list[str]:
    """The objectives that learn from examples of a kind (`kinds.KINDS`), those made for it
    first."""
    rows: dict[str, Any] = OPTIONS["objective"]
    found = [name for name, options in rows.items() if kind in readable(options.learns)]
    return sorted(found, key=lambda name: [*rows[name].learns, kind].index(kind))


def how_to_learn(kind: str) -> str:
    """Which objective to type for examples of a kind, and for what; "" if there is none."""
    return "".join(f"objective={name} learns from {KINDS[kind]}" for name in learners(kind)[:1])


def other_way(own: schema.ObjectiveConfig, kind: str) -> str:
    """What to type where `own` cannot learn from the data, which is of `kind`."""
    mine = [name for name in FORMATS if kind_of_format(name) == own.learns[0]]
    way = f"{own.name} learns from {KINDS[own.learns[0]]}: data={mine[0]}" if mine else ""
    return "; ".join(filter(None, (how_to_learn(kind), way)))


def _format(path: str, kind: str) -> FormatRow:
    return FormatRow(f"launcher.data.formats.{path}", kind)


def kind_of_format(name: str) -> str | None:
    """The kind of the examples of a format; None where only its code knows."""
    row: Any = FORMATS.get(name)
    return row.kind if isinstance(row, FormatRow) else None


#: Keys whose value may be the path of a user's own Python file -> the name of a run's copy of it.
OWN_FILES = {
    "objective.name": "objective.py",
    "objective.environment": "environment.py",
    "data.format": "format.py",
}
#: Keys whose value may be the path of a grader's file -> the name of a run's copy of it.
OWN_GRADERS = {"objective.grader": "grader.yaml"}
#: section -> class of its options in a user's own file, where a variant's name may be a path.
OWN_OPTIONS = {"objective": "Options"}

#: field that holds the variant's name, where it is not `name`.
NAME_FIELD = {"model": "kind"}


def records_of(options: schema.ObjectiveConfig) -> list[str]:
    """What a metric of an objective may be made of."""
    return [*RECORDS, *options.own_records]


def metric_rows(config: Config) -> dict[str, MetricRow]:
    """The metrics that there are: those of the table, those that the objectives bring, and graders,
    by what they are called in results too; of one name the chosen objective's, then the
    table's."""
    others = (getattr(cls, "own_metrics", {}) for cls in OPTIONS["objective"].values())
    given = [name for name in config.eval.metrics or () if name.startswith(GRADER)]
    graders = dict.fromkeys((*given, *map(metric_name, given)), GRADED)
    rows = {name: row for own in others for name, row in own.items()}
    own = config.objective.own_metrics.items()
    brought = {name: row for name, row in own if isinstance(row, MetricRow)}
    return {**METRICS, **rows, **brought, **METRICS, **graders}


def metrics_of(config: Config) -> list[str]:
    """The metrics of `eval.metrics`; where that says none, those that the objective goes by."""
    if config.eval.metrics is not None:
        return config.eval.metrics
    own, rows = config.objective.metrics, metric_rows(config)
    return [name for name in own if name not in rows or rows[name].fits(config)]


FORMATS = PluginTable(
    "data.format",
    {
        "preference": _format("preference:PreferenceFormat", "pairs"),
        "ranked": _format("ranked:RankedFormat", "ranked"),
        "unpaired": _format("unpaired:UnpairedFormat", "unpaired"),
        "chat": _format("chat:ChatFormat", "answers"),
        "sharegpt": _format("sharegpt:ShareGptFormat", "answers"),
        "prompt": _format("prompt:PromptFormat", "answers"),
        "alpaca": _format("alpaca:AlpacaFormat", "answers"),
        "question": _format("question:QuestionFormat", "answers"),
        "classification": _format("classification:ClassificationFormat", "labels"),
        "text": _format("text:TextFormat", "texts"),
    },
    own="Format",
)
OBJECTIVES = PluginTable(
    "objective.name",
    {
        "sft": "launcher.objectives.sft:Sft",
        "text": "launcher.objectives.text:TextObjective",
        "classify": "launcher.objectives.classify.objective:Classify",
        "distill": "launcher.objectives.distill.objective:Distill",
        "grpo": "launcher.objectives.grpo.objective:Grpo",
        "dpo": "launcher.objectives.preference.dpo:Dpo",
        "orpo": "launcher.objectives.preference.orpo:Orpo",
        "simpo": "launcher.objectives.preference.simpo:Simpo",
        "cpo": "launcher.objectives.preference.cpo:Cpo",
        "kto": "launcher.objectives.preference.kto:Kto",
        "reward": "launcher.objectives.preference.reward:Reward",
    },
    own="Objective",
)


def objective(options: schema.ObjectiveConfig) -> Any:
    """The `launcher.objectives.base.Objective` that `options` are of."""
    return OBJECTIVES.load(options.name)(options)


ROLLOUT_ENGINES = PluginTable(
    "rollout.name",
    {
        "local": "launcher.rollouts.sampling:LocalRollouts",
        "vllm": "launcher.rollouts.vllm.rollouts:VllmRollouts",
    },
)
PEFT_METHODS = PluginTable("peft.name", {"lora": "launcher.peft.lora:apply"})
METRICS = PluginTable(
    "eval.metrics",
    {
        "loss": MetricRow("launcher.evals.metrics.loss:Loss", "loss", lower_is_better=True),
        "perplexity": MetricRow(
            "launcher.evals.metrics.perplexity:Perplexity", "tokens", lower_is_better=True
        ),
        "token_accuracy": MetricRow(
            "launcher.evals.metrics.token_accuracy:TokenAccuracy", "tokens"
        ),
        "exact_match": MetricRow("launcher.evals.metrics.exact_match:ExactMatch", "generation"),
        "numeric_match": MetricRow(
            "launcher.evals.metrics.numeric_match:NumericMatch", "generation"
        ),
        "f1": MetricRow("launcher.evals.metrics.f1:F1", "generation"),
        "rouge1": MetricRow(
            "launcher.evals.metrics.rouge:Rouge1", "generation", package="rouge_score"
        ),
        "rouge2": MetricRow(
            "launcher.evals.metrics.rouge:Rouge2", "generation", package="rouge_score"
        ),
        "rougeL": MetricRow(
            "launcher.evals.metrics.rouge:RougeL", "generation", package="rouge_score"
        ),
        "bleu": MetricRow("launcher.evals.metrics.bleu:Bleu", "generation", package="sacrebleu"),
        "chrf": MetricRow("launcher.evals.metrics.chrf:ChrF", "generation"),
        "json_valid": MetricRow(
            "launcher.evals.metrics.form:JsonValid", "generation", needs_reference=False
        ),
        "json_schema": MetricRow(
            "launcher.evals.metrics.form:JsonSchema",
            "generation",
            wants="eval.json_schema",
            example="eval.json_schema=answer.schema.json",
            package="jsonschema",
            needs_reference=False,
        ),
        "convention": MetricRow(
            "launcher.evals.metrics.form:Pattern",
            "generation",
            wants="eval.convention",
            example=r"eval.convention='[.!?]\Z' for answers that end a sentence",
            needs_reference=False,
        ),
        "length": MetricRow(
            "launcher.evals.metrics.form:Length",
            "generation",
            wants="eval.answer_words",
            example="eval.answer_words=[5,80]",
            needs_reference=False,
        ),
        "distinct": MetricRow(
            "launcher.evals.metrics.variety:Distinct", "generation", needs_reference=False
        ),
        "repetition": MetricRow(
            "launcher.evals.metrics.variety:Repetition",
            "generation",
            lower_is_better=True,
            needs_reference=False,
        ),
        "style_distance": MetricRow(
            "launcher.evals.metrics.style:StyleDistance", "generation", lower_is_better=True
        ),
        "style_classifier": MetricRow(
            "launcher.evals.metrics.style_classifier:StyleClassifier",
            "generation",
            needs_base="learns from",
        ),
        "judge": MetricRow(
            "launcher.evals.judge:WinRate", "generation", needs_base="compares with"
        ),
    },
)
#: How a metric begins that is a grader: the path of its file follows.
GRADER = "grader:"


def metric_name(name: str) -> str:
    """What a metric of `eval.metrics` is called in results: a grader whose path is absolute by its
    file alone, since results are read elsewhere too."""
    path = name.removeprefix(GRADER)
    is_absolute = path != name and path.startswith("/")
    return f"{GRADER}{path.rpartition('/')[2]}" if is_absolute else name


GRADED = MetricRow("launcher.evals.metrics.graded:Graded", "generation", needs_reference=False)
TRACKERS = PluginTable(
    "track",
    {
        # Lines first: the others may wait for a network.
        "metrics.jsonl": "launcher.track.jsonl:JsonLines",
        "wandb": "launcher.track.wandb:WandbTracker",
        "tensorboard": "launcher.track.tensorboard:TensorboardTracker",
    },
)
LAUNCHERS = PluginTable(
    "launch.name",
    {
        "local": "launcher.launch.local:LocalBackend",
        "torchrun": "launcher.launch.torchrun:TorchrunBackend",
        "deepspeed": "launcher.launch.deepspeed:DeepspeedBackend",
        "slurm": "launcher.launch.slurm.backend:SlurmBackend",
    },
)


def surroundings() -> dict[str, str]:
    """How the variables of a scheduler begin -> "module:attribute" of what reads them, of those
    launch back ends that have one."""
    rows = (options for options in OPTIONS["launch"].values() if getattr(options, "variables", ""))
    return {options.variables: options.surroundings for options in rows}  # type: ignore[attr-defined]


def add(table: PluginTable[Any], name: str, row: Any, *, options: type | None = None) -> None:
    """A variant from outside, for packages of `launcher_plugins`: a row of a table, and the class
    of its options where its section of the config has several; those of a tracker are a section of
    its name below `track`. `ConfigError` if it is there, or cannot have such options."""
    section = table.key.partition(".")[0]
    is_new = name not in table
    if options is None:
        table.add(name, row)
    elif section in OPTIONS:
        table.add(name, row)
        OPTIONS[section][name] = options
    elif table is not TRACKERS:
        found = f"{section} has no options by variant: {name!r} cannot bring any"
        raise ConfigError(found, where=table.key, hint="add the row without options")
    elif not (issubclass(options, schema.TrackerConfig) and name.isidentifier()):
        found = f"the options of the tracker {name!r} can be no section of track"
        hint = "name it by a word, and derive its options from TrackerConfig"
        raise ConfigError(found, where=table.key, hint=hint)
    else:
        table.add(name, row)
        if is_new:
            schema.add_tracker(name, options)


plugins.load()
