"""What is wrong with a classifier's config."""

from __future__ import annotations

import math
from collections.abc import Iterator

from launcher.config.derive import architecture
from launcher.config.schema import Attention, ClassifyConfig, Config, Overlong, SpecialTokens
from launcher.errors import Problem

#: Metrics of a classifier, besides the loss.
METRICS = ("accuracy", "f1_macro", "f1_micro", "ece", "auroc", "oos_recall", "in_scope_accuracy")
#: Those that compare texts in scope with texts out of it.
_OUT_OF_SCOPE = ("auroc", "oos_recall", "in_scope_accuracy")
#: Those of one probability for each text.
_ONE_CLASS = ("ece", *_OUT_OF_SCOPE)


def check(config: Config) -> Iterator[Problem]:
    """Problems of `objective=classify` with the rest of the config."""
    objective = config.objective
    if not isinstance(objective, ClassifyConfig):
        for name in METRICS:
            if name in config.eval.metrics:
                hint = "it judges a classifier: objective=classify, or leave it out"
                found = f"{name} with objective={objective.name}"
                yield Problem("eval.metrics", found, hint)
        return
    yield from _data(config)
    yield from _metrics(config, objective)
    if config.train.token_accuracy:
        hint = "a classifier has no target tokens: eval.metrics=[accuracy] judges its classes"
        yield Problem("train.token_accuracy", "true with objective=classify", hint)
    if objective.multi_label and objective.out_of_scope is not None:
        hint = "a text of no class has an empty list of labels: leave objective.out_of_scope out"
        yield Problem("objective.out_of_scope", "given with objective.multi_label=true", hint)
    weights = objective.class_weights
    if weights is not None and weights != "balanced" and not _are_weights(weights):
        hint = "balanced, or a weight above 0 for each name: {spam: 2, other: 1}"
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
        hint = "it reads texts as its tokenizer does, so that others can: leave it at auto"
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


def _metrics(config: Config, objective: ClassifyConfig) -> Iterator[Problem]:
    for name in config.eval.metrics:
        if name not in (*METRICS, "loss"):
            hint = f"metrics of a classifier are loss, {', '.join(METRICS)}: eval=classify"
            yield Problem("eval.metrics", f"{name} with objective=classify", hint)
        elif name in _ONE_CLASS and objective.multi_label:
            hint = "accuracy, f1_macro and f1_micro judge several classes a text"
            yield Problem("eval.metrics", f"{name} with objective.multi_label=true", hint)
        elif name in _OUT_OF_SCOPE and objective.out_of_scope is None:
            hint = "name the label of texts without a class, e.g. objective.out_of_scope=oos"
            yield Problem("eval.metrics", f"{name} without objective.out_of_scope", hint)
    if objective.out_of_scope is not None and config.eval.name == "none":
        hint = "its threshold is chosen on held-out records: eval=classify"
        yield Problem("objective.out_of_scope", "given with eval=none", hint)


def _are_weights(weights: object) -> bool:
    return (
        isinstance(weights, dict)
        and bool(weights)
        and all(
            isinstance(weight, int | float) and math.isfinite(weight) and weight > 0
            for weight in weights.values()
        )
    )
