"""Reads an account into a folder: what is there is not read again, what is missing is."""

from __future__ import annotations

import base64
import binascii
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from launcher.account import paging
from launcher.account.connection import Connection, Unreadable
from launcher.account.layout import (
    Folder,
    ending,
    merge_lines,
    of_content,
    sha256_of,
    write_record,
)
from launcher.core.console import size
from launcher.core.errors import ConfigError
from launcher.core.files import fsync_folder, read_json, storage_errors, write_atomic, write_json

#: Content of these is taken along.
PURPOSES = ("fine-tune", "fine-tune-results", "batch", "batch_output", "evals")
_RESULTS = "fine-tune-results"
#: Lists without which there is no account.
_NEEDED = ("files", "jobs")
_ENDED = {"succeeded", "failed", "cancelled", "completed", "canceled", "expired"}
_PAGE = 100
_SAY_EVERY_S = 2.0
#: Results are tables of numbers: larger ones are no base64 that somebody reads.
_LARGEST_DECODED = 256 << 20


@dataclass(slots=True)
class Gap:
    """Something that could not be read; `is_refused`: by the server, and not for a while.

    `status` is that of the server's answer, if there was one.
    """

    what: str
    why: str
    is_refused: bool
    status: int | None = None


@dataclass(slots=True)
class Findings:
    """What a pull has seen and done. Safe to count in from several threads."""

    gaps: list[Gap] = field(default_factory=list)
    seen: dict[str, set[str]] = field(default_factory=dict)
    """Kind -> ids that the server has named."""
    models: list[dict[str, Any]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _done: dict[str, int] = field(default_factory=dict)
    _bytes: int = 0
    _said: float = 0.0

    @property
    def is_complete(self) -> bool:
        """Whether another pull with this key would find no more: what is missing was refused, and
        is neither the files nor the jobs."""
        return all(gap.is_refused and gap.what not in _NEEDED for gap in self.gaps)

    def miss(
        self, what: str, why: str, *, is_refused: bool = False, status: int | None = None
    ) -> None:
        """Note a gap."""
        with self._lock:
            self.gaps.append(Gap(what, why, is_refused, status))

    def name(self, kind: str, name: str) -> None:
        """The server has named this one."""
        with self._lock:
            self.seen.setdefault(kind, set()).add(name)

    def count(self, kind: str, come: int, say: Callable[[str], None]) -> None:
        """One more of a kind is there; tell so now and then."""
        with self._lock:
            self._done[kind] = self._done.get(kind, 0) + 1
            self._bytes += come
            if time.monotonic() - self._said < _SAY_EVERY_S:
                return
            self._said = time.monotonic()
            text = self.progress()
        say(text)

    def progress(self) -> str:
        """How much of each kind there is, and what has come."""
        parts = []
        for kind, done in self._done.items():
            known = max(done, len(self.seen.get(kind, ())))
            parts.append(f"{kind} {done:,} of {known:,}")
        return " | ".join([*parts, f"{size(self._bytes)} new"])


class Pull:
    """One reading of an account into a folder."""

    def __init__(
        self,
        connection: Connection,
        folder: Folder,
        *,
        threads: int = 8,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._connection, self._folder, self._say = connection, folder, say
        self._threads = threads
        self.found = Findings()

    def run(self) -> Findings:
        """Read all; raises `LauncherError` for a server that is not there, a key that it refuses,
        a folder of another account, or a disk that is full."""
        self._folder.require_origin(self._connection.base_url)
        try:
            self._models()
            self._each("/files", "files", self._file, limit=1000)
            self._each("/fine_tuning/jobs", "jobs", self._job)
            self._require_account()
            self._unlisted_files()
            self._each("/evals", "evals", self._eval)
            self._each("/batches", "batches", self._batch)
            self._require_key()
        finally:
            self._connection.close()
        return self.found

    # ---- lists

    def _models(self) -> None:
        with self._gap("models"):
            try:
                answer = self._connection.json("/models")
            except Unreadable as error:
                if error.is_silent:
                    raise self._nobody(error) from error
                raise
            data = answer.get("data") if isinstance(answer, dict) else None
            if not isinstance(data, list):
                raise Unreadable(f"no list of models: {answer!r:.100}")
            self.found.models = [one for one in data if isinstance(one, dict)]
            write_record(self._folder.path / "models.json", answer)

    def _require_account(self) -> None:
        missing = {gap.what for gap in self.found.gaps if gap.status == 404}
        if missing >= {"models", *_NEEDED}:
            raise ConfigError(
                f"{self._connection.base_url} knows neither models nor files nor fine-tuning jobs",
                where="--base-url",
                hint="is it the whole address? OpenAI's, and most others, end in /v1",
            )

    def _require_key(self) -> None:
        """A key that was withdrawn meanwhile is refused all: another one may do better."""
        if any(gap.status == 401 for gap in self.found.gaps) and self.found.models:
            with self._gap("models"):
                try:
                    self._connection.json("/models")
                except Unreadable as error:
                    raise Unreadable(f"the key reads no more: {error}") from error

    def _nobody(self, error: Unreadable) -> ConfigError:
        return ConfigError(
            f"{self._connection.base_url} does not answer: {error}",
            where="--base-url",
            hint="see the address and the network; the same command begins or goes on",
        )

    def _each(
        self, path: str, kind: str, read: Callable[[dict[str, Any]], None], limit: int = _PAGE
    ) -> None:
        """Read each object of a list, several at a time."""
        with ThreadPoolExecutor(self._threads, "pull") as pool:
            work: list[Future[None]] = []
            try:
                with self._gap(kind):
                    for record in self._listed(path, limit):
                        if not work:  # there is an account
                            self._folder.bind(self._connection.base_url)
                        self.found.name(kind, record["id"])
                        work.append(pool.submit(self._one, kind, record, read))
                for future in work:
                    future.result()
            except BaseException:
                self._connection.close()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _one(
        self, kind: str, record: dict[str, Any], read: Callable[[dict[str, Any]], None]
    ) -> None:
        with self._gap(f"{kind}/{record['id']}"):
            read(record)

    def _listed(self, path: str, limit: int = _PAGE) -> Iterator[dict[str, Any]]:
        """The objects of a list; once more from its beginning if a later page is refused, since
        the object that it comes after may be gone."""
        seen: set[str] = set()
        for is_last in (False, True):
            try:
                for one in paging.items(lambda after: self._page(path, after, limit)):
                    if one["id"] not in seen:
                        seen.add(one["id"])
                        yield one
                return
            except Unreadable as error:
                if not (error.is_refused and seen):
                    raise
                if is_last:
                    raise Unreadable(f"behind {len(seen):,} of them: {error}") from error

    def _page(self, path: str, after: str | None, limit: int) -> Any:
        try:
            return self._connection.json(path, after=after, limit=limit)
        except Unreadable as error:
            if error.status != 400:  # that many at a time may be too many
                raise
            return self._connection.json(path, after=after)

    @contextlib.contextmanager
    def _gap(self, what: str) -> Iterator[None]:
        """What cannot be read here is noted, and the work goes on."""
        try:
            yield
        except Unreadable as error:
            self.found.miss(what, str(error), is_refused=error.is_refused, status=error.status)
        except (paging.BrokenList, ValueError, RecursionError, OSError) as error:
            self.found.miss(what, str(error))

    # ---- files

    def _file(self, record: dict[str, Any]) -> None:
        folder = self._folder.of("files", record["id"])
        if read_json(folder / "record.json") != record:
            write_record(folder / "record.json", record)
        come = 0
        if record.get("purpose") in PURPOSES:
            come = self._content(record, folder)
        self.found.count("files", come, self._say)

    def _content(self, record: dict[str, Any], folder: Path) -> int:
        """Have the content there, whole; returns the bytes that came for it."""
        kept = self._folder.kept(record["id"])
        if kept is not None and not kept.fault and sha256_of(kept.path) == kept.sha256:
            return 0
        part = folder / ".content.part"
        path = f"/files/{quote(record['id'], safe='')}/content"
        come = self._connection.content(path, part)
        decoded = self._decoded(record, part, come.bytes)
        fault = _wrong_size(record, come.bytes, decoded)
        if fault:  # once more, from the beginning
            come = self._connection.content(path, part)
            decoded = self._decoded(record, part, come.bytes)
            fault = _wrong_size(record, come.bytes, decoded)
        name = f"content{ending(record.get('filename'))}"
        beside = None
        if decoded is not None:
            beside = {"name": f"decoded{ending(record.get('filename'))}", "bytes": len(decoded)}
            write_atomic(folder / str(beside["name"]), decoded)
        with storage_errors(folder):
            part.replace(folder / name)
            fsync_folder(folder)
        about = {"name": name, "bytes": come.bytes, "sha256": come.sha256, "decoded": beside}
        about |= {"record": of_content(record), "fault": fault}
        write_json(folder / "kept.json", about)
        if fault:
            self.found.miss(f"files/{record['id']}", fault)
        return come.bytes

    def _decoded(self, record: Mapping[str, Any], path: Path, come: int) -> bytes | None:
        """A result that came in base64, out of it; None for any other content."""
        if record.get("purpose") != _RESULTS or not 0 < come <= _LARGEST_DECODED:
            return None
        with storage_errors(path):
            text = path.read_bytes()
        try:
            found = base64.b64decode(b"".join(text.split()), validate=True)
        except binascii.Error:
            return None
        return found if b"," in found.partition(b"\n")[0] else None

    def _unlisted_files(self) -> None:
        """Files that jobs name, and the list of files does not."""
        listed = self.found.seen.get("files", set())
        named = {
            name: None
            for job in self._folder.records("jobs")
            if job["id"] in self.found.seen.get("jobs", ())
            for name in files_of(job)
            if name not in listed
        }
        with ThreadPoolExecutor(self._threads, "pull") as pool:
            for future in [pool.submit(self._unlisted_file, name) for name in named]:
                future.result()

    def _unlisted_file(self, name: str) -> None:
        with self._gap(f"files/{name}"):
            self._folder.of("files", name)
            record = self._connection.json(f"/files/{quote(name, safe='')}")
            if not isinstance(record, dict) or record.get("id") != name:
                raise Unreadable(f"no record of it: {record!r:.100}")
            self.found.name("files", name)
            self._file(record)

    # ---- jobs, evals, batches

    def _job(self, record: dict[str, Any]) -> None:
        lists = {
            "events": f"/fine_tuning/jobs/{quote(record['id'], safe='')}/events",
            "checkpoints": f"/fine_tuning/jobs/{quote(record['id'], safe='')}/checkpoints",
        }
        self._with_lists("jobs", record, lists)

    def _eval(self, record: dict[str, Any]) -> None:
        name = quote(record["id"], safe="")
        folder = self._folder.of("evals", record["id"])
        if read_json(folder / "record.json") != record:
            write_record(folder / "record.json", record)
        for run in self._listed(f"/evals/{name}/runs"):
            kind = f"evals/{record['id']}/runs"
            with self._gap(f"{kind}/{run['id']}"):
                path = f"/evals/{name}/runs/{quote(run['id'], safe='')}/output_items"
                self._with_lists(kind, run, {"items": path})
        self.found.count("evals", 0, self._say)

    def _batch(self, record: dict[str, Any]) -> None:
        path = self._folder.of("batches", record["id"]) / "record.json"
        if read_json(path) != record:
            write_record(path, record)
        self.found.count("batches", 0, self._say)

    def _with_lists(self, kind: str, record: dict[str, Any], lists: Mapping[str, str]) -> None:
        """An object and the lists below it; of one that has ended they are read once."""
        folder = self._folder.of(kind, record["id"])
        is_same = read_json(folder / "record.json") == record
        is_whole = self._folder.counts(kind, record["id"]).keys() >= lists.keys()
        if not (is_same and is_whole and _has_ended(record)):
            with storage_errors(folder):
                (folder / "kept.json").unlink(missing_ok=True)
            write_record(folder / "record.json", record)
            counts = {}
            for name, path in lists.items():
                with self._gap(f"{kind}/{record['id']}/{name}"):
                    counts[name] = merge_lines(folder / f"{name}.jsonl", self._listed(path))
            write_record(folder / "kept.json", counts)
        if "/" not in kind:
            self.found.count(kind, 0, self._say)


def files_of(job: Mapping[str, Any]) -> list[str]:
    """Ids of the files that a job names."""
    results = job.get("result_files")
    named = [job.get("training_file"), job.get("validation_file")]
    named += results if isinstance(results, list) else []
    return [name for name in named if isinstance(name, str) and name]


def _has_ended(record: Mapping[str, Any]) -> bool:
    return str(record.get("status")) in _ENDED


def _wrong_size(record: Mapping[str, Any], come: int, decoded: bytes | None) -> str:
    """What is wrong with the size of what came; "" if nothing is. Of a result in base64 either of
    its two sizes may be told."""
    stated = record.get("bytes")
    sizes = {come} | ({len(decoded)} if decoded is not None else set())
    if not isinstance(stated, int) or stated in sizes:
        return ""
    return f"the account says {stated:,} bytes, {come:,} came, twice"
