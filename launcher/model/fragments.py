"""Fragment files: parts of flattened parameters as safetensors, readable at any number of ranks.

A rank writes one file of 1-D fp32 fragments. The file's metadata key "fragments" is JSON
{key: [offset, numel, [shape]]}: fragment `key` holds `numel` elements of the flattened parameter
from `offset` on, and the parameter has `shape`. Over all files of a checkpoint every element is
there once.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from launcher.core.errors import StorageError
from launcher.core.files import storage_errors


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
) -> tuple[int, str]:
    """Stream fragments into one file, one tensor in memory at a time; returns (bytes, blake2b).

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
    digest = hashlib.blake2b(digest_size=32)
    with storage_errors(path), open(path, "wb") as file:
        for block in _blocks(encoded, parts):
            file.write(block)
            digest.update(block)
            beat()
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    return size, digest.hexdigest()


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


class FragmentReader:
    """Assembles tensors from the fragment files `files`, reading only what is asked for.

    Raises `StorageError` when an element is missing or present twice.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        self._parts: dict[str, list[tuple[int, int, Path]]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in files:
            try:
                with safe_open(path, framework="pt") as file:
                    index = json.loads((file.metadata() or {})["fragments"])
            except Exception as error:  # safetensors raises its own class, which it does not export
                raise StorageError(
                    f"cannot read the fragment file: {error}",
                    where=str(path),
                    hint="the checkpoint is damaged: resume from an older one",
                ) from error
            for key, (offset, numel, shape) in index.items():
                self._parts.setdefault(key, []).append((offset, numel, path))
                self._shapes[key] = tuple(shape)
        for key, parts in self._parts.items():
            parts.sort(key=lambda part: part[:2])
            self._check(key, parts)

    def _check(self, key: str, parts: list[tuple[int, int, Path]]) -> None:
        position = 0
        for offset, numel, path in parts:
            if offset != position:
                kind = "missing" if offset > position else "present twice"
                raise StorageError(
                    f"elements {min(offset, position)} to {max(offset, position)}"
                    f" of {key} are {kind}",
                    where=str(path.parent),
                    hint="the checkpoint is damaged: resume from an older one",
                )
            position += numel
        if position != self.numel(key):
            raise StorageError(
                f"{key} has {position} of {self.numel(key)} elements",
                where=str(parts[0][2].parent),
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

    def range(self, key: str, offset: int, numel: int) -> Tensor:
        """Elements [offset, offset + numel) of the flattened tensor: fp32 [numel], on the CPU."""
        result = torch.empty(numel, dtype=torch.float32)
        for start, length, path in self._parts[key]:
            low, high = max(start, offset), min(start + length, offset + numel)
            if low < high:
                with safe_open(path, framework="pt") as file:
                    part = file.get_slice(key)[low - start : high - start]
                result[low - offset : high - offset] = part
        return result

    def tensor(self, key: str) -> Tensor:
        """The whole tensor in its shape, fp32, on the CPU."""
        return self.range(key, 0, self.numel(key)).view(self.shape(key))
