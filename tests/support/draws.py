"""How many examples hypothesis draws, by the profile that is chosen on the command line."""

from __future__ import annotations

import hypothesis

QUICK = "quick"
_MOST = 25


def register() -> None:
    """Make both profiles known; all is drawn unless `--hypothesis-profile quick` is given."""
    # No deadlines: how long an example takes says more about the machine than about the code.
    hypothesis.settings.register_profile("whole", deadline=None)
    hypothesis.settings.load_profile("whole")
    # For `make check`, which is run again and again.
    hypothesis.settings.register_profile(QUICK, max_examples=_MOST, deadline=None)


def examples(count: int) -> int:
    """As many as a test asks for; in the quick profile no more than that has."""
    quick = hypothesis.settings.get_current_profile_name() == QUICK
    return min(count, _MOST) if quick else count
