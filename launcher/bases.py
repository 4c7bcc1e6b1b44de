"""The models that the launcher makes itself: where they are kept, and the making of a base.

`python -m launcher.bases RUN_DIR` trains the base that a run's `model.recipe` names, or merges its
`model.adapter` into its base, once. Standard
library only, so both planes can ask.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher import __version__, entry
from launcher.config.schema import Config, ModelConfig, TinyModelConfig
from launcher.core import runtime
from launcher.core.errors import ConfigError, ExitCode, LauncherError
from launcher.core.files import open_lock, read_json, storage_errors, write_json
from launcher.core.rundir import RunDir

#: The options that decide what a tiny model is; the rest of its config says how it is used.
TINY_OPTIONS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "layers",
    "heads",
    "kv_heads",
    "max_positions",
    "tie_embeddings",
)

#: Source files that decide what a tiny model is.
_TINY_SOURCES = ("word_problems.py", "model/tiny.py")

#: Options without influence on the weights that a recipe ends with.
_IDLE = {
    "model": ("recipe",),
    "data": ("validation", "cache", "workers"),
    "batch": ("micro",),
    "train": ("log_every_steps", "threads"),
}
_SECTIONS = ("model", "data", "objective", "peft", "batch", "train", "optim", "schedule")


def tiny_folder(config: TinyModelConfig, cache_dir: Path) -> Path:
    """Where the tiny model of these options lies, whether made yet or not."""
    options = {name: getattr(config, name) for name in TINY_OPTIONS}
    return cache_dir / "tiny" / _digest(_sources(*_TINY_SOURCES), options)


def base_key(config: Config) -> str:
    """Key of the base that the recipe `config` trains: a hash of what decides its weights, the base
    that it begins with itself too.

    The cut into ranks, ZeRO stage, logging, evaluation and launch do not.
    """
    raw = asdict(config)
    for section, options in _IDLE.items():
        for option in options:
            raw[section].pop(option, None)
    sections = {name: raw[name] for name in _SECTIONS}
    sources = _sources(*_TINY_SOURCES, "data/builtin.py")
    before = trained_base(config.model)
    more = [] if before is None else [before.name]
    return _digest(__version__, sources, config.seed, config.engine.precision, sections, *more)


@functools.cache
def _sources(*names: str) -> str:
    package = Path(__file__).parent
    return _digest(*(package.joinpath(name).read_text(encoding="utf-8") for name in names))


def _digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=lambda member: member.name)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def trained_base(model: ModelConfig) -> Path | None:
    """Folder of the base that is made before the run, made or not: what `model.recipe` pre-trains,
    or a base with `model.adapter` merged in; None where the model is there as it is."""
    if model.adapter is not None:
        return runtime.cache_dir() / "merged" / _adapted_key(model, model.adapter)
    words = _recipe_words(model)
    if words is None:
        return None
    if words not in _KEYS:
        _KEYS[words] = _composed_key(words)
    return runtime.cache_dir() / "bases" / _KEYS[words]


#: Words of a recipe -> key of the base that it pre-trains, as this process has read or made it.
_KEYS: dict[tuple[str, ...], str] = {}


def _composed_key(words: tuple[str, ...]) -> str:
    from launcher.config.compose import compose

    return base_key(compose.compose(words))


def freeze(run: RunDir, model: ModelConfig) -> None:
    """Write into the run folder which base its recipe pre-trains, where it does not say so yet, and
    `recall` it."""
    if not recall(run, model):
        renew(run, model)


def recall(run: RunDir, model: ModelConfig) -> bool:
    """Take what `freeze` wrote for the base of this recipe from here on; False if it wrote nothing.

    So a rank composes nothing to find its base (half a second of CPU for each), and a run keeps the
    base that it began with when its recipe changes.
    """
    words, frozen = _recipe_words(model), read_json(run.base)
    if words is None:
        return False
    _KEYS.pop(words, None)  # that of a run which was opened before
    if not isinstance(frozen, dict) or "key" not in frozen:
        return False
    _KEYS[words] = str(frozen["key"])
    return True


def renew(run: RunDir, model: ModelConfig) -> None:
    """Freeze the base that the recipe pre-trains as it is now, whatever the run folder says."""
    words = _recipe_words(model)
    if words is not None:
        _KEYS[words] = _composed_key(words)
        write_json(run.base, {"key": _KEYS[words]})


def _adapted_key(model: ModelConfig, adapter: str) -> str:
    """Key of a base with an adapter merged in: by name, size and time of the files of both.

    Raises `ConfigError` if the adapter is gone.
    """
    try:
        files = [file for file in _states(Path(adapter)) if file[0].startswith("adapter_")]
    except OSError as error:
        raise ConfigError(
            f"the adapter cannot be read: {error.strerror}",
            where=f"model.adapter={adapter}",
            hint="put it back; its base is made from it",
        ) from error
    return _digest(__version__, model.name, model.revision, _base_state(model), adapter, files)


def _base_state(model: ModelConfig) -> Any:
    """What tells that a base of the same name has other weights: its files, or the commit that the
    hub's cache has of it."""
    name = model.name or ""
    if (folder := runtime.user_path(name)).is_dir():
        ends = (".safetensors", ".bin", ".json")
        return [file for file in _states(folder) if file[0].endswith(ends)]
    cached = runtime.hub_cache() / f"models--{name.replace('/', '--')}"
    try:
        return (cached / "refs" / (model.revision or "main")).read_text(encoding="utf-8")
    except OSError:
        return None


def _states(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of the files in a folder."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_file()]
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def is_missing(model: ModelConfig) -> bool:
    """Whether `model` needs a base that has not been trained yet."""
    folder = trained_base(model)
    return folder is not None and not (folder / "config.json").is_file()


def make(run: RunDir, model: ModelConfig) -> None:
    """Run the recipe in its own processes and keep its export, or merge the adapter of the run
    `run`; a second caller waits for the first.

    Raises `LauncherError` with the exit code of the recipe or of the merge if that fails.
    """
    folder = trained_base(model)
    assert folder is not None
    work = folder.with_name(f"{folder.name}.run")
    with storage_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = open_lock(folder.with_name(f"{folder.name}.lock"))
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not is_missing(model):
            return
        if model.adapter is not None:
            print(f"merging {model.adapter} into its base (kept in {folder})", flush=True)
            command = entry.command("launcher.inference.fold", str(run), str(folder))
            environment = {**runtime.environment_without_ranks(), "CUDA_VISIBLE_DEVICES": ""}
            merged = subprocess.run(command, check=False, env=environment)  # noqa: S603
            if merged.returncode:
                raise _merge_failure(merged.returncode, model)
            now = trained_base(model)
            if now is not None and now != folder:  # the base has come from the hub meanwhile
                shutil.rmtree(now, ignore_errors=True)
                folder.rename(now)
            return
        assert isinstance(model, TinyModelConfig)
        print(f"training the base by {model.recipe} (once; it is kept in {folder})", flush=True)
        shutil.rmtree(work, ignore_errors=True)
        words = [*(_recipe_words(model) or ()), f"run.root={work.parent}", f"run.name={work.name}"]
        ranks = min(2, runtime.cpu_count()) if not runtime.gpu_count() else 1
        # Else torchrun gives each rank one thread, with a warning framed in stars.
        threads = {"OMP_NUM_THREADS": str(max(1, runtime.cpu_count() // ranks))}
        environment = threads | runtime.environment_without_ranks()
        done = subprocess.run(_command(words, ranks), check=False, env=environment)  # noqa: S603
        if done.returncode:
            raise _failure(RunDir(work), model)
        (work / "export").rename(folder)
        shutil.rmtree(work, ignore_errors=True)


def _recipe_words(model: ModelConfig) -> tuple[str, ...] | None:
    """The command line that pre-trains the base; None where the model has no recipe."""
    if not isinstance(model, TinyModelConfig) or model.recipe is None or model.adapter is not None:
        return None
    sizes = [f"model.{name}={getattr(model, name)}" for name in TINY_OPTIONS]
    return (f"experiment={model.recipe}", *sizes, "eval=none", "export.merge=true")


def _command(words: list[str], ranks: int) -> list[str]:
    agent = ("--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(ranks))
    rank = entry.command("launcher.train", *words)
    return entry.command("torch.distributed.run", *agent, "--no-python", *rank)


def _merge_failure(code: int, model: ModelConfig) -> LauncherError:
    error = LauncherError("merging failed (see above)", where=f"model.adapter={model.adapter}")
    error.exit_code = ExitCode(code) if code in set(ExitCode) else ExitCode.internal
    return error


def _failure(run: RunDir, model: TinyModelConfig) -> LauncherError:
    status = run.status()
    error = LauncherError(
        f"training the base failed: {status.reason or 'see above'}",
        where=f"model.recipe={model.recipe}",
        hint=f"try it alone: launcher train experiment={model.recipe}",
    )
    error.exit_code = ExitCode(status.exit_code or ExitCode.internal)
    return error


def main(argv: list[str]) -> int:
    """Make the base of the run in folder `argv[0]`; returns an exit code."""
    from launcher.config.compose import compose

    run = RunDir(argv[0])
    model = compose.load(run.config, runs_code=False).model
    try:
        if not recall(run, model) or is_missing(model):
            renew(run, model)  # what is made now is called by what it is made of now
        make(run, model)
    except LauncherError as error:
        print(error, file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
