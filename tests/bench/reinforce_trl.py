"""GRPO as TRL has it, on answers that are given; a peer of `reinforce.py`; needs trl, not the
launcher.

usage: python reinforce_trl.py MODEL ROLLOUTS OPTIONS_JSON

ROLLOUTS is the folder of a launcher's run with its answers, a file a step. Prints `RESULT {json}`
with the losses and gradient norms of the steps.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer


def main(model, rollouts, options):
    paths = sorted(Path(rollouts).glob("step-*.jsonl"))
    steps = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
    pending = iter(steps)

    def given(prompts, trainer):
        answers = next(pending)
        assert len(answers) == len(prompts)
        return {
            "prompt_ids": [own["prompt_tokens"] for own in answers],
            "completion_ids": [own["tokens"] for own in answers],
            "logprobs": [own["sampler_log_probs"] for own in answers],
            "given": [own["score"] for own in answers],
        }

    def reward(completions, given, **others):
        return given

    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            max_steps=len(steps),
            per_device_train_batch_size=len(steps[0]),
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            max_grad_norm=1e9,
            weight_decay=0.0,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            disable_dropout=True,
            **options,
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            args=config,
            train_dataset=Dataset.from_list([{"prompt": "p"}] * 64),
            reward_funcs=reward,
            processing_class=AutoTokenizer.from_pretrained(model),
            rollout_func=given,
        )
        trainer.train()
        logs = [line for line in trainer.state.log_history if "grad_norm" in line]
    found = {"losses": [x["loss"] for x in logs], "norms": [x["grad_norm"] for x in logs]}
    print("RESULT", json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
