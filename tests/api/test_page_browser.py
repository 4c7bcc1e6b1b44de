"""The page at / in a real Chromium: from the key to the trained model, on phone and desktop."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.browser import CHROMIUM, DESKTOP, PHONE, SKIP, Browser, chromium
from support.contrast import contrast
from support.page import STATE, enter, start_job
from support.served import Served

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=SKIP),
]

PROBLEM = "document.querySelector('#problem').textContent"
TURNS = "[...document.querySelectorAll('.turn')].map((turn) => turn.textContent)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@pytest.fixture(scope="module")
def job(served: Served, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A job that the page has started, watched to its end, and whose model it has tried."""
    browser.console.clear()
    enter(browser, served)
    browser.wait("!document.querySelector('#no-jobs').hidden")
    found = start_job(browser, tmp_path_factory.mktemp("data"))
    browser.wait("document.querySelectorAll('#curve polyline').length === 2", "a curve")
    browser.wait(f"{STATE} === 'running'")
    assert browser.value("document.querySelector('#job-progress').ariaValueMax") == "120"
    browser.wait(f"{STATE} === 'succeeded'", "the end of the job", within_s=180)
    browser.wait("document.querySelectorAll('#checkpoints li').length === 3", "checkpoints")
    browser.value("document.querySelector('#job-try').click()")
    browser.wait("document.querySelector('#try-model').value.startsWith('ft:tiny:local:pirate:')")
    ask(browser, "Anna has 3 apples and gets 4 more. How many?")
    assert browser.console == []
    return found


def ask(browser: Browser, text: str) -> None:
    turns = browser.value(f"{TURNS}.length")
    browser.value("document.querySelector('#try-longest').value = 30")
    browser.value("document.querySelector('#try-text').focus()")
    browser.type(text)
    browser.key("Enter")
    browser.wait(f"answering === null && {TURNS}.length === {turns + 2}", "an answer")


def test_a_job_is_started_watched_and_its_model_tried(browser: Browser, job: str) -> None:
    assert browser.value(TURNS)[-1] == "Arr, matey! Ask the parrot."
    assert browser.value(PROBLEM) == ""


def test_a_job_tells_how_it_went(browser: Browser, served: Served, job: str) -> None:
    browser.console.clear()
    enter(browser, served, f"jobs/{job}")
    browser.wait("document.querySelectorAll('#events li').length > 100", "events")
    latest = browser.value("document.querySelector('#events li').lastChild.textContent")
    assert latest == "The job has successfully completed"
    label = browser.value("document.querySelector('#curve svg').ariaLabel")
    assert label.startswith("Loss from ")
    assert "at step 120; validation loss" in label
    rows = browser.wait(
        "[...document.querySelectorAll('#comparison tbody tr')].map((row) => row.textContent)"
    )
    assert any(row.startswith("loss") and row.endswith("better") for row in rows)
    assert "Epochs12" in browser.value("document.querySelector('#facts').textContent")
    assert browser.value("document.querySelector('#job-cancel').hidden")
    assert browser.console == []


def test_reports_are_shown_in_a_sandbox(browser: Browser, served: Served, job: str) -> None:
    enter(browser, served, f"jobs/{job}")
    browser.wait("document.querySelectorAll('#reports button').length === 2", "two reports")
    for number, title in ((1, "Run"), (2, "Training data")):
        browser.value(
            "window.isLoaded = false; document.querySelector('#report').onload ="
            " () => { window.isLoaded = true; }"
        )
        browser.value(f"document.querySelector('#reports button:nth-child({number})').click()")
        browser.wait("window.isLoaded", f"the report {title}")
        assert browser.value("document.querySelector('#report').title").startswith(title)
    assert browser.value("document.querySelector('#report').contentDocument") is None


def test_only_the_link_of_a_report_opens_it(served: Served, job: str) -> None:
    with served.client(timeout_s=120) as client:
        listed = client.get(f"/fine_tuning/jobs/{job}/reports").json()["data"]
        links = {report["kind"]: f"{served.url}/{report['url']}" for report in listed}
        for link in links.values():
            page = client.get(link, headers={"Authorization": ""})
            assert page.status_code == 200
            assert page.headers["content-security-policy"].startswith("sandbox allow-scripts;")
            assert "<h1" in page.text
            forged = link[:-3] + ("AAA" if link[-3:] != "AAA" else "BBB")
            for other in (forged, link.partition(".")[0], f"{served.url}/reports/../serve.db"):
                assert client.get(other).status_code == 404
        assert client.get("/fine_tuning/jobs/ftjob-other/reports").status_code == 404


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_view_fits_and_can_be_read(
    browser: Browser, served: Served, job: str, size: tuple[int, int], dark: bool
) -> None:
    browser.console.clear()
    browser.open(f"{served.url}/", size=size, dark=dark)
    browser.wait("typeof route === 'function'")
    shown = {"key": ("#key-title", "#view-key .soft", "#key-form button")}
    if browser.value("key === ''"):
        readable(browser, *shown["key"])
    enter(browser, served, size=size, dark=dark)
    browser.wait("document.querySelectorAll('.job .state').length")
    readable(browser, ".brand", "nav a", ".job b", ".job small", ".state", ".button.main")
    browser.value(f"location.hash = '#jobs/{job}'")
    browser.wait("document.querySelectorAll('#comparison tr').length", "the comparison")
    readable(browser, "#job-title", ".state", "dt", "dd", ".events time", ".events li", "td")
    browser.value("location.hash = '#new'")
    browser.wait("document.querySelector('#new-model').value")
    readable(browser, "#view-new label", "#view-new .hint", "#new-send", "#new-suffix")
    browser.value("location.hash = '#try'")
    browser.wait("document.querySelector('#try-model').value")
    ask(browser, "Hello " + "and more " * 30)
    readable(browser, ".turn.user", ".turn.assistant", "#try-send", "#try-reset")
    assert browser.console == []


def readable(browser: Browser, *selectors: str) -> None:
    """Nothing is wider than the screen, text stands out, and fingers find what they press."""
    assert browser.value("document.documentElement.scrollWidth - innerWidth") <= 0
    for selector in selectors:
        assert browser.value(contrast(selector)) >= 4.5, selector
    small = browser.value(
        "[...document.querySelectorAll('button, .button, input, select, nav a')]"
        ".filter((one) => one.offsetParent && one.getBoundingClientRect().height < 44)"
        ".map((one) => one.id || one.className)"
    )
    assert small == []


def test_the_page_is_used_by_keyboard_and_has_names_for_all(
    browser: Browser, served: Served, job: str
) -> None:
    enter(browser, served)
    browser.value("location.hash = '#new'")
    browser.wait("document.activeElement.id === 'new-title'")  # a screen reader goes on from here
    unnamed = browser.value(
        "[...document.querySelectorAll('input, select, textarea')]"
        ".filter((one) => !one.labels.length && !one.ariaLabel).map((one) => one.id)"
    )
    assert unnamed == []
    browser.value("document.querySelector('.skip').focus()")
    browser.key("Enter")
    assert browser.value("document.activeElement.id") == "main"
    assert not browser.value("document.querySelector('#view-new').hidden")


def test_a_wrong_file_is_told_and_text_stays_text(
    browser: Browser, served: Served, job: str, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("this is no JSON\n")
    enter(browser, served, "new")
    browser.wait("document.querySelector('#new-model').value")
    browser.choose("#new-train", bad)
    browser.value("document.querySelector('#new-form').requestSubmit()")
    assert "JSONL" in browser.wait(PROBLEM)
    browser.value("location.hash = '#try'")
    browser.wait("document.querySelector('#try-model').value")
    ask(browser, "<img src=x onerror=\"document.title='owned'\">")
    assert browser.value("document.querySelectorAll('#talk img').length") == 0
    assert browser.value("document.title") == "Fine-tuning"


def test_a_job_is_paused_goes_on_and_is_cancelled_when_that_is_asked_for_twice(
    browser: Browser, served: Served, job: str, tmp_path: Path
) -> None:
    enter(browser, served)
    other = start_job(browser, tmp_path)
    browser.wait(f"{STATE} === 'running'", within_s=60)
    browser.value("document.querySelector('#job-pause').click()")
    browser.wait(f"{STATE} === 'paused'")
    assert browser.value("document.querySelector('#job-pause').hidden")
    browser.value("document.querySelector('#job-resume').click()")
    browser.wait(f"{STATE} === 'running'", within_s=120)
    cancel = "document.querySelector('#job-cancel')"
    browser.wait(f"!{cancel}.hidden")
    browser.value(f"{cancel}.click()")
    browser.wait(f"{cancel}.textContent === 'Really cancel?'")
    browser.value(f"{cancel}.click()")
    browser.wait(f"{STATE} === 'cancelled'")
    assert browser.value("location.hash") == f"#jobs/{other}"


def test_a_wrong_key_shows_nothing_and_a_key_can_be_forgotten(
    browser: Browser, served: Served, job: str
) -> None:
    enter(browser, served)
    browser.value("document.querySelector('#leave').click()")
    browser.wait("!document.querySelector('#view-key').hidden")
    assert browser.value("sessionStorage.length + document.querySelectorAll('.job').length") == 0
    browser.value("document.querySelector('#key').focus()")
    browser.type("sk-wrong")
    browser.key("Enter")
    browser.wait(f"{PROBLEM} === 'This key is not valid.'")
    assert browser.value("document.querySelector('#view-jobs').hidden")
