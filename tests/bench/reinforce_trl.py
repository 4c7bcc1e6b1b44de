"""GRPO, RLOO and GKD as TRL has them, a peer of `reinforce.py`; needs trl, not the launcher.

usage: python reinforce_trl.py equal MODEL ROLLOUTS OPTIONS_JSON
       torchrun --nproc-per-node 2 reinforce_trl.py speed MODEL PROMPTS.jsonl STEPS BATCH NEW

ROLLOUTS is the folder of a launcher's run with its answers, a file a step; `trainer` of the options
is grpo (as without it), rloo or gkd. `equal` prints `RESULT {json}` with the losses and gradient
norms of the steps, `speed` seconds of a step and the mean length of an answer over steps 3 to the
last; BATCH is the number of answers of a rank.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer


def common(folder, steps, batch):
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "logging_steps": 1,
        "report_to": [],
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_dropout": True,
    }


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self):
        self.ends = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.time())


def speed(model, prompts, steps, batch, new):
    deepspeed = {
        "zero_optimization": {"stage": 2},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}},
    }

    def reward(completions, **others):
        return [float("the" in text.lower()) for text in completions]

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            **common(folder, steps, batch),
            deepspeed=deepspeed,
            ddp_backend="gloo",
            num_generations=8,
            max_completion_length=new,
            temperature=1.0,
            beta=0.0,
            loss_type="grpo",
        )
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
            args=config,
            train_dataset=load_dataset("json", data_files=prompts, split="train"),
            reward_funcs=reward,
            processing_class=AutoTokenizer.from_pretrained(model),
            callbacks=[clock],
        )
        trainer.train()
        logs = [line for line in trainer.state.log_history if "grad_norm" in line]
    lengths = [line["completions/mean_length"] for line in logs[2:]]
    return {
        "step_s": (clock.ends[-1] - clock.ends[1]) / (len(clock.ends) - 2),
        "length": sum(lengths) / len(lengths),
        "is_main": trainer.args.process_index == 0,
    }


class Norms(TrainerCallback):
    """The gradient norm of each step, summed in fp64."""

    def __init__(self):
        self.found = []

    def on_pre_optimizer_step(self, args, state, control, model, **kwargs):
        norms = [own.grad.double().norm() for own in model.parameters() if own.grad is not None]
        self.found.append(float(torch.stack(norms).norm()))


def equal(model, rollouts, options):
    paths = sorted(Path(rollouts).glob("step-*.jsonl"))
    steps = [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]
    name, teacher, norms = options.pop("trainer", "grpo"), options.pop("teacher"), Norms()
    with tempfile.TemporaryDirectory() as folder:
        shared = {**common(folder, len(steps), len(steps[0])), "max_grad_norm": 1e9}
        more = {
            "processing_class": AutoTokenizer.from_pretrained(model),
            "callbacks": [norms],
        }
        student = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        if name == "gkd":
            trainer = of_gkd(student, teacher, steps, {**shared, "beta": options["beta"]}, more)
        elif name == "rloo":
            trainer = of_rloo(student, steps, {**shared, **options}, more)
        else:
            trainer = of_grpo(student, steps, {**shared, **options}, more)
        trainer.train()
        losses = [line["loss"] for line in trainer.state.log_history if "grad_norm" in line]
    return {"losses": losses, "norms": norms.found}


def of_gkd(student, teacher, steps, options, more):
    """Learns from the answers as from data, in their order: nothing is drawn anew."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    class Ordered(GKDTrainer):
        def _get_train_sampler(self, *args):
            return SequentialSampler(self.train_dataset)

    def one(own):
        asked, said = own["prompt_tokens"], own["tokens"]
        mask = [0] * len(asked) + [1] * len(said)
        ids = [*asked, *said]
        made = {"input_ids": ids, "attention_mask": [1] * len(ids), "completion_mask": mask}
        return {**made, "prompt": ""}  # it asks for a text, and reads the tokens

    return Ordered(
        model=student,
        teacher_model=AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32),
        args=GKDConfig(**options, lmbda=0.0, max_length=1024),
        train_dataset=Dataset.from_list([one(own) for answers in steps for own in answers]),
        **more,
    )


def reward(completions, given, **others):
    return given


def of_rloo(student, steps, options, more):
    """It takes no function that draws: what it would ask to draw is given."""
    from trl import RLOOConfig, RLOOTrainer

    pending = iter(steps)

    class Given(RLOOTrainer):
        def _generate(self, prompts):
            answers = next(pending)
            assert len(answers) == len(prompts)
            self.scores = [own["score"] for own in answers]
            asked = [own["prompt_tokens"] for own in answers]
            said = [own["tokens"] for own in answers]
            texts = self.processing_class.batch_decode(said, skip_special_tokens=True)
            return asked, said, texts

    def scored(completions, **others):
        return trainer.scores

    trainer = Given(
        model=student,
        args=RLOOConfig(**options),
        train_dataset=Dataset.from_list([{"prompt": "p"}] * 64),
        reward_funcs=scored,
        **more,
    )
    return trainer


def of_grpo(student, steps, options, more):
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

    return GRPOTrainer(
        model=student,
        args=GRPOConfig(**options),
        train_dataset=Dataset.from_list([{"prompt": "p"}] * 64),
        reward_funcs=reward,
        rollout_func=given,
        **more,
    )


if __name__ == "__main__":
    verb, model, records, *rest = sys.argv[1:]
    if verb == "equal":
        print("RESULT", json.dumps(equal(model, records, json.loads(rest[0]))))
    else:
        found = speed(model, records, *map(int, rest))
        if found.pop("is_main"):
            print("RESULT", json.dumps(found))
