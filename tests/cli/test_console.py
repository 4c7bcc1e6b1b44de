"""How progress is shown."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from launcher.core import console
from launcher.core.runtime import child_environment

RECORD = {
    "kind": "train",
    "step": 120,
    "loss": 1.23401,
    "lr": 1e-3,
    "grad_norm": 0.98,
    "tokens_per_s": 12345.4,
    "mfu": None,
    "memory_bytes": int(1.2 * 2**30),
    "step_time_s": 201 / 180,
}


def test_record_as_one_plain_line():
    expected = (
        "step 120/300 | loss 1.2340 | lr 1.0e-03 | grad 0.98 | 12,345 tok/s | 1.2 GiB | ETA 3:21"
    )
    assert console.metrics_line(RECORD, 300) == expected


def test_absent_numbers_are_left_out():
    assert console.metrics_line({"kind": "train", "step": 3, "loss": 2.0}, None) == (
        "step 3 | loss 2.0000"
    )


def test_evaluation_as_one_plain_line():
    record = {"kind": "eval", "step": 9, "time": 1.0, "eval/loss": 0.5, "eval/records": 3}
    assert console.metrics_line(record, 10) == "step 9/10 | eval loss 0.5000 | eval records 3"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (201, "3:21"), (3723, "1:02:03"), (183845, "2d 03:04:05")],
)
def test_duration(seconds, text):
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**31, "2.0 GiB"), (2**52, "4096.0 TiB")],
)
def test_size(num_bytes, text):
    assert console.size(num_bytes) == text


SHOW = """
import sys
from launcher.core import console
view = console.view()
view.line("a [bold]line[/bold]")
view.metrics({record}, 300)
view.metrics({{"kind": "eval", "step": 120, "eval/loss": 0.5}}, 300)
view.close()
print(type(view).__name__, "rich" in sys.modules)
"""


def test_log_gets_plain_lines_without_rich():
    done = subprocess.run(
        [sys.executable, "-c", SHOW.format(record=RECORD)], capture_output=True, text=True
    )
    assert done.stdout.split() == ["PlainView", "False"]
    assert done.stderr.splitlines() == [
        "a [bold]line[/bold]",
        console.metrics_line(RECORD, 300),
        "step 120/300 | eval loss 0.5000",
    ]


def test_terminal_gets_a_bar_with_the_numbers():
    ours, theirs = pty.openpty()
    environment = child_environment(TERM="xterm", COLUMNS="160")
    with subprocess.Popen(
        [sys.executable, "-c", SHOW.format(record=RECORD)],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=environment,
    ) as process:
        os.close(theirs)
        assert process.stdout is not None
        assert process.stdout.read().split() == ["LiveView", "True"]
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other end is closed and all is read
            break
        shown += piece
    os.close(ours)
    text = shown.decode()
    for part in ("a [bold]line[/bold]", "120/300", "12,345 tok/s", "ETA 3:21", "eval loss 0.5000"):
        assert part in text
