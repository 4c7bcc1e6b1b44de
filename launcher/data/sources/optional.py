"""Libraries of the extra `data`, imported where a source needs one."""

from __future__ import annotations

import importlib
from typing import Any

from launcher.errors import ConfigError


def optional(module: str, why: str) -> Any:
    """The module; `ConfigError` that says what needs it if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{why}, which needs {module.partition('.')[0]}",
            where="data",
            hint="pip install 'launcher[data]'",
        ) from error
