"""Sharded safetensors files in Hugging Face layout, read and written a tensor at a time."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from launcher.core.files import give_usual_permissions, read_json, storage_errors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


class ShardReader:
    """The tensors of a model folder; opening reads headers only."""

    def __init__(self, folder: Path) -> None:
        """Raises `FileNotFoundError` if the folder holds no safetensors weights."""
        index = read_json(folder / INDEX)
        files = sorted(set(index["weight_map"].values())) if index else [SINGLE]
        self._handles: dict[str, Any] = {}
        for file in files:
            handle = safe_open(folder / file, framework="pt")
            self._handles.update(dict.fromkeys(handle.keys(), handle))

    def __contains__(self, name: str) -> bool:
        return name in self._handles

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, in the dtype of the file."""
        tensor: torch.Tensor = self._handles[name].get_tensor(name)
        return tensor


def write_shards(
    folder: Path, tensors: Iterable[tuple[str, torch.Tensor]], shard_bytes: int
) -> None:
    """Write `tensors` into files of at most `shard_bytes` (or one tensor), indexed if several.

    Holds one shard in memory. Raises `StorageError` when the disk is full or read-only.
    """
    parts: list[list[str]] = []
    shard: dict[str, torch.Tensor] = {}
    size = total = 0
    for name, tensor in tensors:
        if shard and size + tensor.nbytes > shard_bytes:
            parts.append(_write_part(folder, len(parts), shard))
            shard, size = {}, 0
        shard[name] = tensor.contiguous()
        size += tensor.nbytes
        total += tensor.nbytes
        del tensor
    parts.append(_write_part(folder, len(parts), shard))
    if len(parts) == 1:
        os.replace(folder / _part(0), folder / SINGLE)
        return
    weight_map = {}
    for number, names in enumerate(parts):
        file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        os.replace(folder / _part(number), folder / file)
        weight_map.update(dict.fromkeys(names, file))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    with storage_errors(folder):
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write one safetensors file; `StorageError` when the disk is full or read-only."""
    with storage_errors(path):
        try:
            save_file(tensors, path, metadata={"format": "pt"})
            give_usual_permissions(path)
        except SafetensorError as error:
            # The Rust side reports the system's error as text only.
            for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
                if f"os error {code}" in str(error):
                    raise OSError(code, os.strerror(code), str(path)) from error
            raise


def _part(number: int) -> str:
    return f"part-{number:05d}.safetensors"


def _write_part(folder: Path, number: int, shard: dict[str, torch.Tensor]) -> list[str]:
    save(folder / _part(number), shard)
    return list(shard)
