"""Records are read again, of any kind of file, in the order of the table."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

from launcher.config.schema import Config
from launcher.curate.scan.scan import scan
from support.curation import pairs

Write = Callable[..., str]
Configure = Callable[..., Config]


def test_any_rows_are_streamed_in_order(write: Write, configure: Configure, tmp_path: Path) -> None:
    records = pairs(90)
    lines = write([*records[:30], "", '{"broken', *records[30:40]], "a.jsonl")
    with open(tmp_path / "b.csv", "w", newline="") as file:
        table = csv.DictWriter(file, ["prompt", "completion"])
        table.writeheader()
        table.writerows(records[40:70])
    (tmp_path / "c.json").write_text(json.dumps(records[70:]))
    names = [lines, str(tmp_path / "b.csv"), str(tmp_path / "c.json")]
    found = scan(configure(train=names))
    assert len(found.train) == 90
    wanted = [85, 3, 31, 69, 3, 40, 71]
    streamed = list(found.stream(wanted))
    assert [row for row, _ in streamed] == sorted(set(wanted))
    assert [item.prompt for _, item in streamed] == [
        records[row]["prompt"] for row in sorted(set(wanted))
    ]
    assert found.fetch(wanted) == dict(streamed)
    assert list(found.stream([])) == []


def test_rows_keep_their_lines(write: Write, configure: Configure) -> None:
    found = scan(configure(train=write(pairs(500))))
    items = found.fetch(range(0, 500, 7))
    assert list(items) == list(range(0, 500, 7))
    assert all(item.line == row + 1 for row, item in items.items())
