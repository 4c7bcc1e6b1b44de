"""Builds the report.html of a sweep: one self-contained page from the files of its trials."""

from __future__ import annotations

from pathlib import Path

from launcher.report import renderer
from launcher.sweeps import coordinates, pictures, table
from launcher.sweeps.folder import SweepDir
from launcher.sweeps.importance import LEAST, importances
from launcher.sweeps.table import TrialRow

_TEMPLATE = Path(__file__).with_name("page.html.j2")


def build(sweep: SweepDir) -> Path:
    """Write the sweep's report.html and return its path; at any time of its life.

    Raises `StorageError` if the page cannot be written.
    """
    request, rows = sweep.request(), table.rows(sweep)
    best = table.best(request, rows)
    method, bars = importances(request, rows)
    values = {
        "sweep": sweep,
        "request": request,
        "rows": rows,
        "best": best,
        "best_words": table.pasted(best.trial.words) if best else "",
        "summary": table.summary(request, rows),
        "plot": coordinates.plot(request, rows),
        "size": (coordinates.WIDTH, coordinates.HEIGHT),
        "pictures": pictures,
        "against": pictures.against(request, rows),
        "curves": pictures.curves(request, rows),
        "links": {row.trial.number: _link(row) for row in rows},
        "done": sum(row.is_done for row in rows),
        "least": LEAST,
        "method": method,
        "bars": bars,
        "largest": max((value for _, value in bars), default=0.0) or 1.0,
    }
    page = renderer.render(_TEMPLATE, values, filters={"short": coordinates.short})
    renderer.write(sweep.report, page)
    return sweep.report


def _link(row: TrialRow) -> str:
    """The trial's own page, or its folder as long as it has none; seen from the sweep's page."""
    run = row.trial.run
    return f"{run.name}/report.html" if (run.path / "report.html").is_file() else f"{run.name}/"
