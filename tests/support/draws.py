"""How much of what could be tested a quick test takes: of examples, and of many models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

QUICK = "quick"
_MOST = 25


def register() -> None:
    """Make both profiles known; all is drawn unless `--hypothesis-profile quick` is given.

    Where hypothesis is missing, tests that need it say so themselves: those of a GPU do not.
    """
    try:
        import hypothesis
    except ImportError:
        return
    # No deadlines: how long an example takes says more about the machine than about the code.
    hypothesis.settings.register_profile("whole", deadline=None)
    hypothesis.settings.load_profile("whole")
    # For `make check`, which is run again and again.
    hypothesis.settings.register_profile(QUICK, max_examples=_MOST, deadline=None)


def examples(count: int) -> int:
    """As many as a test asks for; in the quick profile no more than that has."""
    import hypothesis

    quick = hypothesis.settings.get_current_profile_name() == QUICK
    return min(count, _MOST) if quick else count


def some(names: Iterable[str], *quick: str) -> list[Any]:
    """Parameters of a test that takes a second for each: it is slow for all but `quick`."""
    known = [*names]
    assert set(quick) <= set(known), f"no such names: {set(quick) - set(known)}"
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in known]
