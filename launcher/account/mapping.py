"""What stands here for OpenAI's models: the `serve.yaml` of a replay's folder."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.account import proposal
from launcher.account.layout import Folder
from launcher.core.errors import ConfigError
from launcher.core.files import write_atomic
from launcher.serve import site as sites
from launcher.serve.site import Site

#: In what `pull` has filled: the proposal, which people change.
MAPPING = "models.yaml"


@dataclass(frozen=True, slots=True)
class Settings:
    """The mapping: its text, and what it says."""

    text: str
    site: Site

    @classmethod
    def of(cls, text: str, where: Path) -> Settings:
        """Read the text that stands, or is to stand, at `where`; `ConfigError` if it is wrong."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / sites.FILE
            path.write_text(text, encoding="utf-8")
            try:
                found = sites.read(path)
            except ConfigError as error:
                raise ConfigError(str(error).replace(str(path), str(where))) from None
        if not found.models:
            hint = f"name what stands for OpenAI's models; without {MAPPING} a proposal is written"
            raise ConfigError("there are no models in it", where=str(where), hint=hint)
        return cls(text, found)


def settings(
    folder: Folder, out: Path, mapping: Path | None, words: Sequence[str], project: str
) -> tuple[Settings, Path | None]:
    """The mapping that holds, and where a proposal was written, if there was none at all.

    That of `mapping`, else what stands in `out` already, else `models.yaml` in the folder.
    `words` are added for the project. Raises `ConfigError` where that contradicts what is in `out`.
    """
    there = out / sites.FILE
    own = folder.path / MAPPING
    proposed = None
    if mapping is None and there.is_file() and not words:
        return Settings.of(_read(there), there), None
    if mapping is None and not own.is_file():
        jobs = folder.records("jobs")
        write_atomic(own, proposal.text(jobs))
        proposed = own
    place = mapping or own
    text = _read(place)
    found = Settings.of(text, place)
    if words:
        if found.site.projects:
            hint = f"write them into {place}: projects.{project}.overrides"
            raise ConfigError("it settles projects itself", where=str(place), hint=hint)
        # JSON is YAML in which no word means more than itself.
        added = json.dumps({project: {"overrides": list(words)}}, ensure_ascii=False)
        text = f"{text.rstrip()}\nprojects: {added}\n"
        found = Settings.of(text, place)
    if there.is_file() and _read(there) != text:
        raise ConfigError(
            f"it differs from {place} and the overrides that were given",
            where=str(there),
            hint="leave out --map and the overrides to go on as it says, or name another --to",
        )
    return found, proposed


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        hint = "name a file such as the proposal that `--dry-run` writes without --map"
        raise ConfigError(f"cannot be read: {error}", where=str(path), hint=hint) from error
