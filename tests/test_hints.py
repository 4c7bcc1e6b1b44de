"""Hints that name a command: each is one that the command line takes, and, typed where it was
given, does what it promises."""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import re
import shlex
import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pytest

from launcher import bases
from launcher.ab import database
from launcher.ab.study import Study
from launcher.ab.traffic import Traffic
from launcher.cli import VERBS, main, runs
from launcher.config import create
from launcher.config.compose import compose
from launcher.core import console, vitals
from launcher.core.errors import LauncherError, Preempted
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir, State, command, listed
from launcher.data import show
from launcher.data.cache import TokenCache
from launcher.inference.export import find_checkpoint
from launcher.launch import outcome
from launcher.launch.coordinator import Coordinator
from launcher.launch.local import supervisor_file
from launcher.launch.slurm.backend import SlurmBackend
from launcher.launch.spec import AttemptState, job_file
from launcher.model.load import model_source
from launcher.objectives import base as objectives
from launcher.runs import extension, follow, start
from launcher.runs.cancel import cancel, set_cancelled
from launcher.scoring.compare import sides
from launcher.sweeps import preparation
from launcher.sweeps.folder import find as find_sweep
from launcher.train import start as train_start
from support import hints
from support.configs import make_config
from support.plans import launch_plan

SOURCES = sorted((Path(__file__).parents[1] / "launcher").rglob("*.py"))
WORDS = ("model=tiny", "data.train=builtin:quickstart-text", "batch.sequences=8")
TYPED = re.compile(r"`(launcher [^`]+)`")
NAMING = re.compile(r"`launcher |\bcommand\(|\[\"launcher\",")


def texts(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Texts of a module that may be shown, those in braces as WORD; no docstrings."""
    silent = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            silent |= {id(part) for part in node.values}
            yield "".join(
                str(part.value) if isinstance(part, ast.Constant) else "WORD"
                for part in node.values
            )
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in silent
        ):
            yield node.value


def constants(nodes: Iterable[ast.AST]) -> list[str]:
    """The words up to the first that is no constant."""
    known = itertools.takewhile(lambda node: isinstance(node, ast.Constant), nodes)
    return [str(node.value) for node in known]


def label(path: Path) -> str:
    """A file's name, with its folder's where other files have it too."""
    others = [other for other in SOURCES if other.name == path.name]
    return path.name if len(others) == 1 else f"{path.parent.name}/{path.name}"


@cache
def named() -> dict[str, set[str]]:
    """Command in backticks, made by `command` or put together -> names of the files that say so."""
    found: dict[str, set[str]] = {}
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        if not NAMING.search(source):  # the walks take seconds, at each collection
            continue
        nodes = list(ast.walk(ast.parse(source)))
        for text in texts(nodes):
            for typed in TYPED.findall(text):
                found.setdefault(typed, set()).add(label(path))
        for node in nodes:
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                said = constants(node.args) if name == "command" else []
            else:
                said = constants(node.elts) if isinstance(node, ast.List) else []
                said = [" ".join(said[1:4]), *said[4:]] if said[:1] == ["launcher"] else []
            if said and any(said[0].startswith(verb) for verb in VERBS):
                found.setdefault(f"launcher {' '.join(said)}", set()).add(label(path))
    return found


def test_commands_in_hints_are_there_to_be_found():
    assert len(named()) > 20
    assert {"launcher resume", "launcher cancel --lost", "launcher sweep status"} <= named().keys()


@pytest.mark.parametrize("typed", sorted(named()))
def test_verb_and_options_of_a_hint_exist(typed, capsys):
    words = typed.split()[1:]
    if not words or words[0] in ("VERB", "WORD", "ab"):
        return
    verb = next((v for n in (3, 2, 1) if (v := " ".join(words[:n])) in VERBS), None)
    assert verb, f"{named()[typed]} names {typed}"
    with contextlib.suppress(SystemExit):
        main([*verb.split(), "--help"])
    said = capsys.readouterr().out
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"(^|[\s,\[]){re.escape(option)}\b", said), f"{typed}: no {option}"


# ---- typed where they were given

ROOTS = ["runs", "elsewhere", "two words/it's"]
LATER = ("sweep=random", "sweep.trials=1", "optim.lr=interval(1e-4,1e-3)")
#: (file, command) -> the test that gives the hint and types it.
SHOWN: dict[tuple[str, str], str] = {
    # Where models have to be trained for it.
    ("ab/preparation.py", "launcher compare"): "test_classify_integration.py",
    ("derive/adapter.py", "launcher export RUN --merge"): "test_classify_integration.py",
    ("judge.py", "launcher compare"): "test_judge_integration.py",
    ("finish.py", "launcher compare"): "test_judge_integration.py",
    ("data/reference.py", "launcher resume"): "objectives/test_preference.py",
    ("data/reference.py", "launcher eval"): "objectives/test_preference.py",
    ("inference/chat.py", "launcher generate"): "test_classify_integration.py",
    ("harness.py", "launcher eval"): "test_classify_integration.py",
    # Over stubs in the place of ranks.
    ("sweeps/preparation.py", "launcher sweep resume"): "sweeps/test_controller.py",
    ("sweeps/controller.py", "launcher sweep resume"): "sweeps/test_controller.py",
    ("doctor/ranks.py", "launcher doctor --keep"): "test_doctor_integration.py",
    # Where a service is asked.
    ("access.py", "launcher serve keys create NAME --admin"): "serve/test_permissions.py",
}
#: What is said of a command, but is no way out of anything.
ABOUT = {
    *(
        ("cli/__init__.py", f"launcher {verb}")
        for verb in ("VERB --help", "train --help", "resume")
    ),
    ("cli/__init__.py", "launcher train experiment=quickstart"),
    ("arguments.py", "launcher config"),
    ("openapi.py", "launcher serve keys create"),
    ("serve.py", "launcher serve keys list"),
    ("ownfile.py", "launcher config my.yaml > my.yaml"),
    *(("config/reference.py", f"launcher config{option}") for option in ("", " --explain KEY")),
    ("config/reference.py", "launcher train GROUP=OPTION KEY=VALUE ..."),
    ("config/reference.py", "launcher train my.yaml"),
    ("spec.py", "launcher join"),
    ("classify/export.py", "launcher generate"),
    ("reward_export.py", "launcher generate"),
    ("wandb_agents.py", "launcher train"),
}

Test = TypeVar("Test", bound=Callable[..., None])


def shows(command: str, *files: str) -> Callable[[Test], Test]:
    """Note that a test types `command` where each of `files` hints at it."""

    def note(test: Test) -> Test:
        SHOWN.update({(file, f"launcher {command}"): test.__name__ for file in files})
        return test

    return note


def test_every_command_in_a_hint_is_typed_where_it_was_given():
    said = {(file, command) for command, files in named().items() for file in files}
    assert said - ABOUT == SHOWN.keys(), "each needs a test that types it, see `shows`"
    assert said >= ABOUT
    for place in (place for place in SHOWN.values() if place.endswith(".py")):
        (file,) = Path(__file__).parent.rglob(place)
        assert "hints.commands(" in file.read_text("utf-8"), place


@pytest.fixture(params=ROOTS)
def run(request, tmp_path, monkeypatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    return create.create([*WORDS, f"run.root={request.param}", "run.name=r"])


@pytest.fixture
def plain(tmp_path, monkeypatch) -> RunDir:
    """A run in the default place."""
    monkeypatch.chdir(tmp_path)
    return create.create([*WORDS, "run.name=r"])


@pytest.fixture
def begun(monkeypatch) -> list[tuple[Path, int]]:
    """Folder and attempt of each run that a command begins; what follows is the ranks' affair."""
    found: list[tuple[Path, int]] = []

    def launch(run: RunDir, attempt: int) -> int:
        found.append((run.path, attempt))
        return 0

    monkeypatch.setattr(runs, "_launch_and_follow", launch)
    return found


def hinted(error: LauncherError, which: int = 0) -> list[str]:
    """The words of a command in an error's hint, as a shell reads them."""
    return hints.commands(error.problems[0].hint)[which]


def refused(work: Callable[[], object]) -> LauncherError:
    with pytest.raises(LauncherError) as caught:
        work()
    return caught.value


def write_checkpoint(run: RunDir, step: int) -> None:
    folder = run.checkpoints / f"step-{step:08d}"
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", {"step": step, "files": {}, "state": {}})


def test_a_taken_name_is_resumed(run):
    root = str(run.path.parent)
    error = refused(lambda: create.create([*WORDS, f"run.root={root}", "run.name=r"]))
    words = hinted(error)
    assert words[0] == "resume"
    run.set_status(State.succeeded)
    # Found: it is refused for its state, and not because there is no such run.
    with pytest.raises(LauncherError, match="the run has finished"):
        runs.resume(words[1:])


@shows("cancel", "runs/start.py")
@shows("cancel --lost", "runs/start.py")
def test_a_held_run_is_cancelled_and_a_lost_one_given_up(run, capsys):
    with run.lock():
        assert hinted(refused(lambda: start.begin(run)))[0] == "cancel"
    start.begin(run)
    write_json(run.status_file, {**read_json(run.status_file), "host": "gone", "pid": 1})
    error = refused(lambda: start.begin(run))
    assert main(hinted(error, 1)) == 0, capsys.readouterr().err
    assert run.status().state is State.cancelled
    assert start.begin(run) == 2  # "then resume"


@shows("cancel --lost", "runs/cancel.py")
@shows("cancel", "local.py")
def test_a_run_of_another_host_is_cancelled_there_or_given_up(run, tmp_path, monkeypatch, capsys):
    run.set_status(State.running, attempt=1)
    away = {"host": "away", "pid": 1, "time": 1.0}
    run.attempt(1).mkdir(parents=True)
    write_json(job_file(run, 1), {"backend": "local"})
    write_json(supervisor_file(run, 1), away)
    error = refused(lambda: cancel(run))
    write_json(supervisor_file(run, 1), {**away, "host": socket.gethostname()})  # typed over there
    monkeypatch.chdir("/")
    assert main(hinted(error)) == 0, capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    assert run.status().state is State.cancelled

    run.set_status(State.running, attempt=2)
    write_json(run.heartbeat(0), {"rank": 0, **away, "attempt": 2})
    assert main(hinted(refused(lambda: cancel(run)))) == 0, capsys.readouterr().err
    assert run.status().state is State.cancelled


@shows("status", "rundir.py")
def test_what_is_no_run_folder_lists_those_that_are(run, capsys):
    error = refused(RunDir(run.path.parent / "none").require)
    assert main(hinted(error)) == 0
    assert "r " in capsys.readouterr().out


@shows("logs -f", "runs.py", "follow.py")
@shows("cancel", "follow.py")
def test_a_job_that_goes_on_is_followed_again_and_cancelled(run, capsys):
    class Away:
        """A back end whose jobs outlive whoever follows them."""

        outlives_follower = True
        status = staticmethod(lambda run, attempt: AttemptState.running)
        logs = staticmethod(lambda run, attempt: [])

    attempt = start.begin(run)
    run.log(attempt, 0).write_text("its words\n")
    interrupts = follow._Interrupts(count=1)
    view = follow._Shown(console.PlainView(), interrupts)
    follow._watch(run, attempt, Away(), view, interrupts)
    followed, cancelled = hints.commands(capsys.readouterr().err)
    write_json(run.status_file, {**read_json(run.status_file), "pid": 1, "time": 1.0})
    assert main(cancelled) == 0
    assert run.status().state is State.cancelled
    assert followed == hints.commands(run.command("logs", "-f"))[0]  # as `submit` says it
    assert main(followed) == 130  # as the run ended
    assert "its words" in capsys.readouterr().out


@shows("resume", "follow.py", "runs/start.py")
def test_a_stopped_run_and_one_that_was_not_started_go_on(run, begun):
    lines: list[str] = []
    start.begin(run)
    status = run.set_status(State.preempted, exit_code=75)
    follow._say_how_it_ended(run, 1, status, lines.append)
    error = start.interrupted(run, KeyboardInterrupt())
    for attempt, said in enumerate((lines[-1], str(error)), 2):
        assert main(*hints.commands(said)) == 0
        assert begun[-1] == (run.path, attempt)
        run.set_status(State.cancelled, exit_code=130)


@shows("resume", "vitals.py", "launch/outcome.py", "coordinator.py", "inference/export.py")
@shows("resume", "objectives/base.py")
def test_what_ranks_say_is_typed_in_any_folder(plain, tmp_path, monkeypatch, begun):
    run, plan = plain, launch_plan(plain, backend="torchrun")
    attempt = start.begin(run)
    (run.attempt(1) / "agent.log").write_text("EADDRINUSE: address already in use\n")
    lost = SimpleNamespace(
        _starters={0: SimpleNamespace(poll=lambda: 1)},
        _plan=SimpleNamespace(nodes=[SimpleNamespace(host="away")], backend="torchrun"),
        _late=lambda number: False,
        _run=run,
    )
    texter = make_config(objective={"name": "classify"})
    for said in (
        vitals.settle(run, attempt, {0: vitals.Beat(0, "h", 1, 1, "step", 3, 1.0, 1.0)}, str),
        outcome._taken_port(run, plan),
        str(refused(lambda: Coordinator._refuse_lost(lost, 0, None))),
        str(refused(lambda: find_checkpoint(run, None, print))),
        str(refused(lambda: objectives.of_run(run, texter))),
    ):
        run.set_status(State.failed, exit_code=6)
        monkeypatch.chdir("/")
        assert main(hints.commands(said)[0]) == 0, said
        monkeypatch.chdir(tmp_path)
        assert begun.pop() == (run.path, max(run.attempts()))


@shows("resume", "extension.py", "runs/start.py", "train/start.py")
def test_a_run_that_has_ended_trains_on(plain, begun):
    write_checkpoint(plain, 10)
    job = SimpleNamespace(is_direct=True, ranks=SimpleNamespace(is_main=True), run=plain)
    stopped = train_start._told(job, Preempted("stopped by SIGTERM at step 10"))
    assert main(*hints.commands(stopped)) == 0
    for early in (None, 10):
        write_json(plain.best, {"stopped": early})
        for refuse in (start.resumable, train_start._refuse_finished):
            plain.set_status(State.succeeded, step=10, steps=20)
            error = refused(lambda refuse=refuse: refuse(plain))
            assert main(hinted(error)) == 0
    assert begun == [(plain.path, attempt) for attempt in range(1, 6)]


@shows("train", "extension.py")
@pytest.mark.parametrize("exported", [False, True])
def test_another_run_begins_with_the_config_of_one(run, begun, exported):
    if exported:
        run.export.mkdir()
        (run.export / "config.json").write_text('{"model_type": "llama"}')
    run.set_status(State.succeeded, step=20, steps=20)
    for number, refuse in enumerate(
        (
            lambda: start.resumable(run),
            lambda: extension.changed(run, ["train.steps=40"]),
            lambda: extension.changed(run, ["optim.lr=0.5", "seed=3"]),
        ),
        2,
    ):
        error = refused(refuse)
        assert main(hinted(error)) == 0
        assert begun.pop() == (run.path.with_name(f"r-{number}"), 1)
        if number == 2:
            continue
        assert ("model.name=" in error.problems[0].hint) == exported
        with_weights = error.problems[0].hint.rpartition("`")[2].partition(", with ")[2]
        words = shlex.split(with_weights)[:2]
        config, wrong = compose.try_compose([*hinted(error)[1:], *words])
        assert not wrong
        if exported:
            assert (config.model.kind, config.model.name) == ("hf", str(run.export))
    assert (config.optim.lr, config.seed) == (0.5, 3)


@shows("train", "load.py")
@shows("resume", "load.py")
def test_a_base_that_is_gone_is_made_by_a_start(tmp_path, monkeypatch, begun):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bases, "_KEYS", {})
    words = ["experiment=quickstart", "run.name=q"]
    error = refused(lambda: model_source(compose.compose(words).model))
    train, resume = hints.commands(error.problems[0].hint)
    assert main([*train, *words]) == 0
    RunDir("runs/q").set_status(State.failed, exit_code=1)
    assert main([*resume, "q"]) == 0
    assert [attempt for _, attempt in begun] == [1, 2]


@shows("train -m", "create.py", "overrides.py", "folder.py")
def test_what_only_a_sweep_can_do_is_a_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for words in ([*WORDS, *LATER], [*WORDS, "optim.lr=1e-3,1e-4"]):
        assert main(["train", *words]) == 2
        assert ["train", "-m"] in hints.commands(capsys.readouterr().err)
        assert main(["train", "-m", *words, "--dry-run"]) == 0
        assert "trial-0000" in capsys.readouterr().out
    (typed,) = hints.commands(refused(lambda: find_sweep("none")).problems[0].hint)
    assert typed == ["train", "-m"]


@shows("sweep status", "rundir.py", "sweeps.py")
def test_a_sweep_without_results_is_looked_at(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sweep, asked = preparation.request([*WORDS, "optim.lr=1e-3,1e-4", "run.name=s"], [])
    preparation.make(sweep, asked)
    for verb in ("sweep best", "status"):
        assert main([*verb.split(), "s"]) == 2
        assert main(*hints.commands(capsys.readouterr().err)) == 0
        assert "2 to come" in capsys.readouterr().out


@shows("config > WORD", "ownfile.py")
@pytest.mark.parametrize("name", ["my.yaml", "it's mine.yaml"])
def test_a_file_of_ones_own_is_written_and_runs(tmp_path, monkeypatch, capsys, name):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", name]) == 2
    (typed,) = hints.commands(capsys.readouterr().err)
    assert typed == ["config", ">", name]
    assert main([typed[0], *WORDS, "train.steps=4"]) == 0  # and a shell's part
    Path(name).write_text(capsys.readouterr().out)
    assert main(["plan", name]) == 0


@shows("config", "suggestions.py")
def test_all_keys_of_a_section_are_printed(capsys):
    assert main(["plan", "optim.qqqqqq=1", *WORDS]) == 2
    assert main(*hints.commands(capsys.readouterr().err)) == 0
    assert "optim:" in capsys.readouterr().out


@shows("status", "compare.py")
def test_a_run_to_compare_with_is_among_those_that_are_listed(plain, tmp_path, capsys):
    (tmp_path / "config.json").write_text("{}")
    error = refused(lambda: sides([str(tmp_path)]))
    assert main(hinted(error)) == 0
    assert "r " in capsys.readouterr().out


@shows("plan", "allocation.py")
def test_what_needs_less_memory_is_planned(capsys):
    error = train_start._out_of_memory(MemoryError())
    (typed,) = hints.commands(error.problems[0].hint)
    for words in ([], *([word] for word in hints.overrides(error.problems[0].hint))):
        assert main([*typed, *WORDS, "train.steps=4", *words]) == 0, words
        assert "memory " in capsys.readouterr().out


@pytest.mark.slow
@shows("data prepare", "cache.py", "backend.py")
def test_a_cache_is_made_again_and_ahead_of_a_sweep(tmp_path, capfd):
    words = [*WORDS, f"data.cache={tmp_path}"]
    job = SimpleNamespace(prepare_script="x")
    ahead = refused(lambda: SlurmBackend().submit_many([job], tmp_path, max_parallel=None))
    assert main([*hinted(ahead), *words]) == 0
    folder = Path(json.loads(capfd.readouterr().out)["train"])
    (folder / "tokens.bin").write_bytes(b"")
    error = refused(lambda: TokenCache.open(folder))
    shutil.rmtree(folder)
    gone = refused(lambda: TokenCache.open(folder))
    for one in (error, gone):
        shutil.rmtree(folder, ignore_errors=True)
        assert main([*hinted(one), *words]) == 0
        assert len(TokenCache.open(folder)) > 0


@pytest.mark.slow
@shows("data show", "show.py")
def test_a_run_that_is_not_prepared_is_shown(run, capfd):
    assert show.main([str(run)]) == 3
    (typed,) = hints.commands(capfd.readouterr().err)
    assert main(typed) == 0, capfd.readouterr().err
    assert "What is learned is in [[...]]" in capfd.readouterr().out


@pytest.mark.slow
@shows("data report --profile", "data_report.py")
def test_rules_of_a_service_are_looked_at_with_its_profile(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    line = json.dumps({"messages": [{"role": "user", "content": "hi"}]})
    Path("d.jsonl").write_text(f"{line}\n")
    words = ["model=tiny", "data.train=d.jsonl", "batch.sequences=8"]
    assert main(["data", "report", *words, "data.gate=[openai_roles]"]) == 2
    (typed,) = hints.commands(capfd.readouterr().err)
    assert main([*typed, "openai", *words, "-o", "out"]) == 0
    assert "openai_" in (tmp_path / "out" / "report.json").read_text()


@shows("ab new", "study.py", "ab/database.py")
@shows("ab route", "ab/database.py")
@shows("ab", "ab/database.py")
def test_what_is_no_study_is_made_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, answer in (("1.jsonl", "one"), ("2.jsonl", "two")):
        Path(name).write_text(json.dumps({"prompt": "count", "answer": answer}) + "\n")
    Path("other").mkdir()
    traffic = Traffic.open(tmp_path / "other" / "study.db", ("a", "b"), 0.5)
    no_file, no_study = (refused(Study(Path(name)).check) for name in ("none", "other"))
    making, routing = hints.commands(no_file.problems[0].hint)
    assert (making, hinted(no_study)) == (["ab", "new"], ["ab", "new"])
    assert database.check(traffic.path) == "traffic"  # the file that `ab route` makes as it starts
    assert routing == ["ab", "route"]
    assert main([*making, "1.jsonl", "2.jsonl", "-o", "mine"]) == 0
    Study(Path("mine")).check()
    with sqlite3.connect("else.db") as other:
        other.execute("CREATE TABLE a (b)")
    other.close()
    assert hinted(refused(lambda: database.check(Path("else.db")))) == ["ab"]


@shows("serve keys list --home", "serve.py")
def test_keys_are_listed_in_the_home_that_was_asked(tmp_path, capsys):
    home = tmp_path / "a home"
    assert main(["serve", "keys", "create", "me", "--home", str(home)]) == 0
    assert main(["serve", "keys", "revoke", "none", "--home", str(home)]) == 2
    assert main(*hints.commands(capsys.readouterr().err)) == 0
    assert "  me\n" in capsys.readouterr().out


def test_a_stopped_run_is_resumed_cancelled_and_followed_by_its_command(run, capsys):
    set_cancelled(run)
    for verb, options in (("status", ()), ("logs", ("--attempt", "7"))):
        code = main(*hints.commands(run.command(verb, *options)))
        said = capsys.readouterr()
        assert "no run" not in said.err
        assert (code, "no attempt 7" in said.err) == ((0, False) if not options else (2, True))


def test_a_command_works_from_where_it_is_typed(tmp_path, monkeypatch):
    root = tmp_path / "runs"
    run = RunDir(root / "r")
    monkeypatch.chdir(tmp_path)
    assert run.command("resume") == "`launcher resume r`"
    assert listed(root) == "`launcher status`"
    root.mkdir()
    (tmp_path / "r").mkdir()  # a path of this name is looked for first
    assert run.command("resume") == f"`launcher resume {run}`"
    monkeypatch.chdir(root)
    assert run.command("resume") == f"`launcher resume r --root {root}`"
    assert run.command("resume", anywhere=True) == f"`launcher resume {run}`"
    assert hints.commands(command("sweep status", root / "-s"))[0][2:] == [f"{root}/-s"]
