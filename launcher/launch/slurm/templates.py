"""From a launch spec to what the templates of batch scripts are given. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from launcher import entry
from launcher.config.schema.launch import (
    ClusterConfig,
    ContainerConfig,
    ContainerRuntime,
    SlurmAgent,
    SlurmConfig,
)
from launcher.core.errors import ConfigError
from launcher.launch.spec import LaunchSpec

#: Names that the templates may use are the keys of `context`.
_NO_PATTERN = re.compile(r"[%\\\n\r]")


def context(spec: LaunchSpec) -> dict[str, Any]:
    """Name -> value for the templates. Raises `ConfigError` for what no batch script can hold."""
    launch, cluster = options(spec), spec.cluster
    if _NO_PATTERN.search(str(spec.run)):
        raise ConfigError(
            f"{str(spec.run)!r}: Slurm reads % and \\ in the path of its log as a pattern",
            where="run.root",
            hint="choose a run.root without %, \\ and line breaks",
        )
    by_srun = launch.agent is SlurmAgent.srun
    tasks = spec.processes if by_srun else 1
    cpus = cluster.cpus_per_rank
    gpus = cluster.gpus_per_node
    arguments, prefix = _contained(spec)
    return {
        "name": spec.run.name,
        "run": str(spec.run),
        "attempt": spec.attempt,
        "cwd": str(spec.cwd),
        "python": spec.python,
        "interpreter": entry.interpreter(spec.python),
        "module": spec.module,
        "launch": launch,
        "cluster": cluster,
        "nodes": spec.nodes + spec.servers[0],
        "tasks_per_node": tasks,
        "cpus_per_task": cpus * spec.processes // tasks if cpus else None,
        "gpus": f"{cluster.gpu_type}:{gpus}" if cluster.gpu_type else str(gpus),
        "environment": environment(spec),
        "srun": [*_srun(spec, tasks, cpus), *arguments],
        "command": [*prefix, *_agent(spec, by_srun)],
        "rank": [] if by_srun else ["--no-python", *_python(spec)],
        "servers": _servers(spec, arguments, prefix),
    }


def options(spec: LaunchSpec) -> SlurmConfig:
    """The `launch` section, of this back end."""
    assert isinstance(spec.options, SlurmConfig)
    return spec.options


def preparation(spec: LaunchSpec) -> tuple[str, ...]:
    """The command that prepares the data inside the job, in the container if there is one."""
    arguments, prefix = _contained(spec)
    if arguments:  # pyxis works through srun alone
        prefix = ["srun", "--export=ALL", "--nodes=1", "--ntasks=1", *arguments]
    return (*prefix, *_python(spec), "-m", spec.prepare_module, str(spec.run))


def environment(spec: LaunchSpec) -> dict[str, str]:
    """Variables of preparation and ranks; `ConfigError` for a name that bash does not take."""
    cluster: ClusterConfig = spec.cluster
    found = {"OMP_WAIT_POLICY": "PASSIVE"}
    if cluster.network_interface:
        found["NCCL_SOCKET_IFNAME"] = found["GLOO_SOCKET_IFNAME"] = cluster.network_interface
    if cluster.scratch:
        found["TMPDIR"] = cluster.scratch
    found |= {name: str(value) for name, value in cluster.environment.items()}
    found |= {"OMP_NUM_THREADS": str(spec.threads), **entry.OUTPUT, **spec.environment}
    wrong = [name for name in found if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)]
    if wrong:
        raise ConfigError(
            f"{wrong[0]!r} is not the name of a variable",
            where="cluster.environment",
            hint="letters, digits and _ only, not beginning with a digit",
        )
    return found


def _srun(spec: LaunchSpec, tasks: int, cpus: int | None) -> list[str]:
    launch = options(spec)
    found = [
        # A site's SBATCH_EXPORT=NONE would keep from the ranks what the script sets.
        "--export=ALL",
        f"--nodes={spec.nodes}",
        f"--ntasks={spec.nodes * tasks}",
        f"--ntasks-per-node={tasks}",
        # Blocks of ranks on a node, whatever the site's default: collectives count on it.
        "--distribution=block",
        "--kill-on-bad-exit=1",
        # Rank 0 may export for an hour after the others have ended.
        "--wait=0",
        "--mpi=none",
        "--unbuffered",
        f"--cpu-bind={launch.cpu_bind}",
    ]
    if cpus:
        # Since 22.05 a step does not take this over from its job.
        found.append(f"--cpus-per-task={cpus * spec.processes // tasks}")
    if spec.cluster.gpus_per_node:
        found.append(f"--gpu-bind={launch.gpu_bind}")
    return found


def _servers(spec: LaunchSpec, arguments: list[str], prefix: list[str]) -> list[str]:
    """Arguments of the srun that starts servers behind the nodes of the ranks; RUN, ATTEMPT and
    the numbers of each follow, which the task knows. None where no node is for servers."""
    nodes, each = spec.servers
    if not nodes:
        return []
    keeper = [*prefix, *_python(spec), "-m", spec.server_module]
    return [
        "--export=ALL",
        f"--nodes={nodes}",
        f"--relative={spec.nodes}",
        f"--ntasks={nodes * each}",
        f"--ntasks-per-node={each}",
        "--distribution=block",
        "--kill-on-bad-exit=0",
        "--mpi=none",
        "--unbuffered",
        "--cpu-bind=none",
        *(["--gpu-bind=none"] if spec.cluster.gpus_per_node else []),
        *arguments,
        *("bash", "-c", 'exec "$@" "$SLURM_PROCID" "$SLURM_LOCALID"', "servers"),
        *keeper,
    ]


def _agent(spec: LaunchSpec, by_srun: bool) -> list[str]:
    if by_srun:
        return [*_python(spec)]
    # USR1 reaches every process of the step, and would end the agent, which does not know it.
    deaf = ["bash", "-c", 'trap "" USR1; exec "$@"', "agent"]
    counts = [f"--nnodes={spec.nodes}", f"--nproc-per-node={spec.processes}"]
    agent = [*_python(spec), "-m", "torch.distributed.run", *counts]
    return [*deaf, *agent, "--max-restarts=0", "--rdzv-backend=c10d"]


def _python(spec: LaunchSpec) -> tuple[str, ...]:
    inside = spec.cluster.container
    return entry.interpreter(inside.python if inside.runtime.name != "none" else spec.python)


def _contained(spec: LaunchSpec) -> tuple[list[str], list[str]]:
    folders = [Path(spec.run).parent, spec.cwd, *spec.folders]
    if spec.cluster.scratch:
        folders.append(Path(spec.cluster.scratch))
    gpus = spec.cluster.gpus_per_node > 0
    return _wrapped(spec.cluster.container, folders, spec.cwd, gpus=gpus)


def _wrapped(
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
