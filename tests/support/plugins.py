"""A folder with plugins on the path of this process, for tests that compose in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launcher.config import schema
from launcher.config.schema import conversion, plugins, variants
from launcher.core.registry import PluginTable


@contextmanager
def installed(folder: Path) -> Iterator[None]:
    """What a process has that finds `folder` at its start; as before afterwards."""
    tables = [table for table in vars(variants).values() if isinstance(table, PluginTable)]
    before = [dict(table) for table in tables]
    options = {section: dict(classes) for section, classes in variants.OPTIONS.items()}
    track = schema.TrackConfig
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        try:
            plugins.load()
            _forget()
            yield
        finally:
            for table, rows in zip(tables, before, strict=True):
                table._rows.clear()
                table._rows.update(rows)
            variants.OPTIONS.update(options)
            schema.TrackConfig = track
            for name in [n for n in sys.modules if n.partition(".")[0] == plugins.NAMESPACE]:
                del sys.modules[name]
            _forget()


def _forget() -> None:
    for cached in (
        conversion.leaves,
        conversion.sections,
        conversion.fields,
        conversion.limits,
        conversion._declared,
    ):
        cached.cache_clear()
