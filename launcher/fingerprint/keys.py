"""Names of prepared folders, and whether they are there."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher import bases
from launcher.config import schema
from launcher.config.derive import copies, data_entries
from launcher.config.derive.data_entries import DataEntry
from launcher.config.schema import (
    Config,
    ModelConfig,
    ObjectiveConfig,
    Ranking,
    TinyModelConfig,
)
from launcher.config.schema.conversion import to_dict
from launcher.core import files, owncode, runtime
from launcher.core.errors import ConfigError, DataError
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir
from launcher.fingerprint.hashes import Hashes
from launcher.fingerprint.located import (
    BuiltinData,
    RemoteData,
    RemoteFile,
    Source,
    cache_root,
    find,
)

#: Raise it when `launcher.data` makes other tokens or targets from the same input.
CODE_VERSION = 7
#: Raise it when the files of a prepared folder change their layout.
LAYOUT_VERSION = 3

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
class Part:
    """Sources that are prepared together: all of a split, or one source of a mixture."""

    split: str
    item: DataEntry
    sources: tuple[Source, ...]
    keys: dict[str, str]
    """Split -> name of the folder; two of them if a share of the records is held out."""
    share: float
    """Share of records held out."""
    mixed: bool
    """Whether the split is a mixture, of which this is one source."""


def is_prepared(run: RunDir, config: Config) -> bool:
    """Whether data.json of the run names complete caches; writes it if they exist already.

    A resumed run keeps the caches it began with, also when the source files have changed since.
    Raises `DataError` when the source files are missing, or as `require_same_data` does.
    """
    named = read_json(run.data)
    if isinstance(named, dict) and all(_is_there(Path(f)) for f in _folders(named).values()):
        return True
    require_same_data(run, config)
    if config.data.gate or config.eval.slices:  # the preparation looks at the records for them
        return False
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
    if any(isinstance(source, RemoteData) for part in parts(config) for source in part.sources):
        return  # nothing is known of them before they are fetched again
    now = data_keys(config)
    if any(Path(folder).name != now.get(split) for split, folder in _folders(named).items()):
        raise DataError(
            "the prepared data of this run is gone, and would be other data now: its sources have"
            " changed, or the launcher prepares them otherwise",
            where=str(run.data),
            hint="restore the data files, or start a new run",
        )


def lookup(config: Config) -> dict[str, str | None] | None:
    """Split -> folder, None where no record is held out; None if not all are there undamaged.

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


def _folders(named: dict[str, Any]) -> dict[str, str]:
    """The folders in data.json by split."""
    return {split: folder for split, folder in named.items() if isinstance(folder, str)}


def _is_there(folder: Path) -> bool:
    """Whether a cache of this version is there, as far as index.json tells."""
    index = read_json(folder / "index.json")
    if not isinstance(index, dict) or index.get("version") != LAYOUT_VERSION:
        return False
    return all(_is_there(folder.with_name(part["folder"])) for part in index.get("mixture", ()))


def complete_index(folder: Path, hashes: Hashes) -> dict[str, Any] | None:
    """Content of index.json if every file of the cache is there with its size and checksum."""
    index = files.read_json(folder / "index.json")
    try:
        if index["version"] != LAYOUT_VERSION:
            return None
        for part in index.get("mixture", ()):
            if complete_index(folder.with_name(part["folder"]), hashes) is None:
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
    made = parts(config, hashes)
    keys: dict[str, str | None] = dict.fromkeys(
        ["train", "validation", *data_entries.splits(config)]
    )
    for split in keys:
        mine = [part for part in made if split in part.keys]
        if not mine:
            continue
        if not mine[0].mixed:
            keys[split] = mine[0].keys[split]
            continue
        shares = [[p.item.name, p.item.weight, p.item.epochs] for p in mine]
        temperature = config.data.temperature
        keys[split] = _key(
            "mixture",
            [part.keys[split] for part in mine],
            [shares, temperature] if split == "train" else [share[0] for share in shares],
        )
    return keys


def parts(config: Config, hashes: Hashes | None = None) -> list[Part]:
    """What is to be prepared, in order."""
    hashes = hashes or Hashes(cache_root(config) / "hashes.json")
    data = config.data
    options = {
        "versions": [CODE_VERSION],
        "tokenizer": tokenizer_identity(config.model, hashes),
        **{name: getattr(data, name) for name in ("labels", "system", "max_length", "overlong")},
        "chat": [data.template_options, data.thoughts, data.learn_empty_thoughts],
        "special_tokens": data.special_tokens,
        "bad_records": data.bad_records,
        **({} if data.ranked is Ranking.all else {"ranked": data.ranked}),
    }
    held_out = data.validation_share if data.validation is None else 0.0
    found = []
    for split in data_entries.splits(config):
        share = held_out if split == "train" else 0.0
        mixed = data_entries.is_mixture(config, split)
        for item, sources in _groups(config, split):
            mine = options | {
                "format": _format(item.format, hashes),
                "columns": item.columns,
                "limit": item.limit,
                **_objective(config, split, hashes),
            }
            content = [_identity(source, hashes) for source in sources]
            if share:
                mine |= {"share": share, "seed": config.seed}
                keys = {side: _key(mine, content, side) for side in ("train", "validation")}
            else:
                keys = {split: _key(mine, content)}
            found.append(Part(split, item, tuple(sources), keys, share, mixed))
    return found


def _objective(config: Config, split: str, hashes: Hashes) -> dict[str, Any]:
    """How the objective makes tokens of examples: what several of the launcher's make alike, they
    share."""
    encoding = config.objective.encoding(split)
    if config.objective.samples:  # what has no answer is read, too
        encoding = {**encoding, "asks": True}
    if type(config.objective).__module__.startswith(f"{schema.__name__}."):
        return encoding
    name, *options = objective_identity(config, hashes)
    if not options:
        return encoding
    is_said = type(config.objective).encoding is not ObjectiveConfig.encoding
    return {"objective": [name, encoding if is_said else options[0]]}


def objective_identity(config: Config, hashes: Hashes | None = None) -> list[Any]:
    """What an objective is told by: its name, or the content of its file; then, of one that is not
    the launcher's, all its options, a grader's file by its content."""
    objective = config.objective
    if type(objective).__module__ == ObjectiveConfig.__module__:
        return [objective.name]
    hashes = hashes or Hashes(cache_root(config) / "hashes.json")
    name = objective.name
    identity = _code(runtime.user_path(name), hashes) if name.endswith(".py") else name
    options = {key: value for key, value in to_dict(objective).items() if key != "name"}
    for slot in copies.files({"objective": options}):
        with contextlib.suppress(OSError):  # it says so itself
            slot.put(hashes.digest(runtime.user_path(slot.get())))
    return [identity, options]


def _groups(config: Config, split: str) -> list[tuple[DataEntry, list[Source]]]:
    """What of a split is prepared together: every entry of a mixture alone, otherwise all."""
    entries = data_entries.items(config, split)
    found = [(item, list(find(config, item, split))) for item in entries]
    if data_entries.is_mixture(config, split):
        return found
    return [(entries[0], [source for _, sources in found for source in sources])]


def _format(name: str, hashes: Hashes) -> Any:
    """Identity of a format; a user's own file counts by its content."""
    if not name.endswith(".py"):
        return name
    try:
        return ["own", _code(runtime.user_path(name), hashes)]
    except OSError as error:
        raise ConfigError(
            f"{name} cannot be read: {error.strerror}",
            where="data.format",
            hint="give the path of a Python file with a class Format",
        ) from error


def _code(path: Path, hashes: Hashes) -> str:
    """Digest of a Python file of the user's, with the modules that it imports from beside it; of a
    copy that of the original. `OSError` if it cannot be read."""
    modules = owncode.modules(path)
    own = hashes.digest(path)
    return (
        _key(own, [[name, hashes.digest(file)] for name, file in modules.items()])
        if modules
        else own
    )


def _identity(source: Source, hashes: Hashes) -> list[Any]:
    if isinstance(source, RemoteData):  # its content is not known before it is fetched
        return ["url", source.url]
    if isinstance(source, Path | RemoteFile):
        path = source.path if isinstance(source, RemoteFile) else source
        try:
            return ["file", path.name, hashes.digest(path)]
        except OSError as error:
            raise DataError(
                f"cannot be read: {error.strerror}", where=str(path), hint="check permissions"
            ) from error
    if isinstance(source, BuiltinData):
        return ["builtin", source.name, source.split, source.folder.name]
    return ["hub", *asdict(source).values()]


def tokenizer_identity(model: ModelConfig, hashes: Hashes) -> list[Any]:
    """What decides tokens and template: digests of the files, or the name at the hub."""
    template = None
    if model.chat_template:
        try:
            template = hashes.digest(runtime.user_path(model.chat_template))
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
    elif source and runtime.user_path(source).is_dir():
        folder = runtime.user_path(source)
        files = sorted({file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)})
        content = [[file.name, hashes.digest(file)] for file in files if file.is_file()]
    return [content, template, list(model.add_tokens)]


def _key(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=lambda member: member.name)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
