"""How every process of the launcher begins, whatever the user's environment and current folder are.

`python -m` puts the current folder first on the path, where a `launcher.py`, another clone or a
`json.py` would take the place of what is meant. So modules are started by a line that takes the
folder away again; what PYTHONPATH names on purpose stays. (`python -P` needs Python 3.11.)
"""

from __future__ import annotations

import codecs
import contextlib
import io
import math
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from launcher.core import imports, runtime, streams
from launcher.core.errors import ExitCode, LauncherError
from launcher.core.files import storage_error, too_many_processes

#: Holds nothing that a shell, pdsh or a batch script would have to quote twice.
_LINE = "import sys; sys.path[:] = filter(None, sys.path); import launcher.entry as e; e.main()"
#: The same for a process that is a verb, and for one that a verb waits for.
_VERB, _PART = (_LINE.replace("main", name) for name in ("verb", "part"))

#: Seconds until a wish to end that was lost is repeated.
_AGAIN_S = 0.05
#: Seconds that a process has to tidy up after Ctrl-C, SIGTERM or SIGHUP.
GRACE_S = 10.0

_ENDING = (signal.SIGTERM, signal.SIGHUP)
_HELD = (signal.SIGINT, *_ENDING)

#: Variables of processes that write to log files: as it comes, and UTF-8 whatever the locale is.
OUTPUT = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}


def interpreter(python: str) -> tuple[str, ...]:
    """What stands in the place of `python` before `-m MODULE`."""
    return (python, "-c", _LINE)


def command(module: str, *words: str) -> list[str]:
    """The command line that runs `module` with `words`."""
    return [*interpreter(sys.executable), "-m", module, *words]


@contextlib.contextmanager
def interrupt_held() -> Iterator[None]:
    """Ctrl-C and signals that end wait, also in a process that begins meanwhile: they meet `main`,
    not the interpreter's first imports, which would answer with a traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def call(module: str, *words: str, stdout: int | None = None) -> int:
    """Run `module` with `words` as no rank, and wait; returns its exit code, negative for a signal.

    What ends this process ends that one too, which tidies up first what is half written.
    """
    process = None
    try:
        with interrupt_held():
            process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-c", _PART, "-m", module, *words],
                env=runtime.environment_without_ranks(),
                stdout=stdout,
            )
        return process.wait()
    except KeyboardInterrupt:
        if process is not None:
            process.terminate()  # without effect where Ctrl-C has reached it too
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        raise
    finally:
        if process is not None:
            process.kill()  # without effect on one that has ended


def become(module: str, *words: str) -> NoReturn:
    """Replace this process, a verb, by `module` with `words`, as no rank."""
    command = [sys.executable, "-c", _VERB, "-m", module, *words]
    with interrupt_held():
        os.execve(sys.executable, command, runtime.environment_without_ranks())  # noqa: S606


def main() -> None:
    """Become the module that the command line names; Ctrl-C ends it without a traceback also while
    it still imports."""
    sys.argv[:] = sys.argv[2:]
    runtime.keep_current_folder_off_the_path()
    streams.open_closed_streams()
    make_output_safe()
    imports.lighten()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        sys.exit(int(ExitCode.interrupted))


def verb() -> None:
    """`main` of a module that is a verb: see `end_by_signals`; troubles of the machine have a name
    whoever met them."""
    end_by_signals()
    _written()


def part() -> None:
    """The same of a module that a verb waits for, which says itself what has ended them."""
    end_by_signals(silent=True)
    _written()


def _written() -> None:
    try:
        try:
            main()
        except SystemExit:
            sys.stdout.flush()
            raise
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads the results any more: the work ended before its end
        streams.discard(sys.stdout, sys.stderr)
        sys.exit(int(ExitCode.interrupted))
    except (OSError, RuntimeError) as error:
        known = trouble(error)
        if known is None:
            raise
        streams.complain(known)
        sys.exit(int(known.exit_code))


def trouble(error: Exception) -> LauncherError | None:
    """The trouble of the machine that `error` tells of; None if it may be a defect."""
    known = too_many_processes(error)
    if known is None and isinstance(error, OSError):
        return streams.unwritable(error) or storage_error(error)
    return known


def end_by_signals(*, silent: bool = False) -> None:
    """From now on SIGTERM and SIGHUP end this process as Ctrl-C does, by `KeyboardInterrupt` and
    with exit code 130, so that what is half written goes; unless `silent` with a line that says so.

    A wish that Python drops, as whatever is raised while it tidies up objects, is repeated.
    Who asks twice is answered once: a service manager sends both, and a closed terminal to all
    processes of a command. Ctrl-C still ends the tidying up, and who asks again after `GRACE_S`
    ends the process itself. nohup's wish is kept.
    """
    own, asked_at, is_told = os.getpid(), -math.inf, silent

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal asked_at, is_told
        is_ctrl_c = number == signal.SIGINT
        is_deaf = -math.inf < asked_at < time.monotonic() - GRACE_S and not is_ctrl_c
        if is_deaf or os.getpid() != own:  # a fork is one whose parent has asked it
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if asked_at > -math.inf and not is_ctrl_c:
            return
        asked_at = time.monotonic()
        if not (is_told or is_ctrl_c):
            is_told = True
            with contextlib.suppress(OSError):
                os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
        raise KeyboardInterrupt(*([] if is_ctrl_c else [signal.Signals(number).name]))

    handled = {
        number
        for number in _HELD
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)
    }
    for number in handled:
        signal.signal(number, end)

    report = sys.unraisablehook

    def insist(lost: sys.UnraisableHookArgs) -> None:
        nonlocal asked_at
        wish = lost.exc_value
        if not isinstance(wish, KeyboardInterrupt) or os.getpid() != own:
            report(lost)
            return
        asked_at = -math.inf
        number = signal.Signals.__members__.get(str(wish), signal.SIGINT)
        # By another thread, and a little later: here it would be lost again.
        again = threading.Timer(_AGAIN_S, os.kill, (own, number))
        again.daemon = True
        with contextlib.suppress(RuntimeError):  # at the interpreter's end there are none
            again.start()

    sys.unraisablehook = insist


def become_utf8() -> None:
    """Start the command line again in Python's UTF-8 mode where the locale has another encoding:
    names of files and what libraries read are UTF-8 on every machine. A terminal keeps its own."""
    if sys.getfilesystemencoding() == "utf-8":
        return
    words = [_utf8(word) for word in command("launcher.cli", *sys.argv[1:])]
    environment = runtime.utf8_environment(sys.stdout.encoding if sys.stdout else "utf-8")
    os.execve(sys.executable, words, environment)  # noqa: S606 - this process once more


def _utf8(word: str) -> bytes:
    """A word as UTF-8: as its bytes are, if they are that, else by the locale's reading of it."""
    raw = os.fsencode(word)
    try:
        raw.decode()
    except UnicodeDecodeError:
        return word.encode("utf-8", "surrogateescape")
    return raw


def make_output_safe() -> None:
    r"""Let stdout and stderr take any text: what their encoding lacks is written as \uXXXX.

    A terminal keeps its encoding; files and pipes that only we read get UTF-8 on stderr.
    """
    codecs.register_error("launcher", escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_log = stream is sys.stderr and not stream.isatty()
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(encoding="utf-8" if is_log else None, errors="launcher")


def escaped(error: UnicodeError) -> tuple[str, int]:
    r"""Handler of `codecs`: characters as JSON writes them, so that JSON stays JSON."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    codes = (int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2))
    return "".join(f"\\u{code:04x}" for code in codes), error.end
