"""Where things lie in a folder that `pull` has filled.

    origin.json                     whose account it is
    manifest.json  page.html
    plan.json                       what `replay` would run, or runs
    models.json
    files/ID/record.json            as the server tells it
             content.jsonl          its bytes, under the ending of its name
             decoded.csv            what they mean, where a result came in base64
             kept.json              size and SHA-256 of both; written last
    jobs/ID/record.json events.jsonl checkpoints.jsonl kept.json
    evals/ID/record.json
    evals/ID/runs/ID/record.json items.jsonl kept.json
    batches/ID/record.json

Each file appears whole or not at all; `kept.json` says which of those beside it are complete, and
how large they are.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError
from launcher.core.files import fsync_folder, open_lock, read_json, storage_errors, write_json

MANIFEST, PAGE, ORIGIN = "manifest.json", "page.html", "origin.json"
PLAN = "plan.json"
#: In a replay's folder: what became of its jobs.
RESULT = "replay.json"
#: What of a file's record belongs to its content.
_OF_CONTENT = ("bytes", "created_at", "filename", "purpose")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,199}")
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,8}")
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class KeptContent:
    """The content of a file, as it lies in the folder."""

    path: Path
    bytes: int
    sha256: str
    decoded: Path | None = None
    """The same out of base64."""
    fault: str = ""
    """In what it differs from what the account says of it."""

    @property
    def plain(self) -> Path:
        """What to read: out of base64, if it was in it."""
        return self.decoded or self.path


class Folder:
    """Paths and records of one folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def manifest(self) -> Path:
        """What is there, and what could not be read."""
        return self.path / MANIFEST

    @property
    def plan(self) -> Path:
        """What `replay` would run, or runs."""
        return self.path / PLAN

    def require(self) -> Folder:
        """This folder, or `ConfigError` if `pull` has filled none here."""
        if not self.manifest.is_file():
            raise ConfigError(
                f"there is no {MANIFEST} in it",
                where=str(self.path),
                hint="fill it: launcher openai pull FOLDER",
            )
        return self

    def of(self, kind: str, name: str) -> Path:
        """Folder of an object of `kind`, such as files, by its id; `ValueError` for an id that can
        be no name of a folder."""
        if not _ID.fullmatch(name) or name in (".", ".."):
            raise ValueError(f"{name[:80]!r} is no id")
        folder = self.path / kind / name
        if folder.is_symlink() or folder.parent.is_symlink():
            raise ValueError(f"{folder} is a link")
        return folder

    def require_origin(self, base_url: str) -> None:
        """`ConfigError` if this is the folder of another account than that behind `base_url`."""
        path = self.path / ORIGIN
        known = read_json(path, {"base_url": base_url})
        if known != {"base_url": base_url}:
            there = known.get("base_url") if isinstance(known, dict) else known
            raise ConfigError(
                f"it is of {there}, not of {base_url}",
                where=str(self.path),
                hint="name another folder; if both are the same account: rm"
                f" {shlex.quote(str(path))}",
            )

    def bind(self, base_url: str) -> None:
        """Let this be the folder of the account behind `base_url` from now on."""
        path = self.path / ORIGIN
        if not path.is_file():
            write_json(path, {"base_url": base_url})

    def records(self, kind: str) -> list[dict[str, Any]]:
        """The records of a kind, oldest first; those of runs: `evals/ID/runs`."""
        found = [
            record
            for path in sorted((self.path / kind).glob("*/record.json"))
            if isinstance(record := read_json(path), dict) and isinstance(record.get("id"), str)
        ]
        return sorted(found, key=lambda record: (_time(record), record["id"]))

    def lines(self, kind: str, name: str, file: str) -> Iterator[dict[str, Any]]:
        """The objects in a list of an object, as the server tells them: newest first."""
        path = self.of(kind, name) / file
        if not path.is_file():
            return
        with storage_errors(path), open(path, encoding="utf-8") as opened:
            yield from map(json.loads, opened)

    def counts(self, kind: str, name: str) -> dict[str, int]:
        """Name -> objects of each list of an object that is there whole."""
        folder = self.of(kind, name)
        said = read_json(folder / "kept.json")
        found = {}
        for file, about in said.items() if isinstance(said, dict) else ():
            with contextlib.suppress(TypeError, LookupError, OSError):
                if (folder / f"{file}.jsonl").stat().st_size == about["bytes"]:
                    found[file] = about["lines"]
        return found

    def kept(self, name: str) -> KeptContent | None:
        """The content of a file; None if it is not there whole."""
        folder = self.of("files", name)
        said = read_json(folder / "kept.json")
        try:
            found = KeptContent(
                folder / said["name"],
                said["bytes"],
                said["sha256"],
                folder / said["decoded"]["name"] if said["decoded"] else None,
                said["fault"],
            )
            sizes = [(found.path, found.bytes)]
            if found.decoded is not None:
                sizes.append((found.decoded, said["decoded"]["bytes"]))
            is_whole = all(path.stat().st_size == size for path, size in sizes)
            is_same = said["record"] == of_content(read_json(folder / "record.json"))
        except (TypeError, LookupError, OSError):
            return None
        if is_whole and not is_same and not found.fault:
            return replace(found, fault="the account's record of it has changed since it was read")
        return found if is_whole else None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """One command at a time writes here; `ConfigError` while another one does."""
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        with open_lock(self.path / ".lock") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    "another command writes to it",
                    where=str(self.path),
                    hint="wait for its end, or name another folder",
                ) from None
            yield


def ending(filename: Any) -> str:
    """The ending of a file's name, if it is one that does no harm."""
    found = Path(str(filename)).suffix
    return found if _ENDING.fullmatch(found) else ""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with storage_errors(path), open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def of_content(record: Any) -> dict[str, Any]:
    """What a file's record says that its content is."""
    return {name: record.get(name) for name in _OF_CONTENT} if isinstance(record, dict) else {}


def no_link(path: str, flags: int) -> int:
    """An `opener` that follows no link: whoever put it there does not choose what is written."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def merge_lines(path: Path, objects: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Write a list, a line an object: those that come, then those that were there and did not.

    Returns `lines` and `bytes` of the whole. What `objects` raises goes on once what came before
    is written.
    """
    temporary = path.with_name(f".{path.name}.part")
    come: set[Any] = set()
    failure: Exception | None = None
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8", opener=no_link) as file:
            incoming = iter(objects)
            while True:
                try:
                    one = next(incoming, None)
                except Exception as error:
                    failure, one = error, None
                if one is None:
                    break
                come.add(one.get("id"))
                file.write(json.dumps(one, separators=(",", ":")) + "\n")
            lines = len(come)
            for line in _lines_without(path, come):
                file.write(line)
                lines += 1
            file.flush()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        os.replace(temporary, path)
        fsync_folder(path.parent)
    if failure is not None:
        raise failure
    return {"lines": lines, "bytes": size}


def _lines_without(path: Path, names: Container[Any]) -> Iterator[str]:
    """The lines of a list whose objects have other ids; what is none of its lines is left out."""
    if not path.is_file() or path.is_symlink():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, AttributeError):
                if json.loads(line).get("id") not in names:
                    yield line.rstrip("\n") + "\n"


def write_record(path: Path, record: Any) -> None:
    """Write an object as the server tells it."""
    write_json(path, record)


def _time(record: Mapping[str, Any]) -> float:
    found = record.get("created_at")
    with contextlib.suppress(OverflowError):
        return float(found) if isinstance(found, int | float) else 0.0
    return 0.0
