"""Hostile code ends within its limits, says why, and harms nobody."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from graders.hostile import LIMITS, attacks
from launcher.config.schema import GradersConfig, SandboxLevel
from launcher.core import processes
from launcher.graders.sandbox import pool
from launcher.graders.sandbox.pool import CodeSandbox
from support.ranks import environment

pytestmark = pytest.mark.slow
HONEST = {"source": "def grade(sample, item): return 0.5", "item": {}, "sample": {}}
SLEEPS = HONEST | {"source": "def grade(sample, item):\n  import time\n  time.sleep(60)"}
#: Commands after which there are no more namespaces to be had.
WITHOUT = "echo 0 > /proc/sys/user/max_user_namespaces && exec"


class _LimitedSandbox(CodeSandbox):
    """As on a machine without namespaces."""

    def _start(self):
        return pool.SandboxWorker(self.limits, namespaces=False)


@pytest.fixture(scope="module")
def within():
    with CodeSandbox(LIMITS) as sandbox:
        if sandbox.level() != "namespaces":
            pytest.skip("this machine has no user namespaces")
        yield sandbox


@pytest.fixture(scope="module")
def limited():
    with _LimitedSandbox(LIMITS) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """A port that counts who comes, and a file that nobody is to see."""
    secret = tmp_path_factory.mktemp("secrets") / "secret"
    secret.write_text("secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server, secret


@pytest.mark.parametrize("attack", attacks(), ids=lambda attack: attack.name)
def test_an_attack_fails_within_namespaces(within, target, attack):
    server, secret = target
    start = time.monotonic()
    assert attack.succeeds(within.run(attack.job(server.getsockname()[1], secret))) == ""
    assert time.monotonic() - start < LIMITS.timeout_s + pool._GRACE_S
    assert within.run(HONEST)["score"] == 0.5
    assert secret.read_text() == "secret"
    with pytest.raises(BlockingIOError):
        server.accept()


@pytest.mark.parametrize(
    "attack", [one for one in attacks() if not one.only_within], ids=lambda attack: attack.name
)
def test_an_attack_fails_within_limits_alone(limited, target, attack):
    server, secret = target
    assert attack.succeeds(limited.run(attack.job(server.getsockname()[1], secret))) == ""
    assert limited.run(HONEST)["score"] == 0.5


def test_nothing_is_left_of_what_code_has_started(within):
    source = (
        "def grade(sample, item):\n"
        "    import subprocess\n"
        "    subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
        "    return 1\n"
    )
    before = len(processes.descendants(os.getpid()))
    assert within.run(HONEST | {"source": source})["score"] == 1
    assert len(processes.descendants(os.getpid())) == before


def test_what_is_seen_of_the_machine(within):
    source = (
        "def grade(sample, item):\n"
        "    import os\n"
        "    print(sorted(os.listdir('/')), os.listdir('.'), os.environ['HOME'])\n"
        "    return len([p for p in os.listdir('/proc') if p.isdecimal()])\n"
    )
    found = within.run(HONEST | {"source": source})
    assert found["score"] == 2  # itself and what it was forked from
    assert "home" not in found["output"].split("]")[0]
    assert found["output"].endswith("[] /tmp\n")


_PRIVATE = """
import os
from launcher.config.schema import GradersConfig, SandboxLevel
from launcher.graders.sandbox.pool import CodeSandbox
source = (
    "import datetime, hashlib, statistics, decimal, numpy\\n"
    "def grade(sample, item):\\n"
    "    open('mine', 'w').close()\\n"
    "    return statistics.mean([0.25, 0.75])\\n"
)
with CodeSandbox(GradersConfig(workers=1, sandbox=SandboxLevel.strict, timeout_s=60.0)) as sandbox:
    found = sandbox.run({"source": source, "item": {}, "sample": {}})
    print(found.get("score"), found.get("error"), oct(os.umask(0)))
"""


def test_what_is_shown_can_be_read_whatever_the_umask(within):
    """As under a service, which keeps all that it makes to itself."""
    found = subprocess.run(
        [sys.executable, "-c", _PRIVATE],
        capture_output=True,
        text=True,
        env=environment(),
        umask=0o077,
    )
    assert found.stdout == "0.5 None 0o77\n", found.stderr


def test_a_worker_that_is_killed_costs_one_answer():
    others = processes.children(os.getpid())
    with CodeSandbox(GradersConfig(workers=1, timeout_s=30.0)) as sandbox:
        sandbox.level()
        (own,) = {*processes.children(os.getpid())} - {*others}
        os.kill(own, signal.SIGKILL)
        assert "its worker ended" in sandbox.run(HONEST)["lost"]
        assert sandbox.run(HONEST)["score"] == 0.5


_OWNER = """
from launcher.config.schema import GradersConfig
from launcher.graders.sandbox.pool import CodeSandbox
sandbox = CodeSandbox(GradersConfig(workers=1, timeout_s=600.0))
print(sandbox.level(), flush=True)
sandbox.run({"source": "def grade(s, i):\\n  while True: pass", "item": {}, "sample": {}})
"""


@pytest.mark.parametrize("own", ["raise ValueError('\\ud800 \\u20ac')", "os.write(3, said)"])
def test_what_code_tells_can_be_written_to_files(own):
    """Also where it goes around what is meant to tell for it."""
    source = (
        "import json, os\n"
        "text = json.dumps({'error': '\\ud800 \\u20ac'}).encode()\n"
        "said = len(text).to_bytes(4, 'big') + text\n"
        "def grade(sample, item):\n"
        f"  {own}\n"
    )
    with CodeSandbox(LIMITS) as sandbox:
        found = sandbox.run(HONEST | {"source": source})
    assert found["error"].encode().decode().endswith("? €")


def test_workers_end_with_the_process_that_they_work_for():
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER], stdout=subprocess.PIPE, env=environment()
    )
    assert owner.stdout is not None
    owner.stdout.readline()
    time.sleep(0.3)
    started = processes.descendants(owner.pid)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    end = time.monotonic() + 20
    while any(processes.stat(pid) for pid in started) and time.monotonic() < end:
        time.sleep(0.05)
    assert started
    assert not [pid for pid in started if processes.stat(pid)]


def _without_namespaces(code: str) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(
        ["unshare", "-Ur", "sh", "-c", f'{WITHOUT} "$0" -c "$1"', sys.executable, code],
        capture_output=True,
        text=True,
        env=environment(),
    )
    if "unshare failed" in found.stderr:
        pytest.skip("this machine has no user namespaces to take away")
    return found


_ASK = """
from launcher.config.schema import GradersConfig, SandboxLevel
from launcher.graders.sandbox.pool import CodeSandbox
with CodeSandbox(GradersConfig(workers=1, sandbox=SandboxLevel.LEVEL)) as sandbox:
    print(sandbox.level())
"""


def test_without_namespaces_limits_hold_and_strict_refuses():
    limited = _without_namespaces(_ASK.replace("LEVEL", "auto"))
    assert limited.stdout == "limits\n"
    assert "network and files are open to it" in limited.stderr
    refused = _without_namespaces(_ASK.replace("LEVEL", "strict"))
    assert refused.returncode == 1
    assert "this machine has no namespaces: unshare: No space left" in refused.stderr
    assert "HINT: allow user namespaces" in refused.stderr


def test_strict_runs_where_there_are_namespaces(within):
    limits = GradersConfig(workers=1, sandbox=SandboxLevel.strict)
    with CodeSandbox(limits) as sandbox:
        assert sandbox.run(HONEST)["score"] == 0.5


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_who_is_not_root_has_the_same_sandbox(within):
    """With the system's Python, since one below root's home is closed to others."""
    found = subprocess.run(
        [*("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3")]
        + ["-c", _ASK.replace("LEVEL", "strict")],
        capture_output=True,
        text=True,
        env=environment(PYTHONPATH=str(Path(pool.__file__).parents[3])),
    )
    if "Permission denied" in found.stderr or "No such file" in found.stderr:
        pytest.skip("others may not run the launcher here")
    assert found.stdout == "namespaces\n", found.stderr


def test_the_count_of_attacks():
    """Of those that the script runs, none is lost in reading them."""
    names = [one.name for one in attacks()]
    assert len(names) == len(set(names)) == 53
    text = Path(__file__).with_name("attacks.txt").read_text()
    assert text.count("\n== ") == len(names)


def test_a_thousand_in_small():
    script = Path(__file__).with_name("hostile.py")
    found = subprocess.run(
        [sys.executable, str(script), "5"], capture_output=True, text=True, env=environment()
    )
    told = json.loads(found.stdout.splitlines()[-1])
    assert (told["wrong"], told["processes_left"], told["file_intact"]) == (0, 0, True)
