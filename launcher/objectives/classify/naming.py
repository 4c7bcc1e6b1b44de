"""Naming the classes of texts with the model of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from launcher.evals.records import OUT_OF_SCOPE
from launcher.objectives.classify.classes import Classes

#: A text out of scope, or without any class.
NONE = "(none)"


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
    import torch

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
