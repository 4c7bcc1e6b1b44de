"""What Slurm would refuse, or take and never start: asked for before a run folder is made."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from launcher.core.errors import LauncherError, Problem, did_you_mean
from launcher.launch.queue import QueueHealth
from launcher.launch.slurm import commands, environment, text
from launcher.launch.slurm.templates import options
from launcher.launch.spec import LaunchSpec

#: Partition, default mark, time limit, nodes, CPUs, MB, gres.
_NODE_FORMAT = "%P|%l|%D|%c|%m|%G"
#: Longest wait for a sign of life.
_PING_S = 10.0


@dataclass(frozen=True, slots=True)
class Nodes:
    """Nodes of a partition that are alike; `time` is the partition's limit, None without one."""

    partition: str
    is_default: bool
    time: str
    count: int
    cpus: int
    megabytes: int
    gpus: dict[str, int]
    """Type -> GPUs of a node; the type is "" where the site names none."""


def check(spec: LaunchSpec) -> list[Problem]:
    """All that the job asks for and the cluster does not have; [] if sinfo cannot tell.

    Raises `ConfigError` without Slurm's commands, `SlurmDownError` if the controller is away.
    """
    commands.run("sbatch", "--version")
    nodes = parse_nodes(commands.run("sinfo", "--noheader", "--all", "--format", _NODE_FORMAT))
    problems = compare(spec, nodes)
    return [*problems, *_account(spec)]


def parse_nodes(said: str) -> list[Nodes]:
    """Lines of sinfo; those of a form that is not known are left out."""
    found = []
    for line in said.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 6 or not cells[2].isdecimal():
            continue
        name, time, count, cpus, megabytes, gres = cells[:6]
        found.append(
            Nodes(
                partition=name.rstrip("*"),
                is_default=name.endswith("*"),
                time=time,
                count=int(count),
                cpus=_number(cpus),
                megabytes=_number(megabytes),
                gpus=_gpus(gres),
            )
        )
    return found


def _number(cell: str) -> int:
    """`64+` is 64: nodes differ, and this is the least."""
    found = re.match(r"\d+", cell)
    return int(found[0]) if found else 0


def _gpus(gres: str) -> dict[str, int]:
    """`gpu:h100:8(S:0-1),gpu:2` is {"h100": 8, "": 2}."""
    found: dict[str, int] = {}
    for kind, count in re.findall(r"(?:^|,)gpu(?::([^:,()]+))?:(\d+)(?=[(,]|$)", gres):
        found[kind] = found.get(kind, 0) + int(count)
    return found


def compare(spec: LaunchSpec, nodes: list[Nodes]) -> list[Problem]:
    """Problems of a spec on a cluster of these nodes; pure."""
    launch, cluster = options(spec), spec.cluster
    names = sorted({node.partition for node in nodes})
    wanted = cluster.partition.split(",") if cluster.partition else None
    problems = []
    asked = {"cluster.partition": cluster.partition}
    if launch.prepare_job:
        asked["launch.prepare_partition"] = launch.prepare_partition
    for key, value in asked.items():
        for name in value.split(",") if value else []:
            if names and name not in names:
                hint = did_you_mean(name, names)
                problems.append(Problem(key, f"there is no partition {name!r}", hint))
    if problems:
        return problems
    chosen = [n for n in nodes if (n.partition in wanted if wanted else n.is_default)]
    if not chosen:
        return []
    return [*_size(spec, chosen), *_time(spec, chosen)]


def _size(spec: LaunchSpec, chosen: list[Nodes]) -> list[Problem]:
    cluster, found = spec.cluster, []
    place = f"partition {chosen[0].partition}"
    fitting = chosen
    cpus = (cluster.cpus_per_rank or 1) * spec.processes
    most = max(node.cpus for node in chosen)
    if cpus > most:
        key = "cluster.cpus_per_rank" if cluster.cpus_per_rank else "launch.processes"
        what = f"{spec.processes} ranks with {cluster.cpus_per_rank or 1} CPUs each"
        hint = f"{key}={most // spec.processes if cluster.cpus_per_rank else most} at most"
        found.append(Problem(key, f"{what} need {cpus} on a node; {place} has {most}", hint))
    fitting = [node for node in fitting if node.cpus >= cpus]
    if cluster.gpus_per_node:
        kind = cluster.gpu_type
        kinds = sorted({name for node in chosen for name in node.gpus})
        if kind and kind not in kinds:
            hint = did_you_mean(kind, kinds) if any(kinds) else "leave cluster.gpu_type out"
            found.append(Problem("cluster.gpu_type", f"{place} has no GPU of type {kind!r}", hint))
            return found
        has = [(node.gpus.get(kind, 0) if kind else sum(node.gpus.values())) for node in chosen]
        if cluster.gpus_per_node > max(has):
            what = f"{cluster.gpus_per_node} GPUs on a node; {place} has {max(has)}"
            hint = f"cluster.gpus_per_node={max(has)} at most, and more launch.nodes"
            found.append(Problem("cluster.gpus_per_node", what, hint))
        enough = {id(n) for n, c in zip(chosen, has, strict=True) if c >= cluster.gpus_per_node}
        fitting = [node for node in fitting if id(node) in enough]
    total = max(_by_partition(fitting).values(), default=0)
    nodes = spec.nodes + spec.servers[0]
    if not found and nodes > total:
        what = f"{nodes} nodes; {place} has {total} of this size"
        found.append(Problem("launch.nodes", what, f"launch.nodes={total} at most"))
    return found


def _by_partition(nodes: list[Nodes]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.partition] = counts.get(node.partition, 0) + node.count
    return counts


def _time(spec: LaunchSpec, chosen: list[Nodes]) -> list[Problem]:
    limit, grace_s = spec.cluster.time, options(spec).grace_s
    if limit is None:
        return []
    try:
        asked = text.minutes(limit)
        limits = [text.minutes(node.time) for node in chosen]
    except ValueError as error:
        hint = "MINUTES, HH:MM:SS or DAYS-HH:MM:SS, e.g. cluster.time=1-00:00:00"
        return [Problem("cluster.time", str(error), hint)]
    most = None if None in limits else max(minutes for minutes in limits if minutes is not None)
    if most is not None and (asked is None or asked > most):
        place = f"the limit of partition {chosen[0].partition} is {chosen[0].time}"
        return [Problem("cluster.time", f"{limit}; {place}", f"cluster.time={chosen[0].time}")]
    if asked is not None and grace_s >= asked * 60:
        found = f"{grace_s} s, but the job ends after cluster.time={limit}"
        return [Problem("launch.grace_s", found, "a longer cluster.time, or less grace")]
    return []


def _account(spec: LaunchSpec) -> list[Problem]:
    """An account that accounting does not know, where there is accounting and it tells."""
    account = spec.cluster.account
    if account is None:
        return []
    form = ("--noheader", "--parsable2", "list", "account", "format=account")
    try:
        known = commands.run("sacctmgr", *form).split()
    except LauncherError:
        return []
    if not known or account in known:
        return []
    return [
        Problem("cluster.account", f"there is no account {account!r}", did_you_mean(account, known))
    ]


def health() -> QueueHealth:
    """Which of Slurm's commands are on the path, and what `scontrol ping` says."""
    is_here = any(shutil.which(name) for name in ("sbatch", "squeue", "scontrol"))
    if not shutil.which("sbatch"):
        hint = "load Slurm's module, or run this on a login node of the cluster"
        return QueueHealth(is_here, "sbatch is not on the path", hint)
    is_up, said = _ping()
    if is_up:
        return QueueHealth(is_here, said)
    hint = "is SLURM_CONF right? otherwise ask the site"
    return QueueHealth(is_here, f"the controller does not answer: {said}", hint)


def _ping() -> tuple[bool, str]:
    if not shutil.which("scontrol"):
        return False, ""
    try:
        done = subprocess.run(
            ["scontrol", "ping"],  # noqa: S607 - the site decides where Slurm lies
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            env=environment.of_commands(),
            timeout=_PING_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    said = (done.stdout + done.stderr).strip().rpartition("\n")[2]
    return done.returncode == 0 and "UP" in done.stdout, said
