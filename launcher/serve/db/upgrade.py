"""Bringing a database to the tables of this version: the revisions in `migrations`, by Alembic."""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from launcher.core.errors import ConfigError
from launcher.serve.db.database import Database
from launcher.serve.db.tables import Base

_MIGRATIONS = Path(__file__).parent / "migrations"


def upgrade(database: Database) -> None:
    """Apply the revisions that the database lacks, in one transaction, one server at a time.

    Raises `ConfigError` if it cannot be reached, or is of a newer version.
    """
    scripts = ScriptDirectory(str(_MIGRATIONS))
    try:
        with database.begin(patient=True) as session:
            Database.lock(session, "schema")
            _upgrade(session.connection(), scripts)
    except DBAPIError as error:
        hint = "see that it runs and that its URL in serve.yaml is right"
        if database.is_sqlite:
            hint = "see that the folder can be written to and has room"
        found = f"cannot be used: {error.orig}"
        raise ConfigError(found, where="database", hint=hint) from error


def _upgrade(connection: Connection, scripts: ScriptDirectory) -> None:
    head = scripts.get_current_head()
    assert head is not None
    current = MigrationContext.configure(connection).get_current_revision()
    if current == head:
        return
    try:
        scripts.get_revision(current or "base")
    except CommandError as error:
        found = f"is of a newer version (revision {current}; this one knows {head})"
        hint = "install the launcher that made it, or a newer one"
        raise ConfigError(found, where="database", hint=hint) from error

    def steps(revision: object, _: object) -> object:
        return scripts._upgrade_revs(head, revision)  # type: ignore[arg-type]

    with EnvironmentContext(Config(), scripts, fn=steps) as environment:
        environment.configure(
            connection=connection, target_metadata=Base.metadata, render_as_batch=True
        )
        environment.run_migrations()
