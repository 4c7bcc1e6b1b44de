"""The log as JSON: whatever is written to stderr, by whomever, comes out as lines of it."""

from __future__ import annotations

import json
import subprocess
import sys

from support.ranks import environment

PROGRAM = r"""
import os, subprocess, sys, threading, warnings
from launcher.serve.http import logs
logs.start("json")
os.write(2, b"plain\n")
os.write(2, b"\xff half \xc3\n\n   \n")
os.write(2, b'{"own": 1}\n[1]\n5\nnull\n')
os.write(2, b"x" * (3 << 19) + b"\n")
print("printed \u2028 in one", file=sys.stderr)
subprocess.run(["sh", "-c", "echo child >&2"])
warnings.warn("deprecated")
threading.Thread(target=lambda: 1 / 0).start()
os.write(2, b"no end of line")
sys.stderr.flush()
raise KeyError("last")
"""


def test_every_line_is_json_whoever_has_written_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment(), capture_output=True, timeout=60
    )
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    assert {"own": 1} in lines
    said = [line.get("message", "") for line in lines]
    for text in ("plain", "\ufffd half \ufffd", "[1]", "5", "null", "child", "no end of line"):
        assert text in said, text
    assert "printed \u2028 in one" in said
    assert sum(text.count("x") for text in said if set(text) == {"x"}) == 3 << 19
    assert any("deprecated" in text for text in said)
    traces = [line["traceback"] for line in lines if "traceback" in line]
    assert any("ZeroDivisionError" in trace for trace in traces)
    assert any("KeyError: 'last'" in trace for trace in traces)
    assert all(line["time"].endswith("Z") for line in lines if "own" not in line)
