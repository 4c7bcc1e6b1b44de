"""What a run needs before it can start: its base model, its data, the packages that it names.

Whatever preparation and ranks would stop at for want of something is found here, so `plan`,
`--dry-run` and a submission refuse it beforehand. The hub is asked only for what is not cached.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from launcher import entry
from launcher.config.derive import data_entries, memory
from launcher.config.schema import AdapterConfig, Config, TinyModelConfig, TrackerConfig, variants
from launcher.config.schema.launch import ContainerRuntime
from launcher.config.schema.variants import TRACKERS
from launcher.core import registry, runtime
from launcher.core.errors import (
    ConfigError,
    DataError,
    ExitCode,
    LauncherError,
    Problem,
    StorageError,
)
from launcher.core.files import read_json, storage_errors
from launcher.core.rundir import RunDir
from launcher.fingerprint import (
    SUFFIXES,
    HubData,
    RemoteData,
    RemoteFile,
    Source,
    located,
    suffixes,
)
from launcher.graders import wire
from launcher.graders.grader import Setting

#: Seconds that the hub has to answer.
HUB_TIMEOUT_S = 3.0
#: ending of a data file -> the package that reads it.
FILE_PACKAGES = {".parquet": "pyarrow", ".arrow": "pyarrow", ".zst": "zstandard"}
#: what a gate on the data looks with.
GATE_PACKAGES = ("ftfy", "phonenumbers", "py3langid", "rensa", "sklearn")
_PATH_STARTS = (".", "/", "~")


def require(config: Config) -> None:
    """Raise `ConfigError` with all that is missing, `DataError` if it is data alone, and
    `StorageError` where runs cannot be written.

    In a queue a path in a folder that this host does not have may be on the nodes, and passes.
    """
    packages = [] if _is_contained(config) else _packages(config)
    problems = [*_model(config), *_files(config), *packages, *_graders(config)]
    data = list(_data(config))
    if data and not problems:
        raise DataError(data)
    if problems:
        raise ConfigError([*problems, *data])
    if unfit := list(_adapters(config)):
        raise ConfigError(unfit)
    if refused := list(_records(config)):
        are_wrong = any(code == ExitCode.usage for code, _ in refused)
        raise (ConfigError if are_wrong else DataError)([problem for _, problem in refused])
    _require_root(Path(config.run.root))
    _require_root(located.cache_root(config))


def _require_root(root: Path) -> None:
    """Raise `StorageError` unless the folder of the runs is there or can be made."""
    there = next(
        folder for folder in (root.absolute(), *root.absolute().parents) if folder.exists()
    )
    with storage_errors(root):
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(there, os.W_OK | os.X_OK):
            code = errno.EROFS if os.statvfs(there).f_flag & os.ST_RDONLY else errno.EACCES
            raise OSError(code, os.strerror(code))
        try:  # a pseudo file system, a full disk or a quota shows only so
            os.rmdir(tempfile.mkdtemp(prefix=".launcher-", dir=there))
        except FileNotFoundError as error:
            raise OSError(errno.EROFS, f"no folder can be made in {there}") from error


def _model(config: Config) -> Iterator[Problem]:
    model = config.model
    if isinstance(model, TinyModelConfig) or not model.name or _on_nodes(config, model.name):
        return
    yield from _pretrained("model.name", model.name, model.revision)
    tokenizer = model.tokenizer
    if not tokenizer or not tokenizer.startswith(_PATH_STARTS) or _on_nodes(config, tokenizer):
        return
    if not runtime.user_path(tokenizer).is_dir():
        hint = "leave it out to take the model's own tokenizer"
        yield Problem("model.tokenizer", f"no such folder: {tokenizer}", hint)


def _files(config: Config) -> Iterator[Problem]:
    """Files that the config names, besides model and data."""
    named = {
        "model.chat_template": getattr(config.model, "chat_template", None),
        "objective.environment": getattr(config.objective, "environment", None),
    }
    if config.data.format.endswith(".py"):
        named["data.format"] = config.data.format
    if config.objective.name.endswith(".py"):
        named["objective.name"] = config.objective.name
    if "json_schema" in variants.metrics_of(config):
        named["eval.json_schema"] = config.eval.json_schema
    if "judge" in variants.metrics_of(config):
        named["eval.judge.prompt"] = config.eval.judge.prompt
    for where, name in named.items():
        if name and not os.access(runtime.user_path(name), os.R_OK) and not _on_nodes(config, name):
            found = f"no such file, or it cannot be read: {name} (looked from {Path.cwd()})"
            yield Problem(where, found, "give the path of a file")


def _on_nodes(config: Config, name: str) -> bool:
    """Whether a path may lie on a disk that only the nodes of a cluster have."""
    path = runtime.user_path(name)
    if not config.launch.has_queue or not path.is_absolute() or path.exists():
        return False
    # In an image, or put there by the setup, it may have any folder above it.
    return not path.parent.exists() or bool(config.cluster.setup) or _is_contained(config)


def _is_contained(config: Config) -> bool:
    """Whether the ranks run in an image, with packages and files of its own."""
    runs_in = config.cluster.container.runtime
    return config.launch.has_queue and runs_in is not ContainerRuntime.none


def _pretrained(where: str, name: str, revision: str | None) -> Iterator[Problem]:
    if memory.local_folder(name, revision):
        return
    folder = runtime.user_path(name)
    if folder.exists():
        hint = "give the folder of a Hugging Face model"
        yield Problem(where, f"there is no config.json in {name}", hint)
    elif name.startswith(_PATH_STARTS) or name.count("/") > 1:
        hint = "give an existing folder, or a name of the hub"
        yield Problem(where, f"no such folder: {name} (looked from {Path.cwd()})", hint)
    elif reason := _hub_refuses(f"models/{name}", revision):
        hint = f"check the name; `hf download {name}` fetches it where there is network"
        yield Problem(where, f"{name} is no folder here and not in the hub's cache; {reason}", hint)


def _data(config: Config) -> Iterator[Problem]:
    for split in data_entries.splits(config):
        where = data_entries.place(split)
        sources: list[Source] = []
        for item in data_entries.items(config, split):
            try:
                sources += located.find(config, item, split)
            except LauncherError as error:
                if not _on_nodes(config, item.path):
                    yield from error.problems
        for source in sources:
            yield from _unreadable(source)
        needed = dict.fromkeys(package for source in sources for package in _readers(source))
        missing = [package for package in needed if not registry.installed(package)]
        missing = [] if _is_contained(config) else missing
        for package in missing:
            found = f"reading it needs {package}, which is not installed"
            yield Problem(where, found, registry.install(package, "data"))
        if "datasets" in missing:
            continue
        for source in sources:
            if not isinstance(source, HubData) or _is_cached(source.name):
                continue
            if reason := _hub_refuses(f"datasets/{source.name}", source.revision):
                hint = "check path or name; without network give downloaded files"
                yield Problem(where, f"no such file here: {source.name}; {reason}", hint)


def _adapters(config: Config) -> Iterator[Problem]:
    """What the ranks would say of the layers that adapters are to be on, where the model's files
    are here."""
    if not isinstance(config.peft, AdapterConfig) or config.peft.adapter or _is_contained(config):
        return
    shape = memory.model_shape(config)
    known = shape is not None and memory.knows_layers(config.peft, shape)
    if known and not config.objective.has_sequence_head:
        return
    if isinstance(config.model, TinyModelConfig) or (
        config.model.name and memory.local_folder(config.model.name, config.model.revision)
    ):
        yield from (problem for _, problem in _previewed("launcher.model.preview", config))


def _records(config: Config) -> Iterator[tuple[int, Problem]]:
    """What preparation would say of the records of files that are here, and its exit code."""
    named = [
        path for split in data_entries.splits(config) for path in data_entries.paths(config, split)
    ]
    if not _is_contained(config) and not all(path.startswith("builtin:") for path in named):
        yield from _previewed("launcher.data.preview", config)


def _previewed(module: str, config: Config) -> Iterator[tuple[int, Problem]]:
    """What `module`, of the run plane, finds wrong with `config`, and the exit code of that."""
    from launcher.config.compose import compose

    # A full or missing /tmp is no reason not to start.
    with (
        contextlib.suppress(OSError, StorageError),
        tempfile.TemporaryDirectory(prefix="launcher-preview-") as folder,
    ):
        run = RunDir(folder)
        compose.save(config, run.config)
        # Its answer is a file: code of the user's own may print.
        entry.call(module, folder, stdout=subprocess.DEVNULL)
        for code, *problem in read_json(run.path / "preview.json", []):
            yield code, Problem(*problem)


def _unreadable(source: Source) -> Iterator[Problem]:
    """What keeps a file from being read at all; its records are the preparation's affair."""
    if not isinstance(source, Path):
        return
    if suffixes(source.name)[0] not in SUFFIXES:
        hint = f"use one of {', '.join(SUFFIXES)}"
        yield Problem(str(source), "files of this ending are not known", hint)
    elif not os.access(source, os.R_OK):
        yield Problem(str(source), "cannot be read: Permission denied", "check its permissions")
    elif source.stat().st_size == 0:
        yield Problem(str(source), "the file is empty", "give a file with records")


def _readers(source: Source) -> Iterator[str]:
    """The packages that reading a source needs."""
    if isinstance(source, HubData):
        yield "datasets"
    elif isinstance(source, RemoteData):
        yield "fsspec"
    elif isinstance(source, Path | RemoteFile):
        path = source.path if isinstance(source, RemoteFile) else source
        yield from (FILE_PACKAGES[end] for end in suffixes(path.name) if end in FILE_PACKAGES)


def _is_cached(name: str) -> bool:
    """Whether `datasets` has kept something of a data set; what exactly, only it can tell."""
    folders = (
        runtime.datasets_cache() / name.replace("/", "___"),
        runtime.hub_cache() / f"datasets--{name.replace('/', '--')}",
    )
    return any(folder.is_dir() for folder in folders)


def _graders(config: Config) -> Iterator[Problem]:
    """What is wrong with the graders that are metrics."""
    setting = Setting.of(config.eval)
    for name in variants.metrics_of(config):
        if name.startswith(variants.GRADER):
            try:
                wire.from_file(name.removeprefix(variants.GRADER), setting).close()
            except ConfigError as error:
                yield from error.problems


def _packages(config: Config) -> Iterator[Problem]:
    trackers = {name: getattr(config.track, name, None) for name in TRACKERS}
    wanted = [
        (f"track.{name}", tracker.package, tracker.package)
        for name, tracker in trackers.items()
        if isinstance(tracker, TrackerConfig) and tracker.is_on and tracker.package
    ]
    wanted += [
        ("eval.metrics", package, "eval")
        for metric in variants.metrics_of(config)
        if (package := variants.metric_rows(config)[metric].package)
    ]
    if config.data.gate:
        wanted += [("data.gate", package, "data") for package in GATE_PACKAGES]
    for where, package, extra in dict.fromkeys(wanted):
        if not registry.installed(package):
            found = f"needs the package {package}, which is not installed"
            yield Problem(where, found, registry.install(package, extra))


def _hub_refuses(path: str, revision: str | None) -> str | None:
    """Why the hub will not give a model or a data set; None if it will, or cannot say."""
    endpoint = runtime.hub_endpoint()
    if endpoint is None:
        return "HF_HUB_OFFLINE keeps the hub from being asked"
    return _refused(endpoint, path, revision, runtime.hub_token())


@functools.cache
def _refused(endpoint: str, path: str, revision: str | None, token: str | None) -> str | None:
    import ssl  # with the rest slow to import, and only what is not cached needs it
    import urllib.error
    import urllib.parse
    import urllib.request

    address = f"{endpoint.rstrip('/')}/api/{urllib.parse.quote(path)}"
    if revision:
        address += f"/revision/{urllib.parse.quote(revision, safe='')}"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if not address.startswith(("https://", "http://")):
        return f"{endpoint} is not a web address"
    request = urllib.request.Request(address, method="HEAD", headers=headers)  # noqa: S310 - checked above
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        known = error.code in (400, 401, 403, 404)
        return f"the hub says {error.code} {error.reason}" if known else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        # The client waits longer and may know other certificates: it is to say so itself.
        if isinstance(reason, TimeoutError | ssl.SSLError):
            return None
        return f"the hub does not answer: {reason}"
