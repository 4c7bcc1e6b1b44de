"""A blind study: prompts with two answers each, judges, and their votes, in one SQLite file."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.ab import database
from launcher.core.errors import ConfigError

FILE = "study.db"
TABLES = """
CREATE TABLE items (
    id INTEGER PRIMARY KEY, prompt TEXT NOT NULL, a TEXT NOT NULL, b TEXT NOT NULL);
CREATE TABLE judges (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token_hash TEXT NOT NULL);
CREATE TABLE votes (
    judge INTEGER NOT NULL REFERENCES judges, item INTEGER NOT NULL REFERENCES items,
    choice TEXT NOT NULL CHECK (choice IN ('a', 'b', 'tie', 'bad')),
    left_side TEXT NOT NULL CHECK (left_side IN ('a', 'b')),
    comment TEXT NOT NULL, seconds REAL, time REAL NOT NULL,
    PRIMARY KEY (judge, item)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Judge:
    """Someone who votes."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """A prompt with the answers of both models."""

    prompt: str
    a: str
    b: str


class Study:
    """The study in a folder; every method opens the file for itself, so threads may share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE

    @staticmethod
    def create(
        folder: Path, names: tuple[str, str], items: Sequence[AnswerPair], question: str
    ) -> Study:
        """Make the file with its items. Raises `ConfigError` if there is a study already."""
        study = Study(folder)
        made = {"a": names[0], "b": names[1], "question": question, "created": time.time()}
        # Decides sides and order; who knows it, knows which model is on which side.
        made["seed"] = secrets.token_hex(16)
        rows = [(item.prompt, item.a, item.b) for item in items]
        query = "INSERT INTO items (prompt, a, b) VALUES (?, ?, ?)"
        database.create(study.path, "study", TABLES, made, lambda db: db.executemany(query, rows))
        return study

    def check(self) -> Study:
        """This study, or why it cannot be used: see `database.check`."""
        if database.check(self.path) != "study":
            hint = "name the folder that `launcher ab new` made"
            raise ConfigError("is no study", where=str(self.path), hint=hint)
        return self

    def invite(self, name: str) -> str:
        """A new token for a judge, whose earlier one ends; only its hash is kept."""
        token = secrets.token_urlsafe(24)
        with database.opened(self.path) as db, database.transaction(db):
            db.execute(
                "INSERT INTO judges (name, token_hash) VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET token_hash = excluded.token_hash",
                (name, _hashed(token)),
            )
        return token

    def judge_of(self, token: str) -> Judge | None:
        """Whose token this is. Takes as long for one as for none."""
        given, found = _hashed(token), None
        with database.opened(self.path) as db:
            for row in db.execute("SELECT id, name, token_hash FROM judges"):
                if hmac.compare_digest(row["token_hash"], given):
                    found = Judge(row["id"], row["name"])
        return found

    def question(self) -> str:
        """What judges are asked."""
        with database.opened(self.path) as db:
            return str(database.meta(db)["question"])

    def order(self, judge: Judge) -> list[int]:
        """All items in the order in which this judge sees them."""
        with database.opened(self.path) as db:
            seed = database.meta(db)["seed"]
            ids = [row["id"] for row in db.execute("SELECT id FROM items")]
        return sorted(ids, key=lambda item: _drawn(seed, "order", judge.id, item))

    def votes_of(self, judge: Judge) -> list[dict[str, Any]]:
        """This judge's votes by time, in what was left and right of them."""
        query = "SELECT * FROM votes WHERE judge = ? ORDER BY time"
        with database.opened(self.path) as db:
            rows = db.execute(query, (judge.id,)).fetchall()
        votes = []
        for row in rows:
            sides = {row["left_side"]: "left", _other(row["left_side"]): "right"}
            choice = sides.get(row["choice"], row["choice"])
            votes.append({"item": row["item"], "choice": choice, "comment": row["comment"]})
        return votes

    def shown(self, judge: Judge, item: int) -> dict[str, str] | None:
        """Prompt, left and right answer as this judge sees them; None if there is no such item."""
        with database.opened(self.path) as db:
            row = db.execute("SELECT * FROM items WHERE id = ?", (item,)).fetchone()
            if row is None:
                return None
            left = _left_side(database.meta(db)["seed"], judge, item)
        return {"prompt": row["prompt"], "left": row[left], "right": row[_other(left)]}

    def vote(
        self, judge: Judge, item: int, choice: str, comment: str, seconds: float | None
    ) -> bool:
        """Keep a choice (left, right, tie or bad), on the disk when this returns; a later one
        replaces it.

        `seconds` is how long the judge took. False if there is no such item.
        """
        with database.opened(self.path) as db:
            left = _left_side(database.meta(db)["seed"], judge, item)
            meant = {"left": left, "right": _other(left)}.get(choice, choice)
            with database.transaction(db):
                known = db.execute("SELECT 1 FROM items WHERE id = ?", (item,)).fetchone()
                if known:
                    row = (judge.id, item, meant, left, comment, seconds, time.time())
                    db.execute("INSERT OR REPLACE INTO votes VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return known is not None

    def undo(self, judge: Judge, item: int) -> None:
        """Take a vote back, if there is one."""
        with database.opened(self.path) as db, database.transaction(db):
            db.execute("DELETE FROM votes WHERE judge = ? AND item = ?", (judge.id, item))


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


def _drawn(seed: str, *what: object) -> bytes:
    return hashlib.sha256(repr((seed, *what)).encode()).digest()


def _left_side(seed: str, judge: Judge, item: int) -> str:
    return "ab"[_drawn(seed, "side", judge.id, item)[0] & 1]


def _other(side: str) -> str:
    return "b" if side == "a" else "a"
