"""Self-contained pages: one frame, one look, and at most one script, all in one file.

A page is a template that extends `base.html.j2`. Beside it lie, where it has them, `page.css`,
which comes after the style of all pages, and `page.js`.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from launcher import __version__
from launcher.core.files import write_atomic

_FRAME = Path(__file__).parent
#: characters that have no shape but belong into words and emoji.
_JOINERS = "\u200c\u200d\ufe0f"


def render(
    template: Path,
    values: Mapping[str, Any],
    *,
    filters: Mapping[str, Callable[..., Any]] | None = None,
    visible: Callable[[str], str] | None = None,
) -> str:
    """The page of a template. All text is escaped, and goes through `visible` before."""
    import jinja2
    from markupsafe import Markup

    def shown(value: Any) -> Any:
        is_text = isinstance(value, str) and not isinstance(value, Markup)
        return visible(value) if visible and is_text else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _FRAME]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=shown,
    )
    environment.filters.update(filters or {})
    style = (_FRAME / "page.css").read_text(encoding="utf-8")
    if template.parent != _FRAME:
        style += _text(template.with_name("page.css"))
    script = _text(template.with_name("page.js"))
    # Only this script may run, so text from the data could not become code even if escaping failed.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template.name).render(
        style=Markup(style),  # noqa: S704 - our own files
        script=Markup(script),  # noqa: S704 - our own file
        script_hash=f"sha256-{digest}",
        version=__version__,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        **values,
    )


def visible(text: str) -> str:
    """The text with what has no shape, or would turn the page's text around, spelt out."""
    if text.isprintable():
        return text
    return "".join(
        f"⟨U+{ord(sign):04X}⟩"
        if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co") and sign not in f"\n\t{_JOINERS}"
        else sign
        for sign in text.replace("\r\n", "\n")
    )


def write(path: Path, page: str) -> None:
    """Write a page, which may quote what has no UTF-8. Raises `StorageError` if it cannot be."""
    write_atomic(path, page.encode("utf-8", "replace"))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
