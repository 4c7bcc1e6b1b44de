"""Preference tuning as TRL's users get it, a peer of `preference.py`; needs trl, not the launcher.

usage: python preference_trl.py equal MODEL PAIRS.jsonl OBJECTIVE OPTIONS_JSON STEPS BATCH
       torchrun --nproc-per-node 2 preference_trl.py speed MODEL PAIRS.jsonl full|lora STEPS BATCH

`equal` takes the pairs in their order on one process, in fp32, and prints `RESULT {json}` with
the losses and gradient norms of the steps. `speed` trains under DeepSpeed ZeRO-2 on CPU ranks and
prints tokens (without padding) a second over steps 4 to the last, and the peak resident size.
"""

import json
import resource
import sys
import tempfile
import time

import torch
from datasets import load_dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

START = time.time()


class Clock(TrainerCallback):
    """When each step ended, and how many tokens had been seen."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append((time.time(), state.num_input_tokens_seen))


def classes(objective):
    """Config and trainer of an objective."""
    if objective == "dpo":
        from trl import DPOConfig, DPOTrainer

        return DPOConfig, DPOTrainer
    if objective == "reward":
        from trl import RewardConfig, RewardTrainer

        return RewardConfig, RewardTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return CPOConfig, CPOTrainer


def common(folder, steps, batch):
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "max_length": 1024,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "weight_decay": 0.0,
        "disable_dropout": True,
    }


def equal(model, pairs, objective, options, steps, batch):
    config, trainer = classes(objective)

    class Ordered(trainer):
        """Takes the records in their order."""

        def _get_train_sampler(self, *args):
            return SequentialSampler(self.train_dataset)

    tokenizer = AutoTokenizer.from_pretrained(model)
    if objective == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32)
        model.config.pad_token_id = tokenizer.pad_token_id
    with tempfile.TemporaryDirectory() as folder:
        # A small step: Adam's first ones blow up the last digits of gradients near 0.
        shared = {**common(folder, steps, batch), "learning_rate": 1e-4}
        own = config(**shared, max_grad_norm=1e9, **options)
        made = Ordered(
            model=model,
            args=own,
            train_dataset=load_dataset("json", data_files=pairs, split="train"),
            processing_class=tokenizer,
        )
        made.train()
        logs = [line for line in made.state.log_history if "grad_norm" in line]
    return {"losses": [x["loss"] for x in logs], "norms": [x["grad_norm"] for x in logs]}


def speed(model, pairs, weights, steps, batch):
    from trl import DPOConfig, DPOTrainer

    from peft import LoraConfig

    deepspeed = {
        "zero_optimization": {"stage": 2},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
    }
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        own = DPOConfig(
            **common(folder, steps, batch),
            deepspeed=deepspeed,
            ddp_backend="gloo",
            include_num_input_tokens_seen="non_padding",
        )
        trainer = DPOTrainer(
            model=model,
            args=own,
            train_dataset=load_dataset("json", data_files=pairs, split="train"),
            processing_class=AutoTokenizer.from_pretrained(model),
            peft_config=lora if weights == "lora" else None,
            callbacks=[clock],
        )
        trainer.train()
    (begin, first), (end, last) = clock.ends[2], clock.ends[-1]
    return {
        "tokens_per_s": (last - first) / (end - begin),
        "first_step_s": clock.ends[0][0] - START,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "is_main": trainer.args.process_index == 0,
    }


if __name__ == "__main__":
    verb, model, pairs, what, *rest = sys.argv[1:]
    if verb == "equal":
        options, steps, batch = json.loads(rest[0]), int(rest[1]), int(rest[2])
        print("RESULT", json.dumps(equal(model, pairs, what, options, steps, batch)))
    else:
        found = speed(model, pairs, what, int(rest[0]), int(rest[1]))
        if found.pop("is_main"):
            print("RESULT", json.dumps(found))
