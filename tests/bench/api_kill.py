"""A service killed piece by piece at random moments, while clients use all of it.

    python tests/bench/api_kill.py --kills 50
    python tests/bench/api_kill.py --kills 10 --vllm vllm/bin/python --pause 60

Jobs train, some are paused or cancelled; chats are answered by vLLM (the tests' stand-in unless
there is a real one); batches, runs of evals and webhooks are under way. SIGKILL goes to the server,
to a job's rank, to the server of vLLM, to the process that asks it, and to the sender of webhooks.
That is a thread of the controller: this process is killed while an endpoint has a delivery before
it. At the end each job must be what one is that was never killed, nothing that was asked for may be
lost, doubled or stuck, and no process left. Prints one JSON object with all `findings`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serve.webhooks.receiver import Receiver, receiving
from support import leaks, served
from support.workshop import ENDED, WORDS, examples

TRAINS = [*WORDS, "peft=lora", "peft.rank=4", "launch.processes=1", "train.threads=1"]
QUICK = {"n_epochs": 8, "batch_size": 2, "learning_rate_multiplier": 1}
HELLO = [{"role": "user", "content": "What colour is 3?"}]
#: Whom SIGKILL meets beside the server -> what stands in their command lines.
VICTIMS = {
    "rank": "-m launcher.train ",
    "vllm server": "vllm.entrypoints.openai.api_server",
    "model process": "launcher.inference.vllm.worker",
    "webhook sender": "launcher.serve.jobs.controller",
}
STAND_IN = Path(__file__).resolve().parents[1] / "support" / "vllm_stand_in" / "python"
BATCH, ITEMS = 16, 8
BATCH_ENDED = ("completed", "failed", "cancelled", "expired")
RUN_ENDED = ("completed", "failed", "canceled")
EVENTS = (
    *(f"fine_tuning.job.{end}" for end in ENDED),
    *(f"batch.{end}" for end in BATCH_ENDED),
    *(f"eval.run.{end}" for end in ("succeeded", "failed", "canceled")),
)
JOBS = "/fine_tuning/jobs"
#: Longest wait for an answer, or an end.
LIMIT_S = 400.0


class NoAnswer(Exception):
    """A finding has been noted."""


@dataclass
class Site:
    """The service, and what its clients have been told."""

    home: Path
    chance: random.Random
    server: served.Served = None  # type: ignore[assignment]
    up: threading.Event = field(default_factory=threading.Event)
    changes: int = 0
    """Ends and starts of the server."""
    ending: bool = False
    under_way: int = 0
    """Deliveries that the endpoint has not answered yet."""
    made: Counter[str] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)
    killed: Counter[str] = field(default_factory=Counter)
    is_exact: bool = True
    """Whether the likeliest answer is always the same: vLLM rounds otherwise in other company."""
    answers: dict[str, str] = field(default_factory=dict)
    """Model -> what it answers."""
    files: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def start(self) -> None:
        self.server = served.start(self.home)
        self.changes += 1
        self.up.set()

    def restart(self) -> None:
        self.up.clear()
        self.changes += 1
        self.server.kill()
        self.start()

    def ask(self, method: str, path: str, *may: int, **sent: Any) -> httpx2.Response:
        """The answer of a request, which is sent again until it has one; that it was refused for
        another cause than that something is away for now is a finding, and `NoAnswer`, unless its
        status is one that it `may` have."""
        headers = {"Idempotency-Key": uuid.uuid4().hex} if method == "POST" else {}
        found = "no answer"
        end, kind = time.monotonic() + LIMIT_S, "chat" if "/chat/" in path else "other"
        while time.monotonic() < end:
            self.up.wait()
            before = self.changes
            try:
                with self.server.client(timeout_s=LIMIT_S) as client:
                    answer = client.request(method, path, headers=headers, **sent)
            except httpx2.HTTPError as error:
                self.said[f"{kind}: connection lost"] += 1
                if self.up.is_set() and self.changes == before:
                    self.findings.append(f"{method} {path}: {error!r}")
                time.sleep(0.2)
                continue
            self.said[f"{kind}: {answer.status_code}"] += 1
            if answer.is_success or answer.status_code in may:
                return answer
            found = f"{answer.status_code} {answer.text[:300]}"
            if answer.status_code not in (429, 503) or "retry-after" not in answer.headers:
                break
            time.sleep(0.5)
        self.findings.append(f"{method} {path}: {found}")
        raise NoAnswer

    def get(self, path: str) -> Any:
        return self.ask("GET", path).json()

    def make(self, path: str, **body: Any) -> Any:
        found = self.ask("POST", path, json=body).json()
        self.made[found["object"]] += 1
        return found

    def upload(self, content: bytes, purpose: str) -> str:
        sent = {"file": ("data.jsonl", content)}
        found = self.ask("POST", "/files", files=sent, data={"purpose": purpose}).json()["id"]
        if self.ask("GET", f"/files/{found}/content").content != content:
            self.findings.append(f"file {found} is not what was sent")
        return str(found)

    def listed(self, path: str) -> list[Any]:
        """All of a list, page by page."""
        found: list[Any] = []
        while True:
            after = f"&after={found[-1]['id']}" if found else ""
            page = self.get(f"{path}?limit=100{after}")
            found += page["data"]
            if not page["has_more"]:
                return found

    def ended(self, path: str, ends: tuple[str, ...]) -> Any:
        """What is there once it has ended; None if it does not."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            if (found := self.get(path))["status"] in ends:
                return found
            time.sleep(0.5)
        self.findings.append(f"stuck: {path}: {found}")
        raise NoAnswer

    def expect(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            self.findings.append(f"{what}: {found}, not {wanted}"[:1000])

    def new_job(self, to: str) -> str:
        """A job like all others, that is to be `to`."""
        asked = {"training_file": self.files[0], "model": "tiny", "seed": 7}
        asked |= {"hyperparameters": QUICK, "metadata": {"to": to}}
        return str(self.make(JOBS, **asked)["id"])


def train(site: Site) -> None:
    """Have jobs trained, two at a time, and pause one now and then."""
    open_jobs: list[str] = []
    while not site.ending or open_jobs:
        if len(open_jobs) < 2 and not site.ending:
            open_jobs.append(site.new_job("succeed"))
        for job in list(open_jobs):
            state = site.get(f"{JOBS}/{job}")["status"]
            if state in ENDED:
                open_jobs.remove(job)
            elif state == "paused":
                site.ask("POST", f"{JOBS}/{job}/resume")
            elif state == "running" and not site.ending and site.chance.random() < 0.02:
                site.ask("POST", f"{JOBS}/{job}/pause", 400)  # it may have ended meanwhile
        time.sleep(0.5)


def chat(site: Site, streams: bool) -> None:
    """Ask the base and what jobs have made of it."""
    while not site.ending:
        made = [job["fine_tuned_model"] for job in site.get(f"{JOBS}?limit=6")["data"]]
        model = site.chance.choice(["tiny", *filter(None, made)])
        body = {"model": model, "messages": HELLO, "max_tokens": 24, "temperature": 0}
        answer = site.ask("POST", "/chat/completions", json={**body, "stream": streams})
        said = _streamed(answer.text) if streams else answer.json()["choices"][0]["message"]
        if said is None:
            site.said["chat: stream ended by an error"] += 1
            continue
        site.said["chats answered"] += 1
        text = said["content"] or ""
        if site.is_exact:
            site.expect(f"an answer of {model}", text, site.answers.setdefault(model, text))
        time.sleep(0.3)


def _streamed(events: str) -> dict[str, str] | None:
    """The message of a stream; None if it ends before its end."""
    told = [line.removeprefix("data: ") for line in events.splitlines() if line]
    if not told or told[-1] != "[DONE]":
        return None
    chunks = [json.loads(one)["choices"] for one in told[:-1]]
    return {"content": "".join(c[0]["delta"].get("content") or "" for c in chunks if c)}


def answer_batches(site: Site) -> None:
    """One batch after another, each looked at when it has ended."""
    body = {"model": "tiny", "messages": HELLO, "max_tokens": 40, "logit_bias": {"2": -100}}
    wanted = [f"r{number}" for number in range(BATCH)]
    about = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    lines = "".join(json.dumps({"custom_id": name, **about}) + "\n" for name in wanted)
    while not site.ending:
        file = site.upload(lines.encode(), "batch")
        asked = {"input_file_id": file, "endpoint": about["url"], "completion_window": "24h"}
        made = site.make("/batches", **asked)
        found = site.ended(f"/batches/{made['id']}", BATCH_ENDED)
        counts = {"total": BATCH, "completed": BATCH, "failed": 0}
        told = found["status"], found["request_counts"]
        site.expect(f"batch {found['id']}", told, ("completed", counts))
        if not (output := found["output_file_id"]):
            continue
        text = site.ask("GET", f"/files/{output}/content").text
        answers = [json.loads(line) for line in text.splitlines()]
        site.expect(f"lines of {found['id']}", [one["custom_id"] for one in answers], wanted)
        said = {one["id"] for one in answers if one["response"]["status_code"] == 200}
        site.expect(f"answers of {found['id']}", len(said), BATCH)


def run_evals(site: Site) -> None:
    """One run of an eval after another, each looked at when it has ended."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    config = {"type": "custom", "item_schema": schema, "include_sample_schema": True}
    same = {"type": "string_check", "name": "same", "operation": "ne"}
    same |= {"input": "{{ sample.output_text }}", "reference": "{{ item.a }}"}
    made = site.make("/evals", name="kept", data_source_config=config, testing_criteria=[same])
    asked = [{"role": "user", "content": "{{ item.a }} + 1?"}]
    content = [{"item": {"a": number}} for number in range(ITEMS)]
    source = {
        "type": "completions",
        "source": {"type": "file_content", "content": content},
        "input_messages": {"type": "template", "template": asked},
        "model": "tiny",
        "sampling_params": {"max_completion_tokens": 20, "seed": 3},
    }
    counts = {"total": ITEMS, "passed": ITEMS, "failed": 0, "errored": 0}
    path = f"/evals/{made['id']}/runs"
    while not site.ending:
        run = f"{path}/{site.make(path, data_source=source)['id']}"
        found = site.ended(run, RUN_ENDED)
        told = found["status"], found["result_counts"]
        site.expect(f"run {found['id']}", told, ("completed", counts))
        places = [one["datasource_item_id"] for one in site.listed(f"{run}/output_items")]
        site.expect(f"items of {found['id']}", places, list(range(ITEMS)))


def kill_one(site: Site) -> None:
    """SIGKILL for one of those who are there."""
    there = {kind: _processes_of(words) for kind, words in VICTIMS.items()}
    kinds = ["server", *(kind for kind, pids in there.items() if pids)]
    # Rather those who were killed less: some are often not there.
    weights = [1 / (1 + site.killed[kind]) for kind in kinds]
    (kind,) = site.chance.choices(kinds, weights)
    site.killed[kind] += 1
    if kind == "server":
        site.restart()
        return
    if kind == "webhook sender":
        site.ask("POST", f"{JOBS}/{site.new_job('be cancelled')}/cancel")
        served.wait_until(lambda: site.under_way, "a delivery", 60)
    with contextlib.suppress(ProcessLookupError):
        os.kill(site.chance.choice(there[kind]), signal.SIGKILL)


def _processes_of(words: str) -> list[int]:
    return [pid for pid, line in leaks.processes(but=()).items() if words in line]


def job_told(site: Site, job: dict[str, Any]) -> dict[str, Any]:
    """All that a job tells of what it has learned."""
    path = f"{JOBS}/{job['id']}"
    events = site.get(f"{path}/events?limit=1000")["data"]
    points = site.get(f"{path}/checkpoints?limit=100")["data"]
    results = [site.ask("GET", f"/files/{file}/content").text for file in job["result_files"]]
    unnamed = functools.partial(_unnamed, job)
    return {
        "status": (job["status"], job["error"]),
        "tokens": job["trained_tokens"],
        "steps": [event["data"] for event in events if event["type"] == "metrics"],
        # Which of the earlier checkpoints are told hangs on how long they are there.
        "messages": Counter(
            unnamed(event["message"])
            for event in events
            if not event["message"].startswith("Checkpoint")
        ),
        "checkpoints": [(point["step_number"], point["metrics"]) for point in points],
        "results": results,
    }


def _unnamed(job: dict[str, Any], text: str) -> str:
    """Without names, which are each job's own."""
    name = str(job["fine_tuned_model"])
    return text.replace(name, "MODEL").replace(name.rpartition(":")[2], "X").replace(job["id"], "J")


def look_at_jobs(site: Site, wanted: dict[str, Any], jobs: list[dict[str, Any]]) -> None:
    """Each job against one that was never killed."""
    for job in jobs:
        if job["metadata"]["to"] == "be cancelled":
            site.expect(job["id"], job["status"], "cancelled")
            continue
        for what, found in job_told(site, job).items():
            if what == "messages":  # a pause is told too
                found = Counter({text: found[text] for text in wanted[what]})
            site.expect(f"{job['id']}: {what}", found, wanted[what])


def look_at_webhooks(site: Site, receiver: Receiver, endpoint: str, ended: set[str]) -> int:
    """What has ended was told once, and under one id as often as it was sent. Returns how often a
    delivery was sent again."""
    path = f"/webhook_endpoints/{endpoint}/deliveries"
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end:
        deliveries = site.listed(path)
        if all(one["state"] != "pending" for one in deliveries):
            break
        time.sleep(1)
    site.expect("deliveries", Counter(one["state"] for one in deliveries), {"sent": len(ended)})
    ids: dict[str, set[str]] = {}
    for request in list(receiver.requests):
        told = json.loads(request.body)
        ids.setdefault(told["data"]["id"], set()).add(request.headers["webhook-id"])
    site.expect("told", sorted(ids), sorted(ended))
    site.findings += [f"{one}: told as {names}" for one, names in ids.items() if len(names) > 1]
    return len(receiver.requests) - len(ids)


def left_over() -> list[str]:
    """Processes that have outlived the service."""
    end = time.monotonic() + 60
    while (left := leaks.processes(but=())) and time.monotonic() < end:
        time.sleep(0.5)
    return [f"still runs: {line}" for line in left.values()]


@contextlib.contextmanager
def at_work(site: Site) -> Iterator[None]:
    """Clients ask until the end of the block, and then to the end of what they have begun."""

    def guarded(work: Callable[[], None]) -> None:
        while True:
            try:
                return work()
            except NoAnswer:
                continue
            except Exception as error:
                site.findings.append(f"a client has ended: {error!r}")
                raise

    works = (train, answer_batches, run_evals, functools.partial(chat, streams=False))
    clients = [
        threading.Thread(target=guarded, args=(functools.partial(work, site),))
        for work in (*works, functools.partial(chat, streams=True))
    ]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        site.ending = True
        for client in clients:
            client.join()


def main() -> int:
    """Returns the number of findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--vllm", help="a Python that has vLLM; default: the stand-in")
    parser.add_argument("--pause", type=float, default=7.0, help="longest, in seconds")
    parser.add_argument("--keep", type=Path, help="folder for the service; it stays")
    parsed = parser.parse_args()
    leaks.mark()
    with contextlib.ExitStack() as stack:
        folder = parsed.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        receiver = stack.enter_context(receiving())
        site = Site(folder.absolute() / "home", random.Random(parsed.seed))
        receiver.status = functools.partial(take_slowly, site)
        pauses = [site.chance.uniform(1.0, parsed.pause) for _ in range(parsed.kills)]
        told = besieged(site, receiver, pauses, parsed.vllm)
    print(json.dumps({**told, "findings": site.findings}, indent=1))
    return len(site.findings)


def take_slowly(site: Site, number: int) -> int:
    """An endpoint's status, which every seventh time is no good one."""
    site.under_way += 1
    time.sleep(0.5)
    site.under_way -= 1
    return 500 if number % 7 == 6 else 200


def besieged(
    site: Site, receiver: Receiver, pauses: list[float], python: str | None
) -> dict[str, Any]:
    """What has become of a service with a kill after each of the pauses."""
    vllm: dict[str, Any] = {"python": str(STAND_IN)}
    vllm["environment"] = {"LAUNCHER_TEST_PYTHON": sys.executable}
    if python:
        vllm = {"python": os.path.abspath(python), "options": ["--enforce-eager"]}
        vllm["environment"] = {"VLLM_CPU_KVCACHE_SPACE": "1"}
        site.is_exact = False
    settings = {
        "models": {"tiny": {"overrides": TRAINS}},
        "chat": {"answers": "vllm", "gpus": False, "vllm": vllm},
        "webhooks": {"allow": [receiver.url], "timeout_s": 3},
    }
    site.home.mkdir(parents=True)
    (site.home / "serve.yaml").write_text(yaml.safe_dump(settings))
    begun = time.monotonic()
    site.start()
    asked = {"name": "all", "url": receiver.url, "event_types": EVENTS}
    endpoint = site.make("/webhook_endpoints", **asked)["id"]
    site.files.append(site.upload(examples(12), "fine-tune"))
    first = site.ended(f"{JOBS}/{site.new_job('succeed')}", ENDED)
    wanted = job_told(site, first)
    with at_work(site):
        served.wait_until(lambda: site.said["chats answered"], "a chat", LIMIT_S)
        for number, pause_s in enumerate(pauses, 1):
            time.sleep(pause_s)
            kill_one(site)
            print(f"{number} {dict(site.killed)}", file=sys.stderr)
    jobs = site.listed(JOBS)
    batches = site.listed("/batches")
    (eval_,) = site.listed("/evals")
    runs = site.listed(f"/evals/{eval_['id']}/runs")
    look_at_jobs(site, wanted, jobs)
    made = {"fine_tuning.job": jobs, "batch": batches, "eval.run": runs}
    for kind, listed in made.items():
        site.expect(f"{kind} objects", len({one["id"] for one in listed}), site.made[kind])
    ended = {one["id"] for listed in made.values() for one in listed}
    again = look_at_webhooks(site, receiver, endpoint, ended)
    site.expect("exit code", site.server.stop(), 0)
    site.findings += left_over()
    site.expect("servers' folders", list(site.home.glob(".vllm-servers/*")), [])
    return {
        "kills": dict(site.killed),
        "seconds": round(time.monotonic() - begun),
        "jobs": Counter(job["status"] for job in jobs),
        "attempts": sum(len([*run.glob("attempts/*")]) for run in site.home.glob("runs/ftjob-*")),
        "batches": len(batches),
        "batch lines": len(batches) * BATCH,
        "eval runs": len(runs),
        "webhooks": {"told": len(ended), "sent again": again},
        "answers": dict(sorted(site.said.items())),
    }


if __name__ == "__main__":
    sys.exit(main())
