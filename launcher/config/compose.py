"""Compose a `Config` with Hydra, and read and write resolved files.

The only file that touches Hydra's compose API and OmegaConf; what leaves it are plain dataclasses.
Hydra picks and merges the YAML files. Keys, types and variants are checked against the dataclasses
by
`typed`, which (unlike OmegaConf) finds all problems in one go and costs a tenth of the start-up
time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher import rundir
from launcher.config import groups, overrides, typed
from launcher.config.schema import Config
from launcher.errors import ConfigError, Problem

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Hydra's own settings (logging, output folder, launcher): unused here, and slow to load.
_HYDRA_PARTS = (
    "env",
    "help",
    "hydra_help",
    "hydra_logging",
    "job_logging",
    "launcher",
    "output",
    "sweeper",
)

to_dict = typed.to_dict


def compose(words: Sequence[str], config_dirs: Iterable[str | Path] = ()) -> Config:
    """The config that overrides such as `engine=zero2` or `optim.lr=1e-4` select.

    `config_dirs` are further folders of group options, beside the packaged `conf/`.
    Raises `ConfigError` with every unknown key, unknown option, wrong type and syntax error at
    once.
    """
    config, problems = try_compose(words, config_dirs)
    if problems:
        raise ConfigError(problems)
    return config


def try_compose(
    words: Sequence[str], config_dirs: Iterable[str | Path] = ()
) -> tuple[Config, list[Problem]]:
    """Like `compose`, but returns the problems, with defaults in the place of what was wrong.

    For callers that want to report the findings of `checks.check` in the same message.
    """
    folders = groups.search_path(config_dirs)
    asked = overrides.read(words, groups.options_in(folders))
    data = composed(asked.groups, folders)
    overrides.apply(asked.values, data)
    data = _interpolated(data)
    config, problems = typed.build(data)
    unchosen = {problem.where for problem in asked.problems} & set(typed.sections())
    follow_on = [p for p in problems if p.where.partition(".")[0] in unchosen]
    problems = [problem for problem in problems if problem not in follow_on]
    return config, [*asked.problems, *_placed(problems, asked, folders)]


def _placed(
    problems: list[Problem], asked: overrides.Overrides, folders: Sequence[Path]
) -> list[Problem]:
    """`problems` with the name of the file, where a file and not the command line made them."""
    if all(problem.where in asked.values for problem in problems):
        return problems
    files = sources(asked.groups, folders)
    result = []
    for problem in problems:
        if problem.where not in asked.values:
            for file, package, content in reversed(files):
                nested = {package: content} if package else content
                if typed.select(nested, problem.where, files) is not files:
                    problem = dataclasses.replace(problem, found=f"{problem.found} (in {file})")
                    break
        result.append(problem)
    return result


def composed(choices: dict[str, str | None], folders: Sequence[Path]) -> dict[str, Any]:
    """What the YAML files alone say for these group choices, as nested plain data (unresolved)."""
    from omegaconf import OmegaConf

    with _hydra(folders) as words:
        from hydra import compose as hydra_compose

        node = hydra_compose(groups.ROOT, overrides=[*_group_words(choices), *words])
        data = OmegaConf.to_container(node, resolve=False)
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}


def sources(
    choices: dict[str, str | None], folders: Sequence[Path]
) -> list[tuple[Path, str, dict[str, Any]]]:
    """The YAML files that Hydra merges, in order: (file, dotted package, content)."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    found = []
    with _hydra(folders) as words:
        loader = GlobalHydra.instance().config_loader()
        chosen = loader.compute_defaults_list(
            groups.ROOT, [*_group_words(choices), *words], RunMode.RUN
        )
        for default in chosen.defaults:
            file = groups.option_file(folders, default.config_path or "")
            if file is None:  # one of Hydra's own
                continue
            content = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
            if isinstance(content, dict):
                content.pop("defaults", None)
                found.append((file, default.package or "", {str(k): v for k, v in content.items()}))
    return found


def load(path: str | Path) -> Config:
    """Read a resolved config file written by `save`; `ConfigError` if that fails."""
    import yaml

    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
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
    import yaml

    data = to_dict(config)
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=100)
    if any(breaks in text for breaks in "\x85\u2028\u2029"):
        # PyYAML writes these bare and reads them back as line breaks.
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=False, width=100)
    return text


def save(config: Config, path: str | Path) -> None:
    """Write the resolved config, so that `load` returns an equal one."""
    rundir.write_atomic(Path(path), dump(config))


def _group_words(choices: dict[str, str | None]) -> list[str]:
    return [f"{group}={name}" for group, name in choices.items() if name is not None]


@contextlib.contextmanager
def _hydra(folders: Sequence[Path]) -> Iterator[list[str]]:
    """Hydra set up on `folders`; yields overrides that leave out its own settings.

    Its errors become `ConfigError`. Garbage collection rests meanwhile: the many small objects that
    parsing and merging make would otherwise be walked again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        import yaml
        from hydra import initialize_config_dir
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        words = [f"~hydra/{part}" for part in _HYDRA_PARTS]
        if len(folders) > 1:
            paths = (str(folder).replace('"', '\\"') for folder in folders[1:])
            words.append("hydra.searchpath=[" + ",".join(f'"file://{p}"' for p in paths) + "]")
        try:
            with initialize_config_dir(str(folders[0]), version_base="1.3"):
                yield words
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            hint = "mend the YAML file that the message names"
            raise ConfigError(str(error).strip(), where="config files", hint=hint) from error
    finally:
        if enabled:
            gc.enable()


def _interpolated(data: dict[str, Any]) -> dict[str, Any]:
    """`data` with every `${key}` replaced; a key that no file sets has its default."""
    if not _has_interpolation(data):
        return data
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    full = overrides.merged(typed.defaults(data), data)
    try:
        node: DictConfig = OmegaConf.create(full)
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
