"""Sections on starting and watching ranks: `launch`, `cluster`, `watchdog`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Annotated, ClassVar

from launcher.config.schema.ranges import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    Share,
    ShareAboveZero,
)
from launcher.core.errors import Problem


class Rendezvous(Enum):
    """How torch's agents find each other."""

    c10d = "c10d"
    static = "static"


class RemoteShell(Enum):
    """How the ranks of another host are started."""

    ssh = "ssh"
    pdsh = "pdsh"


class SlurmAgent(Enum):
    """What starts the ranks inside a Slurm job."""

    srun = "srun"
    torchrun = "torchrun"


class ContainerRuntime(Enum):
    """What runs a container image inside a job."""

    none = "none"
    apptainer = "apptainer"
    singularity = "singularity"
    pyxis = "pyxis"


@dataclass(kw_only=True, slots=True)
class LaunchConfig:
    """How the ranks are started: `local`, on this machine."""

    has_queue: ClassVar[bool] = False
    """Whether a scheduler starts the ranks, on machines of which this one tells nothing."""
    gpus_by_site: ClassVar[bool] = False
    """Whether `cluster.gpus_per_node` says what a node has; else the nodes are as this machine."""
    nodes_join: ClassVar[bool] = False
    """Whether further nodes are brought in by hand, with `launcher join RUN`."""
    spans_nodes: ClassVar[bool] = False
    """Whether it starts ranks on several nodes."""
    keeps_nodes_for_rollouts: ClassVar[bool] = False
    """Whether further nodes of its job may answer and not train (`rollout.nodes`)."""
    variables: ClassVar[str] = ""
    """How the variables of its scheduler begin, in a job of it; "" where it has none."""
    surroundings: ClassVar[str] = ""
    """`module:attribute` of what reads them, a `launcher.core.ranks.Surroundings`, standard library
    only: of ranks that the scheduler itself has started the place."""

    name: str = "local"
    """Launch back end."""
    nodes: PositiveInt = 1
    """Nodes of the job."""
    processes: PositiveInt | None = None
    """Ranks per node; default: all GPUs of a node, else 1."""
    join_timeout_s: PositiveInt = 120
    """Longest wait for all ranks to join, in seconds."""
    max_parallel: PositiveInt | None = None
    """Trials of a sweep that run at a time; default: one on this machine, as many as it takes in a
    queue."""

    @property
    def warning_s(self) -> int | None:
        """Seconds from the wish to stop to the end of a job's time; None where it has no end."""
        return None

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the options of this back end together."""
        yield from ()

    def for_probe(self) -> LaunchConfig:
        """The same for a job that somebody waits for: nothing is done before it or tried again."""
        return self


@dataclass(kw_only=True, slots=True)
class TorchrunConfig(LaunchConfig):
    """`torchrun`: torch's elastic agent on every node; others join with `launcher join RUN`."""

    nodes_join: ClassVar[bool] = True
    spans_nodes: ClassVar[bool] = True

    name: str = "torchrun"
    """Launch back end."""
    rendezvous: Rendezvous = Rendezvous.c10d
    """How the agents meet: c10d (nodes come in any order) or static (each says its number)."""
    endpoint: str | None = None
    """HOST or HOST:PORT of the first node as the others reach it; default: this host. Without a
    port an open one is chosen, another at each attempt."""
    max_restarts: NonNegativeInt = 0
    """Times that the agents start all ranks again after one has failed."""

    def problems(self) -> Iterator[Problem]:
        """Restarts that not all agents would learn of."""
        if self.rendezvous is Rendezvous.static and self.max_restarts and self.nodes > 1:
            found = "static agents do not learn that those of other nodes start their ranks again"
            yield Problem("launch.max_restarts", found, "launch.rendezvous=c10d")


@dataclass(kw_only=True, slots=True)
class DeepspeedConfig(LaunchConfig):
    """`deepspeed`: hosts of a hostfile, reached by ssh or pdsh."""

    gpus_by_site: ClassVar[bool] = True
    spans_nodes: ClassVar[bool] = True

    name: str = "deepspeed"
    """Launch back end."""
    hostfile: str | None = None
    """File with a line `HOST slots=N` for each host."""
    include: str | None = None
    """Hosts and slots to use, as deepspeed writes them: `host1@host2:0,2`."""
    exclude: str | None = None
    """Hosts and slots to leave out, in the same form."""
    remote_shell: RemoteShell = RemoteShell.ssh
    """ssh or pdsh."""
    master_addr: str | None = None
    """Address of the first host as the others reach it; default: its name in the hostfile."""
    ssh_options: list[str] = field(default_factory=list)
    """Further arguments of ssh, e.g. ['-p', '2222']."""


@dataclass(kw_only=True, slots=True)
class SlurmConfig(LaunchConfig):
    """`slurm`: a batch job that survives preemption, time limits and lost nodes."""

    has_queue: ClassVar[bool] = True
    gpus_by_site: ClassVar[bool] = True
    spans_nodes: ClassVar[bool] = True
    keeps_nodes_for_rollouts: ClassVar[bool] = True
    variables: ClassVar[str] = "SLURM_"
    surroundings: ClassVar[str] = "launcher.launch.slurm.environment:SlurmJob"

    name: str = "slurm"
    """Launch back end."""
    agent: SlurmAgent = SlurmAgent.srun
    """srun starts every rank as a task; torchrun starts one agent a node."""
    cpu_bind: str = "cores"
    """How srun binds the ranks to CPU cores, as its --cpu-bind takes it."""
    gpu_bind: str = "none"
    """How srun shows a node's GPUs to its ranks, as its --gpu-bind takes it. `none` shows all to
    each, which NCCL needs for direct copies between them; a rank takes the one of its own
    number. `per_task:1` shows each rank one."""
    max_requeues: NonNegativeInt = 10
    """Times that a run is requeued after preemption, time limit, hang or node failure."""
    grace_s: Annotated[int, Range(1, 65535)] = 120
    """Seconds before the time limit at which the ranks are told to save and stop."""
    prepare_job: bool = False
    """Prepare the data in a CPU job of its own, on which the run's job depends."""
    prepare_partition: str | None = None
    """Partition of that job; default: that of the run."""
    template: str | None = None
    """Own template of the batch script instead of the packaged slurm/run.sbatch.j2."""
    check: bool = True
    """Ask Slurm before submission whether partition, size and time limit are possible."""

    @property
    def warning_s(self) -> int:
        """See `LaunchConfig`."""
        return self.grace_s

    def for_probe(self) -> SlurmConfig:
        """See `LaunchConfig`."""
        return replace(self, max_requeues=0, prepare_job=False)


@dataclass(kw_only=True, slots=True)
class ContainerConfig:
    """Container image in which the ranks run."""

    runtime: ContainerRuntime = ContainerRuntime.none
    """none, apptainer, singularity or pyxis (enroot)."""
    image: str | None = None
    """Image file, or for pyxis also a registry's name of one."""
    mounts: list[str] = field(default_factory=list)
    """Folders to show inside, SOURCE[:TARGET[:ro]]; run, data and cache folders always are."""
    options: list[str] = field(default_factory=list)
    """Further arguments of the runtime."""
    python: str = "python"
    """Interpreter inside the image."""


@dataclass(kw_only=True, slots=True)
class ScaleConfig:
    """What a site's machines can do, for `launcher plan --simulate`: no run reads it.

    The defaults are assumptions; measure yours with `launcher doctor`.
    """

    card: str | None = None
    """Card as its driver names it, such as H100: gives the peak of its data sheet."""
    tflops: PositiveFloat | None = None
    """Peak of a rank in TFLOP/s; null: that of `card`."""
    mfu: ShareAboveZero = 0.4
    """Share of the peak that the model's products reach while nothing is waited for."""
    node_bandwidth: PositiveFloat = 450.0
    """GB/s that a rank sends to others of its node."""
    network_bandwidth: PositiveFloat = 50.0
    """GB/s that a rank sends to other nodes."""
    latency_us: NonNegativeFloat = 10.0
    """Microseconds of one hop of a collective."""
    overlap: Share = 0.5
    """Share of the computing time behind which communication can hide."""
    node_mtbf_hours: PositiveFloat = 6_300.0
    """Mean time between failures of one node, in hours."""
    read_bandwidth: PositiveFloat = 100.0
    """GB/s that the shared storage reads for all nodes together."""
    write_bandwidth: PositiveFloat = 50.0
    """GB/s that it writes for all nodes together."""
    join_ms: NonNegativeFloat = 1.0
    """Milliseconds that the rendezvous takes for each agent, one after another."""
    import_s: NonNegativeFloat = 30.0
    """Seconds in which a rank imports its libraries and starts its device."""
    prepare_s: NonNegativeFloat = 0.0
    """Seconds of preparing data before the ranks start."""


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """What is particular to a site: `cluster=NAME` takes it from conf/cluster/NAME.yaml."""

    name: str = "default"
    """Name of the site."""
    partition: str | None = None
    """Slurm partition."""
    account: str | None = None
    """Slurm account."""
    qos: str | None = None
    """Slurm quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    reservation: str | None = None
    """Slurm reservation."""
    exclude: str | None = None
    """Nodes to avoid, as a Slurm host list."""
    time: str | None = None
    """Time limit of a job: MINUTES, HH:MM:SS or DAYS-HH:MM:SS."""
    gpus_per_node: NonNegativeInt = 0
    """GPUs of a node that a job takes; 0: the ranks compute on CPUs."""
    gpu_type: str | None = None
    """Type of GPU as Slurm's gres names it."""
    cpus_per_rank: PositiveInt | None = None
    """CPU cores of a rank."""
    memory: str | None = None
    """Memory of a node, as Slurm writes it (`64G`; `0` is all)."""
    network_interface: str | None = None
    """Interface of collectives, for NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of every rank, such as NCCL_IB_HCA."""
    modules: list[str] = field(default_factory=list)
    """Environment modules to load."""
    setup: list[str] = field(default_factory=list)
    """Shell lines before the ranks start."""
    scratch: str | None = None
    """Fast folder of a node, for temporary files; taken as it stands. For one with variables in its
    name: `setup: ['export TMPDIR=/scratch/$SLURM_JOB_ID']`."""
    sbatch: list[str] = field(default_factory=list)
    """Further options of sbatch, e.g. ['--exclusive', '--switches=1']."""
    container: ContainerConfig = field(default_factory=ContainerConfig)
    """Container."""
    scale: ScaleConfig = field(default_factory=ScaleConfig)
    """Speeds and failures of its machines, for `launcher plan --simulate`."""


@dataclass(kw_only=True, slots=True)
class WatchdogConfig:
    """When a rank that makes no progress counts as hung: seconds without a change; 0 is never."""

    timeout_s: NonNegativeFloat = 600.0
    """In a training step."""
    start_s: NonNegativeFloat = 1800.0
    """While model and data are loaded."""
    eval_s: NonNegativeFloat = 1800.0
    """In an evaluation batch."""
    save_s: NonNegativeFloat = 1800.0
    """While a checkpoint or export is written."""
    slow_factor: Annotated[float, Range(1, open_low=True)] = 1.5
    """A rank is slow when its own part of a step takes this many times the ranks' median ..."""
    slow_steps: PositiveInt = 20
    """... over this many steps in a row; it is then reported with its host."""
