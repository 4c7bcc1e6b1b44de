"""Chat templates with the structure of those of many model families, written anew."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Family:
    """What is known of a family's template.

    ends: tokens of which one ends each turn. system, tools: whether there may be such. alternates:
    whether user and assistant must take turns. writes_calls, thinks: whether calls and thoughts
    (of the last turn at least) are written. specials: control tokens besides the ends.
    """

    ends: tuple[str, ...]
    specials: tuple[str, ...]
    system: bool = True
    tools: bool = True
    alternates: bool = False
    writes_calls: bool = True
    writes_fields: bool = False
    """Whether thoughts that stand in a field of their own are written."""


CHATML = ("<|im_start|>", "<tool_call>", "</tool_call>", "<think>", "</think>")
FAMILIES = {
    "qwen2_5": Family(("<|im_end|>",), CHATML[:3]),
    "qwen3": Family(("<|im_end|>",), CHATML, writes_fields=True),
    "qwen3_5": Family(("<|im_end|>",), CHATML, writes_fields=True),
    "llama3_1": Family(("<|eot_id|>",), ("<|start_header_id|>", "<|end_header_id|>")),
    "gemma3": Family(
        ("<end_of_turn>",), ("<start_of_turn>",), tools=False, alternates=True, writes_calls=False
    ),
    "gemma4": Family(
        ("<turn|>", "<|tool_response>"),
        ("<|turn>", "<|tool_call>", "<tool_call|>", "<tool_response|>", '<|"|>')
        + ("<|channel>", "<channel|>", "<|tool>", "<tool|>", "<|think|>"),
    ),
    "mistral": Family(
        ("</s>",),
        ("[INST]", "[/INST]", "[TOOL_CALLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
        + ("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"),
        alternates=True,
    ),
    "gpt_oss": Family(
        ("<|end|>", "<|return|>", "<|call|>"),
        ("<|start|>", "<|channel|>", "<|message|>"),
        writes_fields=True,
    ),
    "deepseek_r1": Family(
        ("<｜end▁of▁sentence｜>",),
        ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<｜tool▁sep｜>"),
    ),
    "phi4_mini": Family(
        ("<|end|>",),
        ("<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|/tool|>"),
        writes_calls=False,
    ),
    "glm4_5": Family(
        ("<|user|>", "<|observation|>"),
        ("[gMASK]", "<sop>", "<|assistant|>", "<|system|>", "<think>", "</think>")
        + ("<tool_call>", "</tool_call>"),
        writes_fields=True,
    ),
    "smollm3": Family(("<|im_end|>",), CHATML, writes_calls=False),
    "lfm2": Family(("<|im_end|>",), CHATML[:1], writes_calls=False),
    "llama4": Family(
        ("<|eot|>",),
        ("<|header_start|>", "<|header_end|>", "<|python_start|>", "<|python_end|>", "<|eom|>"),
    ),
    "granite4": Family(("<|end_of_text|>",), ("<|start_of_role|>", "<|end_of_role|>")),
    "granite3_3": Family(
        ("<|end_of_text|>",), ("<|start_of_role|>", "<|end_of_role|>"), writes_calls=False
    ),
    "falcon_h1": Family(("<|im_end|>",), CHATML[:1], writes_calls=False),
    "ministral3": Family(
        ("</s>",),
        ("[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]")
        + ("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
        + ("[THINK]", "[/THINK]"),
        alternates=True,
    ),
    "phi4": Family(("<|im_end|>",), ("<|im_start|>", "<|im_sep|>"), writes_calls=False),
    "phi4_first": Family(("<|im_end|>",), ("<|im_start|>", "<|im_sep|>"), writes_calls=False),
}


@functools.cache
def tokenizer_of(folder: Path, family: str) -> Any:
    """The tokenizer in `folder` with the template and the control tokens of a family."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = FAMILIES[family]
    tokenizer.add_tokens([*known.ends, *known.specials], special_tokens=True)
    tokenizer.bos_token = "<s>"
    tokenizer.eos_token = known.ends[0]
    if family in ("phi4_mini", "glm4_5"):
        tokenizer.add_tokens(["<|endoftext|>"], special_tokens=True)
        tokenizer.eos_token = "<|endoftext|>"
    tokenizer.chat_template = Path(__file__).with_name(f"{family}.jinja").read_text("utf-8")
    return tokenizer
