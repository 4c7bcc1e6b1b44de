"""`launch=spool`: a queue that is a folder, done by `python -m launcher_plugins.spool.worker`.

A back end of another package, as docs/extend.md describes them, to show that the queue seam is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from launcher.config.schema import variants
from launcher.config.schema.launch import LaunchConfig


@dataclass(kw_only=True, slots=True)
class SpoolConfig(LaunchConfig):
    """`spool`: a job in a folder."""

    has_queue: ClassVar[bool] = True
    """A worker starts the ranks."""
    name: str = "spool"
    """Launch back end."""
    max_requeues: int = 10
    """Times that a run is requeued."""

    def for_probe(self) -> SpoolConfig:
        """See `LaunchConfig`."""
        return SpoolConfig(nodes=self.nodes, processes=self.processes, max_requeues=0)


row = "launcher_plugins.spool.backend:SpoolBackend"
variants.add(variants.LAUNCHERS, "spool", row, options=SpoolConfig)
