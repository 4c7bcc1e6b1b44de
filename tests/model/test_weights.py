from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from launcher.core.errors import StorageError
from launcher.model import fragments
from launcher.model.fragments import Fragment, FragmentReader, read_all, write_fragments


def write(path: Path, parts: dict[str, tuple[int, torch.Tensor, tuple[int, ...]]]) -> Path:
    write_fragments(
        path,
        [
            Fragment(name, shape, offset, piece.numel(), lambda piece=piece: piece)
            for name, (offset, piece, shape) in parts.items()
        ],
    )
    return path


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 7),
    cuts=st.lists(st.integers(0, 49), max_size=3),
)
def test_a_tensor_is_put_together_from_any_cut(
    tmp_path_factory: pytest.TempPathFactory, rows: int, columns: int, cuts: list[int]
) -> None:
    folder = tmp_path_factory.mktemp("fragments")
    whole = torch.randn(rows, columns)
    flat = whole.reshape(-1)
    bounds = sorted({0, flat.numel(), *(cut for cut in cuts if cut < flat.numel())})
    files = [
        write(folder / f"{i}.safetensors", {"w": (low, flat[low:high], (rows, columns))})
        for i, (low, high) in enumerate(zip(bounds, bounds[1:], strict=False))
    ]
    reader = FragmentReader(files)
    assert reader.keys() == ["w"]
    assert torch.equal(reader.tensor("w"), whole)
    low = min(cuts, default=0) % flat.numel()
    for dtype in (torch.float32, torch.bfloat16):
        place = torch.zeros(flat.numel() - low + 2, dtype=dtype)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fragments, "_READ", 12)  # three elements a read
            read_all(reader.reads("w", low, place[1:-1]))
        assert torch.equal(place[1:-1], flat[low:].to(dtype))
        assert place[0] == place[-1] == 0


def test_a_file_that_has_become_shorter_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"w": (0, torch.ones(4), (4,))})
    reader = FragmentReader([path])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StorageError, match="ends too early"):
        read_all(reader.reads("w", 0, torch.zeros(4)))
    path.unlink()
    with pytest.raises(FileNotFoundError):
        read_all(reader.reads("w", 0, torch.zeros(4)))


@pytest.mark.parametrize(
    ("second", "words"),
    [((3, 3), "present twice"), ((5, 1), "missing"), ((4, 1), "5 of 6 elements")],
)
def test_elements_that_are_missing_or_double_are_found_on_opening(
    tmp_path: Path, second: tuple[int, int], words: str
) -> None:
    offset, count = second
    files = [
        write(tmp_path / "a.safetensors", {"w": (0, torch.ones(4), (2, 3))}),
        write(tmp_path / "b.safetensors", {"w": (offset, torch.ones(count), (2, 3))}),
    ]
    with pytest.raises(StorageError, match=words):
        FragmentReader(files)


def test_files_that_are_no_fragments_are_storage_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(3)}, path)
    with pytest.raises(StorageError, match="cannot read"):
        FragmentReader([path])
    write(path, {"w": (0, torch.ones(4), (4,))})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(StorageError, match="cannot read"):
        FragmentReader([path])


def test_the_file_is_plain_safetensors_with_the_table_in_its_metadata(tmp_path: Path) -> None:
    from safetensors import safe_open

    path = write(tmp_path / "a.safetensors", {"w": (0, torch.arange(6.0), (2, 3))})
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["fragments"]) == {"w": [0, 6, [2, 3]]}
        assert torch.equal(file.get_tensor("w"), torch.arange(6.0))
