"""What answers for models: a process for each of them, or one for all that share a base."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from fastapi.concurrency import run_in_threadpool

from launcher import bases
from launcher.config.compose import compose
from launcher.config.schema import Config
from launcher.config.schema.model import Quantization
from launcher.config.schema.peft import AdapterConfig, LoraConfig
from launcher.core import processes, registry, runtime
from launcher.core.errors import ConfigError, LauncherError
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir
from launcher.core.runtime import environment_without_ranks
from launcher.runs.start import working_folder
from launcher.serve.chat.model_process import Failed, Line, Talker
from launcher.serve.service import Service
from launcher.serve.site import Site, VllmSettings

#: Longest end of a server of vLLM: its engine's processes are several.
_VLLM_END_S = 20.0
#: GPU memory that servers take, all together.
_MEMORY = 0.9
#: Folder of the servers' in the service's, and the file in each that says whose it is.
_FOLDER, _MARK = ".vllm-servers", "launcher-server"
#: A folder that nobody has touched for so long, and whose server is gone, was left by a crash.
_LEFT_S = 600.0
#: What of `model` says how it computes, not what it is.
_COMPUTES = (
    *("dtype", "attention", "kernels", "fp8", "gradient_checkpointing", "activation_gib"),
    *("compile", "chat_template", "quantization"),
)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from: a job at a step (None: its export), or a base's overrides."""

    job: str | None = None
    step: int | None = None
    overrides: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SharedBase:
    """A base that adapters are answered upon, by what it is made of."""

    key: str


#: What a process answers for.
Seat = ModelSource | SharedBase


class ModelEngine(Protocol):
    """How models are brought to answer."""

    async def seat(self, source: ModelSource) -> Seat:
        """What answers for a model. Raises `Failed` for one that is gone."""

    def seats(self, source: ModelSource) -> Sequence[Seat]:
        """The same as far as it is known already: none or one."""

    def request(self, source: ModelSource, request: Line) -> Line:
        """A request as the process reads it."""

    def farewell(self, seat: Seat, source: ModelSource) -> Line | None:
        """What the process is told of a model that is no more; None if it ends with it."""

    async def open(self, seat: Seat, source: ModelSource) -> Talker:
        """Start it, for this model to begin with. Raises `Failed`."""


def require_vllm(site: Site, where: str) -> None:
    """`ConfigError` if answers are to come from vLLM, and there is none."""
    python = site.chat.vllm.python
    if site.chat.answers != "vllm":
        return
    if python is None and not registry.installed("vllm"):
        found = "this Python has no vLLM, and no other is given"
    elif python is not None and shutil.which(runtime.user_path(python)) is None:
        found = f"no command {python!r}"
    else:
        return
    hint = "python -m venv vllm && vllm/bin/pip install vllm, then python: vllm/bin/python"
    raise ConfigError(found, where=f"{where}: chat.vllm.python", hint=hint)


def engine_of(service: Service) -> ModelEngine:
    """That which the site has settled."""
    if service.site.chat.answers == "vllm":
        return _Vllm(service)
    return Local(service)


class Local:
    """A process for each model, which has it in memory."""

    def __init__(self, service: Service) -> None:
        self._service, self._chat = service, service.site.chat

    async def seat(self, source: ModelSource) -> Seat:
        return source

    def seats(self, source: ModelSource) -> Sequence[Seat]:
        return [source]

    def request(self, source: ModelSource, request: Line) -> Line:
        return request

    def farewell(self, seat: Seat, source: ModelSource) -> Line | None:
        return None

    async def open(self, seat: Seat, source: ModelSource) -> Talker:
        words = ["--max-tokens", str(self._chat.max_tokens)]
        if source.job is None:
            for own in _config_dirs(self._service):
                words += ["--config-dir", own]
            words += ["--overrides", *source.overrides]
        else:
            words = [str(self._service.runs / source.job), *words]
            words += [] if source.step is None else ["--checkpoint", str(source.step)]
        return await Talker.start(words, _cwd(self._service, source), _environment(self._service))


class _Vllm:
    """A process for each base, which a server of vLLM draws the tokens for."""

    def __init__(self, service: Service) -> None:
        self._service, self._chat = service, service.site.chat
        self._seats: dict[ModelSource, Seat] = {}
        self._one_by_one = threading.Lock()
        _sweep(service.home / _FOLDER)
        self._owner = {"space": processes.space(), "pid": os.getpid(), "since": time.time()}

    async def seat(self, source: ModelSource) -> Seat:
        if source not in self._seats:
            try:
                self._seats[source] = await run_in_threadpool(self._found, source)
            except LauncherError as error:
                raise Failed(str(error)) from error
        return self._seats[source]

    def seats(self, source: ModelSource) -> Sequence[Seat]:
        return [self._seats[source]] if source in self._seats else []

    def request(self, source: ModelSource, request: Line) -> Line:
        return {**request, "model": self._named(source)}

    def farewell(self, seat: Seat, source: ModelSource) -> Line | None:
        return {"forget": self._named(source)} if isinstance(seat, SharedBase) else None

    async def open(self, seat: Seat, source: ModelSource) -> Talker:
        folder = self._service.home / _FOLDER / secrets.token_hex(8)
        await run_in_threadpool(_sweep, folder.parent)
        try:
            folder.mkdir(mode=0o700, parents=True)
            write_json(folder / _MARK, self._owner, durable=False)
        except (OSError, LauncherError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            why = getattr(error, "strerror", None) or error
            raise Failed(f"{folder} cannot be made: {why}") from error
        settings: dict[str, Any] = asdict(self._chat.vllm)
        if python := settings["python"]:  # it starts in another folder
            found = shutil.which(runtime.user_path(python))
            settings["python"] = os.path.abspath(found or python)
        settings["memory"] = settings["memory"] or _MEMORY / self._chat.models
        opening = {
            "model": self._named(source),
            "is_shared": isinstance(seat, SharedBase),
            "folder": str(folder),
            "max_tokens": self._chat.max_tokens,
            "vllm": settings,
        }
        try:
            return await Talker.start(
                (),
                _cwd(self._service, source),
                _environment(self._service),
                module="launcher.inference.vllm.worker",
                opening=opening,
                to_end_s=_VLLM_END_S,
                scratch=folder,
            )
        except OSError as error:
            raise Failed(f"it cannot be started: {error.strerror}") from error

    def _named(self, source: ModelSource) -> Line:
        """The model as the process reads it: see `launcher.inference.vllm.opening`."""
        if source.job is None:
            dirs = _config_dirs(self._service)
            return {"overrides": list(source.overrides), "config_dirs": dirs}
        return {"run": str(self._service.runs / source.job), "step": source.step}

    def _found(self, source: ModelSource) -> Seat:
        with self._one_by_one:  # what is remembered of bases is the process's
            if source.job is None:
                config = compose.compose(source.overrides, _config_dirs(self._service))
            else:
                run = RunDir(self._service.runs / source.job).require()
                config = compose.load(run.config, runs_code=False)
                bases.recall(run, config.model)
            if not is_shared(config, self._chat.vllm, is_base=source.job is None):
                return source
            return SharedBase(_key(config, Path(_cwd(self._service, source))))


def is_shared(config: Config, settings: VllmSettings, *, is_base: bool) -> bool:
    """Whether a run's model (or the base itself) is answered upon the server of its base: low-rank
    adapters of no more than `settings.lora_rank`, without anything trained beside them."""
    if config.model.add_tokens:
        return False
    peft = config.peft
    start = peft.adapter if isinstance(peft, AdapterConfig) else None
    if is_base:
        return start is None
    if not isinstance(peft, LoraConfig) or config.model.quantization is not Quantization.none:
        return False
    about: dict[str, Any] = read_json(Path(start) / "adapter_config.json", {}) if start else {}
    rank = max([about.get("r", peft.rank), *about.get("rank_pattern", {}).values()])
    is_plain = not (about.get("use_dora", peft.dora) or peft.modules_to_save)
    return is_plain and not about.get("modules_to_save") and rank <= settings.lora_rank


def _key(config: Config, cwd: Path) -> str:
    """What tells bases apart; folders are named as seen from `cwd`."""
    made = bases.trained_base(config.model)
    model = {name: value for name, value in asdict(config.model).items() if name not in _COMPUTES}
    for name in ("name", "tokenizer", "adapter"):
        own = model.get(name)
        if isinstance(own, str) and (folder := cwd / Path(own).expanduser()).is_dir():
            model[name] = str(folder.resolve())
    return json.dumps([str(made or ""), model], sort_keys=True, default=str)


def _config_dirs(service: Service) -> list[str]:
    own = service.home / "conf"
    return [str(own)] if own.is_dir() else []


def _cwd(service: Service, source: ModelSource) -> str:
    if source.job is None:
        return str(service.home)
    return str(working_folder(RunDir(service.runs / source.job)))


def _environment(service: Service) -> dict[str, str]:
    found = environment_without_ranks()
    if not service.site.chat.gpus:
        found["CUDA_VISIBLE_DEVICES"] = ""
    return found


def _sweep(folder: Path) -> None:
    """Remove what servers have left that were killed with all who kept them, or before any did."""
    for left in folder.glob("*/"):
        if left.is_symlink() or not (left / _MARK).is_file():
            continue
        is_wanted = (left / "order.json").exists()
        beat = left / "server-0.json" if is_wanted else left
        try:
            since = beat.stat().st_mtime
        except OSError:
            since = left.stat().st_mtime
        is_old = time.time() - since > _LEFT_S
        is_owned = _is_there(read_json(left / _MARK))
        if (is_owned is False and not is_wanted) or (not is_owned and is_old):
            shutil.rmtree(left, ignore_errors=True)


def _is_there(owner: Any) -> bool | None:
    """Whether the service that has made a folder lives; None if that cannot be told from here."""
    if not isinstance(owner, dict) or owner["space"] != processes.space():
        return None
    return processes.alive(owner["pid"], owner["since"])
