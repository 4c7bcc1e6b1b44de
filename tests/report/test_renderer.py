"""What all pages have in common: the frame, the styles, the one script, and how text gets in."""

import base64
import hashlib
import re
from pathlib import Path

import jinja2
import pytest

from launcher.report import renderer
from support.html import Page

TEMPLATE = (
    '{% extends "base.html.j2" %}\n{% block title %}{{ name }}{% endblock %}\n'
    '{% block body %}<p id="said">{{ said | twice }}</p>{% endblock %}'
)


def _template(folder: Path, **files: str) -> Path:
    (folder / "mine.html.j2").write_text(TEMPLATE)
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    return folder / "mine.html.j2"


def _render(template: Path, said: str, **options: object) -> str:
    filters = {"twice": lambda text: text * 2}
    return renderer.render(template, {"name": "a & b", "said": said}, filters=filters, **options)


def test_styles_and_script_are_inside_and_only_that_script_may_run(tmp_path):
    own = _template(tmp_path, page_css="#said { color: red }", page_js="let a = 1 < 2;")
    text = _render(own, "<script>alert(1)</script>")
    style = re.search("<style>(.*)</style>", text, re.DOTALL)[1]
    common = (Path(renderer.__file__).parent / "page.css").read_text()
    assert style == common + "#said { color: red }"
    assert re.findall("<script>(.*?)</script>", text) == ["let a = 1 < 2;"]
    digest = base64.b64encode(hashlib.sha256(b"let a = 1 < 2;").digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "<script>alert(1)</script>" * 2 in Page(text).text
    assert "<title>a &amp; b</title>" in text


def test_a_page_without_a_script_lets_none_run(tmp_path):
    text = _render(_template(tmp_path), "words")
    assert "default-src 'none'" in text
    assert "script" not in text


def test_text_is_made_visible_and_what_frames_it_is_not(tmp_path):
    text = _render(_template(tmp_path), "a b", visible=str.upper)
    assert "A BA B" in Page(text).text
    assert "<title>A &amp; B</title>" in text
    style = re.search("<style>(.*)</style>", text, re.DOTALL)[1]
    assert style == (Path(renderer.__file__).parent / "page.css").read_text()


def test_a_value_that_a_template_lacks_is_an_error(tmp_path):
    with pytest.raises(jinja2.UndefinedError, match="'said' is undefined"):
        renderer.render(_template(tmp_path), {"name": "x"}, filters={"twice": str})


def test_a_page_is_written_whole_whatever_it_quotes(tmp_path):
    path = tmp_path / "new" / "page.html"
    renderer.write(path, "half a pair: \ud83d")
    assert path.read_text(encoding="utf-8") == "half a pair: ?"
    assert [entry.name for entry in path.parent.iterdir()] == ["page.html"]
