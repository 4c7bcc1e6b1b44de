"""The least of a causal language model and of a row, for tests of the head."""

from types import SimpleNamespace

import torch

from launcher.model.attention import DOCUMENT


class Tiny(torch.nn.Module):
    """The shape of a causal language model: embedding, head, optional change of the logits."""

    def __init__(self, vocab, width, bias, after=None):
        super().__init__()
        self.embed = torch.nn.Embedding(vocab, width)
        self.lm_head = torch.nn.Linear(width, vocab, bias=bias)
        self.after = after
        self.config = SimpleNamespace(_attn_implementation=DOCUMENT)

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, input_ids, logits_to_keep=None, **kwargs):
        hidden = self.embed(input_ids)
        if logits_to_keep is not None:
            hidden = hidden[:, logits_to_keep]
        logits = self.lm_head(hidden)
        return SimpleNamespace(logits=self.after(logits) if self.after else logits)


def row_of(tokens, learned):
    index = torch.tensor([i for i, flag in enumerate(learned[1:]) if flag], dtype=torch.long)
    ids = torch.tensor(tokens)
    return SimpleNamespace(
        input_ids=ids,
        position_ids=torch.arange(len(tokens)),
        document_starts=torch.tensor([0, len(tokens)], dtype=torch.int32),
        target_index=index,
        targets=ids[index + 1],
        longest=len(tokens),
        weights=None,
    )
