"""TensorBoard: event files in the run folder, which `tensorboard --logdir runs` shows."""

from __future__ import annotations

import contextlib
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from launcher.config.compose import compose
from launcher.config.schema import Config
from launcher.core.rundir import RunDir
from launcher.track.tracker import series


class TensorboardTracker:
    """Scalars, the config as hyperparameters and as text, tables as text.

    Each attempt writes a file of its own, and readers see one run. An event is in its file when the
    call returns: a rank may be killed at any time.
    """

    stays_on = False

    def __init__(self, run: RunDir, config: Config, resolved: Mapping[str, Any]) -> None:
        self._run = run
        self._resolved = resolved
        self._writer: Any = None
        self._newest: dict[str, int] = {}

    def start(self, resumed_step: int | None) -> None:
        """Begin a file whose first event hides what is logged again."""
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        folder = self._run.path / "tensorboard"
        is_new = resumed_step is None or not folder.is_dir()
        first = 0 if resumed_step is None else resumed_step + 1
        self._newest = _newest_steps(self._run.metrics, before=first)
        # The first file says where it begins, too: the event hides nothing unless one came before.
        self._writer = SummaryWriter(str(folder), purge_step=first)
        if is_new:
            _, begun, _ = hparams(dict(_leaves(self._resolved)), {})
            self._writer.file_writer.add_summary(begun)
            self._writer.add_text("config", f"```yaml\n{compose.dump_plain(self._resolved)}```")
        self._writer.flush()

    def log(self, values: Mapping[str, Any]) -> None:
        """A scalar for each number of the line.

        Left out is a number of a step that its series is beyond, such as the last evaluation of
        weights that are not the last: a reader would take what lies between for outdated.
        """
        step = values["step"]
        shown = {tag: v for tag, v in series(values).items() if step > self._newest.get(tag, -1)}
        self._newest |= dict.fromkeys(shown, step)
        self._write(shown, step, values.get("time"))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final numbers, as scalars at the last step: the table of hyperparameters has them."""
        self._write(values, max(self._newest.values(), default=0))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table as text."""
        lines = [_row(columns), _row(["---"] * len(columns)), *map(_row, rows)]
        self._writer.add_text(name, "\n".join(lines), max(self._newest.values(), default=0))
        self._writer.flush()

    def artifact(self, name: str, folder: Path) -> None:
        """Event files hold no models; the export lies beside them."""

    def finish(self, exit_code: int, *, preempted: bool) -> None:
        """Say that the run is done, if it is, and close the file."""
        from torch.utils.tensorboard.summary import hparams

        if exit_code == 0:
            _, _, done = hparams({}, {})
            self._writer.file_writer.add_summary(done)
        self._writer.close()

    def _write(self, values: Mapping[str, Any], step: int, time: float | None = None) -> None:
        """The numbers among `values` as one event: each is an append to a file that may be far."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = {tag: value for tag, value in values.items() if isinstance(value, Real)}
        event = Summary(value=[Summary.Value(tag=t, simple_value=v) for t, v in numbers.items()])
        self._writer.file_writer.add_summary(event, step, time)
        self._writer.flush()


def _newest_steps(metrics: Path, before: int) -> dict[str, int]:
    """Series -> its last step before that one, by the lines of earlier attempts."""
    newest: dict[str, int] = {}
    with contextlib.suppress(OSError, ValueError):  # metrics.jsonl has warned of itself
        for line in metrics.read_text(encoding="utf-8").splitlines() if before else ():
            values = json.loads(line)
            if values["step"] < before:
                newest |= {tag: max(values["step"], newest.get(tag, -1)) for tag in series(values)}
    return newest


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key -> number, truth value or text; lists and free mappings as JSON."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{path}{key}.")
        elif isinstance(value, (list, Mapping)):
            yield f"{path}{key}", json.dumps(value, ensure_ascii=False)
        elif value is not None:
            yield f"{path}{key}", value


def _row(cells: Sequence[Any]) -> str:
    """A row of a Markdown table; what the cells hold is shown as it is."""
    texts = (html.escape("" if cell is None else str(cell)) for cell in cells)
    shown = (text.replace("|", "&#124;").replace("\n", "<br>") for text in texts)
    return f"| {' | '.join(shown)} |"
