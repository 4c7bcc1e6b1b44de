"""Plug-in tables: which options class and which implementation a name stands for.

Implementations are strings, so reading a config imports none of them.
"""

from __future__ import annotations

from launcher.config import schema, schema_launch, schema_sweep
from launcher.registry import Table

#: section of the config -> variant name -> options class; sections not listed have one class.
OPTIONS: dict[str, dict[str, type]] = {
    "model": {"hf": schema.ModelConfig, "tiny": schema.TinyModelConfig},
    "objective": {
        "sft": schema.SftConfig,
        "text": schema.TextConfig,
        "classify": schema.ClassifyConfig,
    },
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
        "local": schema_launch.LaunchConfig,
        "torchrun": schema_launch.TorchrunConfig,
        "deepspeed": schema_launch.DeepspeedConfig,
        "slurm": schema_launch.SlurmConfig,
    },
    "sweep": {
        "grid": schema_sweep.SweepConfig,
        "random": schema_sweep.RandomSweepConfig,
        "optuna": schema_sweep.OptunaSweepConfig,
    },
}

#: field that holds the variant's name, where it is not `name`.
NAME_FIELD = {"model": "kind"}

FORMATS = Table(
    "data.format",
    {
        "preference": "launcher.data.formats.preference:PreferenceFormat",
        "chat": "launcher.data.formats.chat:ChatFormat",
        "sharegpt": "launcher.data.formats.sharegpt:ShareGptFormat",
        "prompt": "launcher.data.formats.prompt:PromptFormat",
        "alpaca": "launcher.data.formats.alpaca:AlpacaFormat",
        "classification": "launcher.data.formats.classification:ClassificationFormat",
        "text": "launcher.data.formats.text:TextFormat",
    },
)
OBJECTIVES = Table(
    "objective.name",
    {
        "sft": "launcher.objectives.sft:Sft",
        "text": "launcher.objectives.text:Text",
        "classify": "launcher.objectives.classify:Classify",
    },
)
PEFT_METHODS = Table("peft.name", {"lora": "launcher.peft.lora:apply"})
METRICS = Table(
    "eval.metrics",
    {
        "loss": "launcher.evals.loss:Loss",
        "perplexity": "launcher.evals.perplexity:Perplexity",
        "token_accuracy": "launcher.evals.token_accuracy:TokenAccuracy",
        "exact_match": "launcher.evals.exact_match:ExactMatch",
        "numeric_match": "launcher.evals.numeric_match:NumericMatch",
        "f1": "launcher.evals.f1:F1",
        "rouge1": "launcher.evals.rouge:Rouge1",
        "rouge2": "launcher.evals.rouge:Rouge2",
        "rougeL": "launcher.evals.rouge:RougeL",
        "bleu": "launcher.evals.bleu:Bleu",
        "chrf": "launcher.evals.chrf:ChrF",
        "json_valid": "launcher.evals.form:JsonValid",
        "json_schema": "launcher.evals.form:JsonSchema",
        "convention": "launcher.evals.form:Pattern",
        "length": "launcher.evals.form:Length",
        "distinct": "launcher.evals.variety:Distinct",
        "repetition": "launcher.evals.variety:Repetition",
        "style_distance": "launcher.evals.style:StyleDistance",
        "style_classifier": "launcher.evals.style_classifier:StyleClassifier",
        "judge": "launcher.evals.judge:Judge",
        "accuracy": "launcher.evals.accuracy:Accuracy",
        "in_scope_accuracy": "launcher.evals.accuracy:InScopeAccuracy",
        "oos_recall": "launcher.evals.accuracy:OosRecall",
        "f1_macro": "launcher.evals.class_f1:F1Macro",
        "f1_micro": "launcher.evals.class_f1:F1Micro",
        "ece": "launcher.evals.ece:Ece",
        "auroc": "launcher.evals.auroc:Auroc",
    },
)
TRACKERS = Table(
    "track",
    {
        # Lines first: the others may wait for a network.
        "metrics.jsonl": "launcher.track.jsonl:JsonLines",
        "wandb": "launcher.track.wandb:WandbTracker",
        "tensorboard": "launcher.track.tensorboard:TensorboardTracker",
    },
)
LAUNCHERS = Table(
    "launch.name",
    {
        "local": "launcher.launch.local:LocalBackend",
        "torchrun": "launcher.launch.torchrun:TorchrunBackend",
        "deepspeed": "launcher.launch.deepspeed:DeepspeedBackend",
        "slurm": "launcher.launch.slurm:SlurmBackend",
    },
)
