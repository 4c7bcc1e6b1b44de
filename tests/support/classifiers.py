"""Classifiers for tests: an objective whose classes are known without data."""

from __future__ import annotations

from typing import Any

from launcher.config.schema import ClassifyConfig
from launcher.objectives.classify.classes import Classes
from launcher.objectives.classify.objective import Classify


def classes_of(names: list[str], **changes: Any) -> Classes:
    """Classes of these names, one record each."""
    known: dict[str, Any] = {"multi_label": False, "out_of_scope": None, "usual": [0]}
    known |= {"records": [1] * len(names), "weights": None}
    return Classes(names=names, **{**known, **changes})


def classify(classes: Classes) -> Classify:
    """The objective that tells `classes` apart."""
    options = ClassifyConfig(multi_label=classes.multi_label, out_of_scope=classes.out_of_scope)
    objective = Classify(options)
    objective.restore(classes.as_dict())
    objective.spec = objective.sequence_head()
    return objective
