"""TRL's SFTTrainer, set up as `gpu_child.ours` is; imported only where TRL is installed."""

from __future__ import annotations

import importlib.util
import time
from typing import Any

import datasets
import gpu_models
import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Clock(TrainerCallback):
    """When each optimizer step ended, and the tokens seen by then."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.tokens: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Wait for the device, as the launcher does when it reads the loss."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.time())
        self.tokens.append(int(state.num_input_tokens_seen))


def attention(job: dict[str, Any]) -> str:
    """The attention that TRL packs for, where it is installed; else what keeps documents apart."""
    flash = job["device"] == "cuda" and importlib.util.find_spec("flash_attn")
    return "flash_attention_2" if flash else "sdpa"


def make(job: dict[str, Any], records: list[Any]) -> tuple[SFTTrainer, Clock]:
    """The trainer, ready to train, and its clock."""
    on_gpu = job["device"] == "cuda"
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, "<unk>")),
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
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
    clock = Clock()
    trainer = SFTTrainer(
        model=model,
        args=_settings(job, on_gpu),
        train_dataset=data,
        processing_class=tokenizer,
        peft_config=_lora() if job["method"] == "lora" else None,
        callbacks=[clock],
    )
    return trainer, clock


def _lora() -> Any:
    import peft

    return peft.LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")


def _settings(job: dict[str, Any], on_gpu: bool) -> SFTConfig:
    adamw = {"lr": 1e-5, "torch_adam": True, "fused": True}
    return SFTConfig(
        output_dir=f"{job['folder']}/trl",
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
        gradient_checkpointing=job["checkpointing"] == "on",
        gradient_checkpointing_kwargs={"use_reentrant": False},
        include_num_input_tokens_seen="non_padding",
        ddp_backend="nccl" if on_gpu else "gloo",
        deepspeed={
            "zero_optimization": {"stage": job["zero"]},
            "bf16": {"enabled": on_gpu},
            "train_micro_batch_size_per_gpu": "auto",
            "gradient_accumulation_steps": "auto",
            "gradient_clipping": 1.0,
            "optimizer": {"type": "AdamW", "params": adamw},
        },
    )
