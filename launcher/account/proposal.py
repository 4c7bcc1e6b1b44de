"""A first mapping from OpenAI's models to open ones, for people to change.

It is a service's `serve.yaml`: what is settled there for a replay holds when the models are served.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from launcher.account.shutdowns import base_of
from launcher.serve import site as sites

#: Beginning of a base's name -> the preset of `model` that is proposed; the longest one decides.
PRESETS = {
    "gpt-4.1-nano": "qwen3-1.7b",
    "gpt-4.1-mini": "qwen3-8b",
    "gpt-4.1": "qwen3-32b",
    "gpt-4o-mini": "qwen3-8b",
    "gpt-4o": "qwen3-32b",
    "gpt-4": "qwen3-32b",
    "gpt-3.5-turbo": "qwen3-4b",
    "o4-mini": "qwen3-14b",
    "babbage-002": "qwen3-1.7b",
    "davinci-002": "qwen3-4b",
}
_OTHER = "qwen3-4b"
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
_HEAD = """\
# Which model here stands for which at OpenAI: a proposal by size alone. Change it to what your
# machine can train: `model=` takes a preset of docs/models.md, or model.name=FOLDER_OR_HUB_NAME.
# A name can stand for another one: {alias: NAME}. All other settings of a service may be here too
# (docs/serve.md); `overrides:` at the top holds for all, such as [optim.beta2=0.95].
organization: %s
models:
"""


def text(jobs: Iterable[Mapping[str, Any]]) -> str:
    """A mapping for the bases of these jobs' models."""
    bases, organization = set(), "local"
    for job in jobs:
        base = base_of(str(job.get("model")))
        if sites.NAME.fullmatch(base):  # it is going to be a line of YAML
            bases.add(base)
        parts = str(job.get("fine_tuned_model")).split(":")
        if len(parts) > 2 and _PLAIN.fullmatch(parts[2]):
            organization = parts[2]
    width = max(map(len, bases), default=0) + 1
    lines = [
        f"  {base + ':':<{width}} {{overrides: [model={preset(base)}, peft=lora, optim.lr=2e-4]}}\n"
        for base in sorted(bases)
    ]
    return _HEAD % organization + "".join(lines)


def preset(base: str) -> str:
    """The preset that is proposed for a base."""
    known = [name for name in PRESETS if base.startswith(name)]
    return PRESETS[max(known, key=len)] if known else _OTHER
