"""Training that gives the same bits whenever it is repeated on the same machines."""

from __future__ import annotations

import torch
import torch.utils.deterministic

from launcher.core import runtime
from launcher.core.errors import ConfigError


def require() -> None:
    """Have torch choose kernels that sum in a fixed order, and raise where it has none.

    Before the first use of the GPU: cuBLAS reads its setting then.
    """
    runtime.fix_order_of_sums()
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    # Filling what is yet to be written only costs time: nothing reads it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def refusal(error: BaseException) -> ConfigError | None:
    """What it means that something has no such kernel; None if it is another error."""
    text = str(error).splitlines()[0] if str(error) else ""
    if not isinstance(error, RuntimeError) or "deterministic" not in text:
        return None
    if not torch.are_deterministic_algorithms_enabled():
        return None
    return ConfigError(
        text.partition(", but you set")[0],
        where="train.deterministic",
        hint="set train.deterministic=false",
    )
