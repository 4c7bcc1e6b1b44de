"""Outputs of a model with a sequence head, one vector for each document of a row.

A decoder's documents stay packed: its head runs on their last tokens alone, inside the model's own
forward, so that ZeRO-3 gathers what it needs. Any other model gets its documents as a batch, with
SDPA in place of attention for packed rows, and pools them itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from launcher.model import attention
from launcher.model.adapter import inner_model
from launcher.model.classifier import reads_last_token
from launcher.model.head import ForwardInputs, RowTensors, packed_inputs, padded_inputs
from launcher.model.sequence_parallel import SequenceGroup


class SequenceOutputs:
    """Computes the outputs of `model`, a transformers or peft model; a `launcher.model.head.Head`.

    `caller` is what to call for a forward (the DeepSpeed engine while training).
    """

    hits: Tensor | None = None
    keeps_logits = False
    reads_whole = True

    def __init__(self, model: Any) -> None:
        self._ends: Tensor | None = None
        inner = inner_model(model)
        implementation = inner.config._attn_implementation
        self.isolates = attention.isolates(inner) and reads_last_token(type(inner))
        self.pads = True
        self.shares = False
        self.sequence: SequenceGroup | None = None
        self.layout = ""
        self.inputs = ForwardInputs(model)
        if self.isolates:
            self._model, self._own_forward = inner, inner.forward
            inner.forward = self._forward
        elif implementation in (attention.DOCUMENT, attention.VARLEN):
            inner.set_attn_implementation(attention.supported(type(inner), "sdpa"))
        self.pools = not reads_last_token(type(inner))
        self._padding = inner.config.get_text_config().pad_token_id or 0

    def outputs(self, caller: Any, row: RowTensors) -> Tensor:
        """fp32 [documents, outputs], with gradients."""
        if not self.isolates:
            padded = self.inputs.accepted(padded_inputs(row, self._padding))
            with attention.packed_row(None):
                logits: Tensor = caller(**padded).logits
            return logits.float()
        inputs, packed = packed_inputs(row, shares=self.shares)
        self._ends = packed.place(self._last_tokens(row))
        try:
            with attention.packed_row(packed.starts, packed.keys):
                own = self.inputs.accepted({**inputs, "use_cache": False})
                logits = caller(**own).logits
        finally:
            self._ends = None
        return logits.float()

    @torch.no_grad()
    def probe(self, caller: Any, row: RowTensors) -> Tensor:
        """Logarithms of the shares that softmax gives the outputs, or of what sigmoid makes of a
        single one: fp32 [documents, outputs]."""
        outputs = self.outputs(caller, row)
        if outputs.shape[-1] == 1:
            return nn.functional.logsigmoid(outputs)
        return outputs.log_softmax(-1)

    def documents_of_probe(self, row: RowTensors) -> Tensor:
        """Which document each row of `probe` is of."""
        return torch.arange(len(row.document_starts) - 1, device=row.input_ids.device)

    def _last_tokens(self, row: RowTensors) -> Tensor:
        """int64 [documents]: where each one is read, as transformers' own forward has it: at its
        last token that is not the padding token, which some tokenizer puts at the end."""
        ids, starts = row.input_ids, row.document_starts.long()
        positions = torch.arange(len(ids), device=ids.device).masked_fill(ids == self._padding, -1)
        last = positions.cummax(0).values[starts[1:] - 1]
        return torch.maximum(last, starts[:-1])

    def _forward(self, *args: Any, **inputs: Any) -> Any:
        """The model's forward, with its head on the last tokens of the documents only."""
        if self._ends is None:
            return self._own_forward(*args, **inputs)
        from transformers.modeling_outputs import SequenceClassifierOutput

        inputs.pop("labels", None)  # peft hands them on, empty
        body: nn.Module = getattr(self._model, self._model.base_model_prefix)
        hidden = body(*args, **inputs).last_hidden_state
        return SequenceClassifierOutput(logits=self._model.score(hidden[0, self._ends]))
