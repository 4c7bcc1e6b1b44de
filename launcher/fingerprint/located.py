"""The files, data sets and URLs that `data.train` and `data.validation` name."""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.derive import data_entries
from launcher.config.derive.data_entries import DataEntry
from launcher.config.schema import Config
from launcher.core import runtime
from launcher.core.errors import DataError
from launcher.core.files import read_json
from launcher.fingerprint.hashes import file_digest

#: What data files are called; folders are searched for these.
SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow", ".csv", ".txt")
#: Compression that may follow the endings in `_COMPRESSIBLE`.
COMPRESSED = (".gz", ".zst")
_COMPRESSIBLE = (".jsonl", ".json", ".csv", ".txt")

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+){0,2}")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://.+", re.IGNORECASE)
#: What the library `datasets` writes about the data beside it; LLaMA-Factory's list of data sets
#: is called so, too.
ABOUT = "dataset_info.json"
_ABOUT = (ABOUT, "dataset_infos.json")
#: What `save_to_disk` writes: of a `Dataset` its state, of a `DatasetDict` its splits.
STATE, SPLITS = "state.json", "dataset_dict.json"
#: What a fetched URL has brought, written when all of it is there.
MANIFEST = "files.json"


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


@dataclass(frozen=True, slots=True)
class RemoteData:
    """A URL that has not been fetched yet; `folder` is where its files will lie."""

    url: str
    folder: Path


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A fetched file and where it came from."""

    path: Path
    url: str


Source = Path | HubData | BuiltinData | RemoteData | RemoteFile


def cache_root(config: Config) -> Path:
    """The folder of prepared data: `data.cache`, else `data/` in the launcher's cache."""
    if config.data.cache:
        return runtime.user_path(config.data.cache).resolve()
    return runtime.cache_dir() / "data"


def suffixes(name: str) -> tuple[str, str]:
    """Ending that says how a file is read, and that of its compression ("" if there is none)."""
    stem, compression = os.path.splitext(name.lower())
    if compression in COMPRESSED:
        return os.path.splitext(stem)[1], compression
    return compression, ""


def is_data(name: str) -> bool:
    """Whether a file of this name is read when it lies in a given folder."""
    ending, compression = suffixes(name)
    known = _COMPRESSIBLE if compression else SUFFIXES
    return ending in known and not name.startswith(".")


def locate(config: Config, split: str) -> list[Source]:
    """The sources that a split names, in order; files of a folder by name.

    See `launcher.config.derive.data_entries`.

    Raises `DataError` for what is not there and `ConfigError` for a value of another type.
    """
    return [
        source for item in data_entries.items(config, split) for source in find(config, item, split)
    ]


def find(config: Config, item: DataEntry, split: str) -> Iterator[Source]:
    """The sources of one entry of a split."""
    value, where = item.path, data_entries.place(split)
    if value.startswith("builtin:"):
        name = value.removeprefix("builtin:")
        side = "train" if split == "train" else "validation"
        yield BuiltinData(name, side, cache_root(config) / "builtin" / _builtin_version())
        return
    if _URL.fullmatch(value):
        yield from _remote(config, value)
        return
    path = runtime.user_path(value)
    if path.is_file():
        if is_about(path):
            raise DataError(
                f"{path} tells about a data set and is no data", where=where, hint="give its folder"
            )
        yield path
    elif path.is_dir():
        found = list(_walk(path, split))
        if not found:
            raise DataError(
                f"no data files in the folder {path}",
                where=where,
                hint=f"files are known by their endings: {', '.join(SUFFIXES)} "
                f"(also with {' or '.join(COMPRESSED)})",
            )
        yield from found
    elif glob.has_magic(value):
        matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
        # Through a loop of links "**" finds a file again and again.
        found = list({os.path.realpath(name): name for name in matches[::-1]}.values())[::-1]
        found = [name for name in found if name.is_file() and not is_about(name)]
        if not found:
            raise DataError(f"nothing matches {value}", where=where, hint="check the pattern")
        yield from found
    elif _HUB_NAME.fullmatch(value) and not is_data(value):
        hub_name, *rest = value.split(":")
        splits = tuple(rest[1:]) or usual_splits(split)
        yield HubData(hub_name, rest[0] if rest else None, splits, item.revision)
    else:
        raise DataError(
            f"no such file or folder: {value} (looked from {Path.cwd()})",
            where=where,
            hint="give an existing path, a glob, a URL, a hub data set or builtin:NAME",
        )


def usual_splits(split: str) -> tuple[str, ...]:
    """What a split is called in data sets that have several; the first that is there is meant."""
    return ("train",) if split == "train" else ("validation", "test")


def is_about(path: Path) -> bool:
    """Whether a file only tells about the data that lies beside it."""
    saved = (path.parent / name for name in (*_ABOUT, SPLITS))
    return path.name in _ABOUT or (path.name in (STATE, SPLITS) and any(map(Path.is_file, saved)))


def saved_files(state: Any, where: str) -> list[str]:
    """Names of the Arrow files of a `Dataset.save_to_disk`, in order, from its state.json.

    Raises `DataError` where that is none, or says that the rows are chosen by another file.
    """
    try:
        if state.get("_indices_data_files") or state.get("_indices_files"):
            raise DataError(
                "the folder is of an old save_to_disk, whose rows are chosen by a file of indices",
                where=where,
                hint="write it again with the library that made it: "
                "load_from_disk(OLD).flatten_indices().save_to_disk(NEW)",
            )
        return [str(file["filename"]) for file in state["_data_files"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            "does not say which files a Dataset.save_to_disk wrote",
            where=where,
            hint="write the data set again with save_to_disk, or give the .arrow files",
        ) from error


def _walk(folder: Path, split: str) -> Iterator[Path]:
    """Data files in a folder and below, by name; links are followed, each folder entered once.

    Of what `save_to_disk` wrote come the files that it names, and of several splits the usual one.
    """
    if (folder / SPLITS).is_file() and not (folder / STATE).is_file():
        folder = _chosen_split(folder, split)
    seen: set[str] = set()
    files: list[tuple[Path, int, Path]] = []  # folder, place in it where that is given, file
    for top, folders, names in os.walk(folder, followlinks=True):
        here, real = Path(top), os.path.realpath(top)
        if real in seen:  # a link back to a folder above, or a second link to the same
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        if SPLITS in names and here != folder:
            raise DataError(
                "a DatasetDict of save_to_disk inside of a folder of data",
                where=str(here),
                hint=f"give it by itself, or one of its splits: {', '.join(_splits(here))}",
            )
        if STATE in names and is_about(here / STATE):
            known = saved_files(read_json(here / STATE), str(here / STATE))
            files += [(here, place, here / name) for place, name in enumerate(known)]
            folders.clear()
        else:
            paths = [here / name for name in names if is_data(name)]
            files += [(path, 0, path) for path in paths if not is_about(path)]
    for _, _, path in sorted(files):
        if not path.is_file():
            raise DataError(
                "is no file: a link that leads nowhere, or something that is not to be read",
                where=str(path),
                hint="remove it from the folder, or give the files one by one",
            )
        yield path


def _splits(folder: Path) -> list[str]:
    """Names of the splits of a `DatasetDict` on disk."""
    raw = read_json(folder / SPLITS)
    names = raw.get("splits") if isinstance(raw, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _chosen_split(folder: Path, split: str) -> Path:
    names = _splits(folder)
    name = next((name for name in usual_splits(split) if name in names), None)
    if name is None:
        key = data_entries.place(split)
        raise DataError(
            f"save_to_disk wrote the splits {', '.join(names) or '(none)'} there, "
            f"none of them called {' or '.join(usual_splits(split))}",
            where=str(folder),
            hint=f"name one: {key}={folder / names[0]}" if names else "write the data set again",
        )
    return folder / name


def _remote(config: Config, url: str) -> Iterator[Source]:
    digest = hashlib.blake2b(url.encode(), digest_size=12).hexdigest()
    folder = cache_root(config) / "remote" / digest
    manifest = read_json(folder / MANIFEST)
    files = manifest["files"] if isinstance(manifest, dict) else []
    found = [RemoteFile(folder / file["name"], file["url"]) for file in files]
    sizes = [file["size"] for file in files]
    whole = all(
        file.path.is_file() and file.path.stat().st_size == size
        for file, size in zip(found, sizes, strict=True)
    )
    if found and whole:
        yield from found
    else:
        yield RemoteData(url, folder)


@functools.cache
def _builtin_version() -> str:
    package = Path(__file__).parents[1]
    names = ("word_problems.py", "data/builtin.py", "data/docstrings.py")
    digests = [file_digest(package / name) for name in names]
    # The docstrings are those of this Python.
    return hashlib.blake2b("".join([sys.version, *digests]).encode(), digest_size=8).hexdigest()
