"""Reference implementations that only some metrics need."""

from __future__ import annotations

from typing import Any

from launcher.core import registry


def need(module: str, metric: str) -> Any:
    """The module; `ConfigError` with what to install if it is not there."""
    return registry.need(module, f"{metric} needs", where="eval.metrics", extra="eval")
