"""Reference implementations that only some metrics need."""

from __future__ import annotations

import importlib
from typing import Any

from launcher.errors import ConfigError


def need(module: str, metric: str) -> Any:
    """The module; `ConfigError` with what to install if it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{metric} needs {module.partition('.')[0]}, which is not installed",
            where="eval.metrics",
            hint="install the extra: pip install 'launcher[eval]'",
        ) from error
