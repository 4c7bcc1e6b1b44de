"""What a site has settled for its service: `serve.yaml` in the service's folder."""

from __future__ import annotations

import re
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError, Problem, did_you_mean

FILE = "serve.yaml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(kw_only=True, slots=True)
class Offer:
    """A base model that clients may fine-tune."""

    overrides: list[str] = field(default_factory=list)
    """What `launcher train` is given for it, after the site's: model=..., peft=..., optim.lr=..."""
    alias: str | None = None
    """Another offer that this name stands for; then there are no overrides of its own."""


@dataclass(kw_only=True, slots=True)
class Queue:
    """Jobs on this machine. With a scheduler, that is the queue."""

    parallel: int = 1
    """Jobs at a time; the machine's GPUs are divided among them."""


@dataclass(kw_only=True, slots=True)
class Limits:
    """What one request, file or key may take."""

    file_bytes: int = 512 << 20
    """Largest file of POST /v1/files."""
    upload_bytes: int = 8 << 30
    """Largest file that comes in parts."""
    part_bytes: int = 64 << 20
    """Largest part."""
    line_bytes: int = 8 << 20
    """Longest line of a JSONL file."""
    body_bytes: int = 4 << 20
    """Largest body of any other request."""
    requests_per_minute: int = 6000
    """Of one key, unless the key says otherwise."""
    idle_s: float = 30.0
    """A connection that sends nothing for so long in the middle of a request is closed."""


@dataclass(kw_only=True, slots=True)
class Quota:
    """What a project may have at a time; null is no limit."""

    running_jobs: int | None = None
    """Jobs that run, or are in a scheduler's queue; further ones wait."""
    queued_jobs: int | None = 1000
    """Jobs that wait; a further one is refused."""
    stored_bytes: int | None = None
    """Bytes of all files, and of parts of uploads; more are refused."""
    requests_per_minute: int | None = None
    """Of all its keys together, at each server of several."""
    questions: int | None = 1000
    """Questions to models that wait for their answers, at each server; a further one is refused."""


@dataclass(kw_only=True, slots=True)
class ProjectSettings(Quota):
    """What is settled for one project; a quota that is null here is that of every project."""

    queued_jobs: int | None = None
    """Jobs of the project that wait, if other than every project's."""
    questions: int | None = None
    """Its questions to models, if other than every project's."""
    account: str | None = None
    """The scheduler's account for its jobs: `cluster.account`."""
    overrides: list[str] = field(default_factory=list)
    """What `launcher train` is given for its jobs, after the site's and the model's."""


@dataclass(kw_only=True, slots=True)
class ChatSettings:
    """Answering with models that jobs have made."""

    models: int = 2
    """Models in memory at a time; the one not used for longest makes room."""
    idle_s: float = 600.0
    """A model not asked for so long leaves memory."""
    max_tokens: int = 4096
    """Longest answer."""
    gpus: bool = True
    """Whether models answer on the machine's GPUs, if there are any."""


@dataclass(kw_only=True, slots=True)
class Site:
    """The whole file."""

    organization: str = "local"
    """Stands in the names of fine-tuned models."""
    database: str | None = None
    """URL of the database; null is SQLite in the service's folder."""
    files: str | None = None
    """Where files lie: a folder or any URL of fsspec; null is the service's folder."""
    overrides: list[str] = field(default_factory=list)
    """What `launcher train` is given for every job, e.g. launch=slurm cluster=mine."""
    models: dict[str, Offer] = field(default_factory=dict)
    """Name that clients use -> what it stands for here."""
    queue: Queue = field(default_factory=Queue)
    limits: Limits = field(default_factory=Limits)
    quota: Quota = field(default_factory=Quota)
    """Of every project."""
    projects: dict[str, ProjectSettings] = field(default_factory=dict)
    """Name of a project -> what is settled for it alone."""
    chat: ChatSettings = field(default_factory=ChatSettings)

    def resolve(self, name: str) -> str | None:
        """The offer that `name` stands for, aliases followed; None if nothing is offered."""
        offer = self.models.get(name)
        if offer is None:
            return None
        return offer.alias or name

    def quota_of(self, project: str) -> Quota:
        """The quota of a project, by name."""
        own = self.projects.get(project)
        if own is None:
            return self.quota
        limits = {name.name: getattr(own, name.name) for name in fields(Quota)}
        return replace(
            self.quota, **{key: most for key, most in limits.items() if most is not None}
        )

    def sets(self, key: str) -> bool:
        """Whether the site's overrides settle a key for every job."""
        return any(word.lstrip("+").startswith(f"{key}=") for word in self.overrides)


#: What is offered where a site has settled nothing: runs on any machine, without network.
DEMO = {
    "tiny": Offer(overrides=["model=tiny", "optim.lr=2e-3", "optim.beta2=0.95"]),
    "gpt-3.5-turbo": Offer(alias="tiny"),
}


def read(path: Path) -> Site:
    """The site's settings; the defaults if there is no file.

    Raises `ConfigError` with every key and value that is wrong.
    """
    import yaml

    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path), hint="mend it") from error
    problems: list[Problem] = []
    site: Site = _build(Site, {} if raw is None else raw, str(path), problems)
    if not problems:
        problems += [*_wrong_offers(site, str(path)), *_wrong_accounts(site, str(path))]
    if problems:
        raise ConfigError(problems)
    return site


def _wrong_offers(site: Site, where: str) -> list[Problem]:
    found = []
    for name, offer in site.models.items():
        here = f"{where}: models.{name}"
        if not _NAME.fullmatch(name):
            hint = "letters, digits, '.', '_' and '-', at most 100"
            found.append(Problem(here, "is no name of a model", hint))
        elif offer.alias and offer.overrides:
            found.append(Problem(here, "has an alias and overrides", "keep one of them"))
        elif offer.alias and offer.alias not in site.models:
            hint = did_you_mean(offer.alias, site.models)
            found.append(Problem(f"{here}.alias", f"no model {offer.alias!r}", hint))
        elif offer.alias and site.models[offer.alias].alias:
            found.append(Problem(f"{here}.alias", "is an alias itself", "name its target"))
    return found


def _wrong_accounts(site: Site, where: str) -> list[Problem]:
    hint = "letters, digits, '.', '_' and '-', at most 100"
    return [
        Problem(f"{where}: projects.{name}.account", f"{own.account!r} is no account", hint)
        for name, own in site.projects.items()
        if own.account is not None and not _NAME.fullmatch(own.account)
    ]


def _build(hint: Any, value: Any, where: str, problems: list[Problem]) -> Any:
    if typing.get_origin(hint) is types.UnionType:
        inner = next(option for option in typing.get_args(hint) if option is not types.NoneType)
        return None if value is None else _build(inner, value, where, problems)
    if is_dataclass(hint):
        return _build_section(typing.cast(type, hint), value, where, problems)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict and isinstance(value, dict):
        return {
            str(key): _build(arguments[1], item, f"{where}.{key}", problems)
            for key, item in value.items()
        }
    if origin is list and isinstance(value, list):
        return [
            _build(arguments[0], item, f"{where}[{i}]", problems) for i, item in enumerate(value)
        ]
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if hint in (int, float) and isinstance(value, hint) and not isinstance(value, bool):
        if value > 0:
            return value
        problems.append(Problem(where, f"{value} is not above 0", "mend it"))
    elif hint in (bool, str) and isinstance(value, hint):
        return value
    else:
        wanted = getattr(origin or hint, "__name__", str(hint))
        problems.append(Problem(where, f"{value!r} is no {wanted}", "mend it"))
    return value


def _build_section(cls: type, value: Any, where: str, problems: list[Problem]) -> Any:
    hints = typing.get_type_hints(cls)
    if not isinstance(value, dict):
        keys = ", ".join(hints)
        problems.append(Problem(where, f"{value!r} is no mapping", f"its keys: {keys}"))
        return cls()
    known = {}
    for key, item in value.items():
        here = f"{where}{': ' if cls is Site else '.'}{key}"
        if key in hints:
            known[key] = _build(hints[key], item, here, problems)
        else:
            problems.append(Problem(here, "unknown key", did_you_mean(str(key), hints)))
    return cls(**known)
