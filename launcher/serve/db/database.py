"""The service's database: SQLite beside the files, or PostgreSQL by URL."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import secrets
import sqlite3
import string
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from anyio import to_thread
from sqlalchemy import Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import (
    ArgumentError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    TimeoutError,
)
from sqlalchemy.orm import Session

from launcher.core.errors import ConfigError

_ALPHABET = string.ascii_letters + string.digits
#: How long SQLite waits for a lock: of ours nobody holds one for more than moments.
_BUSY_MS = 5_000
#: The same where the event loop would wait; then a thread waits instead.
_BUSY_BRIEFLY_MS = 20
#: libpq's, where the URL says nothing: a host that has vanished is given up after seconds.
_PATIENCE = {"connect_timeout": 5, "tcp_user_timeout": 10_000}
#: PostgreSQL that is silent for so long while it is asked has hung.
_SILENT_S = 5.0
#: The same where tables are changed, which takes as long as it takes.
_PATIENT_S = 3600.0
#: Once it has not answered, nobody else waits for it so long; then somebody tries again.
_AWAY_S = 2.0
#: An error that comes sooner is one of the question, not of who is asked.
_LATE_S = 1.0

_silent_s = ContextVar("_silent_s", default=_SILENT_S)

#: What is raised while the database cannot be asked.
AWAY = (OperationalError, InterfaceError, TimeoutError)

Answer = TypeVar("Answer")


class Database:
    """Opens sessions; each is one transaction."""

    def __init__(self, url: str) -> None:
        """`url`: sqlite:///PATH or postgresql+psycopg://...; `ConfigError` for another."""
        self.engine = _engine(url)
        self._is_sqlite = self.engine.dialect.name == "sqlite"
        self._brief = self.engine
        if self._is_sqlite:
            self._brief = _engine(url, _BUSY_BRIEFLY_MS)
            event.listen(self.engine, "engine_disposed", lambda _: self._brief.dispose())
        self._away = {True: 0.0, False: 0.0}

    @contextlib.contextmanager
    def begin(self, *, patient: bool = False) -> Iterator[Session]:
        """A transaction that may write; committed at its end, rolled back by an exception.

        Raises one of `AWAY` within seconds if the database does not answer, unless `patient`.
        """
        token = _silent_s.set(_PATIENT_S) if patient else None
        try:
            with (
                self._told(writes=True),
                Session(self.engine, expire_on_commit=False) as session,
                session.begin(),
            ):
                if self.is_sqlite:
                    # At once: SQLite refuses, without waiting, to make a reader a writer later.
                    session.connection().exec_driver_sql("BEGIN IMMEDIATE")
                yield session
        finally:
            if token is not None:
                _silent_s.reset(token)

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads, and holds up nobody."""
        with self._told(writes=False), Session(self.engine, expire_on_commit=False) as session:
            if self.is_sqlite:
                session.connection().exec_driver_sql("BEGIN")
            yield session

    @contextlib.contextmanager
    def _told(self, *, writes: bool) -> Iterator[None]:
        """Whoever comes just after the database has not answered is told so at once: the threads
        of the service are few, and would all wait for it."""
        kind = writes and self.is_sqlite  # who writes waits for others there, who reads does not
        began = time.monotonic()
        if began < self._away[kind]:
            raise TimeoutError("the database has not answered a moment ago")
        try:
            yield
        except AWAY:
            if time.monotonic() - began > _LATE_S:
                self._away[kind] = time.monotonic() + _AWAY_S
            raise

    async def ask(self, question: Callable[[Session], Answer]) -> Answer:
        """What a short `question` reads.

        SQLite answers here and now: its readers wait for nobody of ours. If somebody else has
        locked it, or with PostgreSQL, a thread waits.
        """
        if self.is_sqlite:
            with (
                contextlib.suppress(OperationalError),
                Session(self._brief, expire_on_commit=False) as session,
            ):
                session.connection().exec_driver_sql("BEGIN")
                return question(session)

        def asked() -> Answer:
            with self.read() as session:
                return question(session)

        return await to_thread.run_sync(asked)

    @staticmethod
    def lock(session: Session, name: str) -> None:
        """Be the only one with this name until the transaction ends, on whatever host."""
        # In SQLite, whoever may write is alone anyway.
        if session.get_bind().dialect.name == "postgresql":
            key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
            session.execute(select(func.pg_advisory_xact_lock(key)))

    @property
    def is_sqlite(self) -> bool:
        """Whether the database is a file of SQLite."""
        return self._is_sqlite


def comparable(text: str) -> str:
    """A text that any database can compare with."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def new_id(prefix: str, length: int = 24) -> str:
    """A random id in the form of OpenAI's, e.g. file-..., ftjob-..., upload_..."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _engine(url: str, busy_ms: int = _BUSY_MS) -> Engine:
    try:
        made = make_url(url)
        is_libpq = made.get_driver_name() in ("psycopg", "psycopg2")
        patience = {name: value for name, value in _PATIENCE.items() if name not in made.query}
        engine = create_engine(
            made,
            pool_size=10,
            max_overflow=40,
            # A server may have gone in the meantime, a file not.
            pool_pre_ping=made.get_backend_name() != "sqlite",
            hide_parameters=True,  # an error goes to the log, with what clients have sent
            connect_args=patience if is_libpq else {},
        )
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
        hint = "sqlite:////folder/serve.db, or postgresql+psycopg://user:password@host/name"
        raise ConfigError(f"no database: {error}", where="database", hint=hint) from error
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", functools.partial(_prepare_sqlite, busy_ms=busy_ms))
    elif engine.dialect.name != "postgresql":
        raise ConfigError(
            f"{engine.dialect.name} is not supported",
            where="database",
            hint="use SQLite or PostgreSQL",
        )
    elif engine.dialect.driver == "psycopg":
        event.listen(engine, "do_connect", _connect)
    return engine


def _connect(_: Any, __: Any, arguments: Any, options: Any) -> Any:
    """A connection that does not wait forever.

    A server that hangs, with its host alive, is nothing to TCP, and libpq knows no time of its own
    for an answer.
    """
    import psycopg

    class Impatient(psycopg.Connection[Any]):
        """Gives up, and is of no use any more, if the server is silent while it is asked."""

        def wait(self, gen: Any, interval: float = 0.1, timeout: float | None = None) -> Any:
            if timeout is not None:
                return super().wait(gen, interval, timeout)
            silent_s = _silent_s.get()
            try:
                return super().wait(gen, interval, silent_s)
            except psycopg.errors._WaitTimeout as error:
                self.pgconn.finish()
                found = f"the server has not answered for {silent_s:.0f} s"
                raise psycopg.OperationalError(found) from error

    return Impatient.connect(*arguments, **options)


def _prepare_sqlite(connection: Any, _: Any, *, busy_ms: int) -> None:
    connection.isolation_level = None  # transactions begin where we say so
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={busy_ms}")
    _begin_wal(cursor, time.monotonic() + busy_ms / 1000)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin_wal(cursor: Any, until: float) -> None:
    """Switch to write-ahead logging. While others open the same new file, SQLite refuses that at
    once instead of waiting."""
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.02)
        else:
            return
