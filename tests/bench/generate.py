"""Answers a second of the evaluation, against one `generate` call a record; the answers are equal.

usage: python tests/bench/generate.py MODEL PROMPTS.jsonl [--prompts 32] [--new-tokens 256]

MODEL is a folder with a causal language model and its tokenizer, PROMPTS.jsonl has {"question"}.
Both take the likeliest tokens, in one process of one thread. Without end tokens, so that all
answers have the same length: each way makes the same number of tokens. CPU seconds are what the
process used, which other work on the machine changes less than the wall time.
"""

import argparse
import json
import time
from itertools import islice

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.evals.decoding import Decoding
from launcher.evals.generation import generate_records
from launcher.evals.records import TokenizedPrompt


def one_by_one(prompts, model, tokenizer, new_tokens):
    answers = []
    for prompt in prompts:
        ids = torch.tensor([prompt.tokens])
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
            )
        answer = output[0, len(prompt.tokens) :]
        answers.append(tokenizer.decode(answer, skip_special_tokens=True))
    return answers


def ours(prompts, model, tokenizer, new_tokens):
    found = generate_records(prompts, model, tokenizer, Decoding(new_tokens))
    return [record.answer for record in sorted(found, key=lambda record: record.id)]


def read_prompts(path, tokenizer, count):
    with open(path, encoding="utf-8") as lines:
        questions = [json.loads(line)["question"] for line in islice(lines, count)]
    made = []
    for i, question in enumerate(questions):
        turns = [{"role": "user", "content": question}]
        tokens = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        made.append(TokenizedPrompt(i, tokens["input_ids"], "", f"{path}:{i + 1}"))
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("prompts")
    parser.add_argument("--prompts", dest="count", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=256)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    prompts = read_prompts(options.prompts, tokenizer, options.count)

    times, answers = {}, {}
    for name, way in {"one by one": one_by_one, "launcher": ours}.items():
        cpu, wall = time.process_time(), time.perf_counter()
        answers[name] = way(prompts, model, tokenizer, options.new_tokens)
        times[name] = time.process_time() - cpu, time.perf_counter() - wall
    tokens = len(prompts) * options.new_tokens
    print(f"{'':<12}{'CPU s':>8}{'wall s':>8}{'answers/s':>11}{'tokens/s':>10}")
    for name, (cpu, wall) in times.items():
        rates = f"{len(prompts) / wall:>11.2f}{tokens / wall:>10,.0f}"
        print(f"{name:<12}{cpu:>8.1f}{wall:>8.1f}{rates}")
    before, after = times.values()
    print(
        f"faster: {before[0] / after[0]:.1f}x in CPU time, {before[1] / after[1]:.1f}x in wall time"
    )
    equal = sum(a == b for a, b in zip(*answers.values(), strict=True))
    print(f"equal answers: {equal} of {len(prompts)}")


main()
