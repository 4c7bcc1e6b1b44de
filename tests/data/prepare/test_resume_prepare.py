"""A preparation that is killed goes on; damage in what it left is found; memory stays bounded."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import fingerprint
from launcher.config.compose import compose
from launcher.config.schema import Config
from launcher.core.errors import DataError, ExitCode, StorageError
from launcher.data.cache import Index, TokenCache
from launcher.data.pack.ordering import by_length
from launcher.data.prepare import writing
from launcher.data.prepare.preparation import prepare
from launcher.data.prepare.writing import JOURNAL, CacheWriter
from support.chats import chat

Configure = Callable[..., Config]
MakeData = Callable[..., Path]

#: The preparation with segments so small that a few seconds of work have many.
SCRIPT = """
import sys
from launcher.data.prepare import writing
from launcher.data.sources import limits
from launcher.data.prepare.__main__ import main
limits.CHUNK_BYTES = 8192
writing.SEGMENT_BYTES = 100_000
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture
def large(make_data: MakeData) -> Path:
    return make_data(chat(f"what is {i}? {'why ' * (i % 80)}", f"it is {i}") for i in range(6000))


def run_of(config: Config, folder: Path) -> Path:
    folder.mkdir()
    compose.save(config, folder / "config.yaml")
    return folder


@contextlib.contextmanager
def preparing(run: Path) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-c", SCRIPT, str(run)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def killed(run: Path, temporary: Path, lines: int = 4) -> None:
    """Start a preparation and kill it when its journal has so many lines."""
    journal = temporary / JOURNAL
    with preparing(run) as process:
        end = time.monotonic() + 60
        while not journal.exists() or journal.read_bytes().count(b"\n") < lines:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)


def damage(temporary: Path, kind: str) -> None:
    tokens = temporary / "tokens.bin"
    if kind == "flip":  # in the second segment
        second = json.loads((temporary / JOURNAL).read_text().splitlines()[2].partition(" ")[2])
        content = bytearray(tokens.read_bytes())
        content[second["sizes"]["tokens"] - 1] ^= 1
        tokens.write_bytes(content)
    elif kind == "delete":
        (temporary / "origins.bin").unlink()
    elif kind == "journal":
        text = (temporary / JOURNAL).read_text()
        (temporary / JOURNAL).write_text(text[: len(text) * 2 // 3])
    elif kind == "no text":
        with open(temporary / JOURNAL, "ab") as journal:
            journal.write(b"\xff\n")
    elif kind == "totals":
        text = (temporary / JOURNAL).read_text()
        (temporary / JOURNAL).write_text(text.replace('"records": ', '"records": 1'))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["flip", "delete", "journal", "no text", "totals"])
def test_it_goes_on_from_the_last_whole_segment(
    configure: Configure, large: Path, tmp_path: Path, kind: str
) -> None:
    options: dict[str, Any] = {"train": large, "workers": 2, "validation_share": 0.3}
    config = configure(**options)
    run = run_of(config, tmp_path / "run")
    keys = fingerprint.data_keys(config)
    temporary = Path(str(config.data.cache)) / f".{keys['train']}.tmp"
    killed(run, temporary)
    damage(temporary, kind)
    with preparing(run) as process:
        _, said = process.communicate()
    assert process.returncode == 0, said
    went_on = "going on after" in said
    assert went_on == (kind not in ("delete", "totals")), said
    assert not temporary.exists()
    found = json.loads((run / "data.json").read_text())
    expected = prepare(configure(**options | {"cache": str(tmp_path / "other")}))
    for split in ("train", "validation"):
        index = TokenCache.open(found[split], verify=True).index
        assert index == TokenCache.open(str(expected[split])).index


@pytest.mark.slow
def test_one_that_was_killed_between_the_two_splits(
    configure: Configure, large: Path, tmp_path: Path
) -> None:
    config = configure(train=large, workers=2, validation_share=0.3)
    run = run_of(config, tmp_path / "run")
    keys = fingerprint.data_keys(config)
    root = Path(str(config.data.cache))
    killed(run, root / f".{keys['validation']}.tmp")
    # As if train had been put in its place before the kill.
    done = prepare(configure(train=large, cache=str(tmp_path / "other"), validation_share=0.3))
    Path(str(done["train"])).rename(root / str(keys["train"]))
    with preparing(run) as process:
        _, said = process.communicate()
    assert process.returncode == 0, said
    assert "going on after" in said
    found = json.loads((run / "data.json").read_text())
    index = TokenCache.open(found["validation"], verify=True).index
    assert index == TokenCache.open(str(done["validation"])).index


@pytest.mark.slow
def test_a_full_disk_ends_it_and_it_goes_on_when_there_is_room(
    configure: Configure, large: Path, tmp_path: Path
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        config = configure(train=large, workers=2, cache=str(place))
        run = run_of(config, tmp_path / "run")
        with preparing(run) as process:
            _, said = process.communicate()
        assert process.returncode == 7, said
        assert "free space" in said
        assert "Traceback" not in said
        key = fingerprint.data_keys(config)["train"]
        assert (place / f".{key}.tmp" / JOURNAL).exists()
        subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
        with preparing(run) as process:
            _, said = process.communicate()
        assert process.returncode == 0, said
        assert "going on after" in said
        folder = json.loads((run / "data.json").read_text())["train"]
        assert len(TokenCache.open(folder, verify=True)) == 6000
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(
    configure: Configure, make_data: MakeData, tmp_path: Path
) -> None:
    script = SCRIPT.replace("sys.exit(main(sys.argv[1:]))", "") + (
        "import resource\n"
        "assert main(sys.argv[1:]) == 0\n"
        # Its ru_maxrss would be that of the process which started it.
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    peaks = []
    for count in (20_000, 200_000):
        data = make_data(
            (chat(f"what is {i}?", f"it is {i}") for i in range(count)), f"{count}.jsonl"
        )
        run = run_of(configure(train=data, workers=2), tmp_path / f"run{count}")
        done = subprocess.run(
            [sys.executable, "-c", script, str(run)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        peaks.append(list(map(int, done.stdout.split())))
    for small, large in zip(*peaks, strict=True):  # the process that reads, the largest worker
        assert large < 1.1 * small


BATCHES = st.lists(
    st.lists(st.tuples(st.integers(1, 5), st.sampled_from([1.0, 1.0, 0.5])), max_size=4),
    max_size=8,
)


def append(writer: CacheWriter, number: int, records: list[tuple[int, float]]) -> None:
    total = sum(length for length, _ in records)
    writer.append(
        np.full(total, number, np.int32),
        np.ones(total, np.uint8),
        np.array([length for length, _ in records], np.int32),
        np.array([[number, i] for i in range(len(records))], np.int32).reshape(-1, 2),
        np.array([weight for _, weight in records], np.float32),
    )


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(BATCHES, st.data())
def test_a_cache_written_in_pieces_is_the_one_written_at_once(
    tmp_path_factory: pytest.TempPathFactory,
    batches: list[list[tuple[int, float]]],
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("pieces")
    index = Index(key="", files=["f"] * 9, format="x", tokenizer="", max_length=5)
    with CacheWriter(folder / "whole") as writer:
        for number, records in enumerate(batches):
            append(writer, number, records)
        whole = writer.finish(index)
    stop = data.draw(st.integers(0, len(batches)))
    with CacheWriter(folder / "parts", "stamp") as writer:
        for number, records in enumerate(batches[:stop]):
            append(writer, number, records)
            if data.draw(st.booleans()):
                writer.commit([number + 1], {"n": number + 1})
    cut = data.draw(st.integers(0, 40))  # what the system had not written yet, or damage
    tokens = folder / "parts" / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[: max(0, tokens.stat().st_size - cut)])
    with CacheWriter(folder / "parts", "stamp") as writer:
        assert all(cursor[0] <= stop for cursor in writer.cursors)
        state = writer.resume(len(writer.cursors))
        begin = state["n"] if state else 0
        for number, records in enumerate(batches[begin:], begin):
            append(writer, number, records)
        parts = writer.finish(
            Index(key="", files=["f"] * 9, format="x", tokenizer="", max_length=5)
        )
    assert parts == whole
    cache = TokenCache.open(folder / "parts", verify=True)
    lengths = np.diff(cache.offsets)
    assert cache.order.tolist() == sorted(range(len(cache)), key=lambda i: (lengths[i], i))
    assert cache.histogram.tolist() == np.bincount(lengths, minlength=parts.longest + 1).tolist()


def test_another_stamp_starts_anew(tmp_path: Path) -> None:
    with CacheWriter(tmp_path, "a") as writer:
        append(writer, 0, [(3, 1.0)])
        writer.commit([1], {})
    with CacheWriter(tmp_path, "b") as writer:
        assert writer.cursors == []
        assert writer.records == 0
    assert (tmp_path / "tokens.bin").stat().st_size == 0


@given(st.lists(st.integers(1, 200_000), min_size=1))
def test_long_records_are_sorted_as_short_ones(lengths: list[int]) -> None:
    found = by_length(np.array(lengths), max(lengths)).tolist()
    assert found == sorted(range(len(lengths)), key=lambda i: (lengths[i], i))


def test_order_is_worked_out_block_by_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launcher.data.pack import ordering

    monkeypatch.setattr(ordering, "BLOCK_RECORDS", 7)
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 9, 100)
    with CacheWriter(tmp_path) as writer:
        append(writer, 0, [(int(length), 1.0) for length in lengths])
        writer.finish(Index(key="", files=["f"], format="x", tokenizer="", max_length=9))
    assert TokenCache.open(tmp_path).order.tolist() == np.argsort(lengths, kind="stable").tolist()
    assert writing.JOURNAL not in {path.name for path in tmp_path.iterdir()}


def test_an_end_without_space_loses_no_segment(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"text": "record {n}"}}\n' for n in range(300)))
    config = configure(train=data, workers=1)
    with monkeypatch.context() as patch:
        patch.setattr(writing, "write_order", full)
        with pytest.raises(StorageError):
            prepare(config)
    keys = fingerprint.data_keys(config)
    temporary = Path(str(config.data.cache)) / f".{keys['train']}.tmp"
    assert (temporary / JOURNAL).is_file()
    cache = TokenCache.open(str(prepare(config)["train"]), verify=True)
    assert not (Path(cache.folder) / JOURNAL).exists()
    assert not (Path(cache.folder) / "weights.bin").exists()


def test_no_space_for_what_is_left_at_the_end(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path / "cache")
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, writer._files["tokens"].fileno())
    os.close(full)
    append(writer, 0, [(3, 1.0)])  # not more than the file's buffer takes
    with pytest.raises(StorageError) as caught, writer:
        raise DataError("a bad record that is found meanwhile")
    assert caught.value.exit_code == ExitCode.storage
    writer.close()
