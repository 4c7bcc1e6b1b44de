"""The page of comparisons in a real Chromium, on a desktop and on a phone."""

import pytest

from launcher.report import build_comparison
from support.browser import CHROMIUM, DESKTOP, PHONE, SKIP, chromium

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=SKIP),
]
MIDDLE = "{block: 'center', behavior: 'instant'}"
VISIBLE = "[...document.querySelectorAll('.sample')].filter(s => !s.hidden).length"


@pytest.mark.parametrize(("size", "dark"), [(DESKTOP, False), (PHONE, True)])
def test_answers_are_filtered_by_kind_and_words(comparison, tmp_path, size, dark):
    page = tmp_path / "page.html"
    build_comparison([comparison], page)
    worse = sum(line["change"] == "worse" for line in comparison["answers"])
    with chromium(tmp_path) as browser:
        browser.open(page.as_uri(), size=size, dark=dark)
        browser.wait("document.documentElement?.dataset.ready === 'yes'")
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        assert browser.value(VISIBLE) == 6
        # In the middle, since at the top it would be under the sticky navigation.
        browser.value(f"document.querySelector('.filters').scrollIntoView({MIDDLE})")
        browser.click('[data-kind="worse"]')
        assert browser.value(VISIBLE) == worse
        browser.click('[data-kind="all"]')
        browser.click(".filters input")
        browser.type("carries 43 cars")
        assert browser.value(VISIBLE) == 1
        assert browser.value("document.querySelectorAll('mark').length") > 0
        assert browser.console == []
