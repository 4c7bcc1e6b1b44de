"""Fixtures of all tests, and guards that fail a test which leaves something behind."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import draws, leaks, queues, slurm, zygote
from support.ranks import Finished
from support.ranks import run_ranks as _run_ranks

pytest_plugins = ["pytester"]

draws.register()


def pytest_configure(config: pytest.Config) -> None:
    """No network, no services and no idle threads for tests, and a mark on what they start."""
    leaks.mark()
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        OMP_NUM_THREADS="1",
        TOKENIZERS_PARALLELISM="false",
        RAYON_NUM_THREADS="1",
        WANDB_MODE="offline",
        WANDB_SILENT="true",
    )
    # Bytecode of our own modules is kept, as an installation keeps it: half a second a process,
    # and that of tests: half of what their collection takes.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    zygote.announce()
    gc.disable()  # until all is collected


def pytest_collection_finish() -> None:
    """What has been imported and collected stays: it is not searched for garbage."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that at the end no worker is left alone with one."""

    def marks(item: pytest.Item) -> set[str]:
        return {mark.name for mark in item.iter_markers()} & {"slow", "cluster", "browser"}

    rank: dict[Path, int] = {}
    for item in items:
        rank[item.path] = max(rank.get(item.path, 0), len(marks(item)))
    items.sort(key=lambda item: -rank[item.path])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """What starts ranks needs what forks them."""
    if {mark.name for mark in item.iter_markers()} & {"slow", "cluster", "browser"}:
        zygote.begin()


@pytest.fixture(scope="session", autouse=True)
def _launcher_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the launcher for this session alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LAUNCHER_CACHE", str(tmp_path_factory.mktemp("launcher-cache")))
        yield


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """The service takes its umask for good, as its process is its own; here others follow."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """Commands settle for good what signals do to their process; here others follow."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in numbers}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _no_leaks(_launcher_cache: None) -> Iterator[None]:
    """Fail a test that leaves the process or the machine otherwise than it found it."""
    before = leaks.Snapshot()
    yield
    left = before.leaks()
    if left:
        pytest.fail("the test left behind: " + "; ".join(left), pytrace=False)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    """A Slurm cluster of a module's tests."""
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as found:
        if found is None:
            pytest.skip(slurm.SKIP)
        yield found


@pytest.fixture(scope="module", params=[pytest.param("slurm", marks=pytest.mark.cluster), "spool"])
def bench(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[queues.Bench]:
    """Each launch back end with a queue, of a module's tests; mark them slow."""
    if request.param == "spool":
        with queues.spool(tmp_path_factory.mktemp("spool")) as spool:
            yield spool
    else:
        with queues.slurm(request.getfixturevalue("cluster")) as found:
            yield found


@pytest.fixture
def weird_tmp_path(tmp_path: Path) -> Path:
    """A folder whose name breaks careless quoting."""
    folder = tmp_path / 'a b\'; echo "$HOME" # ü'
    folder.mkdir()
    return folder


@pytest.fixture
def run_ranks() -> Callable[..., Finished]:
    """`support.ranks.run_ranks`: run a script on gloo ranks; mark such tests slow."""
    return _run_ranks


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small random Llama and its tokenizer; read-only by agreement."""
    from support.models import make_llama

    return make_llama(tmp_path_factory.mktemp("tiny-llama"))
