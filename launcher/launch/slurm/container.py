"""The command line that runs a rank inside a container image. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from launcher.config.schema.launch import ContainerConfig, ContainerRuntime
from launcher.core.errors import ConfigError


def wrap(
    container: ContainerConfig, folders: Sequence[Path], cwd: Path, *, gpus: bool
) -> tuple[list[str], list[str]]:
    """(arguments for srun, words before the interpreter) that put a command into the image.

    `folders` are shown inside at their own paths. Raises `ConfigError` without an image, or for a
    folder whose name the runtime cannot take.
    """
    runtime = container.runtime
    if runtime is ContainerRuntime.none:
        return [], []
    if not container.image:
        raise ConfigError(
            f"{runtime.value} without an image",
            where="cluster.container.image",
            hint="cluster.container.image=/path/to/image.sif, or cluster.container.runtime=none",
        )
    mounts = [*(f"{folder}:{folder}" for folder in _outermost(folders)), *container.mounts]
    if runtime is ContainerRuntime.pyxis:
        _refuse(folders, ",:")
        arguments = [f"--container-image={container.image}", f"--container-workdir={cwd}"]
        whole = [mount if ":" in mount else f"{mount}:{mount}" for mount in mounts]
        return [*arguments, f"--container-mounts={','.join(whole)}", *container.options], []
    _refuse(folders, ",:")
    words = [runtime.value, "exec", *(["--nv"] if gpus else []), "--pwd", str(cwd)]
    for mount in mounts:
        words += ["--bind", mount]
    return [], [*words, *container.options, container.image]


def _outermost(folders: Iterable[Path]) -> list[Path]:
    """Without repetitions and without folders that lie in another one."""
    kept: list[Path] = []
    for folder in sorted(set(folders)):
        if not any(folder.is_relative_to(outer) for outer in kept):
            kept.append(folder)
    return kept


def _refuse(folders: Iterable[Path], characters: str) -> None:
    for folder in folders:
        if any(character in str(folder) for character in characters):
            raise ConfigError(
                f"{str(folder)!r} cannot be shown in a container: no name with , or :",
                where="cluster.container",
                hint="use a folder without these characters, e.g. another run.root",
            )
