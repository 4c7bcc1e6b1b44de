"""Jobs of an account are run again here: what each becomes, in which order, and each once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import delete, select, update

from launcher.account import page, proposal
from launcher.account.connection import Connection
from launcher.account.layout import Folder
from launcher.account.manifest import make
from launcher.account.mapping import Settings, settings
from launcher.account.prospect import planned, told_plan
from launcher.account.pull import Pull
from launcher.account.replay import Replay
from launcher.account.shutdowns import end_of
from launcher.account.succession import settle
from launcher.cli import main
from launcher.config.compose import groups
from launcher.core.errors import ConfigError, DataError, ExitCode
from launcher.core.files import read_json, write_json
from launcher.serve.db.tables import Event, File, Job
from launcher.serve.service import Service
from support import account as accounts
from support.account import KEY, Account
from support.project import LAUNCHER
from support.ranks import environment
from support.workshop import WORDS, examples

BASE = "gpt-4o-mini-2024-07-18"
SHORT = {"n_epochs": 1, "batch_size": 6, "learning_rate_multiplier": 2}
MAPPING = yaml.safe_dump({"models": {"tiny": {"overrides": WORDS}, BASE: {"alias": "tiny"}}})


def supervised(**numbers: Any) -> dict[str, Any]:
    method = {"type": "supervised", "supervised": {"hyperparameters": SHORT | numbers}}
    return {"hyperparameters": SHORT | numbers, "method": method}


def pairs(count: int) -> bytes:
    lines = (
        {
            "input": {"messages": [{"role": "user", "content": f"Colour {i}?"}]},
            "preferred_output": [{"role": "assistant", "content": "Red."}],
            "non_preferred_output": [{"role": "assistant", "content": "Who knows?"}],
        }
        for i in range(count)
    )
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


HAS_E = {
    "type": "string_check",
    "name": "has an e",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.label }}",
    "operation": "ilike",
}


JUDGED = {
    "type": "score_model",
    "name": "kind",
    "model": "gpt-4o",
    "input": [{"role": "user", "content": "{{ sample.output_text }}"}],
}


def questions(count: int) -> bytes:
    asked = ({"role": "user", "content": f"Say {i}."} for i in range(count))
    return "".join(json.dumps({"messages": [one], "label": "e"}) + "\n" for one in asked).encode()


def rewarded(grader: Any = HAS_E, **numbers: Any) -> dict[str, Any]:
    """As a record tells a job that a grader rewards."""
    said = {"compute_multiplier": "auto", "eval_interval": 1, "eval_samples": 2, **numbers}
    inside = {"grader": grader, "hyperparameters": SHORT | said, "response_format": None}
    method = {"type": "reinforcement", "reinforcement": inside}
    return {"hyperparameters": SHORT | said, "method": method}


@pytest.fixture
def folder(tmp_path) -> Callable[[Account], Folder]:
    """What a pull of an account leaves."""

    def pulled(account: Account) -> Folder:
        found = Folder(tmp_path / "account")
        with accounts.served(account):
            seen = Pull(Connection(account.url, KEY, first_wait_s=0.01), found).run()
            write_json(found.manifest, make(found, account.url, seen))
        return found

    return pulled


def an_account() -> Account:
    """A chain of three jobs, newest first by birth, and those that cannot be run again."""
    account = Account()
    account.add_file("file-a", examples(12))
    account.add_file("file-p", pairs(12))
    name = f"ft:{BASE}:acme:sums:1"
    account.add_job("ftjob-first", "file-a", fine_tuned_model=name, **supervised())
    beta = SHORT | {"beta": 0.3}
    dpo = {"type": "dpo", "dpo": {"hyperparameters": beta}}
    account.add_job(
        "ftjob-second",
        "file-p",
        model=name,
        fine_tuned_model=f"ft:{BASE}:acme::2",
        hyperparameters=SHORT,
        method=dpo,
    )
    return account


def test_jobs_keep_what_they_asked_for(folder):
    site = Settings.of(MAPPING, Path("x")).site
    jobs, left = settle(folder(an_account()), site)
    assert not left
    assert [(job.id, job.method, job.offer, job.parent) for job in jobs] == [
        ("ftjob-first", "supervised", "tiny", None),
        ("ftjob-second", "dpo", "tiny", "ftjob-first"),
    ]
    first, second = (job.row("project") for job in jobs)
    assert (first.model, first.suffix, first.seed) == ("tiny", "sums", 0)
    assert (second.model, second.suffix, second.seed) == (f"ft:{BASE}:acme:sums:1", None, 1)
    assert second.asked["final_name"] == f"ft:{BASE}:acme::2"
    assert {name: second.asked[name] for name in (*SHORT, "beta")} == {**SHORT, "beta": 0.3}


def test_a_replayed_job_has_the_run_of_a_served_one(folder, tmp_path):
    """The same translation makes both: here the words that it settles on are looked at."""
    found = Settings.of(MAPPING, Path("x"))
    jobs, _ = settle(folder(an_account()), found.site)
    first, second = planned(found, jobs, tmp_path / "out", "default")
    assert first["hyperparameters"] == SHORT
    assert (first["steps"], first["examples"], first["after"]) == (2, 12, None)
    assert second["hyperparameters"] == {**SHORT, "beta": 0.3}
    assert second["after"] == "ftjob-first"
    assert first["memory_bytes"] > 0
    assert first["missing"] is None
    assert not (tmp_path / "out").exists()


def test_the_order_is_that_of_descent_not_of_birth(folder):
    account = an_account()
    first, second = account.lists["/fine_tuning/jobs"][::-1]
    first["created_at"], second["created_at"] = 1_800_000_000, 1_700_000_000
    jobs, _ = settle(folder(account), Settings.of(MAPPING, Path("x")).site)
    assert [job.id for job in jobs] == ["ftjob-first", "ftjob-second"]


def wandb(**about: Any) -> dict[str, Any]:
    return {"integrations": [{"type": "wandb", "wandb": {"project": "p", **about}}]}


def test_an_integration_asks_for_what_can_be_asked_for(folder, monkeypatch):
    account = an_account()
    account.lists["/fine_tuning/jobs"][1] |= wandb(entity=None, run_id="ftjob-first", tags=["t"])
    found, made = folder(account), Settings.of(MAPPING, Path("x"))
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    (first, _), left = settle(found, made.site)
    asked = {"project": "p", "name": None, "entity": None, "tags": ["t"]}
    assert first.row("project").integrations == [{"type": "wandb", "wandb": asked}]
    assert not left
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", "/dev/null")
    jobs, left = settle(found, made.site)
    assert jobs[0].row("project").integrations is None
    assert not left
    plan = planned(found=made, jobs=jobs, out=found.path / "out", project="default")
    assert "W&B integration is left out" in told_plan(plan, left)


@pytest.mark.parametrize(
    ("inside", "beside", "expected"),
    [
        ({"n_epochs": 3}, {"n_epochs": 3, "batch_size": 7}, (3, 7, "auto")),
        (
            {"n_epochs": "auto", "batch_size": 2},
            {"n_epochs": 4, "batch_size": "auto"},
            (4, 2, "auto"),
        ),
        ({}, {"learning_rate_multiplier": 1.5}, ("auto", "auto", 1.5)),
        (None, {"n_epochs": 4}, (4, "auto", "auto")),
        ({"batch_size": 3}, None, ("auto", 3, "auto")),
        ({"n_epochs": 3}, {"n_epochs": 5}, (3, "auto", "auto")),
    ],
)
def test_each_hyperparameter_is_looked_for_by_itself(folder, inside, beside, expected):
    account = an_account()
    method = {"type": "supervised", "supervised": {"hyperparameters": inside}}
    account.lists["/fine_tuning/jobs"][1] |= {"method": method, "hyperparameters": beside}
    (first, _), _ = settle(folder(account), Settings.of(MAPPING, Path("x")).site)
    assert tuple(first.asked.asked()[name] for name in SHORT) == expected


@pytest.mark.parametrize(
    ("listed", "places"),
    [
        (["LAST", "one"], {"LAST": 0, "one": 1}),
        (["two", "one"], {"LAST": 0, "two": 1, "one": 2}),
        ([], {"LAST": 0}),
    ],
)
def test_checkpoints_are_counted_from_the_last_model(folder, listed, places):
    account = an_account()
    last = f"ft:{BASE}:acme:sums:1"
    names = {name: last if name == "LAST" else f"ft:{BASE}:acme::{name}" for name in places}
    account.lists["/fine_tuning/jobs/ftjob-first/checkpoints"] = [
        {"id": name, "step_number": -i, "fine_tuned_model_checkpoint": names[name]}
        for i, name in enumerate(listed)
    ]
    for name, place in places.items():
        more = {"model": names[name], "fine_tuned_model": f"ft:x:o::{place}"}
        account.add_job(f"ftjob-{place}", "file-a", **supervised(), **more)
    jobs, _ = settle(folder(account), Settings.of(MAPPING, Path("x")).site)
    found = {job.id: (job.parent, job.before_last) for job in jobs}
    assert {place: found[f"ftjob-{place}"] for place in places.values()} == {
        place: ("ftjob-first", place) for place in places.values()
    }


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"integrations": ["wandb"]}, "integrations"),
        ({"status": "failed"}, "--also failed"),
        ({"status": "cancelled"}, "--also cancelled"),
        ({"status": "running"}, "its state is running"),
        ({"method": {"type": "telepathy", "telepathy": {}}}, "its method telepathy cannot"),
        ({"training_file": "file-gone"}, "training file file-gone could not be read"),
        ({"training_file": "../../etc"}, "is no id"),
        ({"validation_file": "file-gone"}, "validation file file-gone could not be read"),
        ({"model": "ft:x:acme::9"}, "a model that no job here has made"),
        ({"training_file": None}, "training_file"),
        (supervised(n_epochs=99), "n_epochs"),
        (supervised(telepathy=1), "telepathy"),
        ({"model": f"ft:{BASE}:acme:sums:1"}, "its own model"),
        (rewarded(JUDGED), "its grader asks gpt-4o: say by `judges`"),
        (rewarded(HAS_E | {"operation": "near"}), "method.reinforcement.grader.operation: "),
        (rewarded(eval_samples=99), "eval_samples"),
    ],
)
def test_what_is_left_out_and_why_with_all_that_comes_of_it(folder, change, why):
    account = an_account()
    account.lists["/fine_tuning/jobs"][1] |= change
    site = Settings.of(MAPPING, Path("x")).site
    jobs, left = settle(folder(account), site)
    assert not jobs
    found = {one.id: one.why for one in left}
    assert why in found["ftjob-first"]
    if "own model" not in why:
        assert "the model of ftjob-first, which is not run again" in found["ftjob-second"]


def test_files_that_are_not_what_the_account_says_are_not_trained_on(folder):
    account = an_account()
    account.content["file-a"] = examples(11)
    jobs, left = settle(folder(account), Settings.of(MAPPING, Path("x")).site)
    assert not jobs
    assert "is not what the account says" in left[0].why


def test_some_jobs_bring_those_that_they_start_from(folder):
    account = an_account()
    account.add_job("ftjob-other", "file-a", status="failed", fine_tuned_model=None)
    found, site = folder(account), Settings.of(MAPPING, Path("x")).site
    jobs, left = settle(found, site, only=["ftjob-second"])
    assert [job.id for job in jobs] == ["ftjob-first", "ftjob-second"]
    assert not left
    jobs, _ = settle(found, site, only=["ftjob-other"], also=["failed"])
    assert [job.id for job in jobs] == ["ftjob-other"]
    with pytest.raises(ConfigError, match="ftjob-secnd"):
        settle(found, site, only=["ftjob-secnd"])


def test_models_that_nothing_stands_for_are_told_all_at_once(folder):
    account = an_account()
    account.add_job("ftjob-x", "file-a", model="gpt-4.1-mini-2025-04-14")
    site = Settings.of("models: {m: {overrides: [model=tiny]}}", Path("x")).site
    with pytest.raises(ConfigError) as caught:
        settle(folder(account), site)
    assert [BASE in str(caught.value), "gpt-4.1-mini" in str(caught.value)] == [True, True]
    assert len(caught.value.problems) == 2


def test_a_job_that_is_rewarded_is_planned_with_its_grader(folder, tmp_path):
    account = an_account()
    account.add_file("file-q", questions(12))
    asked = rewarded(JUDGED, reasoning_effort="high", compute_multiplier=0.5)
    files = dict.fromkeys(("training_file", "validation_file"), "file-q")
    account.lists["/fine_tuning/jobs"][1] |= asked | files
    made = yaml.safe_load(MAPPING) | {"judges": {"gpt-4o": {"url": "http://127.0.0.1:9/v1"}}}
    made["models"]["tiny"]["reinforcement"] = ["objective.max_new_tokens=12"]
    found = Settings.of(yaml.safe_dump(made), Path("x"))
    jobs, left = settle(folder(account), found.site)
    assert not left
    plan = planned(found, jobs, tmp_path / "out", "default")
    first = plan[0]
    own = {"compute_multiplier": 0.5, "eval_interval": 1, "eval_samples": 2}
    assert (first["method"], first["hyperparameters"]) == ("reinforcement", {**SHORT, **own})
    assert (first["steps"], first["missing"]) == (2, None)
    assert "its reasoning_effort 'high' is left out" in told_plan(plan, left)
    assert jobs[0].row("p").asked["reasoning_effort"] == "default"


# ---- the mapping


def test_a_proposal_is_written_once_and_is_a_mapping(folder, tmp_path):
    found, out = folder(an_account()), tmp_path / "out"
    made, proposed = settings(found, out, None, [], "default")
    assert proposed == found.path / "models.yaml"
    assert list(made.site.models) == [BASE]
    assert made.site.organization == "acme"
    assert settings(found, out, None, [], "default") == (made, None)


def test_no_name_of_a_model_becomes_more_of_a_proposal():
    evil = "x: {overrides: [model=tiny]}\nqueue: {parallel: 9}\nmodels:\n  y"
    made = Settings.of(proposal.text([{"model": evil}, {"model": BASE}]), Path("x"))
    assert list(made.site.models) == [BASE]
    assert made.site.queue.parallel == 1


def test_every_proposed_model_is_a_preset():
    assert {*proposal.PRESETS.values()} <= {*groups.list_groups()["model"]}
    assert proposal.preset("gpt-4o-mini-2024-07-18") == proposal.PRESETS["gpt-4o-mini"]
    assert proposal.preset("gpt-4.1-nano") == proposal.PRESETS["gpt-4.1-nano"]


def test_overrides_are_the_project_s_and_a_mapping_holds_for_good(folder, tmp_path):
    found, out = folder(an_account()), tmp_path / "out"
    mapping = tmp_path / "mine.yaml"
    mapping.write_text(MAPPING)
    made, _ = settings(found, out, mapping, ["optim.lr=1e-4", "optim.beta2=0.9"], "ours")
    assert made.site.projects["ours"].overrides == ["optim.lr=1e-4", "optim.beta2=0.9"]
    out.mkdir()
    (out / "serve.yaml").write_text(made.text)
    assert settings(found, out, None, [], "ours")[0] == made
    with pytest.raises(ConfigError, match="it differs from"):
        settings(found, out, mapping, [], "ours")
    mapping.write_text(made.text)
    with pytest.raises(ConfigError, match="it settles projects itself"):
        settings(found, out, mapping, ["optim.lr=1"], "ours")


@pytest.mark.parametrize(
    ("word", "project"),
    [
        ('data.system="hi"', "default"),
        (r"data.pattern=\d", "default"),
        ("a=[b, c]", "x}: {y"),
        ("a=b", "123"),
        ("a=b", "yes"),
        ("a=é\n", 'a: "b"'),
    ],
)
def test_overrides_and_projects_stand_in_a_mapping_as_they_were_given(
    folder, tmp_path, word, project
):
    mapping = tmp_path / "mine.yaml"
    mapping.write_text(MAPPING)
    found, _ = settings(folder(an_account()), tmp_path / "out", mapping, [word], project)
    assert {name: own.overrides for name, own in found.site.projects.items()} == {project: [word]}


@pytest.mark.parametrize("text", ["models: {}", "models: 3", "modles: {}", "a: [", ""])
def test_mappings_that_are_none_are_told_by_their_path(folder, tmp_path, text):
    mapping = tmp_path / "mine.yaml"
    mapping.write_text(text)
    with pytest.raises(ConfigError) as caught:
        settings(folder(an_account()), tmp_path / "out", mapping, [], "default")
    assert str(mapping) in str(caught.value)


def test_days_are_the_server_s_first():
    assert end_of(f"ft:{BASE}:acme::1").day == "2027-01-14"
    assert end_of(f"ft:{BASE}:acme::1").source == "second-hand"
    assert end_of(BASE, {"shutdown_date": "2026-12-01"}).source == "the server"
    assert end_of("gpt-9").day is None


# ---- the command


def test_two_commands_do_not_write_to_one_folder(folder, tmp_path, capsys):
    found, out = folder(an_account()), tmp_path / "out"
    (found.path / "models.yaml").write_text(MAPPING)
    with Folder(out).lock():
        words = ["openai", "replay", str(found.path), "--to", str(out)]
        assert main(words) == ExitCode.usage
        assert "another command writes to it" in capsys.readouterr().err
        assert main([*words, "--dry-run"]) == ExitCode.ok
    assert {path.name for path in out.iterdir()} == {".lock"}


def a_replay(folder: Folder, out: Path, project: str = "default", **only: Any) -> Replay:
    made = Settings.of(MAPPING, Path("x"))
    jobs, left = settle(folder, made.site, **only)
    return Replay(made, jobs, left, out, project, lambda text: None)


@pytest.mark.parametrize("is_other_project", [False, True])
def test_a_file_of_another_account_or_project_is_not_trained_on(folder, tmp_path, is_other_project):
    """Whatever stands in the service under its id."""
    found, out = folder(an_account()), tmp_path / "out"
    a_replay(found, out)._advance()
    service = Service.open(out)
    with service.database.begin() as session:
        session.execute(delete(Event))
        session.execute(delete(Job))
        if not is_other_project:
            session.execute(update(File).values(sha256="0" * 64))
    service.database.engine.dispose()
    project = "other" if is_other_project else "default"
    with pytest.raises(ConfigError, match="file-a.*another"):
        a_replay(found, out, project)._advance()


def test_what_became_of_other_jobs_stays_known(folder, tmp_path):
    account = an_account()
    account.add_job("ftjob-other", "file-a", fine_tuned_model=f"ft:{BASE}:acme::3", **supervised())
    found, out = folder(account), tmp_path / "out"
    a_replay(found, out)._result()
    a_replay(found, out, only=["ftjob-other"])._result()
    rows = read_json(out / "replay.json")["jobs"]
    assert [row["id"] for row in rows] == ["ftjob-first", "ftjob-second", "ftjob-other"]


def test_the_plan_makes_nothing(folder, tmp_path, capsys):
    found, out = folder(an_account()), tmp_path / "out"
    words = ["openai", "replay", str(found.path), "--to", str(out), "--dry-run"]
    mapping = tmp_path / "mine.yaml"
    mapping.write_text(MAPPING)
    assert main([*words, "--map", str(mapping)]) == ExitCode.ok
    said = capsys.readouterr().out
    assert f"ftjob-second  dpo, ft:{BASE}:acme:sums:1 -> tiny: tiny, after ftjob-first" in said
    assert "2 jobs are run again, 0 left out" in said
    assert main([*words, "--map", str(mapping), "--json"]) == ExitCode.ok
    assert len(json.loads(capsys.readouterr().out)["jobs"]) == 2
    assert not out.exists()


def test_the_page_of_an_account_has_the_plan_and_what_became_of_it(folder, tmp_path, capsys):
    account = an_account()
    account.add_job("ftjob-other", "file-a", status="failed", fine_tuned_model=None)
    found, out = folder(account), tmp_path / "out"
    mapping = tmp_path / "mine.yaml"
    mapping.write_text(MAPPING)
    words = ["openai", "replay", str(found.path), "--to", str(out), "--map", str(mapping)]
    assert main([*words, "--dry-run", "--jobs", "ftjob-first"]) == ExitCode.ok
    shown = _plan_on(found)
    assert shown[1][:6] == ["1", "ftjob-first", "planned", "", "supervised", BASE]
    assert shown[1][6:8] == ["tiny: tiny", "12"]
    assert [row[1] for row in shown[1:]] == ["ftjob-first"]
    assert main([*words, "--dry-run"]) == ExitCode.ok
    shown = _plan_on(found)
    assert [row[1:4] for row in shown[1:3]] == [
        ["ftjob-first", "planned", ""],
        ["ftjob-second", "planned", "ftjob-first"],
    ]
    assert shown[-1][0] == "ftjob-other"
    assert "--also failed" in shown[-1][1]
    told: list[str] = []
    made = Settings.of(MAPPING, Path("x"))
    jobs, left = settle(found, made.site)
    work = Replay(made, jobs, left, out, "default", print, lambda: told.append("news"))
    work._result()
    assert told == ["news"]
    page.refresh(found)
    assert [row[2] for row in _plan_on(found)[1:3]] == ["waiting", "waiting"]
    capsys.readouterr()


def _plan_on(found: Folder) -> list[list[str]]:
    """The cells of the plan on the page of a folder."""
    text = (found.path / "page.html").read_text()
    section = re.search('<section id="replay">.*?</section>', text, re.DOTALL)
    assert section is not None
    rows = re.findall("<tr>(.*?)</tr>", section[0], re.DOTALL)
    cells = (re.findall("<t[dh]>(.*?)</t[dh]>", row, re.DOTALL) for row in rows)
    return [[re.sub("<[^>]*>", "", cell) for cell in row] for row in cells]


def test_without_a_mapping_a_proposal_is_written_and_nothing_begins(folder, tmp_path, capsys):
    found, out = folder(an_account()), tmp_path / "out"
    assert main(["openai", "replay", str(found.path), "--to", str(out)]) == ExitCode.usage
    assert "a proposal is in" in capsys.readouterr().err
    assert (found.path / "models.yaml").is_file()
    assert not out.exists()


def test_a_folder_that_no_pull_has_filled_is_refused(tmp_path, capsys):
    assert main(["openai", "replay", str(tmp_path), "--to", "x"]) == ExitCode.usage
    assert "launcher openai pull" in capsys.readouterr().err


def test_a_file_that_changed_since_the_pull_is_not_trained_on(folder, tmp_path):
    found = folder(an_account())
    kept = found.kept("file-a")
    made = Settings.of(MAPPING, Path("x"))
    jobs, left = settle(found, made.site)
    kept.path.write_bytes(kept.path.read_bytes().replace(b"colour", b"COLOUR"))
    work = Replay(made, jobs, left, tmp_path / "out", "default", lambda text: None)
    with pytest.raises(DataError, match="has changed"):
        work.run()


@pytest.mark.slow
def test_a_chain_is_run_to_its_end_through_kills_and_each_job_once(folder, tmp_path):
    """And answers by the names that code has, in a service's folder."""
    account = an_account()
    account.add_job("ftjob-bad", "file-a", fine_tuned_model=f"ft:{BASE}:acme::3", **supervised())
    found, out = folder(account), tmp_path / "out"
    (found.path / "models.yaml").write_text(MAPPING)
    words = [*LAUNCHER, "openai", "replay", str(found.path), "--to", str(out)]
    words += ["--jobs", "ftjob-second"]
    for moment in ("validating_files", "running", "second"):
        process = subprocess.Popen(
            words,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line in process.stderr:
            if moment in line:
                break
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert done.returncode == ExitCode.ok, done.stderr + (out / "replay.log").read_text()
    assert done.stdout.split() == [
        *("ftjob-first", "succeeded", f"ft:{BASE}:acme:sums:1"),
        *("ftjob-second", "succeeded", f"ft:{BASE}:acme::2"),
    ]
    service = Service.open(out)
    try:
        with service.database.read() as session:
            jobs = {job.id: job for job in session.scalars(select(Job))}
            assert sorted(jobs) == ["ftjob-first", "ftjob-second"]
            for name in jobs:
                events = session.scalars(select(Event).where(Event.job_id == name)).all()
                steps = Counter(e.data["step"] for e in events if e.type == "metrics")
                assert steps == {1: 1, 2: 1}
                assert sum(e.key == "succeeded" for e in events) == 1
    finally:
        service.database.engine.dispose()
    assert {path.name for path in (out / "runs").iterdir()} == {"ftjob-first", "ftjob-second"}
    rows = read_json(out / "replay.json")["jobs"]
    assert [row["state"] for row in rows] == ["succeeded", "succeeded"]


@pytest.mark.slow
def test_a_job_that_began_with_a_checkpoint_begins_with_its_like(folder, tmp_path):
    """Names of checkpoints tell steps, which are others here: they are counted from the end."""
    account = Account()
    account.add_file("file-a", examples(12))
    account.add_job("ftjob-a", "file-a", fine_tuned_model="ft:m:o::z", **supervised(n_epochs=2))
    account.lists["/fine_tuning/jobs/ftjob-a/checkpoints"] = [
        {"id": f"ftckpt_{step}", "step_number": step, "fine_tuned_model_checkpoint": name}
        for step, name in ((400, "ft:m:o::y:ckpt-step-400"), (200, "ft:m:o::y:ckpt-step-200"))
    ]
    early = {"model": "ft:m:o::y:ckpt-step-400", "fine_tuned_model": "ft:m:o::b"}
    account.add_job("ftjob-b", "file-a", **supervised(), **early)
    found, out = folder(account), tmp_path / "out"
    made = Settings.of(MAPPING, Path("x"))
    jobs, left = settle(found, made.site)
    assert not left
    assert [(job.id, job.parent, job.before_last) for job in jobs] == [
        ("ftjob-a", None, 0),
        ("ftjob-b", "ftjob-a", 1),
    ]
    (found.path / "models.yaml").write_text(MAPPING)
    words = [*LAUNCHER, "openai", "replay", str(found.path), "--to", str(out)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert done.returncode == ExitCode.ok, done.stdout + done.stderr
    service = Service.open(out)
    with service.database.read() as session:
        job = session.scalar(select(Job).where(Job.id == "ftjob-b"))
    service.database.engine.dispose()
    assert job.model.endswith(":ckpt-step-2")  # of 4
    assert job.fine_tuned_model == "ft:m:o::b"


@pytest.mark.slow
def test_a_job_that_a_grader_rewards_is_run_with_its_validation(folder, tmp_path):
    account = Account()
    account.add_file("file-q", questions(12))
    account.add_file("file-v", questions(4))
    held = {"validation_file": "file-v", "fine_tuned_model": f"ft:{BASE}:acme::7"}
    account.add_job("ftjob-r", "file-q", **held, **rewarded(compute_multiplier=0.5))
    found, out = folder(account), tmp_path / "out"
    offer = {"overrides": WORDS, "reinforcement": ["objective.max_new_tokens=12"]}
    offers = {"tiny": offer, BASE: {"alias": "tiny"}}
    (found.path / "models.yaml").write_text(yaml.safe_dump({"models": offers}))
    words = [*LAUNCHER, "openai", "replay", str(found.path), "--to", str(out)]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert done.returncode == ExitCode.ok, done.stdout + done.stderr
    assert done.stdout.split() == ["ftjob-r", "succeeded", f"ft:{BASE}:acme::7"]
    service = Service.open(out)
    with service.database.read() as session:
        job = session.scalars(select(Job)).one()
        own = select(Event).where(Event.type == "metrics").order_by(Event.number)
        steps = [event.data for event in session.scalars(own)]
    service.database.engine.dispose()
    assert job.asked["grader"] == HAS_E
    assert [step["step"] for step in steps] == [1, 2]
    for step in steps:
        assert 0 <= step["train_reward_mean"] <= 1
        assert 0 <= step["valid_reward_mean"] <= 1
    lines = (out / "runs/ftjob-r/rollouts/step-00000000.jsonl").read_text().splitlines()
    assert len(lines) == 6 * 4  # questions of a step, half of eight answers to each


@pytest.mark.slow
def test_a_job_that_failed_here_is_begun_anew_when_asked(folder, tmp_path):
    account = an_account()
    found, out = folder(account), tmp_path / "out"
    broken = [word for word in WORDS if not word.startswith("optim.lr")]
    offers = {"tiny": {"overrides": [*broken, "optim.lr=1e30"]}, BASE: {"alias": "tiny"}}
    (found.path / "models.yaml").write_text(yaml.safe_dump({"models": offers}))
    words = [*LAUNCHER, "openai", "replay", str(found.path), "--to", str(out)]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*words, *more], env=environment(), capture_output=True, text=True)

    done = run()
    assert done.returncode == ExitCode.data, done.stderr
    assert "ftjob-first  failed" in done.stdout
    assert "ftjob-second  not begun" in done.stdout
    (out / "serve.yaml").write_text(MAPPING)
    assert run().returncode == ExitCode.data
    done = run("--again", "--jobs", "ftjob-first")
    assert done.returncode == ExitCode.ok, done.stdout + done.stderr
