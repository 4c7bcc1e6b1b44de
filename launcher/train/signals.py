"""Asking a run to stop: signal handlers only set a flag that the loop reads where that is safe."""

from __future__ import annotations

import signal
from types import FrameType

from launcher.config.schema_launch import LaunchConfig, SlurmConfig
from launcher.errors import ExitCode


class StopFlag:
    """Set by SIGTERM, SIGUSR1 or SIGINT; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.reason = ""

    def __bool__(self) -> bool:
        return bool(self.reason)

    def install(self) -> None:
        """Handle the signals from now on; main thread only."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason == "SIGINT":
            raise SystemExit(int(ExitCode.interrupted))
        self.reason = signal.Signals(number).name


def too_slow_for_grace(launch: LaunchConfig, save_s: float) -> str:
    """A warning if a checkpoint that took `save_s` is not sure to be whole before the job's end."""
    if not isinstance(launch, SlurmConfig) or save_s <= launch.grace_s / 2:
        return ""
    return (
        f"a checkpoint took {save_s:.0f} s of the {launch.grace_s} s between the signal and the"
        f" time limit: set launch.grace_s={4 * int(save_s + 1)}"
    )
