"""Compose a `Config` from the command line, and read and write resolved files.

Hydra picks the YAML files (see `layers`); what leaves this file are plain dataclasses. Keys, types
and variants are checked against them by `typed`, which (unlike OmegaConf) finds all problems in one
go.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from launcher.config.compose import groups, layers, overrides, ownfile
from launcher.config.compose.ownfile import OwnFile
from launcher.config.derive import adapter, copies
from launcher.config.schema import Config, conversion, values, variants
from launcher.core import files, owncode, runtime
from launcher.core.errors import ConfigError, Problem

to_dict = conversion.to_dict


def compose(words: Sequence[str], config_dirs: Iterable[str | Path] = ()) -> Config:
    """The config that overrides such as `engine=zero2` or `optim.lr=1e-4` select.

    `config_dirs` are further folders of group options, beside the packaged `conf/`.
    Raises `ConfigError` with all unknown keys, unknown options, wrong types and syntax errors.
    """
    config, problems = try_compose(words, config_dirs)
    if problems:
        raise ConfigError(problems)
    return config


class Sources:
    """The folders of groups and what was read from them, for callers that compose many configs."""

    def __init__(self, config_dirs: Iterable[str | Path] = ()) -> None:
        self.folders = groups.search_path(config_dirs)
        self.options = groups.options_in(self.folders)
        self._read: dict[tuple[tuple[str, str | None], ...], list[layers.Layer]] = {}

    def layers(self, choices: Mapping[str, str | None]) -> list[layers.Layer]:
        """The files for these group choices, read once; the caller leaves them as they are."""
        key = tuple(choices.items())
        if len(self.folders) == 1:
            return _packaged(key, self.folders[0])
        if key not in self._read:
            self._read[key] = layers.read(choices, self.folders)
        return self._read[key]


@lru_cache(maxsize=128)
def _packaged(choices: tuple[tuple[str, str | None], ...], conf: Path) -> list[layers.Layer]:
    """The files of the packaged `conf/` alone: they stay as they are while this process lives."""
    return layers.read(dict(choices), [conf])


def try_compose(
    words: Sequence[str],
    config_dirs: Iterable[str | Path] = (),
    sources: Sources | None = None,
) -> tuple[Config, list[Problem]]:
    """Like `compose`, but returns the problems, with defaults in the place of what was wrong.

    For callers that want to report the findings of `checks.check` in the same message. `sources`
    stands in for `config_dirs` where many are composed.
    """
    sources = sources or Sources(config_dirs)
    asked = ask(words, sources)
    data: dict[str, Any] = {}
    for layer in sources.layers(asked.groups):
        data = overrides.merged(data, layer.data)
    for own in asked.files:
        overrides.apply(own.values, data)
    overrides.apply(asked.values, data)
    data = _interpolated(data)
    own = data.get("objective", {}).get("name")
    if copies.is_code(own):  # ranks and later commands start elsewhere
        data["objective"] = {**data["objective"], "name": os.path.abspath(os.path.expanduser(own))}
    config, problems = conversion.build(data)
    problems += adapter.settle(config, asked.given())
    config.eval.metrics = variants.metrics_of(config)
    follow_on = [p for p in problems if p.where.partition(".")[0] in asked.unchosen]
    problems = [problem for problem in problems if problem not in follow_on]
    return config, [*asked.problems, *_placed(problems, asked, sources)]


def interpolates(words: Sequence[str], sources: Sources) -> bool:
    """Whether a value that the words or their files give is made of other keys', by `${key}`."""
    asked = ask(words, sources)
    given = [asked.values, *(own.values for own in asked.files)]
    given += [layer.data for layer in sources.layers(asked.groups)]
    return any(map(_has_interpolation, given))


@dataclass(slots=True)
class Asked:
    """What a command line asks for: its overrides, and the files of one's own below them."""

    groups: dict[str, str | None]
    """Group -> chosen option, by whichever of them."""
    values: dict[str, Any]
    """Dotted key -> plain value of the overrides."""
    texts: dict[str, str]
    """Group or dotted key -> the override as typed."""
    files: list[OwnFile]
    """Lowest first."""
    unchosen: set[str]
    """Sections whose option is not known, so that their keys are not judged."""
    problems: list[Problem]
    """Everything that cannot be used."""

    def given(self) -> set[str]:
        """The dotted keys that the user has set."""
        return set(self.values).union(*(own.values for own in self.files))


def ask(words: Sequence[str], sources: Sources) -> Asked:
    """Read a command line; raises `ConfigError` for a file that cannot be read."""
    read = [ownfile.read(word, sources.options) for word in words if ownfile.is_named(word)]
    typed_words = overrides.read(
        [word for word in words if not ownfile.is_named(word)],
        sources.options,
        [
            section
            for section in variants.OWN_OPTIONS
            if any(
                str(own.values.get(conversion.name_key(section))).endswith(".py") for own in read
            )
        ],
    )
    chosen: dict[str, str | None] = {}
    for index, own in enumerate(read):
        for group, option in own.groups.items():
            for below in read[:index]:
                ownfile.give_way(below, group, option, sources.folders, sources.options[group])
        chosen = {**chosen, **own.named, **own.groups}
    for group, option in typed_words.groups.items():
        for own in read:
            ownfile.give_way(own, group, option, sources.folders, sources.options[group])
    problems = [*(problem for own in read for problem in own.problems), *typed_words.problems]
    wheres = {problem.where.rpartition(": ")[2] for problem in problems}
    asked = Asked(
        groups=chosen | typed_words.groups,
        values=typed_words.values,
        texts=typed_words.texts,
        files=read,
        unchosen=wheres & conversion.sections(),
        problems=problems,
    )
    if read and typed_words.groups.get("experiment"):
        asked.problems += _hidden(asked, sources)
    return asked


def _hidden(asked: Asked, sources: Sources) -> list[Problem]:
    """A recipe on the command line that a file of one's own hides altogether: not in silence."""
    name = asked.groups["experiment"]
    for layer in sources.layers(asked.groups):
        if layer.file.stem == name and layer.file.parent.name == "experiment":
            keys = [key for key in layer.lines if key in conversion.leaves()]
            if all(any(own.sets(key) for own in asked.files) for key in keys):
                files = " and ".join(own.shown for own in asked.files)
                hint = f"leave it out, or put `defaults: [{{experiment: {name}}}]` into a file \
that says only what differs"
                found = f"{name!r} changes nothing: {files} sets all that it sets"
                return [Problem("experiment", found, hint)]
    return []


def located(problems: Sequence[Problem], words: Sequence[str], sources: Sources) -> list[Problem]:
    """Problems of keys, found later than by `try_compose`, with the files that made them."""
    return _placed(problems, ask(words, sources), sources)


def _placed(problems: Sequence[Problem], asked: Asked, sources: Sources) -> list[Problem]:
    """Problems with file:line, where a file and not the command line has set the key."""
    files = sources.layers(asked.groups)
    return [_placed_one(problem, asked, files) for problem in problems]


def _placed_one(problem: Problem, asked: Asked, files: list[layers.Layer]) -> Problem:
    if not problem.where or problem.where in asked.values or problem.where in asked.unchosen:
        return problem
    for own in reversed(asked.files):
        if own.sets(problem.where):
            return dataclasses.replace(
                problem, where=f"{own.place(problem.where)}: {problem.where}"
            )
    for layer in reversed(files):
        if layer.sets(problem.where):
            place = layer.place(problem.where)
            if not problem.found.endswith(f"(in {place})"):
                return dataclasses.replace(problem, found=f"{problem.found} (in {place})")
    return problem


def load(path: str | Path, *, runs_code: bool = True) -> Config:
    """Read a resolved config file written by `save`; `ConfigError` if that fails, or if a Python
    file that it names may be another user's doing.

    Without `runs_code` no such file is run, or has to be there: bookkeeping needs none. A section
    whose options are in one has nothing but its name then.
    """
    import yaml

    path = Path(path).absolute()
    try:
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path), hint=_LOAD_HINT) from error
    if not isinstance(data, dict):
        raise ConfigError("is not a config", where=str(path), hint=_LOAD_HINT)
    data = copies.beside(path, _renamed(_unescaped(data)))
    named = {slot.where: slot.get() for slot in copies.slots(data)}
    if runs_code:
        for slot in copies.slots(data):
            code = runtime.user_path(slot.get())
            for file in (code, *owncode.modules(code).values()):
                _require_trusted(file, path, is_kept=code.parent == path.parent)
        config, problems = conversion.build(data)
    else:
        sections = {key for key in variants.OWN_OPTIONS if conversion.name_key(key) in named}
        config, problems = conversion.build({key: data[key] for key in data if key not in sections})
        for section in sections:
            bare = conversion.fields(Config)[section](name=named[conversion.name_key(section)])
            setattr(config, section, bare)
    if problems:
        raise ConfigError([Problem(f"{path}: {p.where}", p.found, p.hint) for p in problems])
    return config


def _require_trusted(code: Path, config: Path, *, is_kept: bool) -> None:
    """Raise `ConfigError` if another user could have written a Python file that a run folder names:
    whoever reads the run would run it. What lies elsewhere has been typed by the maker of the run.
    """
    is_mine = config.stat().st_uid == os.geteuid()
    is_typed = is_mine and not is_kept
    if is_typed or runtime.trusts_code() or not code.exists():
        return
    facts, folder = code.stat(), code.resolve().parent.stat()
    is_open = bool(facts.st_mode & stat.S_IWOTH)
    is_open |= bool(folder.st_mode & stat.S_IWOTH and not folder.st_mode & stat.S_ISVTX)
    if facts.st_uid in (os.geteuid(), 0) and not is_open:
        return
    closing = shlex.quote(str(code.parent)), shlex.quote(str(code))
    hint = f"read it; to run it all the same, set {runtime.TRUST_VARIABLE}=1"
    if facts.st_uid in (os.geteuid(), 0):
        hint += f"; or close it, as its owner: `chmod o-w {' '.join(closing)}`"
    found = f"names code that another user can have written: {files.ownership(code)}"
    raise ConfigError(found, where=str(config), hint=hint)


def _renamed(data: dict[str, Any]) -> dict[str, Any]:
    """`data` under the names that keys have now: run folders of earlier versions have others."""
    limits = data.get("watchdog") or {}
    for name in ("timeout", "start", "eval", "save"):
        if name in limits:
            limits[f"{name}_s"] = limits.pop(name)
    return data


_LOAD_HINT = "give the config.yaml of a run folder"


def dump(config: Config) -> str:
    """The resolved config as YAML text."""
    return dump_plain(to_dict(config))


def dump_plain(data: Any) -> str:
    """Plain data as YAML text that `load` reads back as it was, section by section.

    So does a file of one's own: text that looks like a number is in quotes, and `${` is escaped.
    """
    return dump_as_is(_escaped(data))


def dump_as_is(data: Any) -> str:
    """Plain data as YAML text, `${` and all: words that were typed, for any reader of YAML."""
    import yaml

    def text(**more: Any) -> str:
        options: dict[str, Any] = {"width": 100, "allow_unicode": True, **more}
        dumper = _dumper(options.pop("base", "CSafeDumper"))
        return str(yaml.dump(data, Dumper=dumper, sort_keys=False, **options))

    found = text()
    if "\\U000" in found:  # libyaml escapes emoji, which PyYAML's own writer leaves readable
        found = text(base="SafeDumper")
    # PyYAML writes these bare and reads them back as line breaks.
    return text(allow_unicode=False) if any(b in found for b in "\x85\u2028\u2029") else found


@cache
def _dumper(base: str) -> Any:
    """PyYAML's, which knows of numbers only what YAML 1.1 says: 1e3 is none there."""
    import yaml

    class Dumper(getattr(yaml, base, yaml.SafeDumper)):  # type: ignore[misc]
        pass

    def text(dumper: Any, value: str) -> Any:
        style = None if isinstance(values.scalar(value), str) else "'"
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return Dumper


def save(config: Config, path: str | Path) -> None:
    """Write the resolved config, so that `load` returns an equal one. Python files of the user's
    that lie beside it are named without their folder: a run may move."""
    data = copies.unplaced(to_dict(config), Path(path).absolute().parent)
    files.write_atomic(Path(path), dump_plain(data))


#: `${`, with the backslashes before it: an odd number of them says that it is text.
_INTERPOLATION = re.compile(r"(\\*)\$\{")


def _escaped(data: Any) -> Any:
    """`data` with `${` in its texts written so that it is read as text."""
    return _mapped(data, lambda text: _INTERPOLATION.sub(r"\1\1\\${", text))


def _unescaped(data: Any) -> Any:
    """What `_escaped` was made from."""

    def plain(match: re.Match[str]) -> str:
        return match[1][: len(match[1]) // 2] + "${"

    return _mapped(data, lambda text: _INTERPOLATION.sub(plain, text))


def _mapped(data: Any, change: Callable[[str], str]) -> Any:
    """`data` with all texts that hold `${` changed, keys left alone."""
    if isinstance(data, dict):
        return {key: _mapped(value, change) for key, value in data.items()}
    if isinstance(data, list):
        return [_mapped(value, change) for value in data]
    return change(data) if isinstance(data, str) and "${" in data else data


def _interpolated(data: dict[str, Any]) -> dict[str, Any]:
    """`data` with every `${key}` replaced, and `\\${` by what it stands for.

    A key that no file sets has its default.
    """
    if not _has_interpolation(data):
        plain: dict[str, Any] = _unescaped(data)
        return plain
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    full = overrides.merged(conversion.defaults(data), data)
    try:
        node = OmegaConf.create(full)
        resolved = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        where = getattr(error, "full_key", None) or "config"
        hint = r"${section.key} takes the value of that key; \${ is the characters themselves"
        raise ConfigError(str(error).splitlines()[0], where=str(where), hint=hint) from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _has_interpolation(data: Any) -> bool:
    if isinstance(data, dict):
        return any(_has_interpolation(value) for value in data.values())
    if isinstance(data, list):
        return any(_has_interpolation(value) for value in data)
    if not isinstance(data, str) or "${" not in data:
        return False
    return any(len(match[1]) % 2 == 0 for match in _INTERPOLATION.finditer(data))
