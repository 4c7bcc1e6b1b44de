"""Self-contained pages: of a run, from the files of its folder, of comparisons, and the frame of
all others."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from launcher import __version__
from launcher.report import compared
from launcher.report.collect import collect
from launcher.report.view import view
from launcher.rundir import RunDir, write_atomic

_FOLDER = Path(__file__).parent


def build(run: RunDir) -> Path:
    """Write the run's report.html and return its path.

    Works at any time of a run's life: sections whose files are missing are left out. Raises
    `StorageError` if the page cannot be written.
    """
    facts = collect(run)
    write_atomic(run.report, render(_FOLDER, "page.html.j2", facts=facts, **view(facts)))
    return run.report


def build_comparison(comparisons: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the page of comparisons with one model, as `launcher compare --json` prints them.

    Raises `StorageError` if it cannot be written.
    """
    models = [compared.model(comparison) for comparison in comparisons]
    write_atomic(path, render(_FOLDER, "comparison.html.j2", models=models))


def render(
    folder: Path, template: str, *, finalize: Callable[[Any], Any] | None = None, **values: Any
) -> str:
    """The self-contained page of a template in `folder`, in the style of all pages and then in the
    folder's own page.css; of scripts only the folder's page.js may run.

    `finalize` changes each value before it is shown. Besides `values` the template has the
    launcher's `version` and `made`, the time.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
    styles = [place / "page.css" for place in dict.fromkeys((_FOLDER, folder))]
    style = "".join(file.read_text(encoding="utf-8") for file in styles)
    file = folder / "page.js"
    script = file.read_text(encoding="utf-8") if file.exists() else ""
    # Only this script may run, so text from the data could not become code even if escaping failed.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        style=Markup(style),  # noqa: S704 - our own files
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=f"sha256-{digest}",
        version=__version__,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        **values,
    )
