"""The SQLite file of a study or a router: made, opened and checked. Standard library only.

WAL lets many read while one writes. With synchronous=FULL a commit is on the disk before it is
acknowledged, so that no killed process or power cut takes it back.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError, StorageError

#: Marks our files among SQLite's ("lab" and a kind), and the version of their tables.
APPLICATIONS = {"study": 0x6C616201, "traffic": 0x6C616202}
VERSION = 1
BUSY_S = 30.0
META = "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;"


def create(
    path: Path,
    kind: str,
    tables: str,
    meta: dict[str, Any],
    fill: Callable[[sqlite3.Connection], object] = lambda _: None,
) -> None:
    """Make a database of a kind of `APPLICATIONS`; what is read later is in `meta`.

    `fill` writes its first rows, so that a file is whole or none of ours.

    Raises `ConfigError` if there is a file already, `StorageError` if it cannot be written.
    """
    if path.exists():
        hint = "give another name, or delete it"
        raise ConfigError("there is one already", where=str(path), hint=hint)
    with _storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.closing(_connect(path)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            rows = [(key, json.dumps(value)) for key, value in meta.items()]
            with transaction(database):
                for statement in (META + tables).split(";"):
                    database.execute(statement)
                database.executemany("INSERT INTO meta VALUES (?, ?)", rows)
                fill(database)
                database.execute(f"PRAGMA user_version = {VERSION}")
                # Last: a file without it was never finished.
                database.execute(f"PRAGMA application_id = {APPLICATIONS[kind]}")


def check(path: Path) -> str:
    """Kind of the database; reads all of it.

    Raises `ConfigError` if there is none, or one of another program or version, and `StorageError`
    if it is damaged.
    """
    if not path.is_file():
        hint = "make a study with `launcher ab new`; `launcher ab route` makes its own file"
        raise ConfigError("no such file", where=str(path), hint=hint)
    with opened(path) as database:
        kinds = {number: kind for kind, number in APPLICATIONS.items()}
        kind = kinds.get(database.execute("PRAGMA application_id").fetchone()[0])
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if kind is None:
            found, hint = "is no A/B study and no router's file", "name one that `launcher ab` made"
            raise ConfigError(found, where=str(path), hint=hint)
        if version != VERSION:
            raise ConfigError(
                f"was made by another version of launcher: its tables are of version {version},"
                f" this one reads {VERSION}",
                where=str(path),
                hint="use the launcher that made it",
            )
        problem = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise _damaged(path, problem)
    return kind


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection of its own for one piece of work; SQLite's failures become `StorageError`."""
    with _storage(path), contextlib.closing(_connect(path)) as database:
        yield database


@contextlib.contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of the block's writes or none. The lock is taken at once, so none has to be redone."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        database.execute("ROLLBACK")
        raise
    database.execute("COMMIT")


@contextlib.contextmanager
def snapshot(database: sqlite3.Connection) -> Iterator[None]:
    """All of the block's reads see the same moment; nobody who writes meanwhile waits for it."""
    database.execute("BEGIN")
    try:
        yield
    finally:
        database.execute("ROLLBACK")


def meta(database: sqlite3.Connection) -> dict[str, Any]:
    """What `create` was given."""
    rows = database.execute("SELECT key, value FROM meta")
    return {row["key"]: json.loads(row["value"]) for row in rows}


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
    database.row_factory = sqlite3.Row
    database.execute("PRAGMA synchronous = FULL")
    database.execute("PRAGMA foreign_keys = ON")
    return database


@contextlib.contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        hint = "free space, mend the permissions, or stop what else holds the file"
        raise StorageError(str(error), where=str(path), hint=hint) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(path, str(error)) from error
    except OSError as error:
        hint = "free space or mend the permissions"
        raise StorageError(error.strerror or str(error), where=str(path), hint=hint) from error


def _damaged(path: Path, problem: str) -> StorageError:
    hint = f"restore it from a copy; `sqlite3 {path.name} .recover` saves what can be read"
    return StorageError(f"the database is damaged: {problem}", where=str(path), hint=hint)
