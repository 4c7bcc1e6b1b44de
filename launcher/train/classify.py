"""Naming the classes of texts with the model of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from launcher.config.classes import OUT_OF_SCOPE, Classes
from launcher.errors import DataError
from launcher.rundir import RunDir, read_json
from launcher.train.command import note

#: A text out of scope, or without any class.
NONE = "(none)"


def require_texts(texts: Sequence[str], where: str) -> None:
    """`DataError` for a text with nothing in it."""
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            hint = "a label is of a text: give one a line on stdin, or one for each -p"
            raise DataError(f"text {number} is empty", where=where, hint=hint)


def threshold_of(run: RunDir, classes: Classes, base: bool, checkpoint: int | None) -> float:
    """The threshold that the run's evaluation has chosen for the model; says where there is none.

    That of a checkpoint is the one of the run's end.
    """
    if classes.out_of_scope is None:
        return 0.0
    path = run.eval / ("base.json" if base else "tuned.json")
    found = read_json(path, {}).get("threshold")
    if found is None:
        note(f"warning: {path} has no threshold: no text is named {classes.out_of_scope}")
        return 0.0
    if checkpoint is not None and not base:
        note(f"note: the threshold for {classes.out_of_scope} is that of the run's end")
    return float(found)


def classify(
    classes: Classes,
    threshold: float,
    model: Any,
    tokenizer: Any,
    texts: Iterable[str],
    longest: int,
) -> Iterator[tuple[str, float]]:
    """Label and its probability of each text; of several that may apply, all above 1/2 and the
    largest probability.

    A text whose probability is below `threshold` is out of scope.
    """
    for text in texts:
        tokens = tokenizer(text, return_tensors="pt", truncation=True, max_length=longest)
        inputs = {name: tokens[name].to(model.device) for name in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            logits = model(**inputs).logits[0].float()
        chances = logits.sigmoid() if classes.multi_label else logits.softmax(-1)
        highest = float(chances.max())
        if classes.multi_label:
            named = torch.nonzero(chances > 0.5).flatten().tolist()
        else:
            named = [int(chances.argmax()) if highest >= threshold else OUT_OF_SCOPE]
        yield classes.text(named) or NONE, highest
