"""Hints for keys that do not exist: near spellings, same endings, words of other tools."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from launcher.core.errors import Problem, some_of

#: what people type from habit -> where it is here.
HABITS = {
    "attn_implementation": "model.attention",
    "batch_size": "batch.sequences",
    "bf16": "engine.precision",
    "chat_template_kwargs": "data.template_options",
    "dataset": "data.train",
    "early_stopping_patience": "train.early_stop.patience",
    "early_stopping_threshold": "train.early_stop.min_change",
    "epochs": "train.epochs",
    "eval_steps": "eval.every_steps",
    "fp16": "engine.precision",
    "gradient_accumulation_steps": "batch.sequences",
    "learning_rate": "optim.lr",
    "load_in_4bit": "model.quantization",
    "load_best_model_at_end": "export.weights",
    "lora_alpha": "peft.alpha",
    "lora_dropout": "peft.dropout",
    "lora_r": "peft.rank",
    "lr_scheduler_type": "schedule.name",
    "max_grad_norm": "optim.clip_norm",
    "max_seq_length": "data.max_length",
    "max_steps": "train.steps",
    "metric_for_best_model": "train.early_stop.metric",
    "micro_batch_size": "batch.micro",
    "model_name_or_path": "model.name",
    "num_train_epochs": "train.epochs",
    "output_dir": "run.root",
    "per_device_train_batch_size": "batch.micro",
    "save_steps": "checkpoint.every_steps",
    "save_total_limit": "checkpoint.keep_last",
    "sequence_len": "data.max_length",
    "target_modules": "peft.targets",
    "warmup_ratio": "schedule.warmup",
    "warmup_steps": "schedule.warmup",
}


def near_keys(key: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The dotted keys closest to `key`, best first."""
    known = list(known)
    last = key.rpartition(".")[2]
    found = [HABITS[last]] if last in HABITS else []
    found += [name for name in known if name.rpartition(".")[2] == last]
    found += difflib.get_close_matches(key, known, n=count, cutoff=0.75)
    if not found:
        ends: dict[str, list[str]] = {}
        for name in known:
            ends.setdefault(name.rpartition(".")[2], []).append(name)
        close = difflib.get_close_matches(last, list(ends), n=count, cutoff=0.75)
        found = [name for end in close for name in ends[end]]
    ranked = sorted(
        dict.fromkeys(found), key=lambda name: -difflib.SequenceMatcher(None, key, name).ratio()
    )
    if last in HABITS:
        ranked.remove(HABITS[last])
        ranked.insert(0, HABITS[last])
    return ranked[:count]


def unknown_key(key: str, value: Any, known: Iterable[str], owners: Iterable[str] = ()) -> Problem:
    """The problem of a key that does not exist, or not in the chosen option of its group."""
    section = key.partition(".")[0]
    owners = list(owners)
    if owners:
        choices = " or ".join(f"{section}={name}" for name in owners)
        return Problem(
            key, f"not an option of the chosen {section} (got {value!r})", f"add {choices}"
        )
    if key == "experiment":
        hint = "a recipe begins with the line `# @package _global_`"
        return Problem(key, "is a group, not a section of the config", hint)
    known = list(known)
    close = near_keys(key, known)
    if close:
        hint = f"did you mean {' or '.join(repr(name) for name in close)}?"
    else:
        inside = [name for name in known if name.startswith(f"{section}.")]
        hint = (
            f"keys of {section}: {some_of(inside, key)} (`launcher config` prints all)"
            if inside
            else "`launcher config` prints all keys"
        )
    return Problem(key, f"unknown key (got {value!r})", hint)
