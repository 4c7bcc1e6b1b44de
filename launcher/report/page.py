"""Self-contained pages: of a run, from the files of its folder, and of comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.core.rundir import RunDir
from launcher.report import compared, renderer
from launcher.report.collect import collect
from launcher.report.view import view

_RUN = Path(__file__).with_name("page.html.j2")
_COMPARISON = Path(__file__).with_name("comparison.html.j2")


def build(run: RunDir) -> Path:
    """Write the run's report.html and return its path.

    Works at any time of a run's life: sections whose files are missing are left out. Raises
    `StorageError` if the page cannot be written.
    """
    facts = collect(run)
    renderer.write(run.report, renderer.render(_RUN, {"facts": facts, **view(facts)}))
    return run.report


def build_comparison(comparisons: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the page of comparisons with one model, as `launcher compare --json` prints them.

    Raises `StorageError` if it cannot be written.
    """
    models = [compared.model(comparison) for comparison in comparisons]
    renderer.write(path, renderer.render(_COMPARISON, {"models": models}))
