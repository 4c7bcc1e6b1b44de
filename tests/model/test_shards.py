from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.model.shards import ShardReader, write_shards


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=12),
    shard_bytes=st.integers(1, 600),
)
def test_what_is_written_is_read_back_from_small_enough_files(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], shard_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    tensors = {f"t{i}": torch.full((size,), float(i)) for i, size in enumerate(sizes)}
    write_shards(folder, iter(tensors.items()), shard_bytes)
    reader = ShardReader(folder)
    for name, tensor in tensors.items():
        assert name in reader
        assert torch.equal(reader.tensor(name), tensor)
    assert "other" not in reader
    index = folder / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        assert content["metadata"]["total_size"] == 4 * sum(sizes)
        for file in set(content["weight_map"].values()):
            held = [n for n, f in content["weight_map"].items() if f == file]
            assert len(held) == 1 or sum(tensors[n].nbytes for n in held) <= shard_bytes
    else:
        assert len(sizes) == 1 or 4 * sum(sizes) <= shard_bytes


def test_no_more_than_a_shard_and_the_next_tensor_is_ever_in_memory(tmp_path: Path) -> None:
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        nonlocal most
        for number in range(20):
            tensor = torch.zeros(100)
            alive.add(tensor)
            most = max(most, sum(t.nbytes for t in alive))
            yield f"t{number}", tensor
            del tensor

    write_shards(tmp_path, tensors(), shard_bytes=1200)
    assert 1200 <= most <= 1200 + 2 * 400
