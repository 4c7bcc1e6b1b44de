"""Where the data is and what its prepared form is called: stdlib only, so the control plane can
ask.

A prepared split lies in a folder named by a hash of everything that decides its tokens: the content
of the data files, the tokenizer, the template and the options. A folder of that name which is
complete needs no preparation, and finding it needs no tokenizer.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher import bases, rundir, runtime
from launcher.config.schema import Config, ModelConfig, TinyModelConfig
from launcher.errors import ConfigError, DataError
from launcher.rundir import RunDir, read_json, write_json

#: Raise it when `launcher.data` makes other tokens or targets from the same input.
CODE_VERSION = 1
#: Raise it when the files of a prepared folder change their layout.
LAYOUT_VERSION = 1

#: What data files are called; folders are searched for these.
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt")

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+){0,2}")
_TOKENIZER_FILES = (
    "tokenizer*",
    "chat_template*",
    "additional_chat_templates/*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)


@dataclass(frozen=True, slots=True)
class HubData:
    """A data set of the Hugging Face hub; of `splits` the first that exists is meant."""

    name: str
    subset: str | None
    splits: tuple[str, ...]
    revision: str | None


@dataclass(frozen=True, slots=True)
class BuiltinData:
    """One split of a built-in data set; `folder` is where it is written at first use."""

    name: str
    split: str
    folder: Path


Source = Path | HubData | BuiltinData


class Hashes:
    """Content hashes of files, remembered by path, size, modification time and inode."""

    #: A file this young may change again within the clock's resolution: not remembered.
    SETTLED_NS = 2_000_000_000

    def __init__(self, memo: Path) -> None:
        self._memo = memo
        raw = rundir.read_json(memo, {})
        self._known: dict[str, list[Any]] = raw if isinstance(raw, dict) else {}
        self._changed = False

    def digest(self, path: Path) -> str:
        """BLAKE2b (16 bytes, hex) of the file's content; `OSError` if it cannot be read."""
        name = str(path.resolve())
        stat = os.stat(name)
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = self._known.get(name)
        if known and known[:3] == state:
            return str(known[3])
        digest = file_digest(path)
        if stat.st_mtime_ns < time.time_ns() - self.SETTLED_NS:
            self._known[name] = [*state, digest]
            self._changed = True
        return digest

    def save(self) -> None:
        """Keep what was learned; a cache that cannot be written only costs time at the next
        start."""
        if self._changed:
            kept = {name: known for name, known in self._known.items() if os.path.exists(name)}
            with contextlib.suppress(Exception):
                rundir.write_atomic(self._memo, json.dumps(kept))


def file_digest(path: Path) -> str:
    """BLAKE2b (16 bytes, hex) of a file's content."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def cache_root(config: Config) -> Path:
    """The folder of prepared data: `data.cache`, else `data/` in the launcher's cache."""
    if config.data.cache:
        return Path(config.data.cache).expanduser().resolve()
    return runtime.cache_dir() / "data"


def is_prepared(run: RunDir, config: Config) -> bool:
    """Whether data.json of the run names complete caches; writes it if they exist already.

    A resumed run keeps the caches it began with, also when the source files have changed since.
    Raises `DataError` when the source files are missing, or as `require_same_data` does.
    """
    named = read_json(run.data)
    if isinstance(named, dict) and all(
        Path(folder, "index.json").is_file() for folder in named.values() if folder
    ):
        return True
    require_same_data(run, config)
    found = lookup(config)
    if found is None:
        return False
    write_json(run.data, found)
    return True


def require_same_data(run: RunDir, config: Config) -> None:
    """`DataError` if the run began with other data than its sources would give now."""
    named = read_json(run.data)
    if not isinstance(named, dict):
        return
    now = data_keys(config)
    if any(folder and Path(folder).name != now.get(split) for split, folder in named.items()):
        raise DataError(
            "the prepared data of this run is gone, and its sources have changed since",
            where=str(run.data),
            hint="restore the data files, or start a new run",
        )


def lookup(config: Config) -> dict[str, str | None] | None:
    """{"train": folder, "validation": folder or None} if both are prepared and undamaged, else
    None.

    Raises `DataError` for data files that are missing and `ConfigError` for a template that is.
    """
    root = cache_root(config)
    hashes = Hashes(root / "hashes.json")
    folders: dict[str, str | None] = {}
    for split, key in data_keys(config, hashes).items():
        index = complete_index(root / key, hashes) if key else None
        if key and not index:
            return None
        folders[split] = str(root / key) if key and index and index["records"] else None
    hashes.save()
    return folders


def complete_index(folder: Path, hashes: Hashes) -> dict[str, Any] | None:
    """Content of index.json if every file of the cache is there with its size and checksum."""
    index = rundir.read_json(folder / "index.json")
    try:
        if index["version"] != LAYOUT_VERSION:
            return None
        for name, size in index["sizes"].items():
            file = folder / f"{name}.bin"
            if file.stat().st_size != size or hashes.digest(file) != index["checksums"][name]:
                return None
    except (OSError, KeyError, TypeError, AttributeError):
        return None
    return dict(index)


def data_keys(config: Config, hashes: Hashes | None = None) -> dict[str, str | None]:
    """Names of the prepared folders of the splits; None where there is no such split."""
    hashes = hashes or Hashes(cache_root(config) / "hashes.json")
    data = config.data
    options = {
        "versions": [CODE_VERSION, LAYOUT_VERSION],
        "tokenizer": _tokenizer(config.model, hashes),
        "all_targets": config.objective.learns_every_token,
        **{
            name: getattr(data, name)
            for name in ("format", "columns", "system", "max_length", "overlong", "bad_records")
        },
        "limit": data.limit,
    }
    train = [_identity(source, hashes) for source in locate(config, "train")]
    if data.validation is not None:
        held_out = [_identity(source, hashes) for source in locate(config, "validation")]
        return {"train": _key(options, train), "validation": _key(options, held_out)}
    if not data.validation_share:
        return {"train": _key(options, train), "validation": None}
    options |= {"share": data.validation_share, "seed": config.seed}
    return {
        "train": _key(options, train, "train"),
        "validation": _key(options, train, "validation"),
    }


def locate(config: Config, split: str) -> list[Source]:
    """The sources that `data.train` or `data.validation` names, in order; files of a folder by
    name.

    Raises `DataError` for what is not there and `ConfigError` for a value of another type.
    """
    value = getattr(config.data, split)
    where = f"data.{split}"
    if value is None or value == []:
        raise ConfigError("no data given", where=where, hint=f"{where}=PATH, GLOB or hub name")
    values = value if isinstance(value, list) else [value]
    for item in values:
        if not isinstance(item, str):
            raise ConfigError(f"{item!r} is not a path or name", where=where, hint="give text")
    return [source for item in values for source in _locate(config, item, split)]


def _locate(config: Config, value: str, split: str) -> Iterator[Source]:
    where = f"data.{split}"
    if value.startswith("builtin:"):
        name = value.removeprefix("builtin:")
        yield BuiltinData(name, split, cache_root(config) / "builtin" / _builtin_version())
        return
    path = Path(value).expanduser()
    if path.is_file():
        yield path
    elif path.is_dir():
        found = sorted(
            Path(folder, name)
            for folder, folders, names in os.walk(path)
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        )
        if not found:
            raise DataError(
                f"no data files in the folder {path}",
                where=where,
                hint=f"files are known by their endings: {', '.join(SUFFIXES)}",
            )
        yield from found
    elif glob.has_magic(value):
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        if not any(name.is_file() for name in found):
            raise DataError(f"nothing matches {value}", where=where, hint="check the pattern")
        yield from (name for name in found if name.is_file())
    elif _HUB_NAME.fullmatch(value) and not value.lower().endswith(SUFFIXES):
        hub_name, *rest = value.split(":")
        usual = ("train",) if split == "train" else ("validation", "test")
        splits = tuple(rest[1:]) or usual
        yield HubData(hub_name, rest[0] if rest else None, splits, config.data.revision)
    else:
        raise DataError(
            f"no such file or folder: {value} (looked from {Path.cwd()})",
            where=where,
            hint="give an existing path, a glob, a hub data set or builtin:NAME",
        )


def _identity(source: Source, hashes: Hashes) -> list[Any]:
    if isinstance(source, Path):
        try:
            return ["file", source.name, hashes.digest(source)]
        except OSError as error:
            raise DataError(
                f"cannot be read: {error.strerror}", where=str(source), hint="check permissions"
            ) from error
    if isinstance(source, BuiltinData):
        return ["builtin", source.name, source.split, source.folder.name]
    return ["hub", *asdict(source).values()]


def _tokenizer(model: ModelConfig, hashes: Hashes) -> list[Any]:
    template = None
    if model.chat_template:
        try:
            template = hashes.digest(Path(model.chat_template).expanduser())
        except OSError as error:
            raise ConfigError(
                f"{model.chat_template} cannot be read: {error.strerror}",
                where="model.chat_template",
                hint="give the path of a file with a Jinja chat template",
            ) from error
    source = model.tokenizer or model.name
    content: Any = [source, None if model.tokenizer else model.revision]
    if isinstance(model, TinyModelConfig) and not model.tokenizer:
        content = bases.tiny_folder(model, runtime.cache_dir()).name
    elif source and Path(source).expanduser().is_dir():
        folder = Path(source).expanduser()
        files = sorted({file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)})
        content = [[file.name, hashes.digest(file)] for file in files if file.is_file()]
    return [content, template, list(model.add_tokens)]


@functools.cache
def _builtin_version() -> str:
    package = Path(__file__).parent
    digests = [file_digest(package / name) for name in ("stories.py", "data/builtin.py")]
    return hashlib.blake2b("".join(digests).encode(), digest_size=8).hexdigest()


def _key(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=lambda member: member.name)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
