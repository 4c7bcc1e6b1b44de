"""The GPU tests of a pass: which commands of pytest, and what they have said."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpu_processes import ROOT

#: Files in this order, others behind them.
ORDER = ("varlen", "loss_memory", "generation", "zero", "runs")
#: File -> tests of it that take all the memory: the others run side by side, with pytest-xdist.
ALONE = {"runs": "out_of_memory"}
#: Characters of the output's end that a failure shows.
TAIL = 4500
_STATES = "PASSED|FAILED|ERROR|SKIPPED"


def commands(names: Iterable[str] | None) -> list[tuple[str, list[str]]]:
    """(name, command of pytest) of the files `names` of tests/gpu, all of them if it is None."""
    paths = {path.stem.removeprefix("test_"): path for path in (ROOT / "tests/gpu").glob("test_*")}
    known = [*(name for name in ORDER if name in paths), *sorted(paths.keys() - {*ORDER})]
    files = [name for name in known if names is None or name in names]
    return [pair for name in files for pair in _commands(name, paths[name])]


def _commands(name: str, path: Path) -> Iterator[tuple[str, list[str]]]:
    words = ["-m", "gpu", "-v", "-p", "no:cacheprovider", "--tb=short"]
    words += ["-o", "console_output_style=classic"]
    if not importlib.util.find_spec("pytest_timeout"):  # its option is in the project's settings
        words += ["-o", "addopts=--import-mode=importlib --strict-markers"]
    command = [sys.executable, "-m", "pytest", *words, str(path.relative_to(ROOT))]
    if name in ALONE and importlib.util.find_spec("xdist"):
        yield path.name, [*command, "-n", "4", "-k", f"not {ALONE[name]}"]
        yield f"{path.name}, {ALONE[name]}", [*command, "-k", ALONE[name]]
    else:
        yield path.name, command


def outcome(output: str, problem: str) -> dict[str, Any]:
    """What `pytest -v` has said, though it may have been killed: "text", or "error" and its
    output's end. `problem` is why the process failed, or empty."""
    states = dict(re.findall(rf"^(tests/\S+::.+?) ({_STATES})", output, re.M))
    side_by_side = re.findall(rf"^\[gw\d+\] ({_STATES}) (tests/\S+::.+?) *$", output, re.M)
    states |= {name: state for state, name in side_by_side}
    counts = {state: [*states.values()].count(state) for state in sorted({*states.values()})}
    text = ", ".join(f"{number} {state.lower()}" for state, number in counts.items())
    bad = [name for name, state in states.items() if state in ("FAILED", "ERROR")]
    if problem.startswith("not finished"):
        begun = re.findall(rf"^(tests/\S+::.+?)(?: (?:{_STATES}).*)? *$", output, re.M)
        bad += [f"{name} (hung)" for name in dict.fromkeys(begun) if name not in states]
    if not problem and not bad:
        return {"text": text}
    named = ", ".join(name.partition("::")[2] for name in bad)
    said = "; ".join(filter(None, [text, problem, f"failed: {named}" if bad else ""]))
    return {"error": said, "output": output[-TAIL:]}
