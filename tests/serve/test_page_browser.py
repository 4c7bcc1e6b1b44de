"""The page at / in a real Chromium: from the key to the trained model, on phone and desktop."""

from __future__ import annotations

import io
import json
import re
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select

from launcher.core.files import write_json
from launcher.core.rundir import RunDir
from launcher.serve.db.tables import Event, Job, JobState, Model, Project, now
from launcher.serve.http import access
from launcher.serve.jobs import journal
from launcher.serve.jobs.journal import Note
from launcher.serve.service import Service
from serve.webhooks.receiver import Receiver, receiving
from support.browser import CHROMIUM, DESKTOP, PHONE, SKIP, Browser, chromium
from support.chats import write_pirate_chats
from support.contrast import contrast
from support.endpoint import serve
from support.page import READY, STATE, enter, start_job
from support.served import Served
from support.served import served as _served

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason=SKIP),
]

PROBLEM = "document.querySelector('#problem').textContent"
#: Until it is set the judge says nothing of what is slow.
HELD = threading.Event()
TURNS = "[...document.querySelectorAll('.turn')].map((turn) => turn.textContent)"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """A server that is told what happens, and takes nothing at first."""
    with receiving() as found:
        found.status = lambda number: 503 if number == 0 else 200
        yield found


def judgement(prompt: str, *_: str) -> str:
    """What the judge says: of what is slow, not before it may."""
    if prompt.startswith("slow"):
        HELD.wait(60)
    return "Kind.\nScore: 0.5"


def asked_of_judge(text: str) -> dict[str, Any]:
    """A grader that asks the judge."""
    message = {"role": "user", "content": f"<prompt>\n{text}\n</prompt>"}
    own = {"type": "score_model", "name": "any", "model": "our-judge", "range": [0, 1]}
    return {**own, "input": [message]}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Served]:
    """A service with a judge, which may send to the receiver."""
    home = tmp_path_factory.mktemp("served") / "home"
    home.mkdir()
    with serve(judgement) as judge:
        (home / "serve.yaml").write_text(
            "overrides: [model=tiny, optim.lr=2e-3, optim.beta2=0.95]\n"
            "models:\n  tiny: {reinforcement: [objective.max_new_tokens=12]}\n"
            f"judges: {{our-judge: {{url: '{judge.url}', model: there}}}}\n"
            f"webhooks: {{allow: ['{receiver.url}']}}\n"
            "graders: {at_once: 3}\n"  # two of a project
        )
        with _served(home) as found:
            # The two processes that grade stay from now on.
            path, slow = "/fine_tuning/alpha/graders/run", asked_of_judge("slow")
            with found.client() as client, ThreadPoolExecutor(2) as pool:
                ends = [
                    pool.submit(client.post, path, json={"grader": own, "model_sample": "a"})
                    for own in (slow, asked_of_judge("a"))
                ]
                ends[1].result().raise_for_status()
                HELD.set()
                ends[0].result().raise_for_status()
            yield found


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


def choose(browser: Browser, selector: str, value: str) -> None:
    """Pick an option as a person does."""
    found = f"document.querySelector({json.dumps(selector)})"
    browser.value(
        f"{found}.value = {json.dumps(value)}, {found}.dispatchEvent(new Event('change'))"
    )
    assert browser.value(f"{found}.value") == value


def fill(browser: Browser, selector: str, text: str) -> None:
    """Write into a field, in place of what is there."""
    browser.value(f"document.querySelector({json.dumps(selector)}).select()")
    browser.type(text)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions, with what a grader reads of them."""
    file = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    with file.open("w") as lines:
        for i in range(16):
            asked = [{"role": "user", "content": f"Say {'eats'[i % 4]}, {i}."}]
            own = {"label": "eats"[i % 4], "answer": f"{'<b>eat' if i % 2 else 'so'} {i}"}
            print(json.dumps({"messages": asked, **own}), file=lines)
    return file


def test_a_grader_is_written_and_tried_on_lines_of_a_file(
    browser: Browser, served: Served, job: str, questions: Path, tmp_path: Path
) -> None:
    browser.console.clear()
    enter(browser, served, "graders")
    browser.wait("document.querySelector('#grader-form select') !== null")
    choose(browser, "#grader-form select", "multi")
    fill(browser, "#grader-form fieldset textarea:last-of-type", "{{ sample.output_text }}")
    labels = "[...document.querySelectorAll('#grader-form fieldset textarea')].at(-1)"
    browser.value(f"{labels}.select()")
    browser.type("{{ item.label }}")
    browser.value("document.querySelector('#grader-form > .actions button').click()")
    choose(browser, "#grader-form fieldset:nth-of-type(2) select", "score_model")
    chosen = browser.value(
        "[...document.querySelectorAll('#grader-form fieldset select')].map((one) => one.value)"
    )
    assert "our-judge" in chosen
    fill(browser, "#grader-form > label:last-child textarea", "0.5 * right + grader_2")
    browser.value("document.querySelector('#grader-check').click()")
    browser.wait("document.querySelector('#grader-said').textContent.startsWith('A job can')")
    choose(browser, "#grader-file", "")
    browser.choose("#grader-own", questions)
    fill(browser, "#grader-lines", "4")
    browser.value("document.querySelector('#grader-try').requestSubmit()")
    mean = "document.querySelector('#grader-mean').textContent"
    browser.wait(f"{mean}.startsWith('4 of 4 lines')", "scores", 120)
    rows = browser.value(
        "[...document.querySelectorAll('#grader-results tr')]"
        ".map((row) => [...row.cells].slice(1, 4).map((cell) => cell.textContent))"
    )
    # Lines ask for e, a, t, s; the answers are "so 0", "<b>eat 1", "so 2", "<b>eat 3".
    assert rows == [
        ["0.5", "right 0, grader_2 0.5", "so 0"],
        ["1", "right 1, grader_2 0.5", "<b>eat 1"],
        ["0.5", "right 0, grader_2 0.5", "so 2"],
        ["0.5", "right 0, grader_2 0.5", "<b>eat 3"],
    ]
    assert browser.value(mean) == "4 of 4 lines, mean score 0.625."
    # As JSON: what is no JSON cannot be a form, and what reads a field that is not there is told.
    browser.value("document.querySelector('#grader-as-json').click()")
    fill(browser, "#grader-json", "{")
    browser.value("document.querySelector('#grader-as-form').click()")
    said = "document.querySelector('#grader-said').textContent"
    assert browser.value(said).startswith("This is no JSON")
    lacking = {"type": "string_check", "name": "x", "operation": "eq", "input": "a"}
    fill(browser, "#grader-json", json.dumps({**lacking, "reference": "{{ item.nothing }}"}))
    browser.value("document.querySelector('#grader-try').requestSubmit()")
    browser.wait(f"{mean} === '4 of 4 lines, no score yet, 4 with errors.'")
    why = browser.value("document.querySelector('#grader-results .why').textContent")
    assert why.startswith("invalid variable error")
    assert browser.console == []
    # Of a grader that nobody can have no line is tried twice.
    fill(browser, "#grader-json", json.dumps({**lacking, "reference": "b", "more": 1}))
    browser.value("document.querySelector('#grader-check').click()")
    browser.wait(f"{said}.includes('no such member')")
    browser.value("document.querySelector('#grader-try').requestSubmit()")
    browser.wait(f"{PROBLEM}.includes('no such member')")
    assert browser.value("document.querySelectorAll('#grader-results tr').length") == 0
    _only_what_holds_of_all_lines_ends_a_trial(browser, {**lacking, "reference": "b"}, tmp_path)
    _what_no_form_can_show_stays_json(browser, {**lacking, "reference": "b"})


def _only_what_holds_of_all_lines_ends_a_trial(
    browser: Browser, grader: dict[str, str], folder: Path
) -> None:
    asked = {"role": "user", "content": "Hi"}
    turns = (
        [asked],
        [{**asked, "content": "Hi " * 50_000}],
        [{**asked, "role": "nobody"}],
        [asked],
    )
    lines = folder / "lines.jsonl"
    lines.write_text("".join(json.dumps({"messages": one}) + "\n" for one in turns))
    browser.choose("#grader-own", lines)
    choose(browser, "#grader-answer", "model")
    choose(browser, "#grader-model", "tiny")
    fill(browser, "#grader-json", json.dumps(grader))
    browser.value("document.querySelector('#grader-try').requestSubmit()")
    mean = "document.querySelector('#grader-mean').textContent"
    browser.wait(f"{mean} === '4 of 4 lines, mean score 0, 2 with errors.'", "scores", 120)
    rows = browser.value(
        "[...document.querySelectorAll('#grader-results tr')]"
        ".map((row) => [row.cells[1].textContent, row.querySelector('.why')?.textContent])"
    )
    assert [score for score, _ in rows] == ["0", "–", "–", "0"]
    assert "maximum context length" in rows[1][1]
    choose(browser, "#grader-answer", "field")


def _what_no_form_can_show_stays_json(browser: Browser, sound: dict[str, str]) -> None:
    said = "document.querySelector('#grader-said').textContent"
    odd = ""
    for one in (
        {"type": "score_model", "input": [None]},
        {"type": "score_model", "range": "a"},
        {"type": "multi", "graders": {"a": {"type": "label_model", "labels": "a"}}},
        {"type": "multi", "graders": {"a": None}},
    ):
        odd = json.dumps(one)
        fill(browser, "#grader-json", odd)
        browser.value("document.querySelector('#grader-as-form').click()")
        assert browser.value(said).startswith("No form can show this grader"), odd
    browser.reload()
    browser.wait(f"{READY} === 'graders' && {said}.startsWith('No form')")
    assert browser.value("document.querySelector('#grader-json').value") == odd
    fill(browser, "#grader-json", json.dumps(sound))
    browser.value("document.querySelector('#grader-as-form').click()")
    assert browser.value("document.querySelector('#grader-form select').value") == "string_check"


def test_a_job_of_rewards_is_started_drawn_and_told_to_an_endpoint(
    browser: Browser, served: Served, job: str, questions: Path, receiver: Receiver
) -> None:
    browser.console.clear()
    enter(browser, served, "webhooks")
    browser.wait("document.querySelectorAll('#hook-events input').length >= 3")
    for field, text in (("name", "<i>ours"), ("url", f"{receiver.url}/told")):
        fill(browser, f"#hook-{field}", text)
    browser.value("document.querySelector('#hook-form').requestSubmit()")
    browser.wait("document.querySelectorAll('#hooks h2').length === 1")
    secret = browser.value("document.querySelector('#hook-secret').textContent")
    assert secret.startswith("whsec_")
    assert browser.value("document.querySelector('#hooks h2').textContent") == "<i>ours"
    browser.value("document.querySelector('#hook-secret-done').click()")
    assert secret not in browser.value("document.body.textContent")
    word = {"type": "string_check", "name": "word", "input": "{{ sample.output_text }}"}
    word |= {"reference": "{{ item.label }}", "operation": "ilike"}
    enter(browser, served, "new?method=reinforcement")
    fill(browser, "#new-grader", json.dumps({**word, "operation": "is"}))
    browser.choose("#new-train", questions)
    browser.choose("#new-valid", questions)
    browser.value("document.querySelector('#view-new details').open = true")
    for field, text in (("epochs", "1"), ("batch", "8"), ("compute", "0.5"), ("interval", "1")):
        fill(browser, f"#new-{field}", text)
    browser.value("document.querySelector('#new-form').requestSubmit()")
    browser.wait(f"{PROBLEM}.includes('grader.operation')")
    fill(browser, "#new-grader", json.dumps(word))
    fill(browser, "#new-labels", ",".join(f"label{i}=a" for i in range(17)))
    browser.wait("!document.querySelector('#new-send').disabled")
    browser.value("document.querySelector('#new-form').requestSubmit()")
    browser.wait(f"{PROBLEM}.includes('metadata')")
    fill(browser, "#new-labels", "few=a")
    browser.wait("!document.querySelector('#new-send').disabled")
    assert browser.value("document.querySelector('#new-send').textContent") == "Start"
    browser.value("document.querySelector('#new-form').requestSubmit()")
    browser.wait("location.hash.startsWith('#jobs/ftjob-')", "the new job")
    made = browser.value("location.hash.slice(6)")
    with served.client() as client:
        files = [one["filename"] for one in client.get("/files").json()["data"]]
    assert files.count(questions.name) == 2  # to train and to validate, each sent once
    browser.wait(f"{STATE} === 'succeeded'", "the end of the job", within_s=180)
    label = "document.querySelector('#curve svg').ariaLabel"
    browser.wait(f"/^Reward: training from .*validation from/.test({label})", "rewards")
    facts = browser.value("document.querySelector('#facts').textContent")
    assert "Graderword (string_check)Compute ×0.5Validation every1 steps" in facts
    browser.wait("/reward 0/.test(document.querySelector('#checkpoints').textContent)")
    browser.value("document.querySelector('#job-again').click()")
    browser.wait(f"{READY} === 'new' && document.querySelector('#new-grader').value !== ''")
    written = "document.querySelector('#new-grader').value"
    assert json.loads(browser.value(written)) == word
    # The job's grader is taken once, and what was written before it is not lost.
    assert "job=" not in browser.value("location.hash")
    fill(browser, "#new-grader", '"mine')
    browser.reload()
    browser.wait(f"{READY} === 'new' && {written} === '\"mine'")
    browser.value(f"location.hash = '#jobs/{made}'")
    browser.wait("document.querySelector('#job-again').hash.includes('job=')")
    browser.value("document.querySelector('#job-again').click()")
    browser.wait(f"{READY} === 'new' && {written} !== '\"mine'")
    assert json.loads(browser.value(written)) == word
    for _ in range(20):
        if browser.value(written) == '"mine':
            break
        browser.value("document.querySelector('#new-grader-other').click()")
    assert browser.value(written) == '"mine'
    enter(browser, served, "webhooks")
    browser.wait("document.querySelector('#hooks [aria-expanded=false]') !== null")
    browser.value("document.querySelector('#hooks [aria-expanded=false]').click()")
    row = "document.querySelector('#hooks tbody tr')"
    browser.wait(f"{row}?.textContent.includes('sent')", "the second try")
    told = browser.value(f"[...{row}.cells].map((cell) => cell.textContent)")
    assert told[1:6] == [made, "sent", "2", "HTTP 200", "–"]
    assert len(receiver.requests) == 2
    away = "[...document.querySelectorAll('#hooks .danger')].at(-1)"
    for _ in range(2):
        browser.value(f"{away}.click()")
    browser.wait("!document.querySelector('#no-hooks').hidden")
    browser.value("location.hash = '#audit'")
    browser.wait("document.querySelectorAll('#audit-list tr').length > 3")
    rows = browser.value(
        "[...document.querySelectorAll('#audit-list tr')].map((row) => row.textContent)"
    )
    assert any("Delete: webhook endpoint" in one and "done" in one for one in rows)
    assert any("Create: job" in one and made in one and "demo key" in one for one in rows)
    assert [one for one in browser.console if "400" not in one] == []


def test_an_eval_is_made_and_a_run_of_it_is_read(
    browser: Browser, served: Served, job: str, tmp_path: Path
) -> None:
    items = tmp_path / "items.jsonl"
    with items.open("w") as file:
        for i in range(24):
            said = {"output_text": "<b>yes" if i % 4 else "no"}
            more = {"n": i if i % 2 else None} if i else {"n": [], "first": 1}
            item = {"q": f"<i>{i}", "want": "Yes", **more}
            print(json.dumps({"item": item, "sample": said}), file=file)
    with served.client() as client:
        sent = {"file": ("items.jsonl", items.read_bytes())}
        client.post("/files", files=sent, data={"purpose": "evals"}).raise_for_status()
    browser.console.clear()
    enter(browser, served, "evals")
    browser.wait("document.querySelector('#eval-file').options.length > 0")
    fill(browser, "#eval-name", "spelling <i>")
    fill(browser, "#eval-criteria label:last-child textarea", "{{ item.want }}")
    browser.value("document.querySelector('#eval-form').requestSubmit()")
    browser.wait(f"{READY} === 'eval' && location.hash.startsWith('#evals/eval_')", "the eval")
    browser.wait("document.querySelector('#eval-title').textContent === 'spelling <i>'")
    choose(browser, "#run-by", "data")
    fill(browser, "#run-name", "first")
    browser.value("document.querySelector('#run-form').requestSubmit()")
    browser.wait(f"{READY} === 'run'", "the run")
    state = "document.querySelector('#run-state').textContent"
    browser.wait(f"{state}.startsWith('completed24 of 24 items: 18 pass all, 6 fail one')")
    cells = browser.value(
        "[...document.querySelector('#run-criteria tr').cells].map((cell) => cell.textContent)"
    )
    assert cells == ["criterion 1", "75 %55 to 88 %", "18", "6", "0"]
    browser.wait("document.querySelectorAll('#items .part').length === 20")
    browser.value("document.querySelector('#items-more').click()")
    browser.wait("document.querySelectorAll('#items .part').length === 24")
    browser.value("document.querySelector('[data-which=fail]').click()")
    browser.wait("document.querySelectorAll('#items .part').length === 6")
    shown = browser.value("document.querySelector('#items .part').textContent")
    assert "no" in shown
    assert '"q": "<i>0"' in shown
    with served.client(timeout_s=120) as client:
        report = browser.value("document.querySelector('#run-report').href")
        assert client.get(report, headers={"Authorization": ""}).status_code == 200
    run = browser.value("location.hash.slice(1)").partition("?")[0]
    for size, dark in ((PHONE, True), (DESKTOP, False)):
        owner = run.rpartition("/")[0]
        for view, shows in (("evals", "#eval-list a"), (owner, "#eval-reads li")):
            open_view(browser, served, view, size, dark)
            browser.wait(f"document.querySelector('{shows}')?.textContent", shows)
            readable(browser, shows, "label", ".hint")
        open_view(browser, served, run, size, dark)
        browser.wait("document.querySelectorAll('#items .part').length === 20")
        readable(browser, "#run-criteria small", "#items .state", "#items summary", "#run-away")
    open_view(browser, served, run.rpartition("/")[0], DESKTOP, False)
    fill(browser, "#run-template", "{{ item.q }}")
    browser.value("document.querySelector('#run-form').requestSubmit()")
    browser.wait(f"{READY} === 'run'", "a run that asks a model")
    cancel = "document.querySelector('#run-cancel')"
    browser.wait(f"!{cancel}.hidden")
    for said in ("Really cancel?", "Cancel"):
        browser.value(f"{cancel}.click()")
        browser.wait(f"{cancel}.textContent === '{said}' || {cancel}.hidden")
    browser.wait(f"{state}.startsWith('canceled')", within_s=60)
    assert browser.console == []


def test_items_that_are_graded_late_are_shown_in_their_place(
    browser: Browser, served: Served, job: str
) -> None:
    browser.console.clear()
    enter(browser, served, "evals")
    HELD.clear()
    lines = [json.dumps({"item": {"n": "a" if n else "slow, again"}}) for n in range(24)]
    with served.client() as client:
        sent = {"file": ("late.jsonl", "\n".join(lines).encode())}
        file = client.post("/files", files=sent, data={"purpose": "evals"}).json()["id"]
        schema = {"type": "object", "properties": {"n": {"type": "string"}}}
        body = {"data_source_config": {"type": "custom", "item_schema": schema}, "name": "late"}
        body["testing_criteria"] = [asked_of_judge("{{ item.n }}")]
        one = client.post("/evals", json=body).raise_for_status().json()["id"]
        source = {"type": "jsonl", "source": {"type": "file_id", "id": file}}
        run = client.post(f"/evals/{one}/runs", json={"name": "late", "data_source": source})
        run_id = run.raise_for_status().json()["id"]
    browser.value(f"location.hash = '#evals/{one}/{run_id}'")
    heads = "[...document.querySelectorAll('#items .part b')].map((head) => head.textContent)"
    browser.wait(f"{heads}.length === 20", "items while one is being graded")
    assert browser.value(heads)[0] == "Item 1"
    HELD.set()
    state = "document.querySelector('#run-state').textContent"
    browser.wait(f"{state}.startsWith('completed24 of 24')")
    browser.wait(f"{heads}[0] === 'Item 0'", "the item that was graded last")
    browser.value("document.querySelector('#items-more').click()")
    browser.wait(f"{heads}.length === 24")
    assert browser.value(heads) == [f"Item {n}" for n in range(24)]
    assert browser.value("document.querySelector('#items-more').hidden")
    assert browser.console == []


def test_a_batch_is_started_followed_and_another_is_cancelled(
    browser: Browser, served: Served, job: str, tmp_path: Path
) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 2}
    for name, count in (("few", 2), ("many", 500)):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for i in range(count):
                line = {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions"}
                print(json.dumps({**line, "body": body}), file=file)
    browser.console.clear()
    enter(browser, served, "batches")
    cards = "document.querySelectorAll('#batch-list .card')"
    states = "[...document.querySelectorAll('#batch-list .state')].map((one) => one.textContent)"
    for number, name in enumerate(("few", "many"), start=1):
        browser.wait("!document.querySelector('#batch-send').disabled")
        browser.choose("#batch-new", tmp_path / f"{name}.jsonl")
        fill(browser, "#batch-name", f"<b>{name}")
        browser.value("document.querySelector('#batch-form').requestSubmit()")
        browser.wait(f"{cards}.length === {number}", name)
        if number == 1:
            browser.wait(f"{states}[0] === 'completed'", "its answers", within_s=180)
    assert browser.value(f"{cards}[1].querySelector('h2').textContent") == "<b>few"
    assert "2 of 2 answered" in browser.value(f"{cards}[1].textContent")
    assert browser.value(f"{cards}[1].querySelector('button').textContent") == "Answers"
    browser.wait("document.querySelector('#batch-list .danger') !== null")
    for size, dark in ((PHONE, True), (DESKTOP, False)):
        open_view(browser, served, "batches", size, dark)
        browser.wait(f"{cards}.length === 2")
        readable(
            browser,
            "#batch-list h2",
            "#batch-list .soft",
            "#batch-list .labels span",
            "#batch-send",
        )
    browser.value("document.querySelector('#batch-list .danger').click()")
    browser.wait("/Really/.test(document.querySelector('#batch-list .danger').textContent)")
    browser.value("document.querySelector('#batch-list .danger').click()")
    browser.wait(f"{states}[0] === 'cancelled'", "its end", within_s=180)
    assert browser.console == []


def open_view(
    browser: Browser, served: Served, view: str, size: tuple[int, int], dark: bool
) -> None:
    """A view whatever its name, at a size, with the key that the tab has."""
    browser.open(f"{served.url}/#{view}", size=size, dark=dark)
    browser.wait(f"{READY} && {READY} !== 'key'")


def test_a_model_is_shared_by_an_admin_key_that_is_kept_nowhere(
    browser: Browser, served: Served, job: str
) -> None:
    service = Service.open(served.home)
    key = access.create_key(service.database, "root", "admins", is_admin=True)
    access.create_key(service.database, "theirs", "friends")
    with service.database.read() as session:
        other = session.scalars(select(Project.id).where(Project.name == "friends")).one()
        final = select(Model.name).where(Model.job_id == job, Model.is_final)
        mine = session.scalars(final).one()
    service.database.engine.dispose()
    enter(browser, served, "models")
    button = f"document.querySelector('[aria-label=\"Projects that may use {mine}\"]')"
    browser.wait(f"{button} !== null")
    browser.value(f"{button}.click()")
    for text in (served.key, key):
        browser.wait("!document.querySelector('#sharing-key-form').hidden")
        browser.value("document.querySelector('#sharing-key').focus()")
        browser.type(text)
        browser.key("Enter")
        if text == served.key:
            browser.wait("/admin key/.test(document.querySelector('#sharing-problem').textContent)")
    listed = "document.querySelector('#sharing-list').textContent"
    browser.wait(f"{listed} === 'No other project yet.'")
    fill(browser, "#sharing-project", other)
    browser.key("Enter")
    browser.wait(f"{listed}.startsWith('{other}')")
    for _ in range(2):
        browser.value("document.querySelector('#sharing-list button').click()")
    browser.wait(f"{listed} === 'No other project yet.'")
    assert key not in browser.value("JSON.stringify(sessionStorage)")
    browser.key("Escape")
    browser.wait("!document.querySelector('#sharing').open")
    # The key ends with the dialog, and what was asked with it comes to no other.
    browser.value(f"{button}.click()")
    browser.wait("!document.querySelector('#sharing-key-form').hidden")
    browser.value("document.querySelector('#sharing-key').focus()")
    browser.type(key)
    browser.value(
        "document.querySelector('#sharing-key-form').requestSubmit(),"
        "document.querySelector('#sharing').close()"
    )
    browser.value("location.hash = '#audit'")
    browser.wait("document.querySelectorAll('#audit-list tr').length")
    assert browser.value(listed) == ""


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
    browser.value("sessionStorage.setItem('launcher-serve-key', 'sk-revoked'), 1")
    browser.reload()
    browser.wait(f"{PROBLEM} === 'This key is not valid.'")
    assert browser.value(f"{READY} === 'key' && location.hash") == f"#jobs/{job}"
    give(browser, served.key)
    browser.wait(f"{READY} === 'job' && document.querySelector('#curve svg') !== null")


def give(browser: Browser, key: str) -> None:
    press(browser, "#key")
    browser.type(key)
    browser.key("Enter")


def test_what_is_written_outlasts_a_key_but_is_shown_to_no_other_project(
    browser: Browser, served: Served
) -> None:
    service = Service.open(served.home)
    first, second = (access.create_key(service.database, name, "pairs") for name in "ab")
    enter(browser, served, "graders")
    browser.value("document.querySelector('#leave').click()")
    browser.wait(f"{READY} === 'key'")
    name = "document.querySelectorAll('#grader-form label')[1].querySelector('input')"
    suffix = "document.querySelector('#new-suffix')"
    for label, key in (("a", first), ("b", second)):
        give(browser, key)
        browser.wait(f"{READY} === 'graders'")
        if key == first:
            browser.value(f"{name}.select()")
            browser.type("theirs")
            browser.value("location.hash = '#new'")
            browser.wait(f"{READY} === 'new'")
            press(browser, "#new-suffix")
            browser.type("theirs")
            browser.value("location.hash = '#graders'")
            browser.wait(f"{READY} === 'graders'")
        assert browser.value(f"[{name}.value, {suffix}.value]") == ["theirs", "theirs"]
        known = {one.name: one.id for one, _ in access.list_keys(service.database)}
        assert access.revoke_key(service.database, known[label])
        time.sleep(1.5)  # the server remembers a key for a second
        browser.value("document.querySelector('#grader-check').click()")
        browser.wait(f"{PROBLEM} === 'This key is not valid.'")
    service.database.engine.dispose()
    give(browser, served.key)
    browser.wait(f"{READY} === 'graders'")
    assert browser.value(f"[{name}.value, {suffix}.value]") == ["right", ""]


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
    browser.value("location.hash = '#graders'")
    browser.wait("document.querySelector('#grader-form textarea') !== null")
    choose(browser, "#grader-form select", "multi")
    readable(browser, "#grader-form legend", "#grader-form .hint", "#grader-form textarea")
    browser.value("document.querySelector('#grader-as-json').click()")
    readable(browser, "#grader-json", ".switch [aria-pressed=true]", "#grader-try label")
    browser.value("document.querySelector('#grader-as-form').click()")
    browser.value("location.hash = '#webhooks'")
    browser.wait("document.querySelectorAll('#hook-events input').length")
    readable(browser, "#hook-form legend", ".tick span", "#hook-form .hint", "#hook-send")
    browser.value("location.hash = '#audit'")
    browser.wait("document.querySelectorAll('#audit-list tr').length")
    readable(browser, "#audit-list .long", "#audit-list small", "#audit-list td")
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
    enter(browser, served, "new")
    browser.value("document.querySelector('#new-suffix').focus()")
    browser.type("ours")
    browser.value("location.hash = '#evals'")
    browser.wait(f"{READY} === 'evals'")
    fill(browser, "#eval-criteria textarea", "ours")
    browser.value("document.querySelector('#leave').click()")
    browser.wait(f"{READY} === 'key'")
    fields = "[...document.querySelectorAll('input, textarea')].map((one) => one.value)"
    assert not [one for one in browser.value(fields) if "ours" in one]
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
        browser.wait(f"{READY} === 'key'")
    browser.wait(f"{STATE} === 'paused'")
    assert browser.value("document.querySelector('#job-resume').hidden") is False
    assert browser.value("document.body.dataset.view") == "job"
