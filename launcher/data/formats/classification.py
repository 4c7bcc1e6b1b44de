"""{"text": ..., "label": ...}: the class of a text, or a list of its classes.

objective=sft learns to answer with the name, objective=classify trains a head on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.data.formats.base import BadRecord, Labelled, kind, text_field

#: More digits are no index of a class.
MAX_DIGITS = 12


class ClassificationFormat:
    """A text and its class, by name or by index; `data.labels` gives indices their names."""

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether there is a text with a label."""
        return "text" in record and "label" in record

    def read(self, record: Mapping[str, Any]) -> Labelled:
        """The text as the prompt, the label as the completion."""
        text = text_field(record, "text")
        if not text.strip():
            raise BadRecord("the text is empty", hint="remove the record, or skip bad ones")
        if "label" not in record:
            text_field(record, "label")
        label = record["label"]
        if isinstance(label, list):
            names = tuple(sorted({_name(one) for one in label}))
            return Labelled(text, ", ".join(names), names)
        return Labelled(text, _name(label))


def _name(label: Any) -> str:
    if isinstance(label, int) and not isinstance(label, bool):
        return str(label)
    if not isinstance(label, str):
        raise BadRecord(
            f"field 'label' is {kind(label)}, neither a name nor an index",
            hint="write the class as text, or as an index into data.labels",
        )
    if not label.strip():
        raise BadRecord("the label is empty", hint="remove the record, or skip bad ones")
    return label


def name_label(label: Any, names: list[str]) -> Any:
    """The name of class `label` where it is an index (in CSV, digits); otherwise `label` itself.

    A list gives a list.
    """
    if isinstance(label, list):
        return [name_label(one, names) for one in label]
    if label in names or isinstance(label, bool):
        return label
    digits = isinstance(label, str) and label.strip().isdecimal() and len(label) < MAX_DIGITS
    if not isinstance(label, int) and not digits:
        if isinstance(label, str):
            raise BadRecord(
                f"label {label[:100]!r} is not in data.labels",
                hint=f"add it, or correct the record; there are: {', '.join(names[:20])}",
            )
        return label
    index = int(label)
    if not 0 <= index < len(names):
        raise BadRecord(
            f"label {index} is no index into data.labels, which has {len(names)} names",
            hint="indices count from 0",
        )
    return names[index]
