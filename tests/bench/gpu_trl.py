"""TRL's SFTTrainer, set up as `gpu_child.ours` is, with or without Liger's kernels.

Imported only where TRL is installed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import datasets
import gpu_models
import gpu_plain
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """Tells `tick` of the end of each optimizer step and of the tokens seen by then."""

    def __init__(self, tick: Callable[[int], None]) -> None:
        self.tick = tick

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The launcher too is waited for after each step."""
        self.tick(int(state.num_input_tokens_seen))


def attention(job: dict[str, Any]) -> str:
    """The attention that TRL packs for, where it is installed; else what keeps documents apart."""
    flash = job["device"] == "cuda" and importlib.util.find_spec("flash_attn")
    return "flash_attention_2" if flash else "sdpa"


def make(job: dict[str, Any], records: list[Any], tick: Callable[[int], None]) -> SFTTrainer:
    """The trainer, ready to train."""
    on_gpu = job["device"] == "cuda"
    tokenizer = AutoTokenizer.from_pretrained(job["folder"])
    data = datasets.Dataset.from_dict(
        {
            "input_ids": [ids.tolist() for ids, _ in records],
            "labels": [
                [int(token) if learned else -100 for token, learned in zip(ids, flags, strict=True)]
                for ids, flags in records
            ],
        }
    )
    model = AutoModelForCausalLM.from_pretrained(
        job["folder"],
        dtype=torch.bfloat16 if on_gpu else torch.float32,
        attn_implementation=attention(job),
    )
    gpu_models.randomise(model.to(job["device"]))
    return SFTTrainer(
        model=model,
        args=_settings(job, on_gpu),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=gpu_plain.lora() if job["method"] == "lora" else None,
        callbacks=[Clock(tick)],
    )


def _settings(job: dict[str, Any], on_gpu: bool) -> SFTConfig:
    adamw = {"lr": 1e-5, "torch_adam": True, "fused": True}
    return SFTConfig(
        output_dir=f"{job['scratch']}/trl",
        use_liger_kernel=job["tool"] == "trl-liger",
        max_steps=job["steps"],
        per_device_train_batch_size=job["micro"],
        gradient_accumulation_steps=job["sequences"] // job["micro"],
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        max_length=job["length"],
        packing=True,
        logging_steps=10**6,
        report_to=[],
        save_strategy="no",
        use_cpu=not on_gpu,
        bf16=on_gpu,
        gradient_checkpointing=job["checkpointing"],
        gradient_checkpointing_kwargs={"use_reentrant": False},
        include_num_input_tokens_seen="non_padding",
        ddp_backend="nccl" if on_gpu else "gloo",
        deepspeed={
            "zero_optimization": {"stage": 2},
            "bf16": {"enabled": on_gpu},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": 1.0,
            "optimizer": {"type": "AdamW", "params": adamw},
        },
    )
