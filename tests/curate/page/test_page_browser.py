"""The data report in a real Chromium: drawn, in its width, quiet, and deaf to scripts."""

import json
import re

import pytest

from launcher.curate.page import page
from support.browser import CHROMIUM, SKIP, dom
from support.reports import report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=SKIP),
]

#: shown in a frame as wide as a phone or a screen, since a window has a least width.
FRAME = """<body style="margin:0">
<iframe style="width:{width}px;height:900px;border:0" srcdoc="{page}"></iframe>
<script>
  document.querySelector("iframe").addEventListener("load", (event) => {{
    const inside = event.target.contentDocument;
    const style = (query, name) => getComputedStyle(inside.querySelector(query))[name];
    const box = (query) => inside.querySelector(query).getBoundingClientRect();
    const found = {{
      overflow: inside.documentElement.scrollWidth - {width},
      bars: [...inside.querySelectorAll("#plot-lengths .bar .body")].map(
        (bar) => bar.getBoundingClientRect()).filter((bar) => bar.width > 2).length,
      tallest: Math.max(...[...inside.querySelectorAll("#plot-lengths .body")].map(
        (bar) => bar.getBoundingClientRect().height)),
      limit: [box("#plot-lengths .limit span").left, box("#plot-lengths .limit span").right],
      verdict: box("#verdict").bottom,
      paper: style("body", "backgroundColor"),
      ink: style("body", "color"),
      fail: style(".chip.is-fail", "color"),
      warn: style(".chip.is-warn", "color"),
      examples: [...inside.querySelectorAll("#rules details")].map((each) => each.open),
      marks: [...inside.querySelectorAll("#duplicates mark")].map((each) => each.textContent),
    }};
    document.documentElement.dataset.found = JSON.stringify(found);
  }});
</script></body>"""


def look(tmp_path, width: int, dark: bool) -> dict:
    html = page.render(report()).replace("&", "&amp;").replace('"', "&quot;")
    path = tmp_path / "frame.html"
    path.write_text(FRAME.format(width=width, page=html))
    found = re.search(r'data-found="([^"]*)"', dom(path, tmp_path, width=1300, dark=dark))
    return json.loads(found[1].replace("&quot;", '"'))


def brightness(colour: str) -> int:
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390], ids=["desktop", "phone"])
def test_the_page_fits_and_is_drawn(tmp_path, width, dark):
    found = look(tmp_path, width, dark)
    assert found["overflow"] <= 0
    assert found["verdict"] < 600
    assert found["bars"] > 20
    assert 100 < found["tallest"] < 300
    assert 0 < found["limit"][0] < found["limit"][1] < width
    assert (brightness(found["paper"]) < brightness(found["ink"])) == dark
    for tone in ("fail", "warn"):
        assert (brightness(found[tone]) > 380) == dark
    assert found["examples"] == [True, True, False]
    assert found["marks"] == ["41", "47"]


def test_a_page_opens_without_a_word_on_the_console(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page.render(report()))
    assert dom(path, tmp_path).count('class="chart"') == 4


def test_the_policy_stops_a_script_that_got_in(tmp_path):
    path = tmp_path / "report.html"
    html = page.render(report())
    path.write_text(html.replace("</body>", "<script>document.title = 'owned'</script></body>"))
    with pytest.raises(AssertionError, match="violates the following Content"):
        dom(path, tmp_path)
