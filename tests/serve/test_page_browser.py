"""The page at / in a real Chromium: from the key to the trained model, on phone and desktop."""

from __future__ import annotations

import io
import json
import re
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete, select

from launcher.core.files import write_json
from launcher.core.rundir import RunDir
from launcher.serve.db.tables import Event, Job, JobState, Project, now
from launcher.serve.jobs import journal
from launcher.serve.jobs.journal import Note
from launcher.serve.service import Service
from support.browser import CHROMIUM, DESKTOP, PHONE, SKIP, Browser, chromium
from support.chats import write_pirate_chats
from support.contrast import contrast
from support.page import READY, STATE, enter, start_job
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
    browser.wait("document.querySelectorAll('#curve polyline').length === 2", "a curve", 180)
    browser.wait(f"{STATE} === 'running'")
    browser.wait("document.querySelector('#job-meter').ariaValueMax === '120'", "progress")
    browser.wait(f"{STATE} === 'succeeded'", "the end of the job", within_s=300)
    browser.wait("document.querySelectorAll('#checkpoints li').length === 3", "checkpoints")
    browser.value("document.querySelector('#job-try').click()")
    browser.wait("document.querySelector('#try-model').value.startsWith('ft:tiny:local:pirate:')")
    browser.wait("document.querySelector('#try-beside').value === 'tiny'", "the base beside it")
    ask(browser, "Anna has 3 apples and gets 4 more. How many?")
    assert browser.console == []
    return found


def ask(browser: Browser, text: str) -> None:
    turns = browser.value(f"{TURNS}.length")
    browser.value("document.querySelector('#try-longest').value = 30")
    browser.value("document.querySelector('#try-text').focus()")
    browser.type(text)
    browser.key("Enter")
    models = browser.value("document.querySelectorAll('.turns').length")
    done = "document.querySelector('#try-stop').hidden"
    browser.wait(f"{done} && {TURNS}.length === {turns + 2 * models}", "an answer", 180)


def test_a_job_is_started_watched_and_its_model_tried(browser: Browser, job: str) -> None:
    turns = browser.value(TURNS)  # of the tuned model, then of its base
    assert turns[1] == "Arr, matey! Ask the parrot." != turns[3]
    assert browser.value(PROBLEM) == ""


def test_a_job_tells_how_it_went(browser: Browser, served: Served, job: str) -> None:
    browser.console.clear()
    enter(browser, served, f"jobs/{job}")
    browser.value("document.querySelector('#events-all').click()")
    browser.wait("document.querySelectorAll('#events li').length > 100", "events")
    latest = browser.value("document.querySelector('#events li').lastChild.textContent")
    assert latest == "The job has successfully completed"
    label = browser.value("document.querySelector('#curve svg').ariaLabel")
    assert label.startswith("Loss: training from ")
    assert re.search("at step 120; validation from .* at step 120$", label)
    rows = browser.wait(
        "[...document.querySelectorAll('#comparison tbody tr')].map((row) => row.textContent)"
    )
    assert any(row.startswith("loss") and row.endswith("better") for row in rows)
    assert "Epochs12" in browser.value("document.querySelector('#facts').textContent")
    assert browser.value("document.querySelector('#job-cancel').hidden")
    assert browser.console == []


def press(browser: Browser, selector: str, *keys: str) -> None:
    browser.value(f"document.querySelector('{selector}').focus()")
    for key in keys:
        browser.key(key)


def test_curves_are_switched_zoomed_and_read_and_the_address_keeps_it(
    browser: Browser, served: Served, job: str
) -> None:
    enter(browser, served, f"jobs/{job}")
    browser.wait("document.querySelectorAll('#curve polyline').length === 2", "a curve", 180)
    log = "[...document.querySelectorAll('#curve-switches button')].at(-2)"
    browser.value(f"{log}.click()")
    browser.wait("document.querySelector('#curve .unit').textContent.endsWith('logarithmic')")
    press(browser, "#curve .frame", "End")
    read = "document.querySelector('#curve .spoken').textContent"
    assert re.match("Step 120: training .*e-4, validation .*e-4$", browser.value(read))
    press(browser, "#curve .frame", "Home", "ArrowRight")
    assert browser.value(read).startswith("Step 2: training ")
    browser.drag("#curve svg", 0.3, 0.6)
    browser.wait("location.hash.includes('zoom=')")
    label = "document.querySelector('#curve svg').ariaLabel"
    first, last = map(int, re.findall(r"at step (\d+)", browser.value(label))[:2])
    assert 25 < first < 50 < last < 90
    browser.reload()
    browser.wait(f"{READY} === 'job' && document.querySelector('#curve svg') !== null")
    assert browser.value(f"{log}.ariaPressed") == "true"
    assert f"at step {first} " in browser.value(label)
    browser.value("history.back()")
    browser.wait(f"{label}.includes(' at step 1 ')", "the whole curve")
    browser.value("document.querySelectorAll('#curve-switches button')[2].click()")
    browser.wait(f"{label}.startsWith('Learning rate: training from ')")


def test_jobs_are_found_and_the_list_says_why_one_failed(
    browser: Browser, served: Served, job: str
) -> None:
    with served.client() as client:
        content = b'{"messages": [{"role": "user", "content": "Hi"}]}\n'
        files = {"file": ("<img src=x onerror=alert(1)> zw\u00f6lf.jsonl", content * 3)}
        file = client.post("/files", files=files, data={"purpose": "fine-tune"}).json()["id"]
        asked = {"model": "tiny", "training_file": file, "metadata": {"team": "b&b #1"}}
        bad = client.post("/fine_tuning/jobs", json=asked).json()["id"]
    names = "[...document.querySelectorAll('#jobs .name a')].map((name) => name.textContent)"
    enter(browser, served)
    browser.wait("document.querySelector('#jobs .why') !== null", "why it failed")
    assert "no message from the assistant" in browser.value(
        "document.querySelector('#jobs .why').textContent"
    )
    both = browser.value(names)
    assert {"<img src=x onerror=alert(1)> zw\u00f6lf.jsonl", "pirate"} <= set(both)
    assert browser.value("document.querySelectorAll('#jobs img').length") == 0
    browser.value("document.querySelector('[data-state=failed]').click()")
    browser.wait(f"{names}.length === 1")
    assert browser.value("location.hash") == "#jobs?state=failed"
    browser.reload()
    browser.wait(f"{names}.length === 1")
    browser.value("history.back()")
    browser.wait(f"{names}.length === {len(both)}")
    for field, text in (("find-text", "ZW\u00d6LF <img"), ("find-label", "team=b&b #1")):
        press(browser, f"#{field}")
        browser.type(text)
        browser.wait(f"{names}.length === 1")
        assert browser.value("document.querySelector('#jobs .name a').hash") == f"#jobs/{bad}"
        browser.value("document.querySelector('#find-reset').click()")
        browser.wait(f"{names}.length === {len(both)}")


def test_jobs_are_compared_in_one_picture(browser: Browser, served: Served, job: str) -> None:
    with served.client() as client:
        known = client.get(f"/fine_tuning/jobs/{job}").json()
        asked = {"model": "tiny", "training_file": known["training_file"], "suffix": "other"}
        method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}
        other = client.post("/fine_tuning/jobs", json={**asked, "method": method}).json()["id"]
        while client.get(f"/fine_tuning/jobs/{other}").json()["status"] != "succeeded":
            time.sleep(0.2)
    enter(browser, served)
    for one in (job, other):
        box = f"document.querySelector('#jobs input[value={one}]')"
        browser.wait(f"{box} !== null")
        browser.value(f"{box}.click()")
        browser.wait(f"location.hash.includes('{one}')")
    browser.value("document.querySelector('#chosen-compare').click()")
    browser.wait("document.querySelectorAll('#compared polyline').length === 3", "three lines")
    marks = "[...document.querySelectorAll('#compared .mark')].map((mark) => mark.textContent)"
    assert sorted(browser.value(marks)) == ["A", "B"]
    lines = "[...document.querySelectorAll('#compared polyline')]"
    colours = browser.value(f"{lines}.map((line) => getComputedStyle(line).stroke)")
    assert len(set(colours)) == 2


def test_what_a_job_leaves_is_taken_away(browser: Browser, served: Served, job: str) -> None:
    enter(browser, served, f"jobs/{job}")
    browser.wait("document.querySelectorAll('#downloads button').length === 4", "downloads")
    with served.client(timeout_s=120) as client:
        listed = client.get(f"/fine_tuning/jobs/{job}/downloads").json()["data"]
        assert [one["kind"] for one in listed] == ["results", "training", "validation", "model"]
        got = {
            one["kind"]: client.get(f"{served.url}/{one['url']}", headers={"Authorization": ""})
            for one in listed
        }
        forged = client.get(f"{served.url}/{listed[0]['url'][:-3]}AAA")
    assert [len(got[one["kind"]].content) for one in listed] == [one["bytes"] for one in listed]
    assert forged.status_code == 404
    assert got["results"].text.startswith("step,train_loss,")
    with tarfile.open(fileobj=io.BytesIO(got["model"].content)) as archive:
        names = [Path(name).name for name in archive.getnames()]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    assert got["model"].headers["content-disposition"].endswith(".tar")


def test_a_file_is_used_again(browser: Browser, served: Served, job: str) -> None:
    enter(browser, served, f"jobs/{job}")
    browser.wait("document.querySelector('#job-again').hash.includes('file=')")
    browser.value("document.querySelector('#job-again').click()")
    browser.wait("document.querySelector('#new-train-known').value.startsWith('file-')")
    assert browser.value("document.querySelector('#new-train').offsetParent") is None
    assert browser.value("document.querySelector('#new-send').textContent") == "Start"
    for field, text in (("suffix", "again"), ("epochs", "1")):
        press(browser, f"#new-{field}")
        browser.type(text)
    press(browser, "#new-labels")
    browser.type("try=2, team=a=b")
    browser.key("Enter")
    browser.wait("location.hash.startsWith('#jobs/ftjob-')", "the new job")
    made = browser.value("location.hash.slice(6)")
    with served.client() as client:
        jobs = {one["id"]: one for one in client.get("/fine_tuning/jobs").json()["data"]}
        client.post(f"/fine_tuning/jobs/{made}/cancel")
    assert jobs[made]["training_file"] == jobs[job]["training_file"]
    assert jobs[made]["metadata"] == {"try": "2", "team": "a=b"}


def test_a_job_of_preferences_is_started_and_told(
    browser: Browser, served: Served, job: str, tmp_path: Path
) -> None:
    turns = [json.loads(line)["messages"] for line in write_pirate_chats(tmp_path / "a").open()]
    worse = [{"role": "assistant", "content": "Who knows?"}]
    pairs = tmp_path / "pairs.jsonl"
    with pairs.open("w") as file:
        for asked, answer in turns[:12]:
            both = {"preferred_output": [answer], "non_preferred_output": worse}
            print(json.dumps({"input": {"messages": [asked]}, **both}), file=file)
    browser.console.clear()
    enter(browser, served, "new")
    browser.wait("document.querySelector('#new-model').value")
    browser.value("document.querySelector('#view-new details').open = true")
    shown = "document.querySelector('#new-beta').offsetParent !== null"
    assert not browser.value(shown)
    method = "document.querySelector('#new-method')"
    browser.value(f"{method}.value = 'dpo', {method}.dispatchEvent(new Event('change'))")
    assert browser.value(shown)
    browser.choose("#new-train", pairs)
    for field, text in (("beta", "0.25"), ("epochs", "1")):
        browser.value(f"document.querySelector('#new-{field}').focus()")
        browser.type(text)
    browser.value("document.querySelector('#new-form').requestSubmit()")
    browser.wait("location.hash.startsWith('#jobs/ftjob-')", "the new job")
    browser.wait(f"{STATE} === 'succeeded'", "the end of the job", within_s=180)
    facts = browser.value("document.querySelector('#facts').textContent")
    assert "Methoddpo" in facts
    assert "Beta0.25" in facts
    browser.value("document.querySelectorAll('#curve-switches button')[1].click()")
    label = "document.querySelector('#curve svg').ariaLabel"
    browser.wait(f"{label}.startsWith('Accuracy: training from 50')", "the accuracy of pairs")
    browser.value("document.querySelector('#job-again').click()")
    browser.wait(f"{READY} === 'new' && {method}.value === 'dpo'")
    assert browser.value("document.querySelector('#new-train-known').value").startswith("file-")
    assert browser.console == []


def test_a_model_is_deleted_when_that_is_asked_for_twice(
    browser: Browser, served: Served, job: str
) -> None:
    enter(browser, served, "models")
    browser.wait("document.querySelectorAll('#models tr').length > 1", "models")
    names = "[...document.querySelectorAll('#models .long')].map((name) => name.textContent)"
    gone = next(name for name in browser.value(names) if name.endswith(":ckpt-step-100"))
    button = f"document.querySelector('#models button[aria-label=\"Delete {gone}\"]')"
    browser.value(f"{button}.click()")
    browser.wait(f"{button}.textContent === 'Really delete?'")
    browser.value(f"{button}.click()")
    browser.wait(f"!{names}.includes('{gone}')", "its end")


def test_a_key_that_is_revoked_midway_ends_the_view_and_another_brings_it_back(
    browser: Browser, served: Served, job: str
) -> None:
    enter(browser, served, f"jobs/{job}")
    browser.wait("document.querySelector('#curve svg') !== null")
    browser.value("sessionStorage.setItem(Object.keys(sessionStorage)[0], 'sk-revoked'), 1")
    browser.reload()
    browser.wait(f"{PROBLEM} === 'This key is not valid.'")
    assert browser.value(f"{READY} === 'key' && location.hash") == f"#jobs/{job}"
    press(browser, "#key")
    browser.type(served.key)
    browser.key("Enter")
    browser.wait(f"{READY} === 'job' && document.querySelector('#curve svg') !== null")


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
    browser.wait(READY)
    shown = {"key": ("#key-title", "#view-key .soft", "#key-form button")}
    if browser.value(f"{READY} === 'key'"):
        readable(browser, *shown["key"])
    enter(browser, served, size=size, dark=dark)
    browser.wait("document.querySelectorAll('#jobs .state').length")
    readable(browser, ".brand", "nav a", ".chip", "#jobs .name a", "#jobs small", ".state", ".main")
    readable(browser, "#jobs .news span", "#jobs .loss", "#jobs time", "#jobs-count")
    browser.value("location.hash = '#models'")
    browser.wait("document.querySelectorAll('#models tr').length")
    readable(browser, "#models .long", "#models td", "#models .danger")
    browser.value(f"location.hash = '#compare/{job}'")
    browser.wait("document.querySelectorAll('#compared polyline').length", "the curves")
    readable(browser, "#compared-jobs a", "#compared-jobs td", ".switches [aria-pressed=true]")
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
        ".map((one) => (one.type === 'checkbox' ? one.closest('label') : one))"
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
    assert (
        browser.value("sessionStorage.length + document.querySelectorAll('#jobs tr').length") == 0
    )
    browser.value("document.querySelector('#key').focus()")
    browser.type("sk-wrong")
    browser.key("Enter")
    browser.wait(f"{PROBLEM} === 'This key is not valid.'")
    assert browser.value("document.querySelector('#view-jobs').hidden")


@pytest.fixture(scope="module")
def running(served: Served) -> Iterator[str]:
    """A job that runs on another host, at step 40 of 120, as it stands in the database."""
    service = Service.open(served.home)
    with service.database.begin() as session:
        project = session.scalars(select(Project).where(Project.name == "demo")).one()
        job = Job(
            id="ftjob-elsewhere",
            project_id=project.id,
            model="tiny",
            training_file="file-a",
            seed=1,
            state=JobState.running,
            suffix="elsewhere",
            created_at=now() - 600,
            estimated_finish=now() + 1800,
            cursor={"launch": "local", "slot": 0, "host": "another", "started": True},
        )
        session.add(job)
        session.flush()
        journal.write(session, job.id, [Note("a", "It has begun", created_at=now() - 300)])
    run = RunDir(service.runs / job.id)
    run.path.mkdir()
    run.metrics.write_text('{"step": 40, "kind": "train", "loss": 0.5}\n')
    run.config.write_text("")
    write_json(run.status_file, {"state": "running", "attempt": 1, "steps": 120})
    yield job.id
    with service.database.begin() as session:
        session.execute(delete(Event).where(Event.job_id == job.id))
        session.execute(delete(Job).where(Job.id == job.id))
    service.database.engine.dispose()


ROW = "[...document.querySelectorAll('#jobs tr')].find((row) => /elsewhere/.test(row.textContent))"


@pytest.mark.parametrize("hours", [-7, 0, 30])
def test_a_wrong_clock_changes_no_time(
    browser: Browser, served: Served, running: str, hours: float
) -> None:
    with browser.skewed(hours):
        enter(browser, served)
        browser.wait(f"{ROW} !== undefined")
        found = browser.value(f"{ROW}.textContent")
        assert re.search(r"Step 40 of 120 · (29|30) min left", found)
        assert re.search(r"1\d min ago", found)
        # It is set while the page is open, and the server has nothing new to tell.
        browser.value("window.skew += 5 * 3600000")
        time.sleep(5)
        assert re.search(r"Step 40 of 120 · (29|30) min left", browser.value(f"{ROW}.textContent"))
        browser.value(f"location.hash = '#jobs/{running}'")
        browser.wait("document.querySelectorAll('#events li').length")
        assert re.match(
            r"\d min agoIt has", browser.value("document.querySelector('#events li').textContent")
        )
        assert re.search(
            r"(29|30) min left", browser.value("document.querySelector('#job-state').textContent")
        )


def test_two_tabs_show_the_same(browser: Browser, served: Served, running: str) -> None:
    enter(browser, served, f"jobs/{running}")
    browser.wait(f"{STATE} === 'running'")
    with browser.tab():
        enter(browser, served)  # a tab has its key for itself
        browser.wait(f"{ROW}?.querySelector('.state').textContent === 'running'")
        with served.client() as client:
            client.post(f"/fine_tuning/jobs/{running}/pause").raise_for_status()
        browser.wait(f"{ROW}.querySelector('.state').textContent === 'paused'")
        browser.value("document.querySelector('#leave').click()")
        browser.wait("!document.querySelector('#view-key').hidden")
    browser.wait(f"{STATE} === 'paused'")
    assert browser.value("document.querySelector('#job-resume').hidden") is False
    assert browser.value("document.body.dataset.view") == "job"
