"""A small model that ends its answers soon, and environments that answer it."""

from __future__ import annotations

from pathlib import Path

from support.models import make_llama

#: Asks for a sum, and once more; the score is how often an answer has an even number of characters.
CALCULATOR = """
class Environment:
    def reset(self, item):
        self.turns, self.even = 0, 0
        return [{"role": "user", "content": f"{item['left']} + {item['right']} ="}]

    def step(self, message):
        self.turns += 1
        self.even += len(message["content"]) % 2 == 0
        if self.turns == 2:
            return None
        return [{"role": "user", "content": f"You said {message['content'][:9]}. Again?"}]

    def score(self):
        return self.even
"""


def make_speaker(folder: Path, end: float = 5.0) -> Path:
    """A random Llama with a chat template that ends a turn after a few tokens; returns the
    folder. `end`: how much likelier the end token is than others, as a logit."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_llama(folder, initializer_range=0.1, max_position_embeddings=512)
    model = AutoModelForCausalLM.from_pretrained(folder)
    (token,) = AutoTokenizer.from_pretrained(folder)("<|end|>", add_special_tokens=False)[
        "input_ids"
    ]
    with torch.no_grad():
        # One width that all tokens have, and that nothing but the end token reads.
        model.model.embed_tokens.weight[:, 0] = 1.0
        model.lm_head.weight[:, 0] = 0.0
        ids = torch.arange(len(model.lm_head.weight))[None, :200]
        seen = model.model(ids).last_hidden_state[0, :, 0].mean()
        model.lm_head.weight[token] *= 0
        model.lm_head.weight[token, 0] = end / seen
    model.save_pretrained(folder)
    return folder
