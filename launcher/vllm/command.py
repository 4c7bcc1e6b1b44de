"""The command of a server, as far as all servers have it, and how large adapters may be."""

from __future__ import annotations

import sys
from pathlib import Path

from launcher.core import runtime

#: What vLLM calls number formats.
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
#: Ranks of adapters that vLLM has room for.
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
#: How the model itself is called in requests.
BASE = "base"


def command(python: str | None, folder: Path, dtype: str) -> list[str]:
    """vLLM's server of the model in `folder`, for who knows the token: by `python`, or by this one;
    `dtype` is one of `DTYPES`."""
    own = str(runtime.user_path(python)) if python else sys.executable
    return [
        *(own, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(folder), "--served-model-name", BASE, "--dtype", DTYPES[dtype]),
        # Not the folder's generation_config: it would change what is not asked to be changed.
        *("--generation-config", "vllm", "--middleware", "launcher_door.Door"),
    ]


def lora_room(rank: int) -> int | None:
    """The least `--max-lora-rank` for adapters of a rank; None if there is none."""
    return next((room for room in LORA_RANKS if room >= rank), None)
