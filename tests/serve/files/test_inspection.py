"""Processes that look at lines: one after the other, for as long as the server lives."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest

from launcher.core.errors import LauncherError
from launcher.serve.files.inspection import Lookers

LINES = b'{"text": "a line"}\n' * 5000
EXPECTED = "Expected file to have JSONL format, where every line is a valid JSON dictionary."


@pytest.fixture
def lookers() -> Iterator[Lookers]:
    found = Lookers()
    yield found
    found.close()


def look(lookers: Lookers, content: bytes, line_bytes: int = 1 << 20) -> str | None:
    return lookers.wrong(io.BytesIO(content), len(content), line_bytes)


def test_a_process_looks_at_one_file_after_the_other(lookers: Lookers) -> None:
    assert look(lookers, LINES) is None
    (process,) = lookers._idle
    assert look(lookers, b"7\n" + LINES) == f"{EXPECTED} Line 1: it is no dictionary."
    assert look(lookers, LINES + b'{"a"') == f"{EXPECTED} Line 5001: " + _python('{"a"') + "."
    assert look(lookers, LINES, 10) == f"{EXPECTED} Line 1: it is longer than 10 bytes."
    assert look(lookers, b" \n" * 50_000) == f"{EXPECTED} The file has no lines."
    assert look(lookers, LINES) is None
    assert lookers._idle == [process]


def _python(text: str) -> str:
    with pytest.raises(ValueError, match=".") as refused:
        json.loads(text)
    return str(refused.value)


def test_one_that_has_died_is_replaced(lookers: Lookers, monkeypatch: pytest.MonkeyPatch) -> None:
    assert look(lookers, LINES) is None
    lookers._idle[0].kill()
    lookers._idle[0].wait()
    assert look(lookers, LINES) is None
    monkeypatch.setattr(lookers._idle[0], "poll", lambda: None)  # it dies just after
    lookers._idle[0].kill()
    with pytest.raises(LauncherError, match="could not be looked at"):
        look(lookers, LINES * 10)
    assert lookers._idle == []
    assert look(lookers, LINES) is None


def test_it_ends_when_nobody_can_ask_it(lookers: Lookers) -> None:
    look(lookers, LINES)
    process = lookers._idle.pop()
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(10) == 0
    assert process.stdout is not None
    process.stdout.close()
