"""How progress looks: plain lines in a log, a bar on a terminal. Only the bar imports rich."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol

from launcher.core import runtime

#: Key of a logged step -> how people read it.
_PARTS = {
    "loss": "loss {:.4f}",
    "token_accuracy": "accuracy {:.1%}",
    "lr": "lr {:.1e}",
    "grad_norm": "grad {:.2f}",
    "tokens_per_s": "{:,.0f} tok/s",
    "mfu": "MFU {:.1%}",
}


def duration(seconds: float) -> str:
    """3:21, or 1:02:03 from an hour on, or 2d 03:04:05."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d {hour:02}:{minute:02}:{second:02}"
    return f"{hour}:{minute:02}:{second:02}" if hour else f"{minute}:{second:02}"


def size(num_bytes: float) -> str:
    """1.2 GiB."""
    unit = "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(num_bytes) < 1024 or unit == "TiB":
            break
        num_bytes /= 1024
    return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"


def remaining_s(record: Mapping[str, Any], steps: int | None) -> float | None:
    """Seconds to the last step at the pace of `record`; None if that cannot be told."""
    if not steps or not record.get("step_time_s"):
        return None
    return float(max(0, steps - record["step"]) * record["step_time_s"])


def metrics_parts(record: Mapping[str, Any], steps: int | None) -> list[str]:
    """The numbers of one line of metrics.jsonl in words; absent ones are left out."""
    if record.get("kind") == "eval":
        values = {key.removeprefix("eval/"): v for key, v in record.items() if "/" in key}
        return [f"eval {key} {_number(value)}" for key, value in values.items()]
    parts = [
        text.format(record[key]) for key, text in _PARTS.items() if record.get(key) is not None
    ]
    if record.get("memory_bytes") is not None:
        parts.append(size(record["memory_bytes"]))
    eta = remaining_s(record, steps)
    if eta is not None:
        parts.append(f"ETA {duration(eta)}")
    return parts


def metrics_line(record: Mapping[str, Any], steps: int | None) -> str:
    """One record of metrics.jsonl as a line: `step 120/300 | loss 1.2340 | lr 1.0e-03 | ...`."""
    step = f"step {record['step']}/{steps}" if steps else f"step {record['step']}"
    return " | ".join([step, *metrics_parts(record, steps)])


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


class Display(Protocol):
    """Where lines and records of a run are shown."""

    def line(self, text: str) -> None:
        """Show a line."""

    def metrics(self, record: Mapping[str, Any], steps: int | None) -> None:
        """Show the numbers of a logged step."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class PlainView:
    """Lines on stderr."""

    def line(self, text: str) -> None:
        """Write the line."""
        print(text, file=sys.stderr, flush=True)

    def metrics(self, record: Mapping[str, Any], steps: int | None) -> None:
        """Write the record as one line."""
        self.line(metrics_line(record, steps))

    def close(self) -> None:
        """Nothing to restore."""


class LiveView:
    """A progress bar at the foot of the terminal; lines scroll above it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[numbers]}"),
        )
        self._bar = Progress(*columns, console=Console(stderr=True), expand=True)
        self._task = self._bar.add_task("run", total=None, numbers="", visible=False)
        self._bar.start()

    def line(self, text: str) -> None:
        """Print the line above the bar, as it is."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def metrics(self, record: Mapping[str, Any], steps: int | None) -> None:
        """Move the bar; the numbers of an evaluation go above it."""
        if record.get("kind") == "eval":
            self.line(metrics_line(record, steps))
            return
        numbers = " | ".join(metrics_parts(record, steps))
        self._bar.update(
            self._task, completed=record["step"], total=steps, numbers=numbers, visible=True
        )

    def close(self) -> None:
        """Leave the bar where it stands and give the cursor back."""
        self._bar.stop()


def view() -> Display:
    """A bar if stderr is a person's terminal, else plain lines."""
    return LiveView() if runtime.is_terminal() else PlainView()
