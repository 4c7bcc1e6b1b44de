"""Make run folders of trials: a thousand take seconds.

Group files are read once for all trials, and so is what a run notes of its environment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.config import create
from launcher.config.compose import compose
from launcher.config.derive import copies
from launcher.config.derive.plan import Plan
from launcher.config.schema import Config
from launcher.config.schema.sweep import SweepConfig
from launcher.core.errors import ConfigError
from launcher.core.files import as_json, close_code, storage_errors
from launcher.core.rundir import RunDir, State, Status
from launcher.sweeps.folder import Request, SweepDir, Trial, content


class Maker:
    """Composes trials of one sweep and makes their folders."""

    def __init__(
        self,
        sweep: SweepDir,
        request: Request,
        world_size: int | None = None,
        sources: compose.Sources | None = None,
    ) -> None:
        """`world_size` is that of trials that do not say `launch.processes` themselves."""
        self.sweep = sweep
        self.request = request
        self._world_size = world_size
        self._sources = sources or compose.Sources(request.config_dirs)
        self._environment: dict[str, Any] | None = None
        self._dumper = Dumper()
        self.made: dict[int, Config] = {}

    def composed(self, words: Sequence[str]) -> tuple[Config, Plan]:
        """Config and plan of a trial with these overrides of its own; `ConfigError`."""
        config, problems = compose.try_compose((*self.request.fixed, *words), sources=self._sources)
        config.sweep = SweepConfig()
        config.run.root = str(self.sweep.path.parent)
        # A trial is a run of its own name; that of the sweep is its group.
        config.run.name = None
        group = config.track.wandb.group
        config.track.wandb.group = self.sweep.name if group is None else group
        world = None if config.launch.processes else self._world_size
        return create.judged(config, problems, world)

    def make(self, number: int, words: Sequence[str]) -> Trial:
        """Make the folder of a trial; one whose config is wrong is made in state `failed`."""
        path = self.sweep.trial_path(number)
        trial = Trial(number, RunDir(path), tuple(words))
        files = {trial.file.name: as_json(content(number, words))}
        try:
            config, plan = self.composed(words)
        except ConfigError as error:
            status = Status(State.failed, str(error), int(error.exit_code), time=time.time())
        else:
            status = Status(State.preparing, time=time.time())
            config.run.root, config.run.name = str(self.sweep.path), path.name
            if self._environment is None:
                self._environment = {**create.environment(), "cwd": self.request.cwd}
            typed = (*self.request.fixed, *words)
            for file, text in create.contents(trial.run, plan, typed, self._environment).items():
                files[file.name] = text
            files |= copies.keep(config, path)
            files[trial.run.config.name] = self._dumper.text(config)
            self.made[number] = config
        files[trial.run.status_file.name] = as_json(
            {**dataclasses.asdict(status), "state": status.state.value}
        )
        _write(path, files, trial.run.config.name)
        return trial


class Dumper:
    """`compose.dump` for many configs: a section like that of the trial before costs nothing."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[str, str]] = {}

    def text(self, config: Config) -> str:
        """The config as YAML text."""
        names = (field.name for field in dataclasses.fields(config))
        return "".join(self._section(name, getattr(config, name)) for name in names)

    def _section(self, key: str, value: Any) -> str:
        before = self._before.get(key)
        # Compared as text, because 1 == 1.0 == True.
        shown = repr(value)
        if before is None or before[0] != shown:
            plain = compose.to_dict(value) if dataclasses.is_dataclass(value) else value
            before = self._before[key] = (shown, compose.dump_plain({key: plain}))
        return before[1]


def _write(path: Path, files: dict[str, str], frozen: str) -> None:
    """Make a folder with these files, all at once for a reader.

    Nothing waits for the disk: a trial that a power cut takes away is made again from sweep.json.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with storage_errors(path):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, text in files.items():
            (temporary / name).parent.mkdir(exist_ok=True, parents=True)
            (temporary / name).write_text(text, encoding="utf-8")
        if frozen in files:
            (temporary / frozen).chmod((temporary / frozen).stat().st_mode & 0o444)
        close_code(temporary)
        _set_aside(path)
        temporary.rename(path)


def _set_aside(path: Path) -> None:
    """Move out of the way what a power cut has left of a trial; nothing of it is deleted."""
    number = 1
    while (aside := path.with_name(f".{path.name}.{number}")).exists():
        number += 1
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
