"""What is wrong with a classifier's config."""

from __future__ import annotations

import math
from collections.abc import Iterator

from launcher.config.derive import architecture
from launcher.config.schema import Attention, ClassifyConfig, Config, Overlong, SpecialTokens
from launcher.core.errors import Problem


def check(config: Config, objective: ClassifyConfig) -> Iterator[Problem]:
    """Problems of `objective=classify` with the rest of the config."""
    yield from _data(config)
    if objective.out_of_scope is not None and config.eval.name == "none":
        hint = "its threshold is chosen on held-out records: eval=default"
        yield Problem("objective.out_of_scope", "given with eval=none", hint)
    if config.train.token_accuracy:
        hint = "it has no target tokens, but eval.metrics=[accuracy]: train.token_accuracy=false"
        yield Problem("train.token_accuracy", "true with objective=classify", hint)
    if objective.multi_label and objective.out_of_scope is not None:
        hint = "a text of no class has an empty list of labels: leave objective.out_of_scope out"
        yield Problem("objective.out_of_scope", "given with objective.multi_label=true", hint)
    weights = objective.class_weights
    if weights is not None and weights != "balanced" and not _are_weights(weights):
        hint = (
            "objective.class_weights=balanced, or a weight above 0 of each name: {spam: 2, ham: 1}"
        )
        yield Problem("objective.class_weights", f"{weights!r} are no weights", hint)


def _data(config: Config) -> Iterator[Problem]:
    data = config.data
    if data.format not in ("auto", "classification") and not data.format.endswith(".py"):
        hint = "classes come from records {text, label}: data=classification, or objective=sft"
        yield Problem("data.format", f"{data.format} with objective=classify", hint)
    if data.system is not None:
        hint = "a classifier reads the text alone: leave data.system out"
        yield Problem("data.system", "a system message with objective=classify", hint)
    if data.special_tokens is SpecialTokens.text:
        hint = "it reads texts as its tokenizer does, so that others can: data.special_tokens=auto"
        yield Problem("data.special_tokens", "text with objective=classify", hint)
    if data.overlong is Overlong.split:
        hint = "a label is of the whole text: data.overlong=truncate or drop"
        yield Problem("data.overlong", "split with objective=classify", hint)
    if architecture.is_encoder(config.model):
        if data.packing:
            hint = "its texts are padded, not packed: data.packing=false"
            found = f"true with {config.model.name}, which is no decoder"
            yield Problem("data.packing", found, hint)
        if config.model.attention in (Attention.document, Attention.varlen):
            hint = "model.attention=auto (sdpa) for a model that reads in both directions"
            yield Problem("model.attention", config.model.attention.name, hint)


def _are_weights(weights: object) -> bool:
    return (
        isinstance(weights, dict)
        and bool(weights)
        and all(
            isinstance(weight, int | float) and math.isfinite(weight) and weight > 0
            for weight in weights.values()
        )
    )
