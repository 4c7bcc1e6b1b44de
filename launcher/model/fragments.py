"""Fragment files: parts of flattened parameters as safetensors, readable at any number of ranks.

A rank writes one file of 1-D fp32 fragments. The file's metadata key "fragments" is JSON
{key: [offset, numel, [shape]]}: fragment `key` holds `numel` elements of the flattened parameter
from `offset` on, and the parameter has `shape`. Over all files of a checkpoint every element is
there once.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from launcher.core.errors import StorageError
from launcher.core.files import storage_errors
from launcher.model import digests

#: Reads side by side in one process, and the bytes of each at most.
THREADS = 8
_READ = 1 << 24


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of a flattened parameter, about to be written; `read` gives it as a 1-D tensor."""

    key: str
    shape: tuple[int, ...]
    offset: int
    numel: int
    read: Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class ParameterShard:
    """This rank's part of a trained parameter: `numel` elements of it, flattened, from `offset`.

    They lie in the fp32 master `flat` from `flat_offset` on; optimizer state has the same layout.
    """

    name: str
    shape: tuple[int, ...]
    offset: int
    numel: int
    flat: Tensor
    flat_offset: int

    def of(self, tensor: Tensor) -> Tensor:
        """This piece of `flat`, or of a state tensor laid out like it: a 1-D view."""
        return tensor.detach().view(-1).narrow(0, self.flat_offset, self.numel)


def write_fragments(
    path: Path, fragments: Iterable[Fragment], beat: Callable[[], None] = lambda: None
) -> tuple[int, list[str]]:
    """Stream fragments into one file, one tensor in memory at a time; returns its bytes and
    digests.

    `beat` is called after each part, as a sign of life. Raises `StorageError` when the disk is
    full or not writable.
    """
    parts = list(fragments)
    header: dict[str, object] = {
        "__metadata__": {
            "fragments": json.dumps({p.key: [p.offset, p.numel, list(p.shape)] for p in parts})
        }
    }
    position = 0
    for part in parts:
        end = position + 4 * part.numel
        header[part.key] = {"dtype": "F32", "shape": [part.numel], "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    digest = digests.Digest()
    with storage_errors(path), open(path, "wb") as file:
        for block in _blocks(encoded, parts):
            file.write(block)
            digest.update(block)
            beat()
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    return size, digest.blocks()


#: Bytes that are written and hashed between two signs of life.
_BLOCK = 1 << 26


def _blocks(header: bytes, parts: list[Fragment]) -> Iterable[bytes | memoryview]:
    yield len(header).to_bytes(8, "little")
    yield header
    for part in parts:
        tensor = part.read().detach().to("cpu", torch.float32).contiguous()
        assert tensor.numel() == part.numel
        content = tensor.numpy().data.cast("B")
        for start in range(0, len(content), _BLOCK):
            yield content[start : start + _BLOCK]


@dataclass(frozen=True, slots=True)
class _Part:
    """A fragment in its file: elements from `offset` on, the first of them at byte `position`."""

    offset: int
    numel: int
    path: Path
    position: int


class FragmentReader:
    """Assembles tensors from the fragment files `files`, reading only what is asked for.

    Raises `StorageError` when an element is missing or present twice.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._parts: dict[str, list[_Part]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in files:
            try:
                with safe_open(path, framework="pt"):  # looks whether the file is whole
                    pass
                header, start = _header(path)
                index = json.loads(header["__metadata__"]["fragments"])
                for key, (offset, numel, shape) in index.items():
                    position = start + header[key]["data_offsets"][0]
                    self._parts.setdefault(key, []).append(_Part(offset, numel, path, position))
                    self._shapes[key] = tuple(shape)
            except Exception as error:  # safetensors raises its own class, which it does not export
                raise StorageError(
                    f"cannot read the fragment file: {error}",
                    where=str(path),
                    hint="the checkpoint is damaged: resume from an older one",
                ) from error
        for key, parts in self._parts.items():
            parts.sort(key=lambda part: (part.offset, part.numel))
            self._check(key, parts)

    def _check(self, key: str, parts: list[_Part]) -> None:
        position = 0
        for part in parts:
            if part.offset != position:
                kind = "missing" if part.offset > position else "present twice"
                raise StorageError(
                    f"elements {min(part.offset, position)} to {max(part.offset, position)}"
                    f" of {key} are {kind}",
                    where=str(part.path.parent),
                    hint="the checkpoint is damaged: resume from an older one",
                )
            position += part.numel
        if position != self.numel(key):
            raise StorageError(
                f"{key} has {position} of {self.numel(key)} elements",
                where=str(parts[0].path.parent),
                hint="the checkpoint is damaged: resume from an older one",
            )

    def keys(self) -> list[str]:
        """All keys, sorted."""
        return sorted(self._parts)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return self._shapes[key]

    def numel(self, key: str) -> int:
        """Number of elements of the whole tensor."""
        count = 1
        for size in self._shapes[key]:
            count *= size
        return count

    def reads(self, key: str, offset: int, place: Tensor) -> Iterator[Callable[[], object]]:
        """What is to be called, in any order and from any thread, so that `place` holds the
        elements from `offset` on of the flattened tensor.

        `place` is a 1-D view of any dtype, on any device.
        """
        end = offset + place.numel()
        for part in self._parts[key]:
            low, high = max(part.offset, offset), min(part.offset + part.numel, end)
            for start in range(low, high, _READ // 4):
                numel = min(high - start, _READ // 4)
                position = part.position + 4 * (start - part.offset)
                yield partial(_read, part.path, position, place.narrow(0, start - offset, numel))

    def tensor(self, key: str) -> Tensor:
        """The whole tensor in its shape, fp32, on the CPU."""
        result = torch.empty(self.numel(key), dtype=torch.float32)
        for read in self.reads(key, 0, result):
            read()
        return result.view(self.shape(key))


def read_all(reads: Iterable[Callable[[], object]]) -> None:
    """Do all `reads`, some at a time: they wait for the disk, and copy without the interpreter."""
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(lambda read: read(), reads):  # the first that fails ends it
            pass


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the byte at which its data begins."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length


def _read(path: Path, position: int, place: Tensor) -> None:
    """Fill `place` with the fp32 numbers that lie in a file from byte `position` on."""
    is_direct = place.device.type == "cpu" and place.dtype == torch.float32
    numbers = place if is_direct else torch.empty(place.numel(), dtype=torch.float32)
    left = numbers.numpy().data.cast("B")
    with storage_errors(path), open(path, "rb", buffering=0) as file:
        file.seek(position)
        while len(left):
            count = file.readinto(left)
            if not count:
                raise StorageError(
                    "the file ends too early",
                    where=str(path),
                    hint="the checkpoint is damaged: resume from an older one",
                )
            left = left[count:]
    if not is_direct:
        place.copy_(numbers)
