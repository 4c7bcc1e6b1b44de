"""Preference tuning as TRL's users get it, a peer of `preference.py`; needs trl, not the launcher.

usage: python preference_trl.py equal MODEL RECORDS.jsonl TRAINER OPTIONS_JSON STEPS BATCH
       torchrun --nproc-per-node 2 preference_trl.py speed MODEL PAIRS.jsonl full|lora STEPS BATCH

`equal` takes the records in their order on one process, in fp32, and prints `RESULT {json}` with
the losses and gradient norms of the steps. `speed` trains under DeepSpeed ZeRO-2 on CPU ranks and
prints tokens (without padding) a second over steps 4 to the last.
"""

import json
import sys
import tempfile
import time

import torch
from datasets import load_dataset
from torch.utils.data import SequentialSampler
from transformers import AutoTokenizer, TrainerCallback

START = time.time()


class Clock(TrainerCallback):
    """When each step ended, and how many tokens had been seen."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append((time.time(), state.num_input_tokens_seen))


class Norms(TrainerCallback):
    """The gradient norm of each step, summed in fp64: what is logged is summed in fp32, which on
    CPUs is 1e-4 off where a tensor has a million numbers."""

    def __init__(self):
        self.found = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        norms = [own.grad.double().norm() for own in model.parameters() if own.grad is not None]
        self.found.append(float(torch.stack(norms).norm()))


def classes(name):
    """Config and class of a trainer."""
    if name == "dpo":
        from trl import DPOConfig, DPOTrainer

        return DPOConfig, DPOTrainer
    if name == "kto":
        from trl import KTOConfig, KTOTrainer

        return KTOConfig, KTOTrainer
    if name == "reward":
        from trl import RewardConfig, RewardTrainer

        return RewardConfig, RewardTrainer
    if name == "gkd":
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        return GKDConfig, GKDTrainer
    if name == "cpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    class OfAnswers(ORPOTrainer):
        """Its cross entropy is that of each chosen answer, a token, as in the paper's equation 6,
        in place of that of all tokens of the batch's prompts and chosen answers."""

        def concatenated_forward(self, model, batch):
            chosen, rejected, *logits, _ = super().concatenated_forward(model, batch)
            return chosen, rejected, *logits, -chosen.mean()

    return ORPOConfig, OfAnswers if name == "orpo of answers" else ORPOTrainer


def tokenized(records, tokenizer):
    """Prompts with completions as tokens, the latter marked; GKD makes them of chats alone."""

    def one(record):
        asked = tokenizer(record["prompt"])["input_ids"]
        tokens = tokenizer(record["prompt"] + record["completion"] + tokenizer.eos_token)
        ids = tokens["input_ids"]
        assert ids[: len(asked)] == asked
        mask = [0] * len(asked) + [1] * (len(ids) - len(asked))
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "completion_mask": mask}

    return records.map(one)


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


def equal(model, records, name, options, steps, batch):
    config, trainer = classes(name)

    class Ordered(trainer):
        """Takes the records in their order."""

        def _get_train_sampler(self, *args):
            return SequentialSampler(self.train_dataset)

    tokenizer = AutoTokenizer.from_pretrained(model)
    data = load_dataset("json", data_files=records, split="train")
    more, norms = {}, Norms()
    if name == "gkd":
        data = tokenized(data, tokenizer)
        more["teacher_model"] = options.pop("teacher")
    with tempfile.TemporaryDirectory() as folder:
        # A small step: Adam's first ones blow up the last digits of gradients near 0.
        shared = {**common(folder, steps, batch), "learning_rate": 1e-4}
        made = Ordered(
            model=model,
            args=config(**shared, max_grad_norm=1e9, **options),
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[norms],
            **more,
        )
        made.train()
        losses = [line["loss"] for line in made.state.log_history if "grad_norm" in line]
    return {"losses": losses, "norms": norms.found}


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
        "is_main": trainer.args.process_index == 0,
    }


if __name__ == "__main__":
    verb, model, records, what, *rest = sys.argv[1:]
    if verb == "equal":
        options, steps, batch = json.loads(rest[0]), int(rest[1]), int(rest[2])
        print("RESULT", json.dumps(equal(model, records, what, options, steps, batch)))
    else:
        found = speed(model, records, what, int(rest[0]), int(rest[1]))
        if found.pop("is_main"):
            print("RESULT", json.dumps(found))
