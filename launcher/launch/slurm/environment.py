"""What Slurm says in the environment, of the job around a process and to its own commands.

A rank reads it at its start, through `launcher.core.ranks`: standard library only.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping

from launcher.core import runtime
from launcher.core.errors import ConfigError
from launcher.core.ranks import Ranks, number, port_of

#: Ids from here on stand for the batch script and other steps that are no ranks.
_SPECIAL_STEPS = 0xFFFFFFF0
#: Variables by which Slurm's commands take options from outside, besides those of a job.
_OPTIONS = tuple(
    f"{command}_"
    for command in ("SBATCH", "SRUN", "SALLOC", "SLURM", "SQUEUE", "SCANCEL", "SINFO", "SACCT")
    + ("SCONTROL", "SACCTMGR", "SSTAT", "SPRIO", "SSHARE")
)


class SlurmJob:
    """The job around a process; `launcher.core.ranks.Surroundings`. Pure."""

    launcher = "srun"
    rank_prefixes = ("SLURM_STEP", "SLURM_SRUN_")
    rank_names = (
        *("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_GTIDS", "SLURM_TASK_PID"),
    )

    def __init__(self, env: Mapping[str, str]) -> None:
        self._env = env

    @property
    def host(self) -> str:
        """Slurm's name of this node."""
        return self._env.get("SLURMD_NODENAME", "")

    @property
    def job(self) -> str:
        """Id of the job; of a task of an array, one of its own."""
        return self._env.get("SLURM_JOB_ID", "")

    @property
    def shown(self) -> str:
        """The same as squeue shows it: ARRAY_TASK of a task."""
        if "SLURM_ARRAY_JOB_ID" in self._env:
            return f"{self._env['SLURM_ARRAY_JOB_ID']}_{self._env['SLURM_ARRAY_TASK_ID']}"
        return self.job

    @property
    def step(self) -> int:
        """Number of the step of ranks around this process; 0 if it is none of them."""
        return number(self._env, "SLURM_STEP_ID") if self._is_task() else 0

    @property
    def restarts(self) -> int:
        """Times that Slurm has started the job again."""
        text = self._env.get("SLURM_RESTART_COUNT", "")
        return int(text) if text.isdecimal() else 0

    @property
    def gpus(self) -> str:
        """What says that the job has GPUs, in words; "" where nothing does."""
        for name in ("SLURM_JOB_GPUS", "SLURM_STEP_GPUS", "SLURM_GPUS_ON_NODE"):
            if self._env.get(name, "0") not in ("", "0"):
                return f"Slurm has given the job GPUs ({name}={self._env[name]})"
        return ""

    def place(self, host: str) -> Ranks | None:
        """Place of a task of srun; None for a salloc shell and the batch script."""
        if not self._is_task():
            return None
        counts, node = self.tasks(), number(self._env, "SLURM_NODEID")
        world = number(self._env, "SLURM_STEP_NUM_TASKS")
        return Ranks(
            rank=number(self._env, "SLURM_PROCID"),
            world_size=world,
            local_rank=number(self._env, "SLURM_LOCALID"),
            local_world_size=counts[node] if node < len(counts) else world,
            host=host,
            launched_by=self.launcher,
        )

    def _is_task(self) -> bool:
        step = self._env.get("SLURM_STEP_ID", "")
        names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NUM_TASKS")
        is_step = step.isdecimal() and int(step) < _SPECIAL_STEPS
        return is_step and all(name in self._env for name in names)

    def hosts(self) -> list[str]:
        """Nodes of the step, else of the job; [] if nothing says which."""
        names = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
        found = next((self._env[name] for name in names if self._env.get(name)), "")
        return expand_hosts(found) if found else []

    def tasks(self) -> list[int]:
        """Ranks on each node of the step: `2(x3),1` is [2, 2, 2, 1]."""
        text = self._env.get("SLURM_STEP_TASKS_PER_NODE", "")
        found = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
        return [int(count) for count, times in found for _ in range(int(times or 1))]

    @property
    def endpoint(self) -> str:
        """HOST:PORT at which torch's agents on the nodes of the job meet."""
        hosts = expand_hosts(self._env["SLURM_JOB_NODELIST"])
        return f"{hosts[0]}:{port_of(self.job, restart=self.restarts)}"


def around() -> SlurmJob:
    """The job around this process; its id is "" if there is none."""
    return SlurmJob(runtime.child_environment())


def of_commands() -> dict[str, str]:
    """The environment for Slurm's commands: which cluster is asked and nothing else of Slurm.

    What a surrounding job says of itself, or a person or a site sets for commands that are typed,
    would become options of the job that is submitted, or change what is read from an answer.
    """
    kept = ("SLURM_CONF", "SLURM_JWT")
    return {
        name: value
        for name, value in runtime.environment_without_ranks().items()
        if name.startswith(kept) or not name.startswith((*_OPTIONS, "PYTHONSAFEPATH"))
    }


def for_sbatch() -> dict[str, str]:
    """Options for sbatch that stand in the environment, and are not taken over."""
    found = runtime.child_environment()
    names = sorted(name for name in found if name.startswith("SBATCH_"))
    return {name: found[name] for name in (*names, "SLURM_CLUSTERS") if name in found}


def expand_hosts(text: str) -> list[str]:
    """Names that a Slurm host list stands for: `n[1-3,5],m07` is n1, n2, n3, n5, m07.

    Raises `ConfigError` if it is none.
    """
    names = [name for part in _split(text) for name in _expand(part, text)]
    if not names or not all(names):
        raise _bad(text)
    return names


def _split(text: str) -> Iterator[str]:
    """Parts between commas that stand outside of brackets."""
    if text.count("[") != text.count("]"):
        raise _bad(text)
    yield from re.split(r",(?![^\[]*\])", text.strip())


def _expand(part: str, text: str) -> Iterator[str]:
    pieces = re.split(r"\[([^\[\]]*)\]", part)
    if any("[" in piece or "]" in piece for piece in pieces):
        raise _bad(text)
    choices = [
        [piece] if at % 2 == 0 else list(_numbers(piece, text)) for at, piece in enumerate(pieces)
    ]
    yield from map("".join, itertools.product(*choices))


def _numbers(piece: str, text: str) -> Iterator[str]:
    for item in piece.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
        if found is None or int(found[2] or found[1]) < int(found[1]):
            raise _bad(text)
        first, last = found[1], found[2] or found[1]
        for index in range(int(first), int(last) + 1):
            yield f"{index:0{len(first)}d}"


def _bad(text: str) -> ConfigError:
    return ConfigError(
        f"{text!r} is not a host list", where="Slurm node list", hint="e.g. node[01-04,7],login1"
    )
