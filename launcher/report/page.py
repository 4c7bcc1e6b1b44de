"""Self-contained pages: of a run, from the files of its folder, and of comparisons."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from launcher import __version__
from launcher.core.rundir import RunDir, write_atomic
from launcher.report import compared
from launcher.report.collect import collect
from launcher.report.view import view

FOLDER = Path(__file__).parent


def build(run: RunDir) -> Path:
    """Write the run's report.html and return its path.

    Works at any time of a run's life: sections whose files are missing are left out. Raises
    `StorageError` if the page cannot be written.
    """
    facts = collect(run)
    write_atomic(run.report, _render("page.html.j2", facts=facts, **view(facts)))
    return run.report


def build_comparison(comparisons: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the page of comparisons with one model, as `launcher compare --json` prints them.

    Raises `StorageError` if it cannot be written.
    """
    models = [compared.model(comparison) for comparison in comparisons]
    write_atomic(path, _render("comparison.html.j2", models=models))


def _render(template: str, **values: Any) -> str:
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    # Only this script may run, so text from the data could not become code even if escaping failed.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=f"sha256-{digest}",
        version=__version__,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        **values,
    )
