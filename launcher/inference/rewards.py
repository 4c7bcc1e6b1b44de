"""A reward model's folder, opened to reward many answers at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from launcher.config.schema import ModelConfig
from launcher.core.files import read_json
from launcher.data.tokenizer import load_tokenizer
from launcher.evals.runner import plan_batches
from launcher.inference.speaker import quiet
from launcher.model.sequence_head import SequenceHead
from launcher.model.verify import open_export
from launcher.objectives.preference.reward import OUTPUT, PROBLEM
from launcher.objectives.preference.reward_export import rewarded_tokens

#: Most tokens of a batch, padding included.
_BATCH_TOKENS = 16_384


class RewardModel:
    """The export of a run with objective=reward, on the GPU if there is one."""

    def __init__(self, folder: Path) -> None:
        """Open the model, in fp32 on a CPU and bf16 on a GPU."""
        quiet()
        self._folder = folder
        self._tokenizer = load_tokenizer(ModelConfig(name=str(folder)))
        adapter = read_json(folder / "adapter_config.json")
        has_gpu = torch.cuda.is_available()
        self._model = open_export(
            folder,
            Path(adapter["base_model_name_or_path"]) if adapter else folder,
            dtype=torch.bfloat16 if has_gpu else torch.float32,
            num_tokens=len(self._tokenizer),
            trust_remote_code=False,
            head=SequenceHead((OUTPUT,), PROBLEM),
        ).to("cuda" if has_gpu else "cpu")

    def tokens(self, prompt: str, answer: str) -> list[int]:
        """An answer as tokens; `DataError` if it cannot be laid out."""
        return rewarded_tokens(self._folder, self._tokenizer, prompt, answer)

    def rewards(self, documents: Sequence[list[int]]) -> list[float]:
        """The reward of each."""
        found = [0.0] * len(documents)
        lengths = list(map(len, documents))
        for batch in plan_batches(lengths, batch_tokens=_BATCH_TOKENS, new_tokens=0):
            rewards = self._batch([documents[position] for position in batch.positions])
            for position, reward in zip(batch.positions, rewards, strict=True):
                found[position] = reward
        return found

    def _batch(self, documents: Sequence[list[int]]) -> list[float]:
        # transformers reads the reward at the last token that is not the padding: none may end so.
        ends = {document[-1] for document in documents}
        padding = next(token for token in range(len(ends) + 1) if token not in ends)
        self._model.config.get_text_config().pad_token_id = padding
        tokens = torch.full((len(documents), max(map(len, documents))), padding)
        mask = torch.zeros_like(tokens)
        for row, document in enumerate(documents):
            tokens[row, : len(document)] = torch.tensor(document)
            mask[row, : len(document)] = 1
        device = self._model.device
        with torch.inference_mode():
            outputs = self._model(input_ids=tokens.to(device), attention_mask=mask.to(device))
        rewards: list[float] = outputs.logits[:, 0].float().tolist()
        return rewards
