"""Which quantised checkpoints can be trained: the formats that are turned into plain weights.

Standard library only, as both planes ask: before a start where config.json is at hand, and else
when the model is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from launcher.core.errors import Problem

#: Formats of weights that transformers turns into plain ones while it loads them.
DEQUANTISED = ("mxfp4", "fp8", "mxfp8")

#: What the hub names of quantised copies end with.
_SUFFIX = re.compile(
    r"[-_.](unsloth-bnb-4bit|bnb-[48]bit|gptq|awq|nvfp4|quantized|w[48]a(8|16)|int[48]|[48]bits?)"
    r"([-_.].*)?$",
    re.IGNORECASE,
)


def of(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """What config.json says of how weights are quantised; None if they are plain."""
    text = content.get("text_config")
    parts = [content, text] if isinstance(text, Mapping) else [content]
    found = next(
        (part["quantization_config"] for part in parts if part.get("quantization_config")), None
    )
    return dict(found) if isinstance(found, Mapping) else None


def problem(name: str, found: Mapping[str, Any], *, nf4: bool) -> Problem | None:
    """Why the model `name` cannot be trained from weights stored as `found`, its
    quantization_config, says; None if it can. `nf4` is whether they are to become nf4."""
    method = str(found.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in found else "?"))
    if method not in DEQUANTISED:
        original = _SUFFIX.sub("", name)
        known = f"model.name={original}" if original != name else "model.name=<the original>"
        hint = f"train the original with plain weights: {known}"
        hint += "; model.quantization=nf4 makes 4 bits of it" if "bit" in method else ""
        text = f"{name!r} holds weights quantised by {method}, which cannot be trained"
        return Problem("model.name", text, hint)
    if nf4:
        hint = "model.quantization=none: they become plain weights"
        return Problem("model.quantization", f"nf4, but {name!r} is stored as {method}", hint)
    return None
