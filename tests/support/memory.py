"""The most memory that work on tensors holds at a time, on any device: what operations return is
counted as long as it lives."""

from __future__ import annotations

from collections.abc import Callable

from launcher.track.footprint import Counter


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that `work` holds in tensors beyond those that it was given."""
    with Counter() as counter:
        work()
    return counter.peak
