"""Losses and logits of a classifier, one for each document of a row.

A decoder's documents stay packed: its head runs on their last tokens alone, inside the model's own
forward, so that ZeRO-3 gathers what it needs. Any other model gets its documents as a batch, with
SDPA in place of attention for packed rows, and pools them itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from launcher.config.classes import OUT_OF_SCOPE, Classes
from launcher.model import attention
from launcher.model.adapter import inner_model
from launcher.model.classifier import reads_last_token
from launcher.model.head import ForwardInputs, Row, TargetHead, packed_inputs, padded_inputs


class ClassHead:
    """Computes losses of the classifier `model`, a transformers or peft model.

    `caller` is what to call for a forward (the DeepSpeed engine while training).
    """

    hits: Tensor | None = None
    """There are no target tokens to count, as `TargetHead.hits` does."""

    def __init__(self, model: Any, classes: Classes) -> None:
        self._multi = classes.multi_label
        self._weights = torch.tensor(classes.weights) if classes.weights else None
        self._ends: Tensor | None = None
        inner = inner_model(model)
        implementation = inner.config._attn_implementation
        self.isolates = attention.isolates(inner) and reads_last_token(type(inner))
        """Whether the documents of a row lie side by side; otherwise each is padded to a line."""
        self.pads = True
        """Whether documents of several lengths may be lines of one batch, where each is a line."""
        self.layout = ""
        """How documents are kept apart, as `launcher.train.isolation` has found out."""
        self.inputs = ForwardInputs(model)
        if self.isolates:
            self._model, self._own_forward = inner, inner.forward
            inner.forward = self._forward
        elif implementation in (attention.DOCUMENT, attention.VARLEN):
            inner.set_attn_implementation(attention.supported(type(inner), "sdpa"))
        self._padding = inner.config.get_text_config().pad_token_id or 0

    def loss(self, caller: Any, row: Row) -> Tensor:
        """Sum over the row's documents of their (weighted) losses in nats: fp32 with gradients."""
        losses = self._losses(self._logits(caller, row), row.targets, self._weights)
        return losses.sum() if row.weights is None else losses @ row.weights

    @torch.no_grad()
    def score(self, caller: Any, row: Row) -> tuple[Tensor, Tensor]:
        """Per document: loss without class weights, fp32 [D]; probabilities, fp32 [D, classes]."""
        logits = self._logits(caller, row)
        chances = logits.sigmoid() if self._multi else logits.softmax(-1)
        return self._losses(logits, row.targets, None), chances

    def _losses(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        logits = logits[: len(targets)]  # of a row without targets nothing is learned
        if not self._multi:
            # Class weights of single labels are in the row's weights.
            return functional.cross_entropy(
                logits, targets, reduction="none", ignore_index=OUT_OF_SCOPE
            )
        positive = None if weights is None else weights.to(logits.device)
        each = functional.binary_cross_entropy_with_logits(
            logits, targets, reduction="none", pos_weight=positive
        )
        return each.mean(-1)

    def _logits(self, caller: Any, row: Row) -> Tensor:
        """fp32 [documents, classes]."""
        if not self.isolates:
            padded = self.inputs.accepted(padded_inputs(row, self._padding))
            with attention.packed_row(None):
                logits: Tensor = caller(**padded).logits
            return logits.float()
        self._ends = self._last_tokens(row)
        try:
            with attention.packed_row(row.document_starts):
                own = self.inputs.accepted({**packed_inputs(row), "use_cache": False})
                logits = caller(**own).logits
        finally:
            self._ends = None
        return logits.float()

    def _last_tokens(self, row: Row) -> Tensor:
        """int64 [documents]: where each one is read, as transformers' own forward has it: at its
        last token that is not the padding token, which some tokenizer puts at the end."""
        ids = row.input_ids
        positions = torch.arange(len(ids), device=ids.device).masked_fill(ids == self._padding, -1)
        last = positions.cummax(0).values[row.target_index]
        return torch.maximum(last, row.document_starts[:-1].long())

    def _forward(self, *args: Any, **inputs: Any) -> Any:
        """The model's forward, with its head on the last tokens of the documents only."""
        if self._ends is None:
            return self._own_forward(*args, **inputs)
        from transformers.modeling_outputs import SequenceClassifierOutput

        inputs.pop("labels", None)  # peft hands them on, empty
        body: nn.Module = getattr(self._model, self._model.base_model_prefix)
        hidden = body(*args, **inputs).last_hidden_state
        return SequenceClassifierOutput(logits=self._model.score(hidden[0, self._ends]))


def make_head(
    model: Any, classes: Classes | None, *, counts_hits: bool = False
) -> TargetHead | ClassHead:
    """What computes the losses of `model`: of a classifier with `classes`, or of its tokens."""
    if classes is not None:
        return ClassHead(model, classes)
    return TargetHead(model, counts_hits=counts_hits)
