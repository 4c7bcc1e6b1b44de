"""Builds report.html: one self-contained page from the files of a run folder."""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime, timezone
from pathlib import Path

from launcher import __version__
from launcher.report.collect import collect
from launcher.report.view import view
from launcher.rundir import RunDir, write_atomic

FOLDER = Path(__file__).parent


def build(run: RunDir) -> Path:
    """Write the run's report.html and return its path.

    Works at any time of a run's life: sections whose files are missing are left out. Raises
    `StorageError` if the page cannot be written.
    """
    import jinja2
    from markupsafe import Markup

    facts = collect(run)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (FOLDER / "page.js").read_text()
    # Only this script may run, so text from the data could not become code even if escaping failed.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = environment.get_template("page.html.j2").render(
        style=Markup((FOLDER / "page.css").read_text()),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=f"sha256-{digest}",
        version=__version__,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        facts=facts,
        **view(facts),
    )
    write_atomic(run.report, page)
    return run.report
