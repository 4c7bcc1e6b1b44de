"""The voting page in a real Chromium: keys, undo, reload, a broken network, phone and desktop."""

from __future__ import annotations

import pytest

from launcher.ab.result import result
from launcher.ab.study import AnswerPair, Study
from support.browser import CHROMIUM, DESKTOP, PHONE, SKIP, chromium
from support.contrast import contrast
from support.studies import QUESTION, serving

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=SKIP),
]

HOSTILE = (
    "</div><img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
)
JUDGING = 'document.querySelector("#judging")?.hidden === false && !busy'
PROMPT = 'document.querySelector("#prompt").textContent'
COUNT = 'document.querySelector("#count").textContent'
SAVED = 'document.querySelector("#saved").textContent'


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A browser, a served study with answers of all kinds, and links of as many judges as asked."""
    folder = tmp_path_factory.mktemp("page")
    items = [
        AnswerPair(
            f"prompt {i}\nin two lines", f"first {i}", f"second {i} " + "and more " * (30 * i)
        )
        for i in range(5)
    ]
    items.append(AnswerPair(HOSTILE, HOSTILE, ""))
    study = Study.create(folder / "study", ("model-one", "model-two"), items, QUESTION)
    with (
        serving("serve", study.folder, "--port", 0, log=folder / "log") as server,
        chromium(folder) as browser,
    ):
        yield browser, study, lambda name: f"{server.url}/#{study.invite(name)}"


def counts(study: Study, name: str) -> dict:
    return next(row for row in result(study.folder)["judges"] if row["name"] == name)


def press(browser, key: str, then: str) -> None:
    browser.key(key)
    browser.wait(f"{COUNT} === {then!r} && {JUDGING} && {SAVED} === 'Saved' && !unsaved.length")


def test_a_study_is_judged_by_keyboard_and_gone_on_with_after_a_reload(page):
    browser, study, link = page
    browser.console.clear()
    browser.open(link("keys"))
    browser.wait(JUDGING)
    assert browser.value("document.title") == QUESTION
    assert browser.value(COUNT) == "1 of 6"
    assert browser.value("document.activeElement.id") == "prompt"
    press(browser, "a", "2 of 6")
    press(browser, "ArrowRight", "3 of 6")
    press(browser, "t", "4 of 6")
    third = browser.value(PROMPT)
    press(browser, "x", "5 of 6")
    press(browser, "u", "4 of 6")
    assert browser.value(PROMPT) == third
    row = counts(study, "keys")
    assert (row["a"] + row["b"], row["tie"], row["bad"]) == (2, 1, 0)
    browser.key("c")
    browser.wait("document.activeElement.id === 'comment'")
    browser.type("abtxu stay letters here")
    browser.key("t")
    browser.key("Escape")
    press(browser, "x", "5 of 6")
    browser.reload()
    browser.wait(JUDGING)
    assert browser.value(COUNT) == "5 of 6"
    (comment,) = result(study.folder)["comments"]
    assert comment["comment"] == "abtxu stay letters heret"
    assert (comment["choice"], comment["prompt"]) == ("bad", third)
    browser.key("b")
    browser.wait(f"{COUNT} === '6 of 6' && {JUDGING}")
    browser.key("b")
    browser.wait("document.querySelector('#message-title').textContent === 'Thank you'")
    browser.wait("!unsaved.length")
    assert sum(counts(study, "keys")[kind] for kind in ("a", "b", "tie", "bad")) == 6
    press(browser, "u", "6 of 6")
    assert browser.console == []


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_and_can_be_read(page, size, dark):
    browser, _, link = page
    browser.open(link(f"{size} {dark}"), size=size, dark=dark)
    browser.wait(JUDGING)
    for following in ("2 of 6", "3 of 6"):
        assert browser.value("document.documentElement.scrollWidth - innerWidth") <= 0
        for name in ("question", "prompt", "left", "right"):
            assert browser.value(contrast(f"#{name}")) >= 4.5, name
        browser.click('.choice[data-choice="tie"]')
        browser.wait(f"{COUNT} === {following!r} && {JUDGING}")
    for kind in ("left", "right", "tie", "bad"):
        selector = f'.choice[data-choice="{kind}"]'
        browser.wait(f"{contrast(selector)} >= 4.5")  # colours fade
        box = f"document.querySelector({selector!r}).getBoundingClientRect()"
        assert browser.value(f"{box}.bottom <= innerHeight && {box}.height >= 44")
    side_by_side = browser.value(
        "document.querySelector('.answer.a').getBoundingClientRect().right"
        " <= document.querySelector('.answer.b').getBoundingClientRect().left"
    )
    assert side_by_side == (size == DESKTOP)


def test_votes_wait_for_a_network_that_is_away(page):
    browser, study, link = page
    browser.open(link("offline"))
    browser.wait(JUDGING)
    browser.wait("loaded.size >= 4")
    browser.wait("Promise.all(loaded.values()).then(() => true) && true")
    browser.offline(True)
    browser.key("a")
    browser.wait(
        f"{SAVED}.includes('1 vote is not saved yet') && {COUNT} === '2 of 6' && {JUDGING}"
    )
    browser.key("t")
    browser.wait("unsaved.length === 2 && !busy")
    assert counts(study, "offline")["tie"] == 0
    browser.offline(False)
    browser.wait(f"!unsaved.length && {SAVED} === 'Saved'")
    assert counts(study, "offline")["tie"] == 1


def test_text_stays_text(page):
    browser, _, link = page
    browser.open(link("hostile"))
    browser.wait(JUDGING)
    for number in range(2, 8):
        shown = browser.value(PROMPT)
        if shown == HOSTILE:
            break
        press(browser, "t", f"{number} of 6")
    assert browser.value(PROMPT) == HOSTILE
    texts = {
        browser.value(f"document.querySelector('#{side}').textContent")
        for side in ("left", "right")
    }
    assert texts == {HOSTILE, "(no answer)"}
    assert browser.value("document.querySelectorAll('main img, main script').length") == 0
    assert browser.value("document.title") == QUESTION


def test_a_wrong_link_says_so_and_shows_nothing(page):
    browser, _, link = page
    base = link("x").partition("#")[0]
    for address, title in (
        (f"{base}#forged", "This link is not valid"),
        (f"{base}#%zz", "This link is not valid"),
        (f"{base}#né東", "This link is not valid"),
        (base, "A link is missing"),
    ):
        browser.open(address)
        browser.wait(f"document.querySelector('#message-title')?.textContent === {title!r}")
        assert browser.value("document.querySelector('#judging').hidden") is True
        browser.key("a")
        assert browser.value("document.querySelector('#controls').hidden") is True
