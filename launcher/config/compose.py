"""Compose a `Config` from the command line, and read and write resolved files.

Hydra picks the YAML files (see `layers`); what leaves this file are plain dataclasses. Keys, types
and variants are checked against them by `typed`, which (unlike OmegaConf) finds all problems in one
go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher import rundir
from launcher.config import adapter, groups, layers, overrides, typed
from launcher.config.schema import Config
from launcher.errors import ConfigError, Problem

to_dict = typed.to_dict


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
        if key not in self._read:
            self._read[key] = layers.read(choices, self.folders)
        return self._read[key]


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
    asked = overrides.read(words, sources.options)
    files = sources.layers(asked.groups)
    data: dict[str, Any] = {}
    for layer in files:
        data = overrides.merged(data, layer.data)
    overrides.apply(asked.values, data)
    data = _interpolated(data)
    config, problems = typed.build(data)
    problems += adapter.settle(config, asked.values)
    unchosen = {problem.where for problem in asked.problems} & set(typed.sections())
    follow_on = [p for p in problems if p.where.partition(".")[0] in unchosen]
    problems = [problem for problem in problems if problem not in follow_on]
    return config, [*asked.problems, *(_placed(problem, asked, files) for problem in problems)]


def _placed(problem: Problem, asked: overrides.Overrides, files: list[layers.Layer]) -> Problem:
    """`problem` with the name of its file, where a file and not the command line made it."""
    if problem.where not in asked.values:
        for layer in reversed(files):
            if layer.sets(problem.where):
                return dataclasses.replace(problem, found=f"{problem.found} (in {layer.file})")
    return problem


def load(path: str | Path) -> Config:
    """Read a resolved config file written by `save`; `ConfigError` if that fails."""
    import yaml

    try:
        loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        data = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=loader)  # noqa: S506
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path), hint=_LOAD_HINT) from error
    if not isinstance(data, dict):
        raise ConfigError("is not a config", where=str(path), hint=_LOAD_HINT)
    config, problems = typed.build(data)
    if problems:
        raise ConfigError([Problem(f"{path}: {p.where}", p.found, p.hint) for p in problems])
    return config


_LOAD_HINT = "give the config.yaml of a run folder"


def dump(config: Config) -> str:
    """The resolved config as YAML text."""
    return dump_plain(to_dict(config))


def dump_plain(data: dict[str, Any]) -> str:
    """Plain data as YAML text that `load` reads back as it was, section by section."""
    import yaml

    def text(allow_unicode: bool) -> str:
        dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        options: dict[str, Any] = {"width": 100, "allow_unicode": allow_unicode}
        return str(yaml.dump(data, Dumper=dumper, sort_keys=False, **options))

    found = text(allow_unicode=True)
    # PyYAML writes these bare and reads them back as line breaks.
    return text(allow_unicode=False) if any(b in found for b in "\x85\u2028\u2029") else found


def save(config: Config, path: str | Path) -> None:
    """Write the resolved config, so that `load` returns an equal one."""
    rundir.write_atomic(Path(path), dump(config))


def _interpolated(data: dict[str, Any]) -> dict[str, Any]:
    """`data` with every `${key}` replaced; a key that no file sets has its default."""
    if not _has_interpolation(data):
        return data
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    full = overrides.merged(typed.defaults(data), data)
    try:
        node = OmegaConf.create(full)
        resolved = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        where = getattr(error, "full_key", None) or "config"
        hint = "${section.key} takes the value of that key; see `launcher config`"
        raise ConfigError(str(error).splitlines()[0], where=str(where), hint=hint) from error
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _has_interpolation(data: Any) -> bool:
    if isinstance(data, dict):
        return any(_has_interpolation(value) for value in data.values())
    if isinstance(data, list):
        return any(_has_interpolation(value) for value in data)
    return isinstance(data, str) and "${" in data
