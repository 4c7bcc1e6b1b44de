"""What a run would take on many ranks: an estimate from its plan, and from what a site states.

Nothing is started. `ASSUMPTIONS` says what is taken for granted. Standard library only.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from launcher.config.derive import memory, peak
from launcher.config.derive.cards import PEAKS_TFLOPS, peak_flops
from launcher.config.derive.plan import Plan
from launcher.config.schema import Config
from launcher.core.errors import ConfigError

ASSUMPTIONS = (
    "an estimate: no run of this size has been measured by the launcher",
    "every pack is full; products reach cluster.scale.mfu of the peak",
    "collectives run in two rings, in the node and between nodes, one port a rank, no congestion",
    "communication hides behind cluster.scale.overlap of the computing time",
    "ZeRO-3 gathers all weights in forward and again in backward of each micro-batch",
    "failures come one by one (Poisson); any node that fails stops the run",
    "the model is read once a node; a save is written by all nodes, and training waits for it",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """Bytes and calls of one rank in one optimizer step, by collective.

    Bytes are those of the whole message: `launcher.distributed.bandwidth` counts them so.
    """

    all_reduce: float = 0
    all_gather: float = 0
    reduce_scatter: float = 0
    calls: int = 0

    def sent(self, ranks: int) -> float:
        """Bytes that one rank of a ring sends in a step."""
        passes = 2 * self.all_reduce + self.all_gather + self.reduce_scatter
        return passes * (ranks - 1) / ranks


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One step at one ZeRO stage."""

    zero: int
    sent_bytes: float
    """Bytes that a rank sends in a step."""
    compute_s: float
    communication_s: float
    """Seconds of all collectives, hidden or not."""
    step_s: float
    tokens_per_s: float
    """Of all ranks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulation:
    """What a run would take; bytes and seconds."""

    ranks: int
    nodes: int
    stages: tuple[Stage, ...]
    chosen: int
    """The stage of the config, of which the numbers below are."""
    start_s: float
    read_s: float
    """Part of `start_s`: the model's weights, read once a node."""
    checkpoint_bytes: int
    checkpoint_s: float
    mtbf_s: float
    """Mean time between failures of the whole job."""
    young_s: float
    daly_s: float
    """Best time between two saves."""
    lost_share: float
    """Share of the time that saves, work done again and restarts take, saving every `daly_s`."""
    run_s: float | None
    """Seconds of the whole run, failures included; None while its steps are unknown, or where
    failures leave no time to advance."""
    failures: float | None
    """Failures expected in `run_s`."""
    assumptions: tuple[str, ...] = ASSUMPTIONS


def young(save_s: float, mtbf_s: float) -> float:
    """Best time between saves in seconds, to first order: sqrt(2 save mtbf).

    J. W. Young, "A first order approximation to the optimum checkpoint interval", Communications
    of the ACM 17(9), 1974.
    """
    return math.sqrt(2 * save_s * mtbf_s)


def daly(save_s: float, mtbf_s: float) -> float:
    """Best time of work between saves in seconds, to higher order; `mtbf_s` where a save takes
    twice that or more.

    J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps",
    Future Generation Computer Systems 22(3), 2006.
    """
    if save_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = save_s / (2 * mtbf_s)
    return young(save_s, mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save_s


def lost_share(interval_s: float, save_s: float, restart_s: float, mtbf_s: float) -> float:
    """Share of the time that is no new work, at most 1: 1 - work / Daly's complete time
    M exp(R / M) (exp((work + save) / M) - 1), for failures that come as a Poisson process."""
    if interval_s <= 0:
        return 0.0 if save_s == 0 and restart_s == 0 else 1.0
    exponent = (interval_s + save_s) / mtbf_s
    if exponent + restart_s / mtbf_s > 700:  # exp would overflow: it never ends
        return 1.0
    return 1 - interval_s / (mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1(exponent))


def traffic(config: Config, made: Plan, shape: memory.ModelShape, zero: int) -> Exchange:
    """What the launcher's DeepSpeed settings make a rank exchange in one optimizer step."""
    trained = memory.about_trainable(config, shape)
    weight = peak.BYTES[made.precision]
    sums_in_fp32 = made.precision == "bf16" and zero and not config.engine.offload_optimizer
    gradients = trained * (4 if sums_in_fp32 else weight)
    if zero == 0:
        return Exchange(all_reduce=gradients, calls=math.ceil(trained / peak.FLAT_ELEMENTS))
    buckets = math.ceil(trained / peak.bucket(trained))
    # Stages 2 and 3 cut gradients of every micro-batch, stage 1 their sum.
    times = 1 if zero == 1 else made.accumulation
    if zero < 3:
        # DeepSpeed sums buckets that several ranks share with all_reduce, and keeps a part.
        return Exchange(
            all_reduce=gradients * times,
            all_gather=trained * weight,
            calls=buckets * (times + 1),
        )
    return Exchange(
        all_gather=2 * shape.parameters * weight * times,
        reduce_scatter=gradients * times,
        calls=times * (2 * shape.layers + buckets),
    )


def communication_s(config: Config, moved: Exchange, ranks: int, per_node: int) -> float:
    """Seconds of a step's collectives: bytes over bandwidth, and a latency for each hop (the
    alpha-beta model), first in the node, then between nodes on a share of the message."""
    site, inside = config.cluster.scale, min(ranks, per_node)
    nodes = math.ceil(ranks / inside)
    passes = 2 * moved.all_reduce + moved.all_gather + moved.reduce_scatter
    in_node = passes * (inside - 1) / inside / (site.node_bandwidth * 1e9)
    between = passes / inside * (nodes - 1) / nodes / (site.network_bandwidth * 1e9)
    hops = (inside - 1) + math.ceil(math.log2(nodes))
    return in_node + between + moved.calls * hops * site.latency_us * 1e-6


def step_flops(config: Config, made: Plan, shape: memory.ModelShape) -> float:
    """Operations of one optimizer step of all ranks: 4 a token for a frozen parameter and 6 for a
    trained one, and causal attention over whole packs; recomputation is no work of the model's."""
    trained = memory.about_trainable(config, shape)
    frozen = max(0, shape.parameters - trained)
    attention = 6 * shape.layers * shape.query_width * made.max_length
    tokens = made.global_sequences * made.max_length
    return float(tokens * (6 * trained + 4 * frozen + attention))


def simulate(config: Config, made: Plan) -> Simulation:
    """What the run of `made` would take on its ranks; `ConfigError` for what cannot be told."""
    shape = memory.model_shape(config)
    if shape is None or made.disk is None:
        hint = "give model.name=DIR with its config.json, or model=tiny"
        raise ConfigError("its sizes are not known here", where="model.name", hint=hint)
    _require_known(config)
    ranks = made.world_size
    per_node = config.cluster.gpus_per_node or config.launch.processes or 1
    if ranks > per_node and ranks % per_node:
        hint = f"give a multiple of {per_node}, such as --ranks {ranks // per_node * per_node}"
        raise ConfigError(f"{ranks} on nodes of {per_node}", where="--ranks", hint=hint)
    nodes, site = math.ceil(ranks / per_node), config.cluster.scale
    compute = step_flops(config, made, shape) / (ranks * _peak(config, made) * site.mfu)
    stages = []
    for zero in range(4):
        moved = traffic(config, made, shape, zero) if ranks > 1 else Exchange()
        talk = communication_s(config, moved, ranks, per_node)
        step = compute + max(0.0, talk - site.overlap * compute)
        stages.append(
            Stage(
                zero=zero,
                sent_bytes=moved.sent(ranks),
                compute_s=compute,
                communication_s=talk,
                step_s=step,
                tokens_per_s=made.global_sequences * made.max_length / step,
            )
        )
    weights = shape.parameters * peak.BYTES[made.dtype]
    read = weights * nodes / (site.read_bandwidth * 1e9)
    start = site.prepare_s + site.join_ms * 1e-3 * nodes + site.import_s + read
    size = made.disk["checkpoint"]
    save, mtbf = size / (site.write_bandwidth * 1e9), site.node_mtbf_hours * 3600 / nodes
    restart = start + size / (site.read_bandwidth * 1e9)
    interval = daly(save, mtbf)
    lost = lost_share(interval, save, restart, mtbf)
    chosen = made.zero or 0
    run = None
    if made.steps is not None and lost < 1:
        run = start + made.steps * stages[chosen].step_s / (1 - lost)
    return Simulation(
        ranks=ranks,
        nodes=nodes,
        stages=tuple(stages),
        chosen=chosen,
        start_s=start,
        read_s=read,
        checkpoint_bytes=size,
        checkpoint_s=save,
        mtbf_s=mtbf,
        young_s=young(save, mtbf),
        daly_s=interval,
        lost_share=lost,
        run_s=run,
        failures=None if run is None else run / mtbf,
    )


def _require_known(config: Config) -> None:
    """`ConfigError` for what changes who sends what, and is no part of this."""
    engine = config.engine
    left_out: dict[str, tuple[object, object]] = {
        "engine.sequence_parallel": (engine.sequence_parallel, 1),
        "engine.secondary_partition": (engine.secondary_partition, None),
        "engine.extra": (engine.extra, {}),
    }
    for where, (value, without) in left_out.items():
        if value != without:
            hint = f"simulate without it: {where}={'null' if without is None else without}"
            raise ConfigError(f"{value} is no part of the simulation", where=where, hint=hint)


def _peak(config: Config, made: Plan) -> float:
    """FLOP/s of a rank; `ConfigError` where neither the site nor a data sheet says."""
    site = config.cluster.scale
    if site.tflops is not None:
        return site.tflops * 1e12
    found = peak_flops(site.card or "", made.precision)
    if found is None:
        known = ", ".join(name for name, _ in PEAKS_TFLOPS)
        hint = f"give cluster.scale.tflops=NUMBER, or for bf16 and fp16 one of {known}"
        text = f"no peak is known of {site.card} in {made.precision}"
        raise ConfigError(text, where="cluster.scale.card", hint=hint)
    return found


def text(found: Simulation) -> str:
    """The simulation as people read it."""
    lines = [
        f"simulated  {found.ranks:,} ranks on {found.nodes:,} nodes (estimates)",
        "zero   sent/step   compute   collectives   step      tokens/s",
    ]
    for stage in found.stages:
        mark = "*" if stage.zero == found.chosen else " "
        lines.append(
            f"{stage.zero}{mark}   {stage.sent_bytes / 1e9:>8.3f} GB"
            f"{stage.compute_s:>9.3g}s{stage.communication_s:>12.3g}s"
            f"{stage.step_s:>9.3g}s{stage.tokens_per_s:>12,.0f}"
        )
    lines += [
        f"start      {found.start_s:,.1f} s, of which the model is read in {found.read_s:,.1f} s",
        f"save       {found.checkpoint_bytes / 1e9:,.3g} GB in {found.checkpoint_s:,.3g} s",
        f"failures   one in {found.mtbf_s / 3600:,.3g} h",
        f"best save  every {found.daly_s:,.4g} s (Daly; Young: {found.young_s:,.4g} s); "
        f"{found.lost_share:.2%} of the time is lost",
    ]
    if found.run_s is not None:
        lines.append(f"run        {found.run_s / 3600:,.3g} h, {found.failures:,.3g} failures")
    return "\n".join([*lines, "assumed:", *(f"  {line}" for line in found.assumptions)])


def as_dict(found: Simulation) -> dict[str, object]:
    """Plain data of a simulation."""
    return dataclasses.asdict(found)
