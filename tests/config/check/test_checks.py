"""Every rule of the checks: a config that breaks it, and the nearest one that does not."""

from __future__ import annotations

import dataclasses
import json
import stat
from pathlib import Path
from typing import Annotated, Any

import pytest

from launcher.config import schema
from launcher.config.check import checks, deepspeed_keys
from launcher.config.derive import quantized
from launcher.config.schema import (
    Config,
    EarlyStopConfig,
    JudgeConfig,
    Weights,
    conversion,
    variants,
)
from launcher.config.schema.ranges import Range
from launcher.core import registry
from launcher.core.errors import Problem
from support import hints
from support.configs import config_classes, make_config

GPU = {"has_gpu": True}


def sections(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Sections of a config that passes every check, with `changes` laid over them."""
    base: dict[str, dict[str, Any]] = {
        "model": {"kind": "hf", "name": "folder"},
        "data": {"train": "train.jsonl"},
        "batch": {"sequences": 8},
        "train": {"steps": 10},
    }
    for name, values in changes.items():
        base[name] = {**base.get(name, {}), **values}
    return base


def check(
    changes: dict[str, dict[str, Any]], world_size: int | None = 2, has_gpu: bool = False
) -> list[Problem]:
    config = make_config(**sections(**changes))
    return checks.check(config, world_size=world_size, has_gpu=has_gpu)


TINY = {"kind": "tiny", "name": None}
TEXT = {"objective": {"name": "text"}, "data": {"format": "text"}}


def stop_by(metric: str) -> dict[str, Any]:
    """Section `train` of a run that may end early by this metric."""
    return {"early_stop": EarlyStopConfig(patience=2, metric=metric)}


STOP = stop_by("loss")

#: where, words of finding and hint, sections that break the rule and that keep it, machine
RULES: list[tuple[str, str, str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("model.name", "no base model", "model=tiny", {"model": {"name": None}}, {"model": TINY}, {}),
    (
        "model.name",
        "which is made here",
        "model=hf",
        {"model": {"kind": "tiny", "name": "x"}},
        {"model": TINY},
        {},
    ),
    (
        "model.quantization",
        "nf4 with peft=none",
        "add peft=lora",
        {"model": {"quantization": "nf4"}},
        {},
        GPU,
    ),
    (
        "model.quantization",
        "nf4 on CPU",
        "or a GPU",
        {"model": {"quantization": "nf4"}, "peft": {"name": "lora"}},
        {"peft": {"name": "lora"}},
        {},
    ),
    (
        "train.deterministic",
        "true with model.compile=true",
        "model.compile=false",
        {"train": {"deterministic": True}, "model": {"compile": True}},
        {"train": {"deterministic": True}},
        GPU,
    ),
    (
        "model.kernels",
        "liger on CPU",
        "or a GPU",
        {"model": {"kernels": "liger"}},
        {},
        {},
    ),
    (
        "model.kernels",
        "liger with model.compile=true",
        "model.compile=false",
        {"model": {"kernels": "liger", "compile": True}},
        {"model": {"compile": True}},
        GPU,
    ),
    ("model.fp8", "true on CPU", "or a GPU", {"model": {"fp8": True}}, {}, {}),
    (
        "model.fp8",
        "true with peft=lora",
        "peft=none",
        {"model": {"fp8": True}, "peft": {"name": "lora"}},
        {"peft": {"name": "lora"}},
        GPU,
    ),
    (
        "model.fp8",
        "true with peft=lora",
        "model.fp8=false",
        {"model": {"fp8": True, "quantization": "nf4"}, "peft": {"name": "lora"}},
        {"peft": {"name": "lora"}},
        GPU,
    ),
    *(
        (
            "model.fp8",
            f"true with engine.precision={precision}",
            "engine.precision=bf16",
            {"model": {"fp8": True}, "engine": {"precision": precision}},
            {"engine": {"precision": precision}},
            GPU,
        )
        for precision in ("fp16", "fp32")
    ),
    (
        "model.fp8",
        "true with model.dtype=fp32",
        "model.dtype=auto",
        {"model": {"fp8": True, "dtype": "fp32"}},
        {"model": {"dtype": "fp32"}},
        GPU,
    ),
    (
        "model.fp8",
        "true with engine.zero=3",
        "engine=zero2",
        {"model": {"fp8": True}, "engine": {"zero": 3}},
        {"engine": {"zero": 3}},
        GPU,
    ),
    (
        "model.activation_gib",
        "2 with model.gradient_checkpointing=true",
        "model.activation_gib=null",
        {"model": {"activation_gib": 2.0, "gradient_checkpointing": True}},
        {"model": {"gradient_checkpointing": True}},
        {},
    ),
    (
        "engine.secondary_partition",
        "2 with engine.zero=2",
        "engine=zero3",
        {"engine": {"secondary_partition": 2}},
        {"engine": {"secondary_partition": 2, "zero": 3}},
        {},
    ),
    (
        "engine.secondary_partition",
        "groups of 3 of 2 ranks",
        "leave it out",
        {"engine": {"secondary_partition": 3, "zero": 3}},
        {"engine": {"zero": 3}},
        {},
    ),
    (
        "model.quantization",
        "nf4 with engine.zero=3",
        "engine=zero2",
        {
            "model": {"quantization": "nf4"},
            "peft": {"name": "lora"},
            "engine": {"zero": 3},
        },
        {"peft": {"name": "lora"}, "engine": {"zero": 3}},
        GPU,
    ),
    (
        "model.dtype",
        "bf16 weights with engine.precision=fp32",
        "engine.precision=bf16",
        {"model": {"dtype": "bf16"}},
        {"model": {"dtype": "bf16"}, "engine": {"precision": "bf16"}},
        {},
    ),
    (
        "model.hidden_size",
        "not a multiple of model.heads=4",
        "model.hidden_size=128",
        {"model": {**TINY, "hidden_size": 130}},
        {"model": {**TINY, "hidden_size": 136}},
        {},
    ),
    (
        "model.hidden_size",
        "odd size 33",
        "model.hidden_size=136",
        {"model": {**TINY, "hidden_size": 132}},
        {"model": {**TINY, "hidden_size": 136}},
        {},
    ),
    (
        "model.kv_heads",
        "3 does not divide model.heads=4",
        "model.kv_heads=2",
        {"model": {**TINY, "kv_heads": 3}},
        {"model": {**TINY, "kv_heads": 1}},
        {},
    ),
    (
        "data.max_length",
        "beyond model.max_positions=1024",
        "data.max_length=1024",
        {"model": TINY, "data": {"max_length": 1025}},
        {"model": TINY, "data": {"max_length": 1024}},
        {},
    ),
    (
        "model.attention",
        "varlen on CPU",
        "model.attention=auto",
        {"model": {"attention": "varlen"}},
        {"model": {"attention": "document"}},
        {},
    ),
    (
        "model.attention",
        "flash on CPU",
        "model.attention=auto",
        {"model": {"attention": "flash"}},
        {"model": {"attention": "auto"}},
        {},
    ),
    (
        "model.attention",
        "varlen with fp32",
        "engine.precision=bf16",
        {"model": {"attention": "varlen"}, "engine": {"precision": "fp32"}},
        {"model": {"attention": "varlen"}},
        GPU,
    ),
    ("data.train", "no training data", "train.jsonl", {"data": {"train": None}}, {}, {}),
    ("data.train", "3 is not a source", "glob", {"data": {"train": 3}}, {}, {}),
    (
        "data.train",
        "[] is not a source",
        "list of these",
        {"data": {"train": []}},
        {"data": {"train": ["a", "b"]}},
        {},
    ),
    (
        "data.validation",
        "1 is not a source",
        "glob",
        {"data": {"validation": ["a", 1]}},
        {"data": {"validation": "builtin:x"}},
        {},
    ),
    (
        "data.format",
        "unknown format 'chta'",
        "'chat'",
        {"data": {"format": "chta"}},
        {"data": {"format": "chat"}},
        {},
    ),
    (
        "data.system",
        "data.format=text",
        "data.system=null",
        {**TEXT, "data": {"format": "text", "system": "Be kind."}},
        {"data": {"format": "chat", "system": "Be kind."}},
        {},
    ),
    (
        "data.template_options.tools",
        "set by the launcher",
        "leave it out",
        {"data": {"template_options": {"tools": False}}},
        {"data": {"template_options": {"enable_thinking": False}}},
        {},
    ),
    (
        "data.overlong",
        "cut_prompt with objective=text",
        "data.overlong=split",
        {**TEXT, "data": {"format": "text", "overlong": "cut_prompt"}},
        {"data": {"overlong": "cut_prompt"}},
        {},
    ),
    (
        "objective.name",
        "sft with data.format=preference",
        "objective=dpo",
        {"data": {"format": "preference"}},
        {"data": {"format": "preference"}, "objective": {"name": "dpo"}},
        {},
    ),
    (
        "objective.name",
        "dpo with data.format=chat",
        "objective=sft",
        {"data": {"format": "chat"}, "objective": {"name": "dpo"}},
        {"data": {"format": "ranked"}, "objective": {"name": "dpo"}},
        {},
    ),
    (
        "data.overlong",
        "split with objective=dpo",
        "data.overlong=cut_prompt",
        {"data": {"overlong": "split"}, "objective": {"name": "dpo"}},
        {"data": {"overlong": "cut_prompt"}, "objective": {"name": "dpo"}},
        {},
    ),
    (
        "objective.name",
        "sft with data.format=text",
        "objective=text",
        {"data": {"format": "text"}},
        TEXT,
        {},
    ),
    (
        "peft.targets",
        "'q_proj' is not a list",
        "peft.targets=[q_proj]",
        {"peft": {"name": "lora", "targets": "q_proj"}},
        {"peft": {"name": "lora", "targets": ["q_proj"]}},
        {},
    ),
    (
        "peft.targets",
        "[] is not a list",
        "all-linear",
        {"peft": {"name": "lora", "targets": []}},
        {"peft": {"name": "lora", "targets": "all-linear"}},
        {},
    ),
    (
        "peft.targets",
        "'lm_head' is tied",
        "peft.modules_to_save=[embed_tokens]",
        {"model": TINY, "peft": {"name": "lora", "targets": ["q_proj", "lm_head"]}},
        {
            "model": {**TINY, "tie_embeddings": False},
            "peft": {"name": "lora", "targets": ["q_proj", "lm_head"]},
        },
        {},
    ),
    (
        "peft.targets",
        "3 is not a list",
        "all-linear",
        {"peft": {"name": "lora", "targets": 3}},
        {"peft": {"name": "lora"}},
        {},
    ),
    (
        "train",
        "neither is given",
        "train.epochs=1",
        {"train": {"steps": None}},
        {"train": {"steps": None, "epochs": 1.0}},
        {},
    ),
    (
        "train",
        "steps=10 and epochs=1.0",
        "train.epochs=1",
        {"train": {"epochs": 1.0}},
        {"train": {"epochs": None}},
        {},
    ),
    (
        "optim.name",
        "adamw8bit on CPU",
        "optim=adamw",
        {"optim": {"name": "adamw8bit"}},
        {"optim": {"name": "adamw"}},
        {},
    ),
    (
        "optim.name",
        "adamw8bit with engine.offload_optimizer",
        "optim=adamw",
        {"optim": {"name": "adamw8bit"}, "engine": {"offload_optimizer": True}},
        {"optim": {"name": "adamw"}, "engine": {"offload_optimizer": True}},
        GPU,
    ),
    (
        "schedule.warmup",
        "1.5 is not a number of steps",
        "schedule.warmup=1;",
        {"schedule": {"warmup": 1.5}},
        {"schedule": {"warmup": 2.0}},
        {},
    ),
    (
        "schedule.warmup",
        "10 of train.steps=10",
        "schedule.warmup=0.05",
        {"schedule": {"warmup": 10.0}},
        {"schedule": {"warmup": 9.0}},
        {},
    ),
    (
        "schedule.decay",
        "more than all steps",
        "shorter",
        {"schedule": {"name": "wsd", "warmup": 0.9, "decay": 0.2}},
        {"schedule": {"name": "wsd", "warmup": 0.8, "decay": 0.2}},
        {},
    ),
    (
        "schedule.decay",
        "more than all steps",
        "shorter",
        {"schedule": {"name": "wsd", "warmup": 9.0, "decay": 0.2}},
        {"schedule": {"name": "wsd", "warmup": 8.0, "decay": 0.2}},
        {},
    ),
    (
        "schedule.decay",
        "more than all steps",
        "shorter",
        {
            "schedule": {"name": "wsd", "warmup": 0.9, "decay": 0.2},
            "train": {"steps": None, "epochs": 1.0},
        },
        {
            "schedule": {"name": "wsd", "warmup": 20.0, "decay": 0.2},
            "train": {"steps": None, "epochs": 1.0},
        },
        {},
    ),
    (
        "engine.precision",
        "fp16 on CPU",
        "fp32 or bf16",
        {"engine": {"precision": "fp16"}},
        {"engine": {"precision": "bf16"}},
        {},
    ),
    (
        "engine.offload_params",
        "true with engine.zero=2",
        "engine=zero3_offload",
        {"engine": {"offload_params": True}},
        {"engine": {"offload_params": True, "zero": 3}},
        {},
    ),
    (
        "engine.offload_optimizer",
        "true with engine.zero=0",
        "engine=zero2_offload",
        {"engine": {"offload_optimizer": True, "zero": 0}},
        {"engine": {"offload_optimizer": True, "zero": 1}},
        {},
    ),
    (
        "engine.extra.train_batch_size",
        "8 would have no effect",
        "batch.sequences",
        {"engine": {"extra": {"train_batch_size": 8}}},
        {"engine": {"extra": {"steps_per_print": 8}}},
        {},
    ),
    (
        "engine.extra.zero_optimization.mics_shard_size",
        "2 would have no effect",
        "not called here",
        {"engine": {"extra": {"zero_optimization": {"mics_shard_size": 2}}}},
        {"engine": {"extra": {"zero_optimization": {"zero_hpz_partition_size": 2}}}},
        {},
    ),
    (
        "engine.extra.compile",
        "{'deepcompile': True} would have no effect",
        "model.compile",
        {"engine": {"extra": {"compile": {"deepcompile": True}}}},
        {"engine": {"extra": {"compile": None}}},
        {},
    ),
    (
        "engine.extra.zero_optimization",
        "no key 'overlap_com' of DeepSpeed",
        "call it 'overlap_comm'",
        {"engine": {"extra": {"zero_optimization": {"overlap_com": True}}}},
        {"engine": {"extra": {"zero_optimization": {"overlap_comm": True}}}},
        {},
    ),
    (
        "engine.extra.zzz",
        "no key 'zzz' of DeepSpeed",
        "leave it out",
        {"engine": {"extra": {"zzz": {"a": 1}}}},
        {"engine": {"extra": {"optimizer": {"params": {"fused": False}}}}},
        {},
    ),
    (
        "checkpoint.keep_best",
        "1 without evaluation",
        "eval.every_steps=N",
        {"checkpoint": {"keep_best": 1}},
        {"checkpoint": {"keep_best": 1}, "eval": {"every_steps": 5}},
        {},
    ),
    (
        "checkpoint.keep_best",
        "1 without evaluation",
        "loss among eval.metrics",
        {"checkpoint": {"keep_best": 1}, "eval": {"every_steps": 5, "metrics": ["perplexity"]}},
        {"eval": {"every_steps": 5, "metrics": ["perplexity"]}},
        {},
    ),
    (
        "train.early_stop.patience",
        "2 with eval=none",
        "eval=default eval.times=10; or train.early_stop.patience=null",
        {"train": STOP, "eval": {"name": "none", "metrics": [], "times": 5}},
        {"train": STOP, "eval": {"times": 5}},
        {},
    ),
    (
        "train.early_stop.patience",
        "2 without evaluation during training",
        "add eval.times=10, or eval.every_steps=N",
        {"train": STOP},
        {"train": STOP, "eval": {"every_steps": 2}},
        {},
    ),
    (
        "export.weights",
        "best without evaluation during training",
        "or export.weights=last",
        {"export": {"weights": Weights.best}},
        {"export": {"weights": Weights.last}},
        {},
    ),
    (
        "export.weights",
        "best with eval=none",
        "or export.weights=last",
        {"export": {"weights": Weights.best}, "eval": {"name": "none", "metrics": []}},
        {"export": {"weights": Weights.best}, "eval": {"times": 5}},
        {},
    ),
    (
        "train.early_stop.metric",
        "loss is not among eval.metrics: perplexity",
        "or train.early_stop.metric=perplexity",
        {"train": STOP, "eval": {"times": 5, "metrics": ["perplexity"]}},
        {"train": STOP, "eval": {"times": 5, "metrics": ["perplexity", "loss"]}},
        {},
    ),
    (
        "train.early_stop.metric",
        "loss is not among eval.metrics: exact_match",
        "eval.metrics=[exact_match,loss]",
        {"train": STOP, "eval": {"times": 5, "metrics": ["exact_match"]}},
        {"train": STOP, "eval": {"times": 5, "metrics": ["exact_match", "loss"]}},
        {},
    ),
    (
        "train.early_stop.metric",
        "exact_match needs generated answers",
        "train.early_stop.metric=loss",
        {"train": stop_by("exact_match"), "eval": {"times": 5, "metrics": ["loss", "exact_match"]}},
        {"train": stop_by("loss"), "eval": {"times": 5, "metrics": ["loss", "exact_match"]}},
        {},
    ),
    (
        "train.early_stop.metric",
        "unknown metric 'perplexty'",
        "'perplexity'",
        {"train": stop_by("perplexty"), "eval": {"times": 5}},
        {"train": stop_by("perplexity"), "eval": {"times": 5}},
        {},
    ),
    (
        "train.early_stop.min_change",
        "-0.1 is out of range",
        "at least 0",
        {"train": {"early_stop": EarlyStopConfig(min_change=-0.1)}},
        {"train": {"early_stop": EarlyStopConfig(min_change=0.1)}},
        {},
    ),
    (
        "eval.times",
        "5 with eval.every_steps=2",
        "eval.times=null, or eval.every_steps=null",
        {"eval": {"times": 5, "every_steps": 2}},
        {"eval": {"every_steps": 2}},
        {},
    ),
    (
        "eval.times",
        "5 without eval.metrics",
        "eval=default",
        {"eval": {"times": 5, "metrics": []}},
        {"eval": {"times": 5}},
        {},
    ),
    (
        "eval.name",
        "unknown name 'defualt'",
        "'default'",
        {"eval": {"name": "defualt"}},
        {"eval": {"name": "none"}},
        {},
    ),
    (
        "eval.general",
        "further held-out data without eval.metrics",
        "eval=default",
        {"eval": {"metrics": [], "general": "g.jsonl"}},
        {"eval": {"name": "none", "metrics": [], "general": "g.jsonl"}},
        {},
    ),
    (
        "eval.general",
        "shares of a mixture",
        "leave weight and epochs out",
        {"eval": {"general": [{"path": "g.jsonl", "weight": 2}]}},
        {"eval": {"general": [{"path": "g.jsonl", "format": "text"}]}},
        {},
    ),
    (
        "eval.new",
        "'a b' is no name of a set",
        "call it 'a-b'",
        {"eval": {"new": {"a b": "a.jsonl"}}},
        {"eval": {"new": {"a-b": "a.jsonl"}}},
        {},
    ),
    (
        "eval.new.later",
        "None is not a source of data",
        "give a path",
        {"eval": {"new": {"later": None}}},
        {"eval": {"new": {"later": ["a.jsonl", "b.jsonl"]}}},
        {},
    ),
    (
        "eval.metrics",
        "unknown metric 'los'",
        "'loss'",
        {"eval": {"metrics": ["los"]}},
        {"eval": {"metrics": ["loss"]}},
        {},
    ),
    (
        "eval.metrics",
        "exact_match with objective=text",
        "eval=default",
        {**TEXT, "eval": {"metrics": ["exact_match"]}},
        {**TEXT, "eval": {"metrics": ["loss"]}},
        {},
    ),
    (
        "eval.metrics",
        "without held-out data",
        "eval=none",
        {"data": {"validation_share": 0.0}},
        {"data": {"validation_share": 0.0}, "eval": {"metrics": []}},
        {},
    ),
    (
        "eval.every_steps",
        "5 without eval.metrics",
        "eval=default",
        {"eval": {"every_steps": 5, "metrics": []}},
        {"eval": {"every_steps": 5, "metrics": [], "name": "none"}},
        {},
    ),
    (
        "eval.metrics",
        "rougeL with objective=text",
        "eval=default",
        {**TEXT, "eval": {"metrics": ["rougeL"]}},
        {"eval": {"metrics": ["rougeL"]}},
        {},
    ),
    (
        "eval.metrics",
        "json_schema without eval.json_schema",
        "answer.schema.json",
        {"eval": {"metrics": ["json_schema"]}},
        {"eval": {"metrics": ["json_schema"], "json_schema": "s.json"}},
        {},
    ),
    (
        "eval.convention",
        "'[': unterminated",
        "regular expression",
        {"eval": {"convention": "["}},
        {"eval": {"metrics": ["convention"], "convention": "[.]"}},
        {},
    ),
    (
        "eval.stop",
        "an empty string",
        "Q:",
        {"eval": {"stop": ["end", ""]}},
        {"eval": {"stop": ["end"]}},
        {},
    ),
    (
        "eval.top_p",
        "0.9 without eval.temperature",
        "eval.temperature=0.7 too",
        {"eval": {"top_p": 0.9}},
        {"eval": {"top_p": 0.9, "temperature": 0.7}},
        {},
    ),
    (
        "eval.metrics",
        "grader:g.yaml would be the name of two in results",
        "another name",
        {"eval": {"metrics": ["grader:/a/g.yaml", "grader:/b/g.yaml"]}},
        {"eval": {"metrics": ["grader:/a/g.yaml", "grader:b/g.yaml"]}},
        {},
    ),
    (
        "eval.judge.url",
        "'localhost:8000' is no address",
        "http://localhost:8000/v1",
        {"eval": {"metrics": ["judge"], "judge": JudgeConfig(url="localhost:8000", model="m")}},
        {"eval": {"metrics": ["judge"], "judge": JudgeConfig(url="http://h/v1", model="m")}},
        {},
    ),
    (
        "eval.judge.model",
        "the metric judge needs it",
        "eval.judge.model=",
        {"eval": {"metrics": ["judge"], "judge": JudgeConfig(url="http://h/v1")}},
        {"eval": {"judge": JudgeConfig(url="http://h/v1")}},
        {},
    ),
    (
        "eval.metrics",
        "judge compares with the base's answers",
        "eval.base=true",
        {
            "eval": {
                "base": False,
                "metrics": ["judge"],
                "judge": JudgeConfig(url="http://h/v1", model="m"),
            }
        },
        {"eval": {"base": False}},
        {},
    ),
    (
        "eval.answer_words",
        "are no limits",
        "[5,80]",
        {"eval": {"metrics": ["length"], "answer_words": [9, 5]}},
        {"eval": {"metrics": ["length"], "answer_words": [5, 9]}},
        {},
    ),
    (
        "eval.answer_pattern",
        "'(': missing )",
        "regular expression",
        {"eval": {"answer_pattern": "("}},
        {"eval": {"answer_pattern": "#### (-?[0-9.,]+)"}},
        {},
    ),
    (
        "launch.nodes",
        "launch=local is one",
        "launch=slurm",
        {"launch": {"nodes": 2}},
        {"launch": {"nodes": 1}},
        {},
    ),
]


def test_a_grader_is_known_by_its_name_in_results_too() -> None:
    config = Config()
    config.eval.metrics = ["grader:/a/g.yaml", "grader:h.yaml"]
    rows = variants.metric_rows(config)
    known = {name for name in rows if name.startswith(variants.GRADER)}
    assert known == {"grader:/a/g.yaml", "grader:g.yaml", "grader:h.yaml"}


def test_the_plain_config_passes() -> None:
    for has_gpu in (False, True):
        assert check({}, has_gpu=has_gpu) == []


@pytest.mark.parametrize(("where", "found", "hint", "bad", "good", "machine"), RULES)
def test_rule(
    where: str,
    found: str,
    hint: str,
    bad: dict[str, Any],
    good: dict[str, Any],
    machine: dict[str, Any],
) -> None:
    broken = [p for p in check(bad, **machine) if p.where == where and found in p.found]
    assert len(broken) == 1
    assert hint in broken[0].hint
    assert check(good, **machine) == []


@pytest.mark.parametrize(("where", "found", "hint", "bad", "good", "machine"), RULES)
def test_what_a_hint_says_to_type_mends_what_gave_it(
    where: str,
    found: str,
    hint: str,
    bad: dict[str, Any],
    good: dict[str, Any],
    machine: dict[str, Any],
    tmp_path: Path,
) -> None:
    given = {"world_size": 2, "has_gpu": False, **machine}
    hints.require_mended(make_config(**sections(**bad)), tmp_path / "own.yaml", **given)


LIMITED = [(path, cls, name) for path, cls in config_classes() for name in conversion.limits(cls)]


@pytest.mark.parametrize(("path", "cls", "name"), LIMITED)
def test_range(path: str, cls: type, name: str) -> None:
    allowed = conversion.limits(cls)[name]
    config, key = make_config(**sections()), f"{path}.{name}".lstrip(".")
    *parents, last = path.split(".")
    node: Any = config
    for parent in parents:
        node = getattr(node, parent)
    if path:
        setattr(node, last, cls())
        node = getattr(node, last)
    whole = conversion.fields(cls)[name] in (int, int | None)
    inside = [allowed.low] if not allowed.open_low else [allowed.low + 0.5]
    outside = [allowed.low - 1] if not allowed.open_low else [allowed.low]
    outside += [] if allowed.high == float("inf") else [allowed.high + (not allowed.open_high)]
    outside += [] if whole else [float("nan"), float("inf")]
    for value in inside:
        setattr(node, name, value)
        assert [p for p in checks.out_of_range(config) if p.where == key] == []
    for value in outside:
        setattr(node, name, value)
        (problem,) = [p for p in checks.out_of_range(config) if p.where == key]
        assert str(value) in problem.found
        assert str(allowed) in problem.hint


def test_numbers_have_ranges_and_nothing_else_has() -> None:
    numbers = [
        (path, cls, name)
        for path, cls in config_classes()
        for name, kind in conversion.fields(cls).items()
        if kind in (int, float, int | None, float | None, int | schema.MicroBatch | None)
    ]
    assert numbers == LIMITED


@dataclasses.dataclass(kw_only=True, slots=True)
class _Plugged(schema.ScheduleConfig):
    """Options as whoever adds a variant writes them."""

    cycles: Annotated[int, Range(2, 9)] | None = None


def test_a_number_of_an_added_variant_is_held_to_what_its_field_says() -> None:
    config = make_config(**sections())
    config.schedule = _Plugged(cycles=10, warmup=-1.0)
    assert conversion.fields(_Plugged)["cycles"] == int | None
    assert [(p.where, p.found, p.hint) for p in checks.out_of_range(config)] == [
        ("schedule.warmup", "-1.0 is out of range", "give a number at least 0"),
        ("schedule.cycles", "10 is out of range", "give a number at least 2 and at most 9"),
    ]
    config.schedule = _Plugged()
    assert list(checks.out_of_range(config)) == []


def _fake_tool(folder: Path, name: str) -> None:
    file = folder / name
    file.write_text("#!/bin/sh\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize(
    ("where", "changes"),
    [("model.compile", {"model": {"compile": True}}), ("optim.name", {"optim": {"name": "muon"}})],
)
def test_what_is_compiled_needs_a_compiler(
    where: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (problem,) = check(changes)
    assert problem.where == where
    assert "clang++" in problem.hint
    _fake_tool(tmp_path, "clang++")
    assert check(changes) == []


@pytest.mark.parametrize(
    ("package", "where", "changes"),
    [
        (
            "bitsandbytes",
            "model.quantization",
            {"model": {"quantization": "nf4"}, "peft": {"name": "lora"}},
        ),
        ("bitsandbytes", "optim.name", {"optim": {"name": "adamw8bit"}}),
        ("flash_attn", "model.attention", {"model": {"attention": "flash"}}),
        ("liger_kernel", "model.kernels", {"model": {"kernels": "liger"}}),
        ("torchao", "model.fp8", {"model": {"fp8": True}}),
    ],
)
def test_optional_packages_are_needed_by_what_uses_them(
    package: str,
    where: str,
    changes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not registry.installed(package):
        (problem,) = check(changes, has_gpu=True)
        assert problem.where == where
        assert "pip install" in problem.hint
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
    assert check(changes, has_gpu=True) == []


@pytest.mark.parametrize("hint", ["did you mean 'model.name'?", "did you mean model=tiny?"])
def test_what_follows_from_a_misspelt_word_is_not_blamed(hint: str) -> None:
    found = [Problem("modle", "unknown", hint)]
    checked = [Problem("model.name", "no base model", ""), Problem("optim.lr", "wrong", "")]
    assert checks.beside(found, checked) == [*found, checked[1]]


def test_all_problems_at_once_in_a_stable_order() -> None:
    changes: dict[str, Any] = {
        "model": {"attention": "varlen"},
        "data": {"train": None, "format": "x"},
        "optim": {"name": "adamw", "lr": 0.0},
        "engine": {"precision": "fp16"},
        "batch": {"sequences": 7},
    }
    found = check(changes)
    places = [problem.where for problem in found]
    assert places == [
        "optim.lr",
        "model.attention",
        "data.train",
        "data.format",
        "engine.precision",
        "batch.sequences",
    ]
    assert found == check(changes)
    assert all(problem.hint for problem in found)


def test_checking_changes_nothing() -> None:
    config = make_config(**sections())
    before = conversion.to_dict(config)
    checks.check(config, world_size=3, has_gpu=False)
    assert conversion.to_dict(config) == before


def test_beside_leaves_out_what_follows_from_a_slip() -> None:
    found = [Problem("batch.tokns", "unknown key", "did you mean 'batch.tokens'?")]
    checked = [Problem("batch", "give tokens"), Problem("data.train", "no training data")]
    assert checks.beside(found, checked) == [found[0], checked[1]]
    moved = [Problem("lr", "unknown key", "did you mean 'optim.lr'?")]
    assert checks.beside(moved, [Problem("optim.lr", "out of range")]) == moved
    assert checks.beside([], checked) == checked


def test_default_config_is_incomplete_in_a_known_way() -> None:
    found = checks.check(schema.Config(), world_size=None, has_gpu=False)
    assert [p.where for p in found] == ["model.name", "data.train", "train", "batch"]


@pytest.mark.parametrize(
    ("content", "count"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "opt", "max_position_embeddings": 2048, "pad_token_id": 1}, 2048),
        ({"model_type": "mpt", "max_seq_len": 2048}, 2048),
        ({"model_type": "deberta-v2", "max_position_embeddings": 512}, 512),
        (
            {
                "model_type": "deberta-v2",
                "max_position_embeddings": 512,
                "position_biased_input": False,
            },
            None,
        ),
        ({"model_type": "llama", "max_position_embeddings": 4096}, None),
        ({"model_type": "gemma4", "text_config": {"max_position_embeddings": 4096}}, None),
        ({"model_type": "bert", "max_position_embeddings": "x"}, None),
        ({"model_type": "bert", "text_config": []}, None),
    ],
)
def test_texts_beyond_a_table_of_positions_are_refused(
    tmp_path: Path, content: dict[str, Any], count: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(content))

    def found(length: int) -> list[Problem]:
        changes = {"model": {"name": str(tmp_path)}, "data": {"max_length": length}}
        return check({**changes, "batch": {"sequences": 8}})

    if count is None:
        assert found(100_000) == []
        return
    assert found(count) == []
    (problem,) = found(count + 1)
    assert problem.where == "data.max_length"
    assert problem.found == f"{count + 1} is beyond the {count} positions of the model"
    assert problem.hint.startswith(f"data.max_length={count}, or")


@pytest.mark.parametrize("within", [False, True], ids=["a text model", "a text_config"])
@pytest.mark.parametrize(
    ("about", "method", "nf4", "where"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq", False, "model.name"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "bitsandbytes",
            True,
            "model.name",
        ),
        ({"load_in_4bit": True}, "bitsandbytes", False, "model.name"),
        ({"quant_method": "fp8"}, "fp8", True, "model.quantization"),
        ({"quant_method": "mxfp4"}, "mxfp4", False, None),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8", False, None),
    ],
)
def test_quantised_weights_that_cannot_be_trained(
    tmp_path: Path, about: dict[str, Any], method: str, nf4: bool, where: str | None, within: bool
) -> None:
    part = {"quantization_config": about}
    content = {"text_config": part} if within else part
    (tmp_path / "config.json").write_text(json.dumps(content))
    model = {"name": str(tmp_path), "quantization": "nf4" if nf4 else "none"}
    problems = check({"model": model}, has_gpu=True)
    found = [p for p in problems if method in p.found and str(tmp_path) in p.found]
    assert [problem.where for problem in found] == ([where] if where else [])


@pytest.mark.parametrize(
    ("name", "original"),
    [
        ("unsloth/Qwen3-4B-unsloth-bnb-4bit", "model.name=unsloth/Qwen3-4B;"),
        ("Qwen/Qwen3-8B-AWQ", "model.name=Qwen/Qwen3-8B"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "model.name=Qwen/Qwen2.5-7B-Instruct"),
        ("RedHatAI/Llama-3.1-8B-Instruct-quantized.w4a16", "Llama-3.1-8B-Instruct"),
        ("moonshotai/Kimi-K2.6", "model.name=<the original>"),
    ],
)
def test_the_hint_names_the_original_of_a_quantised_model(name: str, original: str) -> None:
    method = {"quant_method": "bitsandbytes" if "bnb" in name else "awq"}
    problem = quantized.problem(name, method, nf4=False)
    assert problem is not None
    assert f"{original}" in f"{problem.hint};"
    assert problem.hint.partition("model.name=")[2].rstrip(";").split(";")[0] != name


@pytest.mark.parametrize(("key", "value", "off"), [("dora", True, False), ("dropout", 0.1, 0.0)])
def test_what_fused_experts_do_not_have_is_known_from_config_json(
    tmp_path: Path, key: str, value: Any, off: Any
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mixtral", "num_local_experts": 4}')

    def found(**peft: Any) -> list[str]:
        changes = {"model": {"name": str(tmp_path)}, "peft": {"name": "lora", **peft}}
        return [problem.where for problem in check(changes)]

    assert found(**{key: value}) == [f"peft.{key}"]
    assert found(**{key: off}) == found(**{key: value}, experts=False) == []
    assert found(**{key: value}, targets=["q_proj"]) == []


def test_a_balance_of_experts_is_refused_where_it_cannot_be_learned(tmp_path: Path) -> None:
    def found(content: str, aux: float | None = 0.01, **changes: Any) -> list[tuple[str, str]]:
        (tmp_path / "config.json").write_text(content)
        model = {"name": str(tmp_path), **changes.pop("model", {})}
        sections = {"model": model, "train": {"steps": 1, "router_aux": aux}, **changes}
        return [(p.where, p.found) for p in check(sections) if p.where.startswith("train")]

    dense, mixture = '{"model_type": "llama"}', '{"model_type": "mixtral", "num_local_experts": 4}'
    assert found(dense) == [("train.router_aux", "0.01 for a model without experts")]
    assert found(dense, None) == found(dense, 0.0) == found(mixture) == []
    ((_, said),) = found(mixture, model={"compile": True})
    assert "model.compile=true" in said
    ((_, said),) = found(mixture, engine={"precision": "fp16"})
    assert "fp16" in said
    assert found(mixture, -1.0)[0][0] == "train.router_aux"


def test_keys_of_deepspeed_are_sorted_into_those_that_work_here_and_those_that_do_not() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    names = {field.alias or name for name, field in fields.items()}
    refused = {key.split(".")[1] for key in deepspeed_keys.REFUSED if key.count(".") == 1}
    known = set(deepspeed_keys.KNOWN["zero_optimization"])
    former = {"cpu_offload_use_pin_memory", "stage3_gather_fp16_weights_on_model_save"}
    assert names - former <= known | refused
    assert known <= names
