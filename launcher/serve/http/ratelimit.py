"""How many requests a key may make: a bucket of tokens each, in this server's memory."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.serve.http.failure import ApiError


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


class RateLimits:
    """A bucket for each key, which holds the requests of a minute and fills evenly.

    Not safe to use from several threads.
    """

    def __init__(self) -> None:
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key_id: str, per_minute: int) -> dict[str, str]:
        """One request; returns the headers that say what is left. `ApiError` 429 if nothing is."""
        clock = time.monotonic()
        bucket = self._buckets.setdefault(key_id, _Bucket(per_minute, clock))
        filled = bucket.tokens + (clock - bucket.at) * per_minute / 60
        bucket.tokens, bucket.at = min(per_minute, filled), clock
        allowed = bucket.tokens >= 1
        bucket.tokens -= allowed
        headers = {
            "x-ratelimit-limit-requests": str(per_minute),
            "x-ratelimit-remaining-requests": str(int(bucket.tokens)),
            "x-ratelimit-reset-requests": f"{(per_minute - bucket.tokens) * 60 / per_minute:.3f}s",
        }
        if not allowed:
            wait_s = (1 - bucket.tokens) * 60 / per_minute
            raise ApiError(
                429,
                f"Rate limit reached: {per_minute} requests per minute. "
                f"Please try again in {wait_s:.3f}s.",
                code="rate_limit_exceeded",
                headers={**headers, "Retry-After": str(math.ceil(wait_s))},
            )
        return headers


def remaining(headers: Mapping[str, str]) -> int:
    """Requests that are left, as the headers of `RateLimits.take` say."""
    return int(headers["x-ratelimit-remaining-requests"])
