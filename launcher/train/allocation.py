"""Memory that could not be had: how libraries say so, and what may help."""

from __future__ import annotations

from launcher.core.errors import OutOfMemoryError

_HINT = (
    "set batch.micro=1, model.gradient_checkpointing=true, a smaller data.max_length,"
    " a higher engine.zero, peft=lora, or engine=zero3_offload"
    " (`launcher plan` shows the estimate of each)"
)


def is_failure(error: BaseException) -> bool:
    """Whether `error` says that memory could not be had, of a GPU or of the host."""
    text = str(error)
    # cuBLAS and cuDNN say ..._STATUS_ALLOC_FAILED where no memory is left for their workspaces.
    return (
        isinstance(error, MemoryError)
        or any(words in text for words in ("DefaultCPUAllocator", "ALLOC_FAILED"))
        or "out of memory" in text.lower()
    )


def error(found: str) -> OutOfMemoryError:
    """What to raise for it."""
    return OutOfMemoryError(found, where="memory", hint=_HINT)
