"""The service's database: SQLite beside the files, or PostgreSQL by URL."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import string
from collections.abc import Callable, Iterator
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

from launcher.errors import ConfigError

_ALPHABET = string.ascii_letters + string.digits
_BUSY_MS = 30_000
#: libpq's, where the URL says nothing: a host that has vanished is given up after seconds.
_PATIENCE = {"connect_timeout": 10, "tcp_user_timeout": 30_000}

#: What is raised while the database cannot be asked.
AWAY = (OperationalError, InterfaceError, TimeoutError)

Answer = TypeVar("Answer")


class Database:
    """Opens sessions; each is one transaction."""

    def __init__(self, url: str) -> None:
        """`url`: sqlite:///PATH or postgresql+psycopg://...; `ConfigError` for another."""
        self.engine = _engine(url)
        self._is_sqlite = self.engine.dialect.name == "sqlite"

    @contextlib.contextmanager
    def begin(self) -> Iterator[Session]:
        """A transaction that may write; committed at its end, rolled back by an exception."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            if self.is_sqlite:
                # At once: SQLite refuses, without waiting, to make a reader a writer later.
                session.connection().exec_driver_sql("BEGIN IMMEDIATE")
            yield session

    @contextlib.contextmanager
    def read(self) -> Iterator[Session]:
        """A transaction that only reads, and holds up nobody."""
        with Session(self.engine, expire_on_commit=False) as session:
            if self.is_sqlite:
                session.connection().exec_driver_sql("BEGIN")
            yield session

    async def ask(self, question: Callable[[Session], Answer]) -> Answer:
        """What a short `question` reads.

        SQLite answers here and now: its readers wait for nobody. PostgreSQL is asked in a thread.
        """

        def asked() -> Answer:
            with self.read() as session:
                return question(session)

        return asked() if self.is_sqlite else await to_thread.run_sync(asked)

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


def new_id(prefix: str, length: int = 24) -> str:
    """A random id in the form of OpenAI's, e.g. file-..., ftjob-..., upload_..."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))


def _engine(url: str) -> Engine:
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
        event.listen(engine, "connect", _prepare_sqlite)
    elif engine.dialect.name != "postgresql":
        raise ConfigError(
            f"{engine.dialect.name} is not supported",
            where="database",
            hint="use SQLite or PostgreSQL",
        )
    return engine


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()
