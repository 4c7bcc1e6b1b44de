"""What a site has settled for its service: `serve.yaml` in the service's folder."""

from __future__ import annotations

import math
import re
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launcher.config.schema.ranges import NonNegativeInt, Range, split
from launcher.core import runtime
from launcher.core.errors import ConfigError, Problem, did_you_mean
from launcher.vllm.command import LORA_RANKS

FILE = "serve.yaml"
#: Numbers whose fields say nothing else.
_POSITIVE = Range(0, open_low=True)
#: What a model or an account may be called.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(kw_only=True, slots=True)
class Offer:
    """A base model that clients may fine-tune."""

    overrides: list[str] = field(default_factory=list)
    """What `launcher train` is given for it, after the site's: model=..., peft=..., optim.lr=..."""
    alias: str | None = None
    """Another offer that this name stands for; then there are no overrides of its own."""
    reinforcement: list[str] = field(default_factory=list)
    """What `launcher train` is given for its jobs of that method beside the overrides."""
    reasoning_effort: bool = False
    """Whether its chat template reads `reasoning_effort`."""


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
    """Bytes of all files, of parts of uploads, and of runs of evals; more are refused."""
    requests_per_minute: int | None = None
    """Of all its keys together, at each server of several."""
    questions: int | None = 1000
    """Questions to models that wait for their answers, at each server; a further one is refused."""
    batches: int | None = 100
    """Batches that have not ended; a further one is refused."""
    eval_runs: int | None = 100
    """Runs of evals that have not ended; a further one is refused."""


@dataclass(kw_only=True, slots=True)
class ProjectSettings(Quota):
    """What is settled for one project; a quota that is null here is that of every project."""

    queued_jobs: int | None = None
    """Jobs of the project that wait, if other than every project's."""
    questions: int | None = None
    """Its questions to models, if other than every project's."""
    batches: int | None = None
    """Its batches, if other than every project's."""
    eval_runs: int | None = None
    """Its runs of evals, if other than every project's."""
    account: str | None = None
    """The scheduler's account for its jobs: `cluster.account`."""
    overrides: list[str] = field(default_factory=list)
    """What `launcher train` is given for its jobs, after the site's and the model's."""


@dataclass(kw_only=True, slots=True)
class SiteJudge:
    """A model behind an OpenAI-compatible endpoint, which graders of clients may ask."""

    url: str = ""
    """Address of the service up to /v1."""
    model: str | None = None
    """Name of the model there, if it is another one."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key; one that is not set is not sent."""
    concurrency: int = 8
    """Requests at a time, of each job and each request."""
    timeout_s: float = 60.0
    """Longest wait for a reply, in seconds."""
    retries: NonNegativeInt = 4
    """New tries after a timeout, a lost connection, HTTP 429 or 5xx, with growing pauses."""


@dataclass(kw_only=True, slots=True)
class GraderSettings:
    """Graders of clients, in jobs and in requests."""

    sandbox: str = "strict"
    """What must stand around code of clients: `strict`, or `auto` where all of them are trusted."""
    timeout_s: float = 10.0
    """Longest time of a python grader for one answer, in seconds."""
    memory_mb: int = 512
    """Most memory of it, in MiB."""
    at_once: int = 2
    """Requests that are graded at a time, of one project one less; others wait."""
    request_s: float = 60.0
    """Longest time of one request, in seconds."""


@dataclass(kw_only=True, slots=True)
class VllmSettings:
    """The servers of `chat.answers: vllm`: one for each base, with its adapters."""

    python: str | None = None
    """Python that has vLLM, e.g. vllm/bin/python of an environment of its own; null is the
    server's."""
    options: list[str] = field(default_factory=list)
    """Further arguments of `vllm serve`, e.g. [--enforce-eager]."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the servers."""
    memory: float | None = None
    """Share of a GPU's memory that each takes; null is 0.9 divided by `chat.models`."""
    lora_rank: int = 64
    """Largest rank of adapters; a model with a larger one has a server of its own."""
    adapters: int = 4
    """Adapters that answer at the same moment; others wait for these."""
    requests: int = 256
    """Answers that each server is asked for at a time; others wait, projects in turn."""
    start_s: float = 900.0
    """Longest start of a server."""
    answer_s: float = 900.0
    """A server that sends nothing of an answer for so long, and is not well, is started again."""
    max_restarts: NonNegativeInt = 3
    """Times that one is started again before those who wait are told that it cannot be had."""


@dataclass(kw_only=True, slots=True)
class ChatSettings:
    """Answering with models that jobs have made."""

    answers: str = "local"
    """What draws the tokens: `local`, the model in a process of the launcher, or `vllm`, servers
    that it starts, watches and ends."""
    vllm: VllmSettings = field(default_factory=VllmSettings)
    models: int = 2
    """Models in memory at a time; the one not used for longest makes room."""
    idle_s: float = 600.0
    """A model not asked for so long leaves memory."""
    max_tokens: int = 4096
    """Longest answer."""
    gpus: bool = True
    """Whether models answer on the machine's GPUs, if there are any."""


@dataclass(kw_only=True, slots=True)
class BatchSettings:
    """Answering files of requests."""

    concurrency: int = 4
    """Requests of all batches that are answered at a time, at each server."""
    requests: int = 50_000
    """Most requests of one batch."""
    file_bytes: int = 200 << 20
    """Largest file of requests."""
    patience_s: float = 600.0
    """How long a model is asked again that has failed and not answered since, in seconds."""


@dataclass(kw_only=True, slots=True)
class WebhookSettings:
    """Telling other servers what has happened."""

    allow: list[str] = field(default_factory=list)
    """Where something may be sent: scheme, host and port, e.g. https://hooks.example.com."""
    timeout_s: float = 10.0
    """Time that an endpoint has to answer."""
    tries_s: float = 86_400.0
    """How long what an endpoint does not take is sent again."""


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
    judges: dict[str, SiteJudge] = field(default_factory=dict)
    """Name of a model that graders may ask, as clients write it -> where it is."""
    graders: GraderSettings = field(default_factory=GraderSettings)
    chat: ChatSettings = field(default_factory=ChatSettings)
    batches: BatchSettings = field(default_factory=BatchSettings)
    webhooks: WebhookSettings = field(default_factory=WebhookSettings)

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

    @property
    def has_wandb(self) -> bool:
        """Whether jobs can be followed in W&B: somebody is logged in, or the site settles how."""
        return runtime.has_wandb_credentials() or self.sets("track.wandb.mode")

    def sets(self, key: str) -> bool:
        """Whether the site's overrides settle a key for every job."""
        return any(word.lstrip("+").startswith(f"{key}=") for word in self.overrides)


#: What is offered where a site has settled nothing: runs on any machine, without network.
DEMO = {
    "tiny": Offer(
        overrides=["model=tiny", "optim.lr=2e-3", "optim.beta2=0.95"],
        reinforcement=["objective.max_new_tokens=32"],
    ),
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
        for look in (
            *(_wrong_offers, _wrong_accounts, _wrong_graders, _wrong_addresses),
            _wrong_answers,
        ):
            problems += look(site, str(path))
    if problems:
        raise ConfigError(problems)
    return site


def origin_of(url: str) -> str | None:
    """Scheme, host and port of an address over HTTP; None for another one, and for one with a
    name and password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    is_plain = url.isascii() and url.isprintable() and " " not in url and "\\" not in url
    if parts.scheme not in ("http", "https") or not parts.hostname or not is_plain:
        return None
    if parts.username is not None or parts.password is not None:
        return None
    port = {"http": 80, "https": 443}[parts.scheme] if port is None else port
    return f"{parts.scheme}://{parts.hostname}:{port}"


def _wrong_addresses(site: Site, where: str) -> list[Problem]:
    hint = "scheme, host and port alone, e.g. https://hooks.example.com"
    return [
        Problem(f"{where}: webhooks.allow[{i}]", f"{one!r} is no address", hint)
        for i, one in enumerate(site.webhooks.allow)
        if origin_of(one) is None or any(urlsplit(one.rstrip("/"))[2:])
    ]


def _wrong_answers(site: Site, where: str) -> list[Problem]:
    known, chat, found = ("local", "vllm"), site.chat, []
    if chat.answers not in known:
        hint = did_you_mean(chat.answers, known)
        return [Problem(f"{where}: chat.answers", f"{chat.answers!r} draws no tokens", hint)]
    vllm = chat.vllm
    if vllm.memory is not None and vllm.memory > 1:
        hint = "a share, such as 0.45 for each of two"
        found.append(Problem(f"{where}: chat.vllm.memory", f"{vllm.memory:g} is above 1", hint))
    if vllm.lora_rank > LORA_RANKS[-1]:
        hint = f"at most {LORA_RANKS[-1]}"
        found.append(Problem(f"{where}: chat.vllm.lora_rank", f"{vllm.lora_rank}", hint))
    return found


def _wrong_offers(site: Site, where: str) -> list[Problem]:
    found = []
    for name, offer in site.models.items():
        here = f"{where}: models.{name}"
        if not NAME.fullmatch(name):
            hint = "letters, digits, '.', '_' and '-', at most 100"
            found.append(Problem(here, "is no name of a model", hint))
        elif offer.alias and (offer.overrides or offer.reinforcement):
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
        if own.account is not None and not NAME.fullmatch(own.account)
    ]


def _wrong_graders(site: Site, where: str) -> list[Problem]:
    known, level = ("strict", "auto"), site.graders.sandbox
    found = []
    if level not in known:
        here = f"{where}: graders.sandbox"
        found.append(Problem(here, f"{level!r} is no level", did_you_mean(level, known)))
    for name, judge in site.judges.items():
        if not judge.url.startswith(("http://", "https://")):
            here, hint = f"{where}: judges.{name}.url", "for example http://localhost:8000/v1"
            found.append(Problem(here, f"{judge.url!r} is no address", hint))
    return found


def _build(hint: Any, value: Any, where: str, problems: list[Problem]) -> Any:
    hint, stated = split(hint)
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
        limits = stated or _POSITIVE
        if limits.holds(value):
            return value
        wanted = str(limits) if math.isfinite(value) else "finite"
        problems.append(Problem(where, f"{value} is not {wanted}", "mend it"))
    elif hint in (bool, str) and isinstance(value, hint):
        return value
    else:
        wanted = getattr(origin or hint, "__name__", str(hint))
        problems.append(Problem(where, f"{value!r} is no {wanted}", "mend it"))
    return value


def _build_section(cls: type, value: Any, where: str, problems: list[Problem]) -> Any:
    hints = typing.get_type_hints(cls, include_extras=True)
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
