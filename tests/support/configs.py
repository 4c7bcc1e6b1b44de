"""Config objects for tests that go below composition: nested keywords over small defaults."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any

from launcher.config import schema
from launcher.config.schema import conversion
from launcher.config.schema.variants import NAME_FIELD, OPTIONS


def make_config(**sections: Any) -> schema.Config:
    """A `Config`; each keyword is a section given as a dict, e.g. `engine={"zero": 3}`."""
    config = schema.Config()
    for name, values in sections.items():
        if not isinstance(values, dict):
            setattr(config, name, values)
            continue
        section = getattr(config, name)
        variant = values.get(NAME_FIELD.get(name, "name"))
        if name in OPTIONS and variant:
            section = OPTIONS[name][variant]()
            setattr(config, name, section)
        hints = conversion.fields(type(section))
        for key, value in values.items():
            for kind in (hints[key], *typing.get_args(hints[key])):
                if isinstance(value, str) and hasattr(kind, "__members__"):
                    value = kind[value]
            setattr(section, key, value)
    return config


def config_classes(cls: type = schema.Config, path: str = "") -> Iterator[tuple[str, type]]:
    """Every section, and each class that it can have."""
    yield path, cls
    for name, hint in conversion.fields(cls).items():
        if dataclasses.is_dataclass(hint):
            here = f"{path}.{name}".lstrip(".")
            for option in conversion.section_classes(here, typing.cast(type, hint)):
                yield from config_classes(option, here)
