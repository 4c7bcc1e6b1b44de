"""What a job leaves for people to take away: its files as they are, its model as a tar archive."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sqlalchemy import select
from sqlalchemy.orm import Session

from launcher.core.rundir import RunDir
from launcher.serve.db.tables import File, Job, Model
from launcher.serve.service import Service

_PIECE = 256 << 10
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class Offered:
    """Something that can be taken away."""

    kind: str
    """results, training, validation or model."""
    filename: str
    size: int
    """Bytes."""
    source: File | Path
    """A file of the store, or the folder of an archive."""

    def content(self, service: Service) -> Iterator[bytes]:
        """Its bytes, piece by piece; close it if it is not read to its end."""
        if isinstance(self.source, Path):
            return archive(self.source, self.filename.removesuffix(".tar"))
        return _pieces(service.store.open(self.source.sha256), self.size)


def of(session: Session, service: Service, job: Job) -> list[Offered]:
    """What there is of a job at present."""
    ids = {"results": job.result_file, "training": job.training_file}
    ids["validation"] = job.validation_file
    wanted = select(File).where(File.id.in_([id for id in ids.values() if id]))
    found = {f.id: f for f in session.scalars(wanted.where(File.project_id == job.project_id))}
    offered = [
        Offered(kind, found[id].filename, found[id].bytes, found[id])
        for kind, id in ids.items()
        if id in found
    ]
    name = job.fine_tuned_model
    model = session.get(Model, name) if name else None
    export = RunDir(service.runs / job.id).export
    if name and model is not None and model.deleted_at is None and export.is_dir():
        plain = name.replace(":", "-")
        offered.append(Offered("model", f"{plain}.tar", archive_bytes(export, plain), export))
    return offered


def archive(folder: Path, name: str) -> Iterator[bytes]:
    """A folder as a tar archive of the folder `name`; its size is known before: `archive_bytes`."""
    written = 0
    for path, head, size in _members(folder, name):
        yield head
        written += len(head)
        yield from _pieces(open(path, "rb"), size)  # noqa: SIM115 - closed there
        padding = b"\0" * (-size % _BLOCK)
        yield padding
        written += size + len(padding)
    yield b"\0" * (_end(written) - written)


def archive_bytes(folder: Path, name: str) -> int:
    """How long `archive` is."""
    return _end(sum(len(head) + size + -size % _BLOCK for _, head, size in _members(folder, name)))


def _members(folder: Path, name: str) -> list[tuple[Path, bytes, int]]:
    """Files, each with its header and its size."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        stat = path.stat()
        member = tarfile.TarInfo(f"{name}/{path.relative_to(folder).as_posix()}")
        member.size, member.mtime, member.mode = stat.st_size, int(stat.st_mtime), 0o644
        found.append((path, member.tobuf(tarfile.PAX_FORMAT), stat.st_size))
    return found


def _end(written: int) -> int:
    """Two empty blocks, then up to a whole record."""
    return -(-(written + 2 * _BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def _pieces(opened: IO[bytes], size: int) -> Iterator[bytes]:
    """Exactly `size` bytes; `OSError` if the file has become shorter."""
    with contextlib.closing(opened):
        while size:
            piece = opened.read(min(_PIECE, size))
            if not piece:
                raise OSError("the file has become shorter while it was sent")
            size -= len(piece)
            yield piece
