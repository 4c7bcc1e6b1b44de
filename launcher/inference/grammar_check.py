"""Whether a grammar can be kept to, tried in a process of its own.

A schema may overflow the stack, fill the memory or take minutes in the library's compiler: it is
compiled where it ends nothing but this process, which answers one grammar after another.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import resource
import signal
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict
from typing import Any

from launcher import entry

#: What one grammar may take: processor time, time that passes (the machine may be busy), memory
#: beyond what the process begins with, and stack, an eighth of what threads have that compile.
_CPU_S, _WALL_S, _MEMORY, _STACK = 2.0, 20.0, 768 << 20, 1 << 20
#: Tokens of an answer that are tried: what is too large shows at the first names and values.
_STEPS = 32
#: Verdicts that are remembered.
_REMEMBERED = 4096
_TOO_SLOW = "It takes too long to compile: it is too large or too complex."
_NOTHING = "There is nothing that keeps to it."
_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
_TOO_LARGE = "It cannot be compiled: it is too large, too deep or too complex."


class Checker:
    """Tries grammars for one tokenizer; its process begins with the first, and anew when it dies.

    tokenizer: the JSON text of a fast tokenizer. width: tokens. end: those that end a text.
    """

    def __init__(self, tokenizer: str, width: int, end: int | list[int] | None) -> None:
        self._opening = json.dumps([tokenizer, width, end]).encode() + b"\n"
        self._lock = threading.Lock()
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()
        self._process: subprocess.Popen[bytes] | None = None

    def problem(self, grammar: str) -> str | None:
        """Why answers cannot be kept to a grammar in Lark's form; None if they can."""
        name = hashlib.sha256(grammar.encode(errors="surrogatepass")).digest()
        with self._lock:
            if name not in self._verdicts:
                self._verdicts[name] = self._tried(grammar)
                if len(self._verdicts) > _REMEMBERED:
                    self._verdicts.popitem(last=False)
            self._verdicts.move_to_end(name)
            return self._verdicts[name]

    def close(self) -> None:
        """End its process; another begins when it is asked again."""
        with self._lock:
            if self._process is not None:
                _end(self._process)
                self._process = None

    def _tried(self, grammar: str) -> str | None:
        process = self._process
        if process is None or process.poll() is not None:
            process = self._process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        timer = threading.Timer(_WALL_S, process.kill)
        timer.start()
        try:
            process.stdin.write(json.dumps(grammar).encode() + b"\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:  # it has died before it has read all
            answer = b""
        finally:
            timer.cancel()
        if answer.endswith(b"\n"):
            found: str | None = json.loads(answer)
            return found
        _end(process)
        slow = (-signal.SIGPROF, -signal.SIGKILL)
        return _TOO_SLOW if process.returncode in slow else _TOO_LARGE

    def _started(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603
            entry.command("launcher.inference.grammar_check"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        weakref.finalize(self, _end, process)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(self._opening)
        process.stdin.flush()
        if not process.stdout.readline():
            _end(process)
            raise OSError("what checks grammars could not be started")
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):
            pipe.close()


def _found(library: Any, known: Any, grammar: str) -> str | None:
    """What is wrong with a grammar: as such, or at the first tokens of an answer."""
    try:
        source = library.LLMatcher.grammar_from_lark(grammar)
        matcher = library.LLMatcher(known, source, log_level=0)
    except ValueError as error:
        return str(error)
    if matcher.is_error():  # below it stand the grammar's lines
        return _PLACE.sub("", str(matcher.get_error()).split("\n")[0])
    matcher = matcher.deep_copy()
    for _ in range(_STEPS):
        bits = int.from_bytes(matcher.compute_bitmask(), "little")
        if matcher.is_error():
            break
        if not bits:
            return _NOTHING
        if matcher.is_accepting():
            return None
        matcher.consume_token((bits & -bits).bit_length() - 1)
    if not matcher.is_error():
        return None
    return _NOTHING if "NoExtension" in matcher.get_error() else _TOO_LARGE


def _answer(library: Any, known: Any, out: Any) -> None:
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, _CPU_S)
        found = _found(library, known, json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        out.write(json.dumps(found).encode() + b"\n")
        out.flush()


def _memory() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def main(argv: list[str]) -> int:
    """Answer until the end of stdin: first the tokenizer, then a grammar a line, all in JSON."""
    import llguidance

    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    tokenizer, width, end = json.loads(sys.stdin.buffer.readline())
    known = llguidance.LLTokenizer(tokenizer, n_vocab=width, eos_token=end)
    out = sys.stdout.buffer
    out.write(b"null\n")
    out.flush()
    threading.stack_size(_STACK)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = _memory() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    thread = threading.Thread(target=_answer, args=(llguidance, known, out))
    thread.start()
    thread.join()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
