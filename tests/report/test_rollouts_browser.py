"""Drawn answers in a real Chromium: one rollout at a time, by mouse and keyboard, on any screen."""

import pytest

from launcher.report import build
from support.browser import CHROMIUM, SKIP, chromium
from support.rollouts import reinforce

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=SKIP),
]

SHOWN = "[...document.querySelectorAll('.rollout')].filter(r => !r.hidden).map(r => r.dataset.step)"
PRESSED = "[...document.querySelectorAll('.steps [aria-pressed=true]')].map(b => b.textContent)"
AT_ONCE = "{block: 'center', behavior: 'instant'}"
OVERFLOW = "document.documentElement.scrollWidth - innerWidth"


@pytest.mark.parametrize(("size", "dark"), [((1200, 900), False), ((390, 844), True)])
def test_a_step_is_chosen_by_mouse_and_by_keyboard(finished_run, tmp_path, size, dark):
    reinforce(finished_run)
    page = build(finished_run)
    with chromium(tmp_path) as browser:
        browser.open(page.as_uri(), size=size, dark=dark)
        browser.wait("document.documentElement?.dataset.ready === 'yes'")
        assert browser.value(SHOWN) == browser.value(PRESSED) == ["40"]
        assert browser.value(OVERFLOW) <= 0
        browser.value(f"document.querySelector('.steps').scrollIntoView({AT_ONCE})")
        browser.click(".steps button")
        assert browser.value(SHOWN) == ["1"]
        browser.key("ArrowRight")
        assert browser.value(SHOWN) == browser.value(PRESSED) == ["4"]
        assert browser.value("document.activeElement.textContent") == "4"
        browser.key("End")
        assert browser.value(SHOWN) == ["40"]
        browser.key("Home")
        assert browser.value(SHOWN) == ["1"]
        told = browser.value("document.querySelector('.rollout').innerText")
        assert "1 of step 0" in told
        assert "How many are 0?" in told
        assert browser.value(OVERFLOW) <= 0
        ink, well = (
            browser.value(f"getComputedStyle(document.querySelector('.given pre')).{key}")
            for key in ("color", "fontSize")
        )
        assert ink == ("rgb(231, 233, 236)" if dark else "rgb(27, 31, 36)")
        assert float(well.removesuffix("px")) > 11
        assert not browser.console


def test_without_its_script_all_rollouts_are_there(finished_run, tmp_path):
    reinforce(finished_run, 3)
    page = build(finished_run)
    text = page.read_text()
    start = text.rindex("<script>")
    page.write_text(text[:start] + text[text.index("</script>", start) + 9 :])
    with chromium(tmp_path) as browser:
        browser.open(page.as_uri())
        browser.wait("document.querySelectorAll('.rollout').length === 3")
        assert browser.value(SHOWN) == ["1", "2", "3"]
        assert browser.value("document.querySelector('.steps').hidden")
