"""How long a text a loaded model can read: the rows of its tables of positions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from launcher.config.check import model_checks
from launcher.config.derive import architecture
from launcher.core.errors import ConfigError

_TABLE = re.compile(r"(char_)?position_embeddings|wpe|embed_positions|positions_embed")
_OTHER_SENSES = re.compile(r"vision|visual|image|img|video|tower|audio|speech")


def require_positions(model: Any, max_length: int) -> None:
    """Raise `ConfigError` where texts of `max_length` tokens are beyond what `model` can read.

    The plan has found it already if it could read the model's config.json, and knew its kind.
    """
    count = rows(model)
    if count is not None and max_length > count:
        raise ConfigError([model_checks.too_long(max_length, count)])


def rows(model: Any) -> int | None:
    """Most tokens that the model's tables of positions have rows for; None without such a table."""
    found = list(_tables(model))
    known = architecture.positions_in(model.config.to_dict())
    if known is not None and known.are_rows:
        found.append(known.count)
    return min(found, default=None)


def _tables(model: Any) -> Iterator[int]:
    for name, module in model.named_modules():
        if _OTHER_SENSES.search(name):
            continue
        if _TABLE.fullmatch(name.rpartition(".")[2]) and hasattr(module, "num_embeddings"):
            padding = getattr(module, "padding_idx", None)
            before = 0 if padding is None else padding + 1  # RoBERTa counts from behind it
            yield module.num_embeddings - before - getattr(module, "offset", 0)
        if getattr(module, "position_biased_input", True):
            for buffer in ("position_ids", "embed_positions", "pos_encoding"):
                shape = getattr(getattr(module, buffer, None), "shape", None)
                if shape is not None:
                    yield int(shape[-1 if buffer == "position_ids" else 0])
