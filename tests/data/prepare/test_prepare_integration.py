"""Preparation in real processes: killed, twice at once, with workers, on input too large."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launcher import fingerprint
from launcher.config.compose import compose
from launcher.config.schema import Config
from launcher.data.cache import TokenCache
from launcher.data.prepare.preparation import prepare
from support.chats import chat
from support.ranks import environment

pytestmark = pytest.mark.slow

Configure = Callable[..., Config]
MakeData = Callable[..., Path]


def make_run(config: Config, folder: Path) -> Path:
    folder.mkdir()
    compose.save(config, folder / "config.yaml")
    return folder


@contextmanager
def preparing(run: Path) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "launcher.data.prepare", str(run)]
    environ = environment(LAUNCHER_TESTS_ZYGOTE="")  # a process whose children are the workers
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable[[], Any], timeout_s: float = 60) -> Any:
    end = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)
    return result


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def large(make_data: MakeData) -> Path:
    """Enough for several chunks, so that workers are started."""
    return make_data(chat(f"what is {i}? {'why ' * 40}", f"it is {i}") for i in range(5000))


def test_killed_and_started_again(configure: Configure, large: Path, tmp_path: Path) -> None:
    config = configure(train=large, workers=2)
    run = make_run(config, tmp_path / "run")
    temporary = Path(config.data.cache) / f".{fingerprint.data_keys(config)['train']}.tmp"
    tokens = temporary / "tokens.bin"
    with preparing(run) as process:
        wait_for(lambda: tokens.exists() and tokens.stat().st_size)
        workers = children(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(workers) == 2
    wait_for(lambda: not any(map(alive, workers)))  # no orphan goes on tokenising
    assert temporary.exists()
    assert not (run / "data.json").exists()
    assert fingerprint.lookup(config) is None

    with preparing(run) as process:
        _, said = process.communicate()
    assert process.returncode == 0, said
    assert not temporary.exists()
    found = json.loads((run / "data.json").read_text())
    assert fingerprint.lookup(config) == found
    again = prepare(configure(train=large, cache=str(tmp_path / "other")))
    expected = TokenCache.open(str(again["train"])).index
    assert TokenCache.open(found["train"], verify=True).index == expected
    assert expected.records == 5000


def test_two_processes_at_once(configure: Configure, make_data: MakeData, tmp_path: Path) -> None:
    config = configure(train=make_data([chat("a", "b")] * 9), validation_share=0.5)
    runs = [make_run(config, tmp_path / name) for name in ("one", "two")]
    cache = Path(config.data.cache)
    cache.mkdir()
    lock = cache / f"{fingerprint.data_keys(config)['train']}.lock"
    with preparing(runs[0]) as first, preparing(runs[1]) as second, open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        for process in (first, second):
            assert process.stderr is not None
            assert "waiting for another process" in process.stderr.readline()
        assert not list(cache.glob(".*.tmp"))
        fcntl.flock(held, fcntl.LOCK_UN)
        said = [process.communicate()[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    found = [json.loads((run / "data.json").read_text()) for run in runs]
    assert found[0] == found[1]
    TokenCache.open(found[0]["train"], verify=True)


def test_a_killed_worker_is_reported(configure: Configure, large: Path, tmp_path: Path) -> None:
    config = configure(train=large, workers=2)
    with preparing(make_run(config, tmp_path / "run")) as process:
        worker = wait_for(lambda: children(process.pid))[0]
        os.kill(worker, signal.SIGKILL)
        _, said = process.communicate()
    assert process.returncode == 4
    assert "data.workers" in said
    with preparing(tmp_path / "run") as process:  # takes up what the first has left
        _, said = process.communicate()
    assert process.returncode == 0, said
    assert not list(Path(config.data.cache).glob(".*.tmp"))


@pytest.mark.parametrize(
    ("line", "model", "code", "expected"),
    [
        (b"{broken", {}, 3, "train.jsonl:2: broken JSON at column 2"),
        (b"{}", {"name": "/missing"}, 2, "model.name: no tokenizer can be loaded"),
    ],
)
def test_exit_codes(
    configure: Configure,
    make_data: MakeData,
    tmp_path: Path,
    line: bytes,
    model: dict[str, str],
    code: int,
    expected: str,
) -> None:
    config = configure(model, train=make_data([chat("a", "b"), line]))
    with preparing(make_run(config, tmp_path / "run")) as process:
        _, said = process.communicate()
    assert process.returncode == code
    assert expected in said
    assert "HINT:" in said
    assert "Traceback" not in said


def test_read_only_cache(configure: Configure, make_data: MakeData, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = configure(train=make_data([chat("a", "b")]), cache=str(tmp_path / "file" / "cache"))
    with preparing(make_run(config, tmp_path / "run")) as process:
        _, said = process.communicate()
    assert process.returncode == 7, said
    assert "Traceback" not in said


def test_a_line_of_a_gigabyte_does_not_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "huge.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"text": "a"}\n{"text": "')
        file.seek(1 << 30)  # a hole: the disk does not hold it
        file.write(b'"}\n{"text": "b"}\n')
    script = f"""
from pathlib import Path
from launcher.data.sources import chunks
for chunk in chunks(Path({str(path)!r}), 0):
    for line, record in chunk.parse():
        print(line, record)
status = Path("/proc/self/status").read_text().split()
print(int(status[status.index("VmHWM:") + 1]) >> 10)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    *records, mebibytes = done.stdout.splitlines()
    assert records[0] == "1 {'text': 'a'}"
    assert "2 ('a line longer than 64 MiB'" in records[1]
    assert records[2:] == ["3 {'text': 'b'}"]
    assert int(mebibytes) < 200
