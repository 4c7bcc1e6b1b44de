"""Hints that name a command: each is one that the command line takes, and, typed where it was
given, does what it promises."""

from __future__ import annotations

import ast
import contextlib
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

from launcher.cli import VERBS, main, runs
from launcher.config import create
from launcher.core.errors import LauncherError
from launcher.core.rundir import RunDir, State, command, listed, read_json, write_json
from launcher.runs import start
from launcher.runs.cancel import set_cancelled

SOURCES = sorted((Path(__file__).parents[1] / "launcher").rglob("*.py"))
WORDS = ("model=tiny", "data.train=builtin:quickstart-text", "batch.sequences=8")
TYPED = re.compile(r"`(launcher [^`]+)`")
NAMING = re.compile(r"`launcher |\bcommand\(")


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


@cache
def named() -> dict[str, str]:
    """Command in backticks, or made by `command` -> the file that says so."""
    found = {}
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        if not NAMING.search(source):  # the walks take seconds, at each collection
            continue
        nodes = list(ast.walk(ast.parse(source)))
        for text in texts(nodes):
            found |= dict.fromkeys(TYPED.findall(text), path.name)
        for node in nodes:
            if not isinstance(node, ast.Call) or path.name == "rundir.py":
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            said = [a.value for a in node.args if isinstance(a, ast.Constant)]
            if name == "command" and said and said[0] in VERBS:
                found[shlex.join(["launcher", *str(said[0]).split(), *map(str, said[1:])])] = (
                    path.name
                )
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


@pytest.fixture(params=ROOTS)
def run(request, tmp_path, monkeypatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    return create.create([*WORDS, f"run.root={request.param}", "run.name=r"])


def hinted(error: LauncherError, which: int = 0) -> list[str]:
    """The words of a command in an error's hint, as a shell reads them."""
    return shlex.split(TYPED.findall(error.problems[0].hint)[which])[1:]


def refused(work: Callable[[], object]) -> LauncherError:
    with pytest.raises(LauncherError) as caught:
        work()
    return caught.value


def test_a_taken_name_is_resumed(run):
    root = str(run.path.parent)
    error = refused(lambda: create.create([*WORDS, f"run.root={root}", "run.name=r"]))
    words = hinted(error)
    assert words[0] == "resume"
    run.set_status(State.succeeded)
    # Found: it is refused for its state, and not because there is no such run.
    with pytest.raises(LauncherError, match="the run has finished"):
        runs.resume(words[1:])


def test_a_held_run_is_cancelled_and_a_lost_one_given_up(run, capsys):
    with run.lock():
        assert hinted(refused(lambda: start.begin(run)))[0] == "cancel"
    start.begin(run)
    write_json(run.status_file, {**read_json(run.status_file), "host": "gone", "pid": 1})
    error = refused(lambda: start.begin(run))
    assert main(hinted(error, 1)) == 0, capsys.readouterr().err
    assert run.status().state is State.cancelled
    assert start.begin(run) == 2  # "then resume"


def test_what_is_no_run_folder_lists_those_that_are(run, capsys):
    error = refused(RunDir(run.path.parent / "none").require)
    assert main(hinted(error)) == 0
    assert "r " in capsys.readouterr().out


def test_a_stopped_run_is_resumed_cancelled_and_followed_by_its_command(run, capsys):
    set_cancelled(run)
    for verb, options in (("status", ()), ("logs", ("--attempt", "7"))):
        (typed,) = TYPED.findall(run.command(verb, *options))
        code = main(shlex.split(typed)[1:])
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
    assert shlex.split(command("sweep status", root / "-s")[1:-1])[3:] == [f"{root}/-s"]
