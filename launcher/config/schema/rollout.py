"""Section `rollout`: what draws the answers of objectives that learn from the model's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from launcher.config.schema.ranges import NonNegativeInt, PositiveInt, ShareAboveZero


@dataclass(kw_only=True, slots=True)
class RolloutConfig:
    """`local`: the model in training answers on its own ranks."""

    name: str = "local"
    """Rollout engine: local or vllm."""

    @property
    def apart(self) -> tuple[int, int]:
        """Nodes of a job that answer and do not train, and servers on each."""
        return 0, 0


@dataclass(kw_only=True, slots=True)
class VllmRolloutConfig(RolloutConfig):
    """`vllm`: servers that are started, given the weights of each update, watched and ended."""

    name: str = "vllm"
    """Name of the engine."""
    python: str | None = None
    """Python that has vLLM, e.g. vllm/bin/python of an environment of its own; default: the
    ranks'."""
    servers: PositiveInt = 1
    """Servers, each with the whole model; with `rollout.nodes`, on each of these."""
    gpus: list[str] = field(default_factory=list)
    """GPUs of each server, e.g. ['6','7'] for two servers, ['6,7'] for one on both. With
    `rollout.nodes` the default are all GPUs of a node, divided among its servers."""
    nodes: NonNegativeInt = 0
    """Nodes of a batch job that only answer, beside the `launch.nodes` that train; 0: servers run
    where the first rank does."""
    sleep: bool = False
    """Servers share the ranks' GPUs: they give up their memory while the ranks train."""
    ahead: bool = False
    """Draw the answers of the next rollout while this one is learned from, by the weights before:
    one step of asynchrony."""
    memory: ShareAboveZero | None = None
    """Share of a GPU's memory that a server takes; default: vLLM's."""
    requests: PositiveInt = 256
    """Answers that are asked for at a time, of all servers together."""
    start_s: PositiveInt = 900
    """Longest start of a server, in seconds."""
    answer_s: PositiveInt = 900
    """Longest wait for an answer, and for weights to be taken over, in seconds; a server that takes
    longer is started anew."""
    max_restarts: NonNegativeInt = 3
    """Times that a server is started anew before the run ends; one that has then answered for ten
    minutes has as many again."""
    options: list[str] = field(default_factory=list)
    """Further arguments of `vllm serve`, e.g. ['--enforce-eager']."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the servers."""

    @property
    def apart(self) -> tuple[int, int]:
        """See `RolloutConfig`."""
        return self.nodes, self.servers
