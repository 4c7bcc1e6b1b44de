"""report.html in a real Chromium: it draws, it runs its script, it complains about nothing."""

import json
import re

import pytest

from launcher.core.rundir import RunDir, State
from launcher.report import build
from support.browser import CHROMIUM, SKIP, dom

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=SKIP),
]

#: put at the end of a page (with its policy taken out) to try it; leaves its findings in the DOM.
PROBE = """
<script>
  const found = {};
  found.overflow = document.documentElement.scrollWidth - innerWidth;
  const area = document.querySelector("#chart-loss .plot-area");
  const box = area.getBoundingClientRect();
  area.dispatchEvent(new PointerEvent("pointermove",
    {clientX: box.left + box.width * 0.999, clientY: box.top + 5, bubbles: true}));
  found.tip = area.querySelector(".tip").textContent;
  found.tipInside = area.querySelector(".tip").getBoundingClientRect().right <= innerWidth;
  const visible = (query) =>
    [...document.querySelectorAll(query)].filter((e) => !e.hidden).length;
  found.firstSamples = visible(".sample");
  document.querySelector('.filters [data-kind="worse"]').click();
  found.worseSamples = visible(".sample");
  document.querySelector('.filters [data-kind="all"]').click();
  document.querySelector(".more").click();
  found.allSamples = visible(".sample");
  const words = document.querySelector(".filters input");
  words.value = "CARRIES 43 CARS";
  words.dispatchEvent(new Event("input"));
  found.withWords = visible(".sample");
  words.value = "zebra";
  words.dispatchEvent(new Event("input"));
  found.noneSaid = [visible(".sample"), visible(".none")];
  const search = document.querySelector("#config input");
  document.querySelector("#config details").open = true;
  search.value = "optim lr";
  search.dispatchEvent(new Event("input"));
  found.configRows = visible("#config tr");
  const curve = document.querySelector("#chart-loss .curve").getBoundingClientRect();
  found.curve = [curve.width, curve.height];
  document.documentElement.dataset.found = JSON.stringify(found);
</script></body>"""


def probe(run: RunDir, tmp_path, width: int) -> dict:
    html = build(run).read_text()
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    path = tmp_path / "probed.html"
    path.write_text(html.replace("</body>", PROBE))
    found = re.search(r'data-found="([^"]*)"', dom(path, tmp_path, width=width))
    return json.loads(found[1].replace("&quot;", '"'))


def test_charts_and_table_are_drawn_without_complaint(finished_run, tmp_path):
    html = dom(build(finished_run), tmp_path)
    assert 'data-ready="yes"' in html
    assert html.count('class="chart"') == 5
    assert html.count('class="curve') >= 8
    assert len(re.findall(r'<tr class="verdict-', html)) == 4
    for name in ("comparison", "curves", "answers", "plan", "data", "config", "environment"):
        assert f'id="{name}"' in html


@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_works_on_desktop_and_phone(finished_run, tmp_path, width):
    found = probe(finished_run, tmp_path, width)
    assert found["overflow"] <= 0
    assert found["tip"].startswith("step 300")
    assert "held-out, base model 3.212" in found["tip"]
    assert found["tipInside"]
    lines = (finished_run.eval / "predictions.jsonl").read_text().splitlines()
    changes = [json.loads(line)["change"] for line in lines]
    assert found["firstSamples"] == 6
    assert found["worseSamples"] == changes.count("worse")
    assert found["allSamples"] == 12 + sum(kind != "same" for kind in changes[12:])
    assert found["withWords"] == sum("carries 43 cars" in line for line in lines)
    assert found["noneSaid"] == [0, 1]
    assert found["configRows"] == 1
    assert found["curve"][0] > 0.5 * width
    assert found["curve"][1] > 50


def test_scripts_in_the_data_do_not_run(finished_run, tmp_path):
    hostile = "</pre><img src=x onerror=\"document.title='owned'\"><script>throw 1</script>"
    line = {"id": 1, "where": hostile, "prompt": hostile, "reference": hostile, "tuned": hostile}
    (finished_run.eval / "predictions.jsonl").write_text(json.dumps(line) + "\n")
    html = dom(build(finished_run), tmp_path)
    assert "<title>gsm8k-lora · training report</title>" in html
    assert "<img" not in html


def test_the_policy_stops_a_script_that_got_in(finished_run, tmp_path):
    page = build(finished_run)
    page.write_text(
        page.read_text().replace("</body>", "<script>document.title = 'owned'</script></body>")
    )
    with pytest.raises(AssertionError, match="violates the following Content"):
        dom(page, tmp_path)


def test_a_failed_run_opens_without_complaint(tmp_path):
    run = RunDir(tmp_path / "broken")
    run.path.mkdir()
    run.set_status(State.failed, reason="out of memory", exit_code=4)
    html = dom(build(run), tmp_path)
    assert 'data-ready="yes"' in html
    assert "out of memory" in html
