"""What a router has done: assignments, requests and feedback, in one SQLite file."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from pathlib import Path

from launcher.ab import database
from launcher.core.errors import ConfigError

TABLES = """
CREATE TABLE requests (
    id TEXT PRIMARY KEY, user TEXT NOT NULL, side TEXT NOT NULL CHECK (side IN ('a', 'b')),
    time REAL NOT NULL, status INTEGER, first_s REAL, total_s REAL) WITHOUT ROWID;
CREATE TABLE feedback (
    request TEXT PRIMARY KEY REFERENCES requests, value REAL NOT NULL, comment TEXT NOT NULL,
    time REAL NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Assignment:
    """Whose request goes where; `user` is a hash."""

    user: str
    side: str


class Traffic:
    """A router's file; every method opens it for itself, so threads may share this.

    `seed` decides who gets what, `share` how many get b.
    """

    def __init__(self, path: Path, seed: str, share: float) -> None:
        self.path, self._seed, self._share = path, seed, share

    @staticmethod
    def open(path: Path, names: tuple[str, str], share: float) -> Traffic:
        """The file, made if there is none. `share` of the users get the second of `names`.

        Raises `ConfigError` if it was made for other endpoints or another share, because what
        it has counted is then no fair comparison.
        """
        asked = {"a": names[0], "b": names[1], "share": share}
        if not path.exists():
            made = {**asked, "seed": secrets.token_hex(16), "created": time.time()}
            database.create(path, "traffic", TABLES, made)
        if database.check(path) != "traffic":
            raise ConfigError("is no file of a router", where=str(path), hint="give another --db")
        with database.opened(path) as db:
            known = database.meta(db)
        for key, value in asked.items():
            if known[key] != value:
                hint = "give another --db: one file is one comparison"
                raise ConfigError(
                    f"{key} was {known[key]}, not {value}", where=str(path), hint=hint
                )
        return Traffic(path, known["seed"], share)

    def assign(self, user: str | None) -> Assignment:
        """The side of a user, the same for ever; of a request without a user, by chance."""
        name = secrets.token_hex(16) if user is None else user
        digest = hashlib.sha256(f"{self._seed}:{name}".encode(errors="surrogatepass")).digest()
        is_b = int.from_bytes(digest[:8], "big") < self._share * 2**64
        return Assignment(digest[8:24].hex(), "b" if is_b else "a")

    def begin(self, request: str, assignment: Assignment) -> None:
        """Keep that a request was sent on."""
        row = (request, assignment.user, assignment.side, time.time())
        with database.opened(self.path) as db, database.transaction(db):
            db.execute("INSERT INTO requests (id, user, side, time) VALUES (?, ?, ?, ?)", row)

    def end(self, request: str, status: int, first_s: float | None, total_s: float) -> None:
        """Keep how it ended: the HTTP status, seconds to the first piece and to the end."""
        query = "UPDATE requests SET status = ?, first_s = ?, total_s = ? WHERE id = ?"
        with database.opened(self.path) as db, database.transaction(db):
            db.execute(query, (status, first_s, total_s, request))

    def feedback(self, request: str, value: float, comment: str) -> bool:
        """Keep what a user thought of a response; later replaces earlier. False if unknown."""
        with database.opened(self.path) as db, database.transaction(db):
            known = db.execute("SELECT 1 FROM requests WHERE id = ?", (request,)).fetchone()
            if known:
                row = (request, value, comment, time.time())
                db.execute("INSERT OR REPLACE INTO feedback VALUES (?, ?, ?, ?)", row)
        return known is not None
