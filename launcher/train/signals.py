"""Asking a run to stop: signal handlers only set a flag that the loop reads where that is safe."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from types import FrameType

from launcher.config.schema.launch import LaunchConfig
from launcher.core.errors import ExitCode


class StopFlag:
    """Set by SIGTERM, SIGUSR1 or SIGINT; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.reason = ""
        self._parent = os.getppid()
        self.wish: Path | None = None
        """File in which whoever sends the signal has said who asked (see `RunDir.wish`)."""

    def __bool__(self) -> bool:
        return bool(self.reason)

    @property
    def by(self) -> str:
        """Who or what asked."""
        with contextlib.suppress(OSError):
            if self.wish is not None:
                return self.wish.read_text(encoding="utf-8").strip()
        return self.reason or "a signal on another rank"

    def ask_for_lost_output(self, why: str) -> None:
        """The same wish from output that nobody takes any more, with the system's reason."""
        self.reason = self.reason or f"its output ({why})"

    def install(self) -> None:
        """Handle the signals from now on; main thread only."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason.startswith("SIGINT"):
            raise SystemExit(int(ExitCode.interrupted))
        self.reason = signal.Signals(number).name
        if os.getppid() != self._parent:  # the kernel's signal, which ranks are started with
            self.reason += " (the process that started the ranks has ended)"


def too_slow_for_grace(launch: LaunchConfig, save_s: float) -> str:
    """A warning if a checkpoint that took `save_s` is not sure to be whole before the job's end."""
    warning_s = launch.warning_s
    if warning_s is None or save_s <= warning_s / 2:
        return ""
    return (
        f"a checkpoint took {save_s:.0f} s of the {warning_s} s between the signal and the"
        f" time limit: set launch.grace_s={4 * int(save_s + 1)}"
    )
