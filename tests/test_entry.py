"""How processes of our own begin: which code they run, what they can print, Ctrl-C."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import launcher
from launcher import entry
from launcher.core import runtime
from launcher.core.errors import ExitCode
from support.project import LAUNCHER
from support.ranks import environment

ROOT = Path(launcher.__file__).parents[1]


#: Says which file each module comes from, here and in a process that a library starts.
TELLING = """
import json, subprocess, sys
import launcher, logging
if __name__ == "__main__":
    print(sys.argv[1:], launcher.__file__, json.__file__, logging.__file__)
    child = [sys.executable, "-c", "import json, launcher; print(launcher.__file__, json.__file__)"]
    subprocess.run(child, check=True)
    sys.exit(5)
"""


def _start(module: str, *words: str, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        entry.command(module, *words),
        cwd=cwd,
        env=runtime.child_environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


def _run(module: str, *words: str, cwd: Path, **variables: str) -> tuple[str, str, int]:
    with _start(module, *words, cwd=cwd, **variables) as child:
        return (*child.communicate(timeout=60), child.returncode)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for modules that PYTHONPATH names on purpose."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(folder)]))
    return folder


def test_files_of_the_current_folder_take_no_modules_place(tmp_path: Path, modules: Path) -> None:
    (modules / "telling.py").write_text(TELLING)
    for name in ("launcher", "json", "logging", "runpy", "telling", "signal", "codecs"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')\n")
    stdout, stderr, code = _run("telling", "-x", "y z", cwd=tmp_path)
    first, second = stdout.splitlines()
    assert (stderr, code) == ("", 5)
    assert first == f"['-x', 'y z'] {launcher.__file__} {json.__file__} {logging.__file__}"
    if sys.version_info >= (3, 11):  # before, nothing tells a library's children
        assert second == f"{launcher.__file__} {json.__file__}"


@pytest.mark.parametrize("given", [":{0}", "{0}:", "{0}::/nowhere"])
def test_an_empty_part_of_the_python_path_is_no_wish(given: str, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", given.format("/a"))
    places = runtime.child_environment()["PYTHONPATH"].split(":")
    assert [place for place in places if place not in (str(ROOT), "/nowhere")] == ["/a"]


def test_children_run_the_code_of_a_clone_that_was_started_in_its_folder(tmp_path: Path) -> None:
    shutil.copytree(Path(launcher.__file__).parent, tmp_path / "launcher")
    say = "import runpy, sys; from launcher import entry; import subprocess; "
    say += "from launcher.core import runtime; "
    say += "subprocess.run(entry.command('where'), env=runtime.child_environment())"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "where.py").write_text("import launcher\nprint(launcher.__file__)\n")
    done = subprocess.run(
        [sys.executable, "-c", say],
        cwd=tmp_path,
        env=runtime.child_environment(PYTHONPATH=f"{tmp_path / 'modules'}{os.pathsep}{ROOT}"),
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(tmp_path / "launcher" / "__init__.py"), done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_text_can_be_printed(encoding: str, tmp_path: Path, modules: Path) -> None:
    text = "gr\u00fcn \u65e5\u672c \U0001f389 \udce9"
    (modules / "saying.py").write_text(
        f"import json, sys\ntext = {text!r}\n"
        "print(text)\nprint(json.dumps(text, ensure_ascii=False))\nprint(text, file=sys.stderr)\n"
    )
    with subprocess.Popen(
        entry.command("saying"),
        cwd=tmp_path,
        env=runtime.child_environment(PYTHONIOENCODING=encoding),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 0
    first, second = stdout.decode(encoding).splitlines()
    assert json.loads(second) == text
    assert "gr\\u00fcn" in first if encoding == "ascii" else "gr\u00fcn" in first
    assert stderr.decode() == "gr\u00fcn \u65e5\u672c \U0001f389 \\udce9\n"


def test_words_and_files_are_utf8_in_a_locale_that_is_not(tmp_path: Path) -> None:
    """The command line itself, where Python is kept from its UTF-8 mode; the terminal stays so."""
    done = subprocess.run(
        [*LAUNCHER, "config", "model=tiny", "data.train=gr\u00fcn.jsonl"],
        cwd=tmp_path,
        env=environment(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert b"train: gr\\u00fcn.jsonl" in done.stdout


def test_interrupted_while_it_imports(tmp_path: Path, modules: Path) -> None:
    (modules / "slow.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    with _start("slow", cwd=tmp_path) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.send_signal(signal.SIGINT)
        assert (child.wait(30), child.stderr and child.stderr.read()) == (ExitCode.interrupted, "")


def test_interrupted_before_its_first_import(modules: Path) -> None:
    """The child is interrupted as soon as it is there, and still answers as it does later on."""
    (modules / "never.py").write_text("print('here')\n")
    with entry.interrupt_held():
        child = subprocess.Popen(entry.command("never"), stdout=-1, stderr=-1)
        child.send_signal(signal.SIGINT)
    assert (*child.communicate(timeout=60), child.returncode) == (b"", b"", ExitCode.interrupted)


#: Works until it is ended, and takes its time to tidy up.
WORKING = """
import os, sys, time
try:
    print("here", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    sys.exit(130)
finally:
    time.sleep(0.3)
    open("tidy", "w").close()
"""
ENDING = [signal.SIGTERM, signal.SIGHUP]


def _verb(line: str, module: str, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", line, "-m", module]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options)


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("line", [entry._VERB, entry._PART], ids=["verb", "part"])
def test_a_signal_ends_a_verb_as_ctrl_c_does(
    number: signal.Signals, line: str, tmp_path: Path, modules: Path
) -> None:
    (modules / "working.py").write_text(WORKING)
    with _verb(line, "working", cwd=tmp_path) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.send_signal(number)
        child.send_signal(number)
        time.sleep(0.1)
        for further in ENDING:  # as a service manager and a closed terminal send them
            child.send_signal(further)
        _, messages = child.communicate(timeout=30)
    said = f"stopped by {number.name}\n" if line == entry._VERB else ""
    assert (child.returncode, messages) == (ExitCode.interrupted, said)
    assert (tmp_path / "tidy").exists()


LOSING = """
import os, signal, sys, time

class Object:
    def __del__(self):
        os.kill(os.getpid(), int(sys.argv[1]))
        time.sleep(0.1)

thing = Object()
del thing
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, *ENDING])
def test_a_signal_is_not_lost_where_python_drops_what_is_raised(
    number: signal.Signals, tmp_path: Path, modules: Path
) -> None:
    (modules / "losing.py").write_text(LOSING)
    command = [sys.executable, "-c", entry._VERB, "-m", "losing", str(int(number))]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    said = "" if number == signal.SIGINT else f"stopped by {number.name}\n"
    assert (done.returncode, done.stderr) == (ExitCode.interrupted, said)


@pytest.mark.parametrize("number", ENDING)
def test_what_a_verb_waits_for_ends_with_it(
    number: signal.Signals, tmp_path: Path, modules: Path
) -> None:
    (modules / "working.py").write_text(WORKING)
    (modules / "waiting.py").write_text("from launcher import entry\nentry.call('working')\n")
    with _verb(entry._VERB, "waiting", cwd=tmp_path, start_new_session=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.send_signal(number)
        _, messages = child.communicate(timeout=30)
    assert (child.returncode, messages) == (ExitCode.interrupted, f"stopped by {number.name}\n")
    assert (tmp_path / "tidy").exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


def test_a_fork_of_a_verb_still_ends_by_signals(tmp_path: Path, modules: Path) -> None:
    """Pools of processes end theirs so."""
    (modules / "forking.py").write_text(
        "import os, signal, time\n"
        "read, write = os.pipe()\n"
        "child = os.fork()\n"
        "if child == 0:\n    os.write(write, b'x')\n    time.sleep(20)\n    os._exit(0)\n"
        "os.read(read, 1)\n"
        "os.kill(child, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    with _verb(entry._VERB, "forking", cwd=tmp_path) as child:
        assert child.communicate(timeout=30) == ("-15\n", "")


def test_nohup_is_heard(tmp_path: Path, modules: Path) -> None:
    (modules / "ignoring.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGHUP)\nprint('goes on')\n"
    )
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    with _verb(entry._VERB, "ignoring", cwd=tmp_path, preexec_fn=ignore) as child:
        assert child.communicate(timeout=30) == ("goes on\n", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "after_s"),
    [
        *((signal.SIGINT, after_s) for after_s in (0.0, 0.05, 0.5, 1.5)),
        (signal.SIGTERM, 1.0),
        (signal.SIGHUP, 1.0),
    ],
)
def test_a_report_stops_without_a_traceback(
    tmp_path: Path, number: signal.Signals, after_s: float
) -> None:
    with subprocess.Popen(
        [*LAUNCHER, "data", "report", "model=tiny", "data.train=builtin:quickstart-chat"],
        cwd=tmp_path,
        env=environment(LAUNCHER_TESTS_ZYGOTE=""),  # the start itself
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        children = Path(f"/proc/{child.pid}/task/{child.pid}/children")
        while not children.read_text(encoding="utf-8"):  # the process that makes the report
            assert child.poll() is None
            time.sleep(0.001)
        time.sleep(after_s)
        os.killpg(child.pid, number)  # as a terminal does: to all of them
        _, messages = child.communicate(timeout=60)
    assert child.returncode == ExitCode.interrupted, messages
    assert "Traceback" not in messages
    assert messages.count(f"stopped by {number.name}") == (number != signal.SIGINT)
    assert ("Ctrl-C" in messages) == (number == signal.SIGINT)
