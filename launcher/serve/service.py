"""What the parts of a running service share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from launcher.core.errors import StorageError
from launcher.serve import permissions, site
from launcher.serve.db import upgrade
from launcher.serve.db.database import Database
from launcher.serve.store import Store

DATABASE = "serve.db"
_FOLDERS = ("files", "runs", "data", "reports", "batches")
#: What the service keeps in its folder.
_OWN = (
    *_FOLDERS,
    site.FILE,
    "conf",
    ".vllm-servers",
    "links.key",
    "controller.alive",
    *(f"{DATABASE}{end}" for end in ("", "-wal", "-shm", "-journal")),
)


@dataclass(frozen=True, slots=True)
class Service:
    """The service of one folder. The web server and the controller each open their own."""

    home: Path
    site: site.Site
    database: Database
    store: Store

    @classmethod
    def open(cls, home: Path) -> Service:
        """The service of `home`, which is made if need be, its database and store ready.

        All in it is for its owner alone: what others could read is closed to them. Raises
        `ConfigError` for bad settings or a database that is no use, `StorageError` where the
        folder cannot be.
        """
        home = home.resolve()
        with permissions.umask():
            return cls._open(home)

    @classmethod
    def _open(cls, home: Path) -> Service:
        try:
            # Data and models of all projects lie there, and the database's password may.
            home.mkdir(0o700, parents=True, exist_ok=True)
        except OSError as error:
            hint = "--home with a folder that can be written to"
            found = f"cannot be made: {error.strerror}"
            raise StorageError(found, where=str(home), hint=hint) from error
        permissions.mend(home, _OWN)
        settled = site.read(home / site.FILE)
        settled.models = settled.models or site.DEMO
        database = Database(settled.database or f"sqlite:///{home / DATABASE}")
        upgrade.upgrade(database)
        for folder in _FOLDERS:
            (home / folder).mkdir(0o700, exist_ok=True)
        return cls(home, settled, database, Store(settled.files or str(home / "files")))

    @property
    def runs(self) -> Path:
        """The run folders; that of a job bears its id."""
        return self.home / "runs"

    @property
    def batches(self) -> Path:
        """What batches have done so far; the folder of one bears its id."""
        return self.home / "batches"
