"""Finished answers of an evaluation, a line each, so that one that is killed goes on from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from launcher.core.files import storage_errors
from launcher.evals.records import Generation


class Journal:
    """`FOLDER/NAME.RANK.jsonl`; a file a rank, since ranks may be on several hosts.

    `key` names all that the answers depend on; lines of another key do not count.
    """

    def __init__(self, folder: Path, name: str, key: str, rank: int) -> None:
        self._folder, self._name, self._key, self._rank = folder, name, key, rank
        self._appended = False

    def part(self, split: str) -> Journal:
        """A journal of the records of `split`, which this one does not read but clears."""
        name = hashlib.blake2b(split.encode(), digest_size=6).hexdigest()
        return Journal(self._folder, f"{self._name}.{name}", f"{self._key}.{name}", self._rank)

    def read(self) -> list[Generation]:
        """The answers of all ranks of earlier attempts, whatever the number of ranks was."""
        found: dict[int, Generation] = {}
        for path in self._files():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    content = json.loads(line)
                    if content.pop("key") == self._key:
                        found[content["id"]] = Generation(**content)
                except (ValueError, TypeError, KeyError, AttributeError):
                    continue  # cut short by the kill
        return [found[record] for record in sorted(found)]

    def append(self, records: Sequence[Generation]) -> None:
        """Keep what is finished. Raises `StorageError`."""
        path = self._folder / f"{self._name}.{self._rank}.jsonl"
        lines = [json.dumps({"key": self._key, **asdict(record)}) + "\n" for record in records]
        with storage_errors(path):
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                # What a kill cut short stays a line of its own.
                file.write("".join(lines) if self._appended else "\n" + "".join(lines))
        self._appended = True

    def clear(self) -> None:
        """Forget all ranks' answers, those of parts too: the results are stored."""
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self._name}.*.jsonl"))
