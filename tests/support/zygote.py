"""A process that has imported what every rank imports, and forks ranks for the tests.

A rank's imports cost more than what most tests do with it. So the processes of the run plane that
tests start are forks, unless a test asks for a real start with `LAUNCHER_TESTS_ZYGOTE=""`.
`announce` sets that variable and puts `warm/sitecustomize.py` on the path of all that tests start:
Python reads it when it starts, and asks the zygote for a fork with its own arguments, environment,
folder, files, limits and signals. The process itself stays: it has the id and parent that whoever
started it knows, hands signals on, ends as the fork ends, and takes it along if it is killed.

Only third-party packages are imported here; the launcher's own modules a fork imports anew. What
differs from a real start: the fork has its own process id and session, and all forks have one seed
of string hashes. It enters the namespaces of who asks: those of a host or node of the tests. Where
an import could have gone another way (variables of libraries, another user, a limit on memory), the
process starts as ever.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import io
import json
import os
import resource
import runpy
import selectors
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from support import leaks

VARIABLE = "LAUNCHER_TESTS_ZYGOTE"
WARM = Path(__file__).parent / "warm"

#: What a rank has imported after its first step, less what these bring along.
PACKAGES = (
    "numpy",
    "torch",
    "torch._dynamo",
    "torch.distributed.run",
    "torch.distributed.elastic.multiprocessing.api",
    "transformers",
    "transformers.modeling_utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.qwen2.tokenization_qwen2",
    "transformers.integrations.flash_attention",
    "transformers.generation.utils",
    "transformers.loss.loss_utils",
    "deepspeed",
    "deepspeed.runtime.engine",
    "deepspeed.launcher.launch",
    "hydra",
    "omegaconf",
    "peft",
    "pyarrow",
    "safetensors.torch",
)

#: Variables that are read while something is imported, or by the interpreter itself.
READ_AT_START = (
    *("PYTHON", "HOME", "XDG_", "LD_", "TZ", "HF_", "HUGGINGFACE_", "TRANSFORMERS_"),
    *("TORCH", "PYTORCH_", "ACCELERATE_", "DEEPSPEED_", "MKL_", "OPENBLAS_", "KMP_", "GOMP_"),
)
#: Of those, what is read later, or set by the fork itself.
READ_LATER = (
    *("PYTHONPATH", "PYTHONSAFEPATH", "PYTHONUNBUFFERED", "PYTHONIOENCODING"),
    *("PYTHONDONTWRITEBYTECODE", "TORCHELASTIC_", "TORCH_NCCL_", "TORCH_EXTENSIONS_DIR"),
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
    *("PYTORCH_ALLOC_CONF", "HF_DATASETS_", "HF_TOKEN", *leaks.SET_BY_LIBRARIES),
)


def announce() -> None:
    """Let this process, a test session, and those that it starts know where the zygote will be."""
    if VARIABLE not in os.environ and not Path("/dev/nvidiactl").exists():
        folder = tempfile.mkdtemp(prefix="launcher-zygote-")
        os.environ[VARIABLE] = f"{folder}/{os.getpid()}"
        places = [os.environ.get("PYTHONPATH", ""), str(WARM)]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def begin() -> None:
    """Start the zygote of this session unless it has been started; it ends with the session."""
    address = os.environ.get(VARIABLE)
    if not address:
        return
    with contextlib.suppress(FileExistsError):
        # Made at once, so that who comes while it still imports waits for it.
        os.close(os.open(f"{address}.lock", os.O_CREAT | os.O_EXCL))
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(address)
        listener.listen(128)
        log = os.open(f"{address}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        # Output that cannot be wound back while Python opens it: else the forks' could not take
        # another encoding.
        reader, writer = os.pipe()
        environment = {
            **{k: v for k, v in os.environ.items() if k not in (VARIABLE, leaks.MARKER)},
            "PYTHONPATH": os.pathsep.join(str(Path(__file__).parents[depth]) for depth in (1, 2)),
            "LAUNCHER_CACHE": os.path.dirname(address),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",  # as ranks have it; read once, when OpenMP is loaded
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, "-u", "-m", "support.zygote", str(listener.fileno()), str(log)]
        subprocess.run(
            # Nobody's child: tests look at what their own process has started.
            ["/bin/sh", "-c", '"$@" <&0 &', "sh", *command],
            check=True,
            env=environment,
            stdin=reader,
            stdout=writer,
            stderr=writer,
            cwd="/",
            pass_fds=[listener.fileno(), log],
            start_new_session=True,
        )
        listener.close()
        for number in (log, reader, writer):
            os.close(number)


# ---- the zygote


class _Fork(Exception):
    """Raised in the fork, to leave the loop of the zygote."""

    def __init__(self, wish: dict[str, Any]) -> None:
        self.wish = wish


#: Namespaces that a fork enters; the mounts come last, as they hide /proc.
_ENTERED = ("net", "ipc", "uts", "mnt")
_PEER = (socket.SOL_SOCKET, socket.SO_PEERCRED)
#: As this process found it: imports set variables of their own.
_ENVIRONMENT = dict(os.environ)


def serve(listener: socket.socket) -> None:
    """Fork for whoever connects, until whoever started the tests is gone."""
    _import_packages()
    gc.collect()
    gc.freeze()
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    links: dict[int, tuple[socket.socket, int]] = {}  # pidfd of a fork -> who waits, its pid
    session = os.pidfd_open(int(Path(listener.getsockname()).name))
    waiting.register(session, selectors.EVENT_READ)
    while True:
        for key, _ in waiting.select():
            if key.fileobj == session:
                return
            if key.fileobj is listener:
                link = listener.accept()[0]
                try:
                    pid = _forked(link)
                except _Fork:
                    # Its copies: who forgets them later would close files of the same numbers.
                    for mine in (waiting, listener, link, *(other for other, _ in links.values())):
                        mine.close()
                    raise
                except (OSError, ValueError):
                    traceback.print_exc()
                    pid = 0
                with contextlib.suppress(OSError):
                    link.sendall(b"%d\n" % pid)
                if not pid:
                    link.close()
                    continue
                watch = os.pidfd_open(pid)
                links[watch] = (link, pid)
                waiting.register(watch, selectors.EVENT_READ)
                waiting.register(link, selectors.EVENT_READ, pid)
            elif key.data is not None:  # whoever waits for a fork has died
                assert isinstance(key.fileobj, socket.socket)
                if key.fileobj.fileno() < 0:  # as has the fork, just before
                    continue
                waiting.unregister(key.fileobj)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(key.data, signal.SIGKILL)
            else:
                link, pid = links.pop(key.fd)
                waiting.unregister(key.fd)
                os.close(key.fd)
                with contextlib.suppress(KeyError):
                    waiting.unregister(link)
                _, status, used = os.wait4(pid, 0)
                print(pid, f"{used.ru_utime + used.ru_stime:.1f} s of CPU", flush=True)
                with contextlib.suppress(OSError):
                    link.sendall(b"%d\n" % status)
                link.close()


def _import_packages() -> None:
    """As a rank does, but that nothing of the launcher's own stays: a fork imports that anew."""
    from launcher.core import imports

    imports.lighten()
    for name in PACKAGES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.meta_path[:] = [f for f in sys.meta_path if type(f).__module__ != imports.__name__]
    for name in [name for name in sys.modules if name.partition(".")[0] == "launcher"]:
        del sys.modules[name]


def _forked(link: socket.socket) -> int:
    """Process id of a fork for whoever is at the other end; 0 if it is better off without."""
    link.settimeout(10)
    size = array.array("i").itemsize
    head, extra, _, _ = link.recvmsg(12, socket.CMSG_SPACE(256 * size))
    numbers = array.array("i")
    for _, _, data in extra:
        numbers.frombytes(data[: len(data) - len(data) % size])
    try:
        said = b""
        while len(said) < int(head):
            part = link.recv(1 << 20)
            if not part:
                raise ConnectionError("whoever asked has died")
            said += part
        wish = json.loads(said.decode("utf-8", "surrogateescape"))
        wish["asker"] = struct.unpack("3i", link.getsockopt(*_PEER, 12))[0]
        reason = _unlike(wish)
        if reason:
            print(wish["argv"], reason, flush=True)
            return 0
        pid = os.fork()
        if not pid:
            wish["received"] = list(numbers)
            raise _Fork(wish)
        print(pid, wish["argv"], flush=True)
        return pid
    finally:
        if "wish" not in locals() or "received" not in wish:
            for number in numbers:
                os.close(number)
            link.settimeout(None)


def _unlike(wish: dict[str, Any]) -> str:
    """Why a fork would not be what a real start is; empty if it would."""
    from support.warm.sitecustomize import flags, ids

    def read(environ: Any) -> dict[str, str]:
        return {
            name: value
            for name, value in environ.items()
            if name.startswith(READ_AT_START) and not name.startswith(READ_LATER)
        }

    if {**wish["ids"], **dict.fromkeys(_ENTERED)} != {**ids(), **dict.fromkeys(_ENTERED)}:
        return "user, encoding or namespace"
    if wish["limits"][str(resource.RLIMIT_AS)][0] != resource.RLIM_INFINITY:
        return "limit on memory"
    if wish["flags"] != flags():
        return "flags"
    mine, theirs = read(_ENVIRONMENT), read(wish["environ"])
    return " ".join(sorted(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k)))


# ---- the fork


def become(wish: dict[str, Any]) -> None:
    """Take the place of the process that `wish` describes, all but its id."""
    os.setsid()
    _enter(wish)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder, *files = (fcntl.fcntl(n, fcntl.F_DUPFD_CLOEXEC, 512) for n in wish["received"])
    os.fchdir(folder)
    os.closerange(3, 512)
    for file, number in zip(files, wish["fds"], strict=True):
        os.dup2(file, number, inheritable=True)
        os.close(file)
    os.close(folder)
    os.umask(wish["umask"])
    for number, limits in wish["limits"].items():
        if resource.getrlimit(int(number)) != tuple(limits):
            resource.setrlimit(int(number), tuple(limits))
    os.sched_setaffinity(0, wish["cpus"])
    by_imports = {k: v for k, v in os.environ.items() if k not in _ENVIRONMENT}
    os.environ.clear()
    os.environ.update({**by_imports, **wish["environ"]})
    for number in wish["ignored"]:
        signal.signal(number, signal.SIG_IGN)
    for stream, as_theirs in zip((sys.stdin, sys.stdout, sys.stderr), wish["streams"], strict=True):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(**as_theirs)
    sys.dont_write_bytecode = wish["no_bytecode"]
    sys.orig_argv[:] = wish["argv"]
    sys.path[:] = wish["path"]
    importlib.invalidate_caches()
    import numpy
    import torch

    numpy.random.seed()
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(wish["cpus"]))
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)
    gc.enable()
    signal.pthread_sigmask(signal.SIG_SETMASK, wish["blocked"])


def _enter(wish: dict[str, Any]) -> None:
    """Enter the namespaces of the process that asked for this fork."""
    from support.warm.sitecustomize import ids

    setns = ctypes.CDLL(None, use_errno=True).setns
    mine = ids()
    for name in _ENTERED:
        if wish["ids"][name] == mine[name]:
            continue
        with open(f"/proc/{wish['asker']}/ns/{name}", "rb") as space:
            if setns(space.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"setns {name}")


def run(wish: dict[str, Any]) -> None:
    """Run what `wish` names as `__main__`."""
    kind, name, words = wish["target"]
    if kind == "path":
        sys.argv[:] = [name, *words]
        if not wish["safe_path"]:
            sys.path.insert(0, os.path.dirname(os.path.realpath(name)))
        runpy.run_path(name, run_name="__main__")
        return
    if "-c" in wish["argv"][:3]:  # a line of `launcher.entry`, which ends with `e.FUNCTION()`
        sys.argv[:] = ["-c", "-m", name, *words]
        line = next(word for word in wish["argv"] if word.endswith("()"))
        getattr(importlib.import_module("launcher.entry"), line[:-2].rpartition(".")[2])()
        return
    if not wish["safe_path"]:
        sys.path.insert(0, os.getcwd())
    sys.argv[:] = [name, *words]
    sys.modules.pop(name, None)
    runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    gc.disable()
    for number in (1, 2):
        os.dup2(int(sys.argv[2]), number)
    try:
        serve(socket.socket(fileno=int(sys.argv[1])))
    except _Fork as found:
        fork = found
    else:
        sys.exit()
    become(fork.wish)
    run(fork.wish)
