"""Answers to prompts by vLLM, in one process."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch

from launcher.core import registry
from launcher.evals.decoding import Decoding
from launcher.evals.generation import find_stop_tokens, fit, read, until
from launcher.evals.records import Generation, TokenizedPrompt


def need() -> Any:
    """The library; `ConfigError` if it is not installed."""
    return registry.need("vllm", "--vllm needs", where="launcher eval", extra="vllm")


def generate_records(
    prompts: Sequence[TokenizedPrompt],
    model: Any,
    tokenizer: Any,
    decoding: Decoding,
    *,
    stop_tokens: Sequence[int] | None = None,
    **_: Any,
) -> list[Generation]:
    """What `launcher.evals.generation.generate_records` gives, for one rank; vLLM does the batches.

    vLLM reads a folder, so `model` is written to one, its adapters merged, and leaves the GPU. With
    a temperature a record has a seed of its own too, but vLLM draws other tokens by it.
    """
    vllm = need()
    stops = list(stop_tokens or find_stop_tokens(model, tokenizer))
    contexts = [fit(list(prompt.tokens), model, decoding.max_new_tokens) for prompt in prompts]
    options = [
        vllm.SamplingParams(
            max_tokens=decoding.max_new_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            seed=(decoding.seed * 1_000_003 + prompt.id) % 2**31,
            stop=list(decoding.stop) or None,
            stop_token_ids=stops,
        )
        for prompt in prompts
    ]
    with tempfile.TemporaryDirectory(prefix="launcher-vllm-") as folder:
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        # Not the folder's generation_config: it would change the sampling of what is not given.
        engine = vllm.LLM(model=folder, generation_config="vllm")
        asked = [{"prompt_token_ids": tokens} for tokens in contexts]
        outputs = engine.generate(asked, options)
    answers = [until(list(output.outputs[0].token_ids), stops) for output in outputs]
    return [
        read(prompt, context, answer, tokenizer, decoding)
        for prompt, context, answer in zip(prompts, contexts, answers, strict=True)
    ]
