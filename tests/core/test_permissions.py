"""Whose files may be read by whom, and what is said where they may not."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from launcher.config.schema import TinyModelConfig
from launcher.core import files, runtime
from launcher.core.errors import ConfigError, StorageError
from launcher.core.rundir import RunDir
from launcher.data import cache
from launcher.model import shards, tiny
from support import caches
from support.project import LAUNCHER
from support.ranks import environment


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o000], ids=lambda mask: f"{mask:03o}")
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def _modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(file.stat().st_mode) for file in folder.rglob("*") if file.is_file()}


def test_written_models_and_caches_follow_the_umask(umask: int, tmp_path: Path) -> None:
    size = {"hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2, "kv_heads": 2}
    tiny.ensure(TinyModelConfig(vocab_size=300, **size), tmp_path / "cache")
    folder = tmp_path / "export"
    folder.mkdir()
    tensors = [("a", torch.ones(8)), ("b", torch.ones(8))]
    shards.write_shards(folder, tensors, shard_bytes=32)
    shards.save(folder / "adapter_model.safetensors", {"a": torch.ones(2)})
    caches.write(tmp_path / "data", [([1, 2], [0, 1])])
    files.write_json(tmp_path / "status.json", {})
    assert _modes(tmp_path) == {0o666 & ~umask}


@contextlib.contextmanager
def another_user(folder: Path) -> Iterator[None]:
    """As a user to whom what is closed to others is closed."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for above in (folder, *folder.parents):
        if not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_what_is_closed_is_told_with_its_owner(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    caches.write(folder, [([1, 2], [0, 1])])
    closed = folder / "index.json"
    closed.chmod(0o600)
    with another_user(tmp_path):
        with pytest.raises(StorageError) as caught:
            cache.read_index(folder)
        with pytest.raises(StorageError) as denied:
            files.write_json(tmp_path / "mine" / "x.json", {})
    problem = caught.value.problems[0]
    assert problem.where == str(closed)
    assert problem.found.startswith(f"Permission denied: {closed} is of root (uid 0), -rw-------")
    assert f"chmod -R a+rX {closed}" in problem.hint
    assert f"{tmp_path} is of root (uid 0), drwx" in denied.value.problems[0].found


def test_a_cache_that_is_not_there_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="does not see this folder") as caught:
        cache.read_index(tmp_path / "data" / "key")
    assert "LAUNCHER_CACHE" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    "error", [BlockingIOError(11, os.strerror(11)), RuntimeError("can't start new thread")]
)
def test_a_limit_of_processes_is_named(error: Exception) -> None:
    told = files.too_many_processes(error)
    assert told is not None
    assert told.problems[0].where == "ulimit -u"
    assert files.too_many_processes(RuntimeError("another")) is None


def test_a_limit_of_the_size_of_files_is_named(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    path = tmp_path / "tensors"
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StorageError, match="File too large") as caught:
            shards.save(path, {"weight": torch.zeros(4096)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.problems[0].where == str(path)
    assert "ulimit -f" in caught.value.problems[0].hint


def test_a_full_disk_is_named_whoever_met_it(monkeypatch: pytest.MonkeyPatch) -> None:
    full = files.storage_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert full is not None
    assert "TMPDIR" in full.problems[0].hint
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    with pytest.raises(FileNotFoundError) as caught:
        tempfile.gettempdir()
    nowhere = files.storage_error(caught.value)
    assert nowhere is not None
    assert "export TMPDIR=" in nowhere.problems[0].hint
    assert files.storage_error(FileNotFoundError(errno.ENOENT, "No such file")) is None


#: nobody, who may read all files, as a clone in another's home, and write none.
_ONLY_READS = "-all,+dac_read_search"
NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
    *(f"--{kind}={_ONLY_READS}" for kind in ("inh-caps", "ambient-caps", "bounding-set")),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "changes", "code", "said"),
    [
        ((), {}, 0, "succeeded"),
        ((), {"HOME": "/nonexistent", "TMPDIR": "/nonexistent"}, 0, "succeeded"),
        ((), {"HOME": "/nonexistent", "LAUNCHER_CACHE": ""}, 7, "/nonexistent/.cache/launcher"),
        (("prlimit", "--nproc=1:1"), {}, 1, "error: ulimit -u: no further process"),
        (("env", "--chdir=/"), {}, 7, "error: runs: Permission denied: . is of root"),
    ],
    ids=["usual", "no home", "nowhere to write", "ulimit -u", "read-only folder"],
)
def test_a_user_of_few_rights_trains_or_is_told(
    before: tuple[str, ...], changes: dict[str, str], code: int, said: str, tmp_path: Path
) -> None:
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv")
    if subprocess.run([*NOBODY, "true"], capture_output=True).returncode:
        pytest.skip("this machine's root cannot become another user")
    for above in (tmp_path, *tmp_path.parents):
        above.chmod(above.stat().st_mode | 0o055)
    mine = tmp_path / "mine"
    mine.mkdir()
    os.chown(mine, 65534, 65534)
    small = ("hidden_size=16", "intermediate_size=32", "layers=1", "heads=2", "kv_heads=2")
    words = ["model=tiny", *(f"model.{word}" for word in small), "data.max_length=64"]
    words += [f"data.train={tmp_path}/x.jsonl", "batch.sequences=4", "train.steps=1", "eval=none"]
    (tmp_path / "x.jsonl").write_text('{"text": "one two three"}\n' * 40)
    # XDG_CACHE_HOME: a home in which nothing is to be found is not to be helped by another.
    variables = {"LAUNCHER_CACHE": str(mine / "cache"), "XDG_CACHE_HOME": "", "HOME": str(mine)}
    done = subprocess.run(
        [*NOBODY, *before, *LAUNCHER, "train", *words, "run.name=r"],
        cwd=mine,
        env=environment(**{**variables, **changes}),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr
    if (mine / "runs" / "r").exists():
        reason = RunDir(mine / "runs" / "r").status().reason
        assert not reason.startswith("[Errno")


def test_a_lock_of_another_user_serves(tmp_path: Path) -> None:
    with files.open_lock(tmp_path / "a.lock") as lock:
        assert lock.writable()
    with another_user(tmp_path), files.open_lock(tmp_path / "a.lock") as lock:
        assert not lock.writable()


def test_without_a_home_the_cache_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LAUNCHER_CACHE", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda text: text)  # as for a uid without a home
    with pytest.raises(ConfigError, match="no home folder") as caught:
        runtime.cache_dir()
    assert "export LAUNCHER_CACHE=" in caught.value.problems[0].hint
    monkeypatch.setenv("LAUNCHER_CACHE", "/data/cache")
    assert runtime.cache_dir() == Path("/data/cache")
    assert runtime.hub_cache() == Path("/data/cache/huggingface/hub")
    assert runtime.user_path("~/x") == Path("~/x")
