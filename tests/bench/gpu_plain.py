"""A hand-written training loop for one GPU, for comparison: what a good plain script reaches.

bf16 weights with fp32 masters under torch's fused AdamW, torch's varlen attention for packed rows,
transformers' own loss over all logits. On a CPU everything is fp32, and SDPA gets a mask.
"""

from __future__ import annotations

from typing import Any

import gpu_models
import torch
from transformers import AttentionInterface, AutoModelForCausalLM

VARLEN = "plain_varlen"


def attention(device: str) -> str:
    """Which attention it has, in words."""
    return "varlen" if device == "cuda" else "sdpa"


def varlen(
    module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: Any = None, **options: Any
) -> tuple[torch.Tensor, None]:
    """query [1, H, N, D], key and value [1, K, N, D] -> [1, N, H, D], causal within documents."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    starts, longest = options["cu_seq_lens_q"], options["max_length_q"]
    out = varlen_attn(q, k, v, starts, starts, longest, longest, scale=scaling, window_size=(-1, 0))
    return out.unsqueeze(0), None


def lora() -> Any:
    """Adapters of rank 16 in every linear layer, as the launcher's `peft=lora` has them."""
    import peft

    return peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")


class Loop:
    """Model, masters and optimizer."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.device = torch.device(job["device"])
        on_gpu = self.device.type == "cuda"
        AttentionInterface.register(VARLEN, varlen)
        self.model = AutoModelForCausalLM.from_pretrained(
            job["folder"],
            dtype=torch.bfloat16 if on_gpu else torch.float32,
            attn_implementation=VARLEN if on_gpu else "sdpa",
        ).to(self.device)
        gpu_models.randomise(self.model)
        self.model.config.use_cache = False
        if job["checkpointing"]:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if job["method"] == "lora":
            import peft

            self.model = peft.get_peft_model(self.model, lora())
            self.model.to(self.model.dtype)  # adapters, too
        self.model.train()
        self.weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.masters = [w.detach().clone().float().requires_grad_() for w in self.weights]
        self.optimizer = torch.optim.AdamW(self.masters, lr=1e-5, fused=True)

    def step(self, rows: list[Any]) -> None:
        """An optimizer step over `rows`, each a line of packed documents."""
        targets = sum(len(row.targets) for row in rows)
        for row in rows:
            self._loss(row, targets).backward()
        for weight, master in zip(self.weights, self.masters, strict=True):
            master.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_copy_(self.weights, self.masters)

    def _loss(self, row: Any, targets: int) -> torch.Tensor:
        row = row.to(self.device)
        labels = torch.full_like(row.input_ids, -100)
        labels[row.target_index + 1] = row.targets
        packed = {}
        if self.device.type == "cuda":
            packed = {"cu_seq_lens_q": row.document_starts, "max_length_q": row.longest}
        out = self.model(
            input_ids=row.input_ids.unsqueeze(0),
            position_ids=row.position_ids.unsqueeze(0),
            labels=labels.unsqueeze(0),
            num_items_in_batch=targets,
            **packed,
        )
        loss: torch.Tensor = out.loss
        return loss
