"""Builds the report.html of a sweep: one self-contained page from the files of its trials."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime, timezone
from pathlib import Path

from launcher import __version__
from launcher.core.rundir import write_atomic
from launcher.report import page as run_page
from launcher.sweeps import coordinates, pictures, table
from launcher.sweeps.folder import SweepDir
from launcher.sweeps.importance import LEAST, importances
from launcher.sweeps.table import Row

FOLDER = Path(__file__).parent


def build(sweep: SweepDir) -> Path:
    """Write the sweep's report.html and return its path; at any time of its life.

    Raises `StorageError` if the page cannot be written.
    """
    import jinja2
    from markupsafe import Markup

    request, rows = sweep.request(), table.rows(sweep)
    best = table.best(request, rows)
    method, bars = importances(request, rows)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = coordinates.short
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    style = (run_page.FOLDER / "page.css").read_text(encoding="utf-8") + (
        FOLDER / "page.css"
    ).read_text(encoding="utf-8")
    # Only this script may run, so an override could not become code even if escaping failed.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template("page.html.j2").render(
        style=Markup(style),  # noqa: S704 - our own files
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=f"sha256-{digest}",
        version=__version__,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        sweep=sweep,
        request=request,
        rows=rows,
        best=best,
        best_words=table.pasted(best.trial.words) if best else "",
        summary=table.summary(request, rows),
        plot=coordinates.plot(request, rows),
        size=(coordinates.WIDTH, coordinates.HEIGHT),
        pictures=pictures,
        against=pictures.against(request, rows),
        curves=pictures.curves(request, rows),
        links={row.trial.number: _link(row) for row in rows},
        done=sum(row.is_done for row in rows),
        least=LEAST,
        method=method,
        bars=bars,
        largest=max((value for _, value in bars), default=0.0) or 1.0,
    )
    write_atomic(sweep.report, text)
    return sweep.report


def _link(row: Row) -> str:
    """The trial's own page, or its folder as long as it has none; seen from the sweep's page."""
    run = row.trial.run
    return f"{run.name}/report.html" if (run.path / "report.html").is_file() else f"{run.name}/"
