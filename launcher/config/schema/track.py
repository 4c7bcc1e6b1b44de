"""Section `track`: trackers besides metrics.jsonl."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar


class WandbMode(Enum):
    """How Weights & Biases is used."""

    disabled = "disabled"
    auto = "auto"
    online = "online"
    offline = "offline"


@dataclass(kw_only=True, slots=True)
class TrackerConfig:
    """A tracker besides metrics.jsonl."""

    package: ClassVar[str | None] = None
    """Package that it imports; of the extra of that name, if not every installation has it."""

    @property
    def is_on(self) -> bool:
        """Whether runs are tracked so."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class WandbConfig(TrackerConfig):
    """Weights & Biases."""

    package: ClassVar[str | None] = "wandb"

    mode: WandbMode = WandbMode.disabled
    """disabled, online, offline, or auto: online if there are credentials, else offline."""
    project: str = "launcher"
    """Project name."""
    entity: str | None = None
    """Team or user."""
    name: str | None = None
    """Name shown there; default: that of the run."""
    group: str | None = None
    """Group of runs."""
    log_export: bool = False
    """Upload the exported model as an artifact."""

    @property
    def is_on(self) -> bool:
        """Unless it is disabled."""
        return self.mode is not WandbMode.disabled


@dataclass(kw_only=True, slots=True)
class TensorboardConfig(TrackerConfig):
    """TensorBoard."""

    package: ClassVar[str | None] = "tensorboard"

    enabled: bool = False
    """Write event files to `tensorboard/` of the run folder."""

    @property
    def is_on(self) -> bool:
        """If it is enabled."""
        return self.enabled


@dataclass(kw_only=True, slots=True)
class TrackConfig:
    """Trackers besides metrics.jsonl, which is always written."""

    name: str = "default"
    """Name of the tracking setup."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases."""
    tensorboard: TensorboardConfig = field(default_factory=TensorboardConfig)
    """TensorBoard."""
