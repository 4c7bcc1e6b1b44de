"""The page of the job API in a browser: entering it, starting a job, looking at it.

`make screenshot` makes the picture in the README anew with `main`.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path

from support.browser import DESKTOP, Browser, chromium
from support.chats import write_pirate_chats
from support.served import Served, served

NARROW = (1120, 760)
STATE = "document.querySelector('#job-state .state')?.textContent"
READY = "document.body?.dataset.view"


def enter(
    browser: Browser,
    server: Served,
    view: str = "jobs",
    *,
    size: tuple[int, int] = DESKTOP,
    dark: bool = False,
) -> None:
    """Open the page, give it the key, go to a view."""
    browser.open(f"{server.url}/#{view}", size=size, dark=dark)
    browser.wait(READY)
    if browser.value("document.body.dataset.view === 'key'"):
        browser.value("document.querySelector('#key').focus()")
        browser.type(server.key)
        browser.key("Enter")
    name = "job" if view.startswith("jobs/") else re.split("[/?]", view)[0]
    browser.wait(f"!document.querySelector('#view-{name}').hidden")
    browser.wait(f"{READY} === '{name}'")


def start_job(browser: Browser, folder: Path) -> str:
    """Fill in the form of a new job and send it; returns the job's id."""
    training = write_pirate_chats(folder / "training_data.jsonl")
    validation = write_pirate_chats(folder / "validation_data.jsonl", 12)
    browser.value("location.hash = '#new'")
    browser.wait("document.querySelector('#new-model').value")
    browser.choose("#new-train", training)
    browser.choose("#new-valid", validation)
    browser.value("document.querySelector('#view-new details').open = true")
    for field, text in (("suffix", "pirate"), ("epochs", "12"), ("batch", "4")):
        browser.value(f"document.querySelector('#new-{field}').focus()")
        browser.type(text)
    browser.value("document.querySelector('#new-send').focus()")
    browser.key("Enter")
    browser.wait("location.hash.startsWith('#jobs/ftjob-')", "the new job")
    return str(browser.value("location.hash.slice(6)"))


def picture(path: Path) -> None:
    """A job in its midst, as a picture."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with served(folder / "home") as server, chromium(folder) as browser:
            enter(browser, server, size=NARROW)
            start_job(browser, folder)
            browser.wait(f"{STATE} === 'succeeded'", within_s=300)
            browser.wait("!document.querySelector('#comparison-card').hidden")
            time.sleep(0.5)  # what fades is there
            browser.screenshot(path)


def report_picture(path: Path, report: Path) -> None:
    """The top of a run's report, as a picture."""
    with tempfile.TemporaryDirectory() as name, chromium(Path(name)) as browser:
        browser.open(report.resolve().as_uri(), size=NARROW)
        time.sleep(0.5)
        browser.screenshot(path)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        report_picture(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        picture(Path(sys.argv[1]))
