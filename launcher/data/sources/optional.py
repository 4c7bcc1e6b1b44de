"""Libraries of the extra `data`, imported where a source needs one."""

from __future__ import annotations

from typing import Any

from launcher.core import registry


def optional(module: str, why: str) -> Any:
    """The module; `ConfigError` that says what needs it if it is not installed."""
    return registry.need(module, f"{why}: that needs", where="data", extra="data")
