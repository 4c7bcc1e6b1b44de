"""The grader that a run names, checked on its data before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.config.schema import Config
from launcher.config.schema.reinforce import GrpoConfig
from launcher.graders.grader import Grader, Setting
from launcher.graders.wire import from_file, from_wire

WHERE = "objective.grader"


def grader_of(config: Config) -> Grader:
    """That of `objective.grader`; `ConfigError` with all that is wrong with it."""
    options = config.objective
    assert isinstance(options, GrpoConfig)
    setting = Setting.of(config.eval)
    given = options.grader
    if isinstance(given, Mapping):
        return from_wire(plain(given), setting, WHERE)
    # By the key: the file may be the run's copy, which is not what the user mends.
    return from_file(str(given), setting, WHERE)


def plain(value: Any) -> Any:
    """A wire form of the config as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [plain(own) for own in value]
    return value
