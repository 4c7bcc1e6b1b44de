"""The cache folder: what is written is read back, and damage is found."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.errors import StorageError
from launcher.data.cache import Counts, Index, TokenCache
from launcher.data.prepare.writing import CacheWriter
from support import caches

RECORDS = [([1, 2, 3], [0, 1, 1]), ([4, 5], [0, 1])]


def test_round_trip(tmp_path: Path) -> None:
    cache = caches.write(tmp_path / "c", RECORDS, max_length=8, file="a.jsonl")
    assert len(cache) == 2
    assert cache.lengths.tolist() == [3, 2]
    assert [part.tolist() for part in cache.record(1)] == [[4, 5], [0, 1]]
    assert cache.where(1) == "a.jsonl:2"
    index = TokenCache.open(tmp_path / "c", verify=True).index
    assert (index.records, index.tokens, index.target_tokens, index.longest) == (2, 5, 3, 3)


def test_no_records(tmp_path: Path) -> None:
    cache = caches.write(tmp_path / "c", [])
    assert len(cache) == 0
    assert cache.lengths.tolist() == []


def test_types_on_disk(tmp_path: Path) -> None:
    caches.write(tmp_path, RECORDS)
    sizes = {file.name: file.stat().st_size for file in tmp_path.glob("*.bin")}
    expected = {"tokens": 20, "targets": 5, "offsets": 24, "origins": 16}
    expected |= {"order": 16, "histogram": 32}
    assert sizes == {f"{name}.bin": size for name, size in expected.items()}


@pytest.mark.parametrize("name", ["tokens", "targets", "offsets", "origins", "order", "histogram"])
def test_damage_is_found(tmp_path: Path, name: str) -> None:
    caches.write(tmp_path, RECORDS)
    file = tmp_path / f"{name}.bin"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    TokenCache.open(tmp_path)  # sizes are right
    with pytest.raises(StorageError, match="checksum"):
        TokenCache.open(tmp_path, verify=True)
    file.write_bytes(content[:-1])
    with pytest.raises(StorageError, match=f"{name}.bin has"):
        TokenCache.open(tmp_path)
    file.unlink()
    with pytest.raises(StorageError, match=f"{name}.bin has None"):
        TokenCache.open(tmp_path)


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"version": 1}', '{"version": 0}'])
def test_no_index_no_cache(tmp_path: Path, content: str | None) -> None:
    caches.write(tmp_path, RECORDS)
    index = tmp_path / "index.json"
    index.unlink() if content is None else index.write_text(content)
    with pytest.raises(StorageError, match=r"index\.json"):
        TokenCache.open(tmp_path)


def test_without_finish_there_is_no_cache(tmp_path: Path) -> None:
    writer = CacheWriter(tmp_path)
    writer.append(
        np.array([1, 2], np.int32),
        np.ones(2, np.uint8),
        np.array([2], np.int32),
        np.zeros((1, 2), np.int32),
        np.ones(1, np.float32),
    )
    writer.close()
    with pytest.raises(StorageError):
        TokenCache.open(tmp_path)


def test_index_keeps_counts(tmp_path: Path) -> None:
    counts = Counts(read=5, skipped=1, truncated=2) + Counts(read=2, dropped=1, split=1)
    writer = CacheWriter(tmp_path)
    writer.finish(
        Index(key="k", files=["ü"], format="chat", tokenizer="t", max_length=4, counts=counts)
    )
    writer.close()
    assert TokenCache.open(tmp_path).index.counts == Counts(7, 1, 2, 1, 1)
    assert json.loads((tmp_path / "index.json").read_text())["files"] == ["ü"]


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9), max_size=9))
def test_any_tokens_round_trip(
    tmp_path_factory: pytest.TempPathFactory, records: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = caches.write(folder, [(tokens, [1] * len(tokens)) for tokens in records])
    assert [cache.record(i)[0].tolist() for i in range(len(cache))] == records
