"""Read by Python before anything else, in processes of tests: see `support.zygote`.

A process that would import torch, transformers and DeepSpeed first asks for a fork of a process
that has; it stays, hands signals on to the fork, and ends as the fork ends.
"""

import os
import sys

_ADDRESS = os.environ.get("LAUNCHER_TESTS_ZYGOTE")


def _main(words, root):
    """What Python is to run, ("module", name) or ("path", file), and its words; None if it is
    nothing that a fork is to do."""
    words = [*words]
    while words and words[0] == "-u":
        del words[0]
    agents = ("torch.distributed.run", "deepspeed.launcher.launch")
    if words[:1] == ["-c"] and "import launcher.entry as e; e." in words[1]:
        del words[:2]
        agents = ()  # a supervisor looks for their children
    if words[:1] == ["-m"] and len(words) > 1:
        run_plane = tuple(
            f"launcher.{name}"
            for name in ("train", "scoring", "inference", "distributed", "curate.", "data.")
        )
        name = words[1]
        return ("module", name, words[2:]) if name.startswith(run_plane) or name in agents else None
    if (
        words
        and words[0].endswith(".py")
        and os.path.abspath(words[0]).startswith(f"{root}/tests/")
    ):
        return "path", words[0], words[1:]
    return None


def _become():
    target = _main(sys.orig_argv[1:], os.path.realpath(__file__).rsplit("/tests/", 1)[0])
    if target is None or None in (sys.stdin, sys.stdout, sys.stderr):
        return
    import array
    import contextlib
    import json
    import resource
    import signal
    import socket

    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(_ADDRESS)
    except OSError:  # no fork to be had: go on as ever
        link.close()
        return
    folder = os.open(".", os.O_PATH)
    shared = sorted({int(name) for name in os.listdir("/proc/self/fd")} - {link.fileno(), folder})
    shared = [number for number in shared if _is_open(number)]
    umask = os.umask(0)
    os.umask(umask)
    signals = [n for n in signal.valid_signals() if n not in (signal.SIGKILL, signal.SIGSTOP)]
    wish = {
        "target": target,
        "argv": sys.orig_argv,
        "path": sys.path,
        "environ": dict(os.environ),
        "flags": flags(),
        "safe_path": bool(getattr(sys.flags, "safe_path", False)),
        "fds": shared,
        "umask": umask,
        "limits": {n: resource.getrlimit(n) for n in range(16)},
        "ids": ids(),
        "cpus": sorted(os.sched_getaffinity(0)),
        "blocked": sorted(int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "ignored": [int(n) for n in signals if signal.getsignal(n) is signal.SIG_IGN],
        "streams": [
            {
                "encoding": stream.encoding,
                "errors": stream.errors,
                "line_buffering": stream.line_buffering,
                "write_through": stream.write_through,
            }
            for stream in (sys.stdin, sys.stdout, sys.stderr)
        ],
        "no_bytecode": sys.dont_write_bytecode,
    }
    said = json.dumps(wish).encode("utf-8", "surrogateescape")
    # What comes before the fork exists is kept for it.
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    numbers = array.array("i", [folder, *shared])
    link.sendmsg([b"%12d" % len(said)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
    link.sendall(said)
    answer = link.makefile("r")
    pid = int(answer.readline() or 0)
    if not pid:
        link.close()
        os.close(folder)
        signal.pthread_sigmask(signal.SIG_SETMASK, wish["blocked"])
        return
    os.closerange(3, link.fileno())
    os.closerange(link.fileno() + 1, 512)
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nothing, number)

    def hand_on(number, frame):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    for number in signals:
        if number != signal.SIGCHLD and signal.getsignal(number) is not signal.SIG_IGN:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    status = answer.readline()
    code = os.waitstatus_to_exitcode(int(status)) if status else 1
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _is_open(number):
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def flags():
    """How Python was started, but for what a fork can take over."""
    return {
        name: int(getattr(sys.flags, name))
        for name in dir(sys.flags)
        if isinstance(getattr(sys.flags, name), int)
        and name not in ("n_fields", "dont_write_bytecode", "safe_path")
    }


def ids():
    """Who and where this process is for the kernel, and how it writes text."""
    import _locale

    spaces = ("net", "mnt", "pid", "user", "ipc", "uts")
    return {
        **{name: os.readlink(f"/proc/self/ns/{name}") for name in spaces},
        "root": os.readlink("/proc/self/root"),
        "user and group": [os.getuid(), os.geteuid(), os.getgid(), os.getegid()],
        "encodings": [sys.getfilesystemencoding(), _locale.nl_langinfo(_locale.CODESET)],
    }


if _ADDRESS and __name__ == "sitecustomize":
    _become()
