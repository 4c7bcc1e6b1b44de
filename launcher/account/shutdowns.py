"""When OpenAI ends what an account has.

Where the server itself names a model's day (`shutdown_date` of GET /v1/models), that holds. This
table is second-hand: it was taken in November 2026 from copies of OpenAI's page of deprecations,
in search results and articles, not from the page itself. See `SOURCE` before you rely on a day.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: The page that decides.
SOURCE = "https://developers.openai.com/api/docs/deprecations"
#: From this day on nobody can create a fine-tuning job.
NO_NEW_JOBS = "2027-01-06"
#: Evals can be changed no more, and read no more.
EVALS_READ_ONLY, EVALS_GONE = "2026-10-31", "2026-11-30"

#: Base -> its last day. Fine-tuned models end with their base.
BASES = {
    **dict.fromkeys(
        (
            *("gpt-3.5-turbo", "gpt-3.5-turbo-0125", "gpt-4", "gpt-4-0613", "gpt-4-1106-preview"),
            *("gpt-4-turbo", "gpt-4-turbo-2024-04-09", "gpt-4o-2024-05-13"),
            *("gpt-4.1-nano", "gpt-4.1-nano-2025-04-14", "o4-mini", "o4-mini-2025-04-16"),
        ),
        "2026-10-23",
    ),
    **dict.fromkeys(
        (
            *("gpt-4o", "gpt-4o-2024-08-06", "gpt-4o-2024-11-20"),
            *("gpt-4o-mini", "gpt-4o-mini-2024-07-18"),
            *("gpt-4.1", "gpt-4.1-2025-04-14", "gpt-4.1-mini", "gpt-4.1-mini-2025-04-14"),
        ),
        "2027-01-14",
    ),
}
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True, slots=True)
class End:
    """A model's last day, as YYYY-MM-DD, or None where nobody has told it; and who says so."""

    day: str | None
    source: str


def end_of(model: str, record: Mapping[str, Any] | None = None) -> End:
    """When a model stops answering: by its record at the server, else by the table."""
    said = (record or {}).get("shutdown_date")
    if isinstance(said, str) and _DAY.fullmatch(said):
        return End(said, "the server")
    day = BASES.get(base_of(model))
    return End(day, "second-hand" if day else "")


def base_of(model: str) -> str:
    """The base that stands in the name of a fine-tuned model; any other name as it is."""
    parts = model.split(":")
    return parts[1] if parts[0] == "ft" and len(parts) > 1 else model
