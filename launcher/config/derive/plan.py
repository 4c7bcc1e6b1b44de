"""The numbers that follow from a config and a machine, computed without touching a device."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, replace
from typing import Any

from launcher.config.derive import architecture, memory, peak
from launcher.config.schema import Attention, Config, Dtype, MicroBatch, Weights, WsdConfig
from launcher.core.errors import ConfigError

#: tokens that a rank computes at once when `batch.micro` is not given: enough to fill the device's
#: units, few enough that activations stay small beside the weights.
MICRO_TOKENS = {"cpu": 1024, "cuda": 16384}

#: A GPU's compute capability: major and minor version.
Capability = tuple[int, int]
#: A micro-batch that ranks have found, and how: "measured" or "estimate".
Choice = tuple[int, str]
#: Ampere: the first with bf16, and the least that kernels for packed rows are built for.
AMPERE: Capability = (8, 0)
#: Ada: the first that multiplies in FP8.
ADA: Capability = (8, 9)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Derived numbers of one run on one number of ranks; kept as plan.json in the run folder."""

    world_size: int
    """Ranks."""
    device: str
    """"cuda" or "cpu"."""
    precision: str
    """Computation: "fp32", "bf16" or "fp16"."""
    dtype: str
    """Format of the loaded weights: "fp32", "bf16" or "fp16"."""
    attention: str
    """Attention implementation: "varlen", "flash", "document", "sdpa" or "eager"."""
    max_length: int
    """Capacity of a sequence in tokens."""
    global_sequences: int
    """Sequences of one optimizer step, over all ranks: groups * accumulation * micro_batch."""
    micro_batch: int
    """Sequences of one forward pass of a rank, or of the ranks that share them."""
    accumulation: int
    """Forward passes of a rank in one optimizer step."""
    steps: int | None
    """Optimizer steps; None until the number of packs is known (train.epochs)."""
    epochs: float | None
    """Passes over the training data; None if neither given nor known."""
    warmup_steps: int | None
    """Steps of warm-up; None while it is a share of unknown steps."""
    decay_steps: int | None
    """Steps of decay at the end; 0 for a constant schedule, None while steps is unknown."""
    parameters: int | None
    """Parameters of the model, if they can be known without loading it."""
    trainable: int | None
    """Parameters that are trained; None as long as only the loaded model could tell."""
    memory: dict[str, int] | None
    """Estimated bytes on one rank by use (see `launcher.config.derive.peak`), or None."""
    sequence_parallel: int = 1
    """Ranks of a group, which share each sequence."""
    zero: int | None = None
    """ZeRO stage; None on one rank, which has nothing to shard: DeepSpeed is left out."""
    recomputed: int | None = None
    """Layers that recompute their activations; None: all or none of them."""
    eval_steps: int | None = None
    """Steps between evaluations during training; None: there are none, or steps is unknown."""
    micro_by: str = "rule"
    """What has set the micro-batch: "config", "rule", or for `batch.micro=auto` in the ranks
    "measured" or "estimate"."""
    disk: dict[str, int] | None = None
    """Estimated bytes of `checkpoint` (one), `checkpoints` (those kept, and one being written) and
    `export`; None while the model's sizes are not known."""

    @property
    def groups(self) -> int:
        """Groups of ranks that compute sequences of their own."""
        return self.world_size // self.sequence_parallel

    @property
    def device_bytes(self) -> int | None:
        """Estimated bytes that a rank takes of its device, which for a CPU is the host."""
        if self.memory is None:
            return None
        return sum(self.memory.values()) - (self.memory["host"] if self.device == "cuda" else 0)

    def to_json(self) -> str:
        """JSON text with one key a field."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """The plan that `to_json` wrote; unknown keys raise `TypeError`."""
        return cls(**json.loads(text))


def make(
    config: Config,
    *,
    world_size: int,
    has_gpu: bool,
    train_packs: int | None = None,
    capability: Capability | None = None,
    chosen: Choice | None = None,
) -> Plan:
    """Solve micro-batch, accumulation, steps, precision and attention for `world_size` ranks.

    `train_packs` is the number of packs of one epoch; without it `train.epochs` gives no steps yet.
    `capability` is that of the oldest GPU; without it, as before the start, they are taken for
    Ampere or newer. `chosen` is what `batch.micro=auto` has found for so many ranks; without it
    the rule for `null` stands in.
    Raises `ConfigError` for a batch that cannot be cut; `checks.check` finds that (and more)
    beforehand.
    """
    device = "cuda" if has_gpu else "cpu"
    sequences, shared = global_sequences(config), config.engine.sequence_parallel
    if world_size % shared:  # evaluation and answers take other ranks; training is refused
        shared = 1
    groups = world_size // shared
    if sequences < 1 or sequences % groups:
        hint = "run launcher.config.check.checks first"
        raise ConfigError(f"{sequences} sequences on {world_size} ranks", where="batch", hint=hint)
    per_rank = sequences // groups
    stretch = max(1, config.data.max_length // shared)
    micro, micro_by = micro_batch(per_rank, stretch, device), "rule"
    if isinstance(config.batch.micro, int):
        micro, micro_by = config.batch.micro, "config"
    elif config.batch.micro is MicroBatch.auto and chosen is not None:
        micro, micro_by = chosen
    if per_rank % micro:
        raise ConfigError(f"{micro} does not divide {per_rank}", where="batch.micro")
    steps, epochs = _length(config, sequences, train_packs)
    precision = resolve_precision(config, has_gpu, capability)
    dtype = precision if config.model.dtype is Dtype.auto else config.model.dtype.name
    warmup = _warmup_steps(config, steps)
    shape = memory.model_shape(config)
    every = config.checkpoint.every_steps
    saves = exports_best(config) or (every is not None and (steps is None or every < steps))
    zero = resolve_zero(config, world_size, precision)
    cut = peak.Cut(world_size, micro, per_rank // micro, device, precision, dtype, zero, shared)
    cut = replace(cut, recomputed=peak.recomputed(config, shape, cut) if shape else None)
    copies = config.checkpoint.background and saves
    estimate = peak.estimate(config, shape, cut, copies_checkpoint=copies)
    return Plan(
        world_size=world_size,
        device=device,
        precision=precision,
        dtype=dtype,
        attention=resolve_attention(config, has_gpu, capability),
        max_length=config.data.max_length,
        global_sequences=sequences,
        micro_batch=micro,
        accumulation=per_rank // micro,
        steps=steps,
        epochs=epochs,
        warmup_steps=warmup,
        decay_steps=_decay_steps(config, steps, warmup),
        parameters=shape.parameters if shape else None,
        trainable=memory.trainable(config, shape) if shape else None,
        memory=estimate,
        sequence_parallel=shared,
        zero=zero,
        recomputed=cut.recomputed,
        micro_by=micro_by,
        eval_steps=_eval_steps(config, steps),
        disk=_disk(config, shape, dtype) if shape else None,
    )


def _disk(config: Config, shape: memory.ModelShape, dtype: str) -> dict[str, int]:
    """A checkpoint holds fp32 weights and moments of what is trained; an export of adapters those
    alone, else the model, both in the format of the weights."""
    trained = memory.about_trainable(config, shape)
    one = int(trained * (4 + config.optim.moment_bytes))
    options = config.checkpoint
    kept = options.keep_last + options.keep_best + exports_best(config)
    if options.every_steps is None and not exports_best(config):
        kept = 1  # the last alone
    is_adapter = config.peft.name != "none" and not config.export.merge
    exported = (trained if is_adapter else shape.parameters) * peak.BYTES[dtype]
    written = one * (kept + 1) if kept > 1 else one
    return {
        "checkpoint": one,
        "checkpoints": written,
        "export": exported if config.export.at_end else 0,
    }


def exports_best(config: Config) -> bool:
    """Whether the weights of the best evaluation are the result, and not the last ones."""
    if config.export.weights is None:
        return config.train.early_stop.patience is not None
    return config.export.weights is Weights.best


def global_sequences(config: Config) -> int:
    """Sequences of the global batch; 0 if the config states none."""
    if config.batch.sequences is not None:
        return config.batch.sequences
    return (config.batch.tokens or 0) // config.data.max_length


def micro_batch(per_rank: int, max_length: int, device: str) -> int:
    """The largest divisor of `per_rank` whose tokens stay within the device's share; at least 1."""
    most = max(1, MICRO_TOKENS[device] // max_length)
    return max(size for size in divisors(per_rank) if size <= most)


def divisors(number: int) -> list[int]:
    """All divisors of `number`, the least first."""
    return [size for size in range(1, number + 1) if number % size == 0]


def kept_choice(before: dict[str, Any], world_size: int) -> Choice | None:
    """What `batch.micro=auto` has found for a run whose plan.json is `before`; None where it has
    found nothing, or for another number of ranks."""
    by = before.get("micro_by")
    if by not in ("measured", "estimate") or before.get("world_size") != world_size:
        return None
    return before["micro_batch"], by


def resolve_precision(config: Config, has_gpu: bool, capability: Capability | None = None) -> str:
    """`engine.precision` with auto resolved: bf16 on CUDA, fp16 where the GPU has none, fp32 on
    CPU."""
    if config.engine.precision is not Dtype.auto:
        return config.engine.precision.name
    if not has_gpu:
        return "fp32"
    return "bf16" if capability is None or capability >= AMPERE else "fp16"


def resolve_attention(config: Config, has_gpu: bool, capability: Capability | None = None) -> str:
    """`model.attention` with auto resolved; varlen kernels are for 16-bit numbers on CUDA, from
    Ampere on, and what keeps packed documents apart is for decoders."""
    if config.model.attention is not Attention.auto:
        return config.model.attention.name
    if config.objective.has_sequence_head and architecture.is_encoder(config.model):
        return Attention.sdpa.name
    is_half = resolve_precision(config, has_gpu, capability) != "fp32"
    has_kernel = has_gpu and (capability is None or capability >= AMPERE)
    return "varlen" if has_kernel and is_half else "document"


def resolve_zero(config: Config, world_size: int, precision: str) -> int | None:
    """`engine.zero`, or None where AdamW on one rank needs nothing of DeepSpeed's: neither its
    offload nor its loss scaler nor a key of `engine.extra`."""
    engine = config.engine
    offloads = engine.offload_optimizer or engine.offload_params
    is_plain = config.optim.name == "adamw" and precision != "fp16"
    if world_size == 1 and is_plain and not (offloads or engine.extra):
        return None
    return engine.zero


def _length(config: Config, sequences: int, packs: int | None) -> tuple[int | None, float | None]:
    steps, epochs = config.train.steps, config.train.epochs
    packs = packs and packs * config.objective.answers_per_record
    if steps is not None:
        return steps, steps * sequences / packs if packs else None
    if epochs is not None and packs:
        return max(1, math.ceil(packs * epochs / sequences)), epochs
    return None, epochs


def _eval_steps(config: Config, steps: int | None) -> int | None:
    if config.eval.name == "none":
        return None
    if config.eval.every_steps is not None or config.eval.times is None or steps is None:
        return config.eval.every_steps
    return max(1, steps // config.eval.times)


def _warmup_steps(config: Config, steps: int | None) -> int | None:
    warmup = config.schedule.warmup
    if warmup >= 1:
        return int(warmup)
    if warmup == 0:
        return 0
    return None if steps is None else round(warmup * steps)


def _decay_steps(config: Config, steps: int | None, warmup: int | None) -> int | None:
    if config.schedule.name == "constant":
        return 0
    if steps is None or warmup is None:
        return None
    if isinstance(config.schedule, WsdConfig):
        return min(steps - warmup, max(1, round(config.schedule.decay * steps)))
    return max(0, steps - warmup)


def describe(config: Config, plan: Plan) -> str:
    """A few lines for people: what will run, and how the global batch is cut."""
    ranks = _counted(plan.world_size, "rank")
    model = config.model.name or config.model.kind
    method = "full" if config.peft.name == "none" else config.peft.name
    sequences = _counted(plan.global_sequences, "pack" if config.data.packing else "sequence")
    accumulation = "" if plan.accumulation == 1 else f" x {plan.accumulation} accumulation"
    lines = [
        f"model    {model}{_size(plan)}, {method} fine-tuning, {plan.precision},"
        f" attention {plan.attention}",
        f"engine   {_engine_text(plan)} on {ranks} on {plan.device}",
        f"batch    {sequences} of {plan.max_length} tokens ="
        f" {_groups(plan)} x {plan.micro_batch} micro-batch{accumulation}{_guessed(config, plan)}",
        f"length   {_length_text(plan)}",
    ]
    if plan.recomputed is not None:
        lines.append(
            f"layers   the first {plan.recomputed} recompute their activations, for"
            f" {config.model.activation_gib:g} GiB"
        )
    for key, (name, revision) in config.objective.models.items():
        lines.append(f"{key:<8} {name}{_size_beside(config, plan, key, revision)}")
    if config.train.early_stop.patience is not None:
        lines.append(f"stop     {_stop_text(config, plan)}")
    if plan.memory and plan.device_bytes is not None:
        total = plan.device_bytes
        apart = sum(plan.memory.values()) - total
        host = f", {_gib(apart)} on the host" if apart else ""
        lines.append(f"memory   about {_gib(total)} a rank (estimate){host}{_beside(plan)}")
    else:
        lines.append("memory   not known: no sizes of this model are at hand")
    if plan.disk:
        one, kept, exported = (plan.disk[k] for k in ("checkpoint", "checkpoints", "export"))
        export = f", {_gib(exported)} for the export" if exported else ""
        lines.append(
            f"disk     about {_gib(kept)} for checkpoints of {_gib(one)}{export} (estimate)"
        )
    known = architecture.positions(config.model)
    if known is not None and plan.max_length > known.count:
        lines.append(
            f"warning: data.max_length={plan.max_length} is beyond the {known.count} positions that"
            " the model was made for"
        )
    return "\n".join(lines)


def _groups(plan: Plan) -> str:
    """Who computes sequences of their own."""
    if plan.sequence_parallel == 1:
        return _counted(plan.world_size, "rank")
    ranks = _counted(plan.sequence_parallel, "rank")
    return f"{_counted(plan.groups, 'group')} (each sequence shared by {ranks})"


def _size_beside(config: Config, plan: Plan, key: str, revision: str | None) -> str:
    """What a further model of the objective holds of each rank, or that it holds nothing."""
    name = config.objective.models[key][0]
    if key not in config.objective.beside:
        return ", asked once before the first step"
    shape = memory.shape_of(name, revision)
    size = f" ({shape.parameters:,} parameters)" if shape else ""
    each = f", {_gib(shape.parameters * peak.BYTES[plan.dtype])} of each rank" if shape else ""
    return f"{size}, {plan.dtype}{each}"


def _guessed(config: Config, plan: Plan) -> str:
    if config.batch.micro is MicroBatch.auto and plan.micro_by == "rule":
        return " (batch.micro=auto: an estimate, the start of the run finds it)"
    return ""


def _engine_text(plan: Plan) -> str:
    return "AdamW, nothing to shard," if plan.zero is None else f"ZeRO-{plan.zero}"


def _beside(plan: Plan) -> str:
    """How the estimate relates to what the step line shows."""
    if plan.device == "cpu":
        return "; steps show the whole process, libraries too (some 0.5 GiB)"
    return "; steps show the most that torch has allocated"


def _size(plan: Plan) -> str:
    if plan.parameters is None:
        return ""
    counted = plan.trainable not in (None, plan.parameters)
    share = f", {plan.trainable:,} trained" if counted else ""
    return f" ({plan.parameters:,} parameters{share})"


def _length_text(plan: Plan) -> str:
    if plan.steps is None:
        assert plan.epochs is not None
        return f"{_counted(plan.epochs, 'epoch')} (steps follow when the data is prepared)"
    epochs = "" if plan.epochs is None else f" ({_counted(plan.epochs, 'epoch')})"
    warmup = f", {plan.warmup_steps} of warm-up" if plan.warmup_steps else ""
    return f"{_counted(plan.steps, 'step')}{epochs}{warmup}"


def _stop_text(config: Config, plan: Plan) -> str:
    stop, every = config.train.early_stop, plan.eval_steps
    assert stop.patience is not None
    evaluations = _counted(stop.patience, "evaluation")
    text = f"early after {evaluations} without progress in eval.{stop.metric}"
    if every is None or plan.steps is None:
        return text
    before, needed = (plan.steps - 1) // every, stop.patience + 1
    if before < needed:
        comes = "1 comes" if before == 1 else f"{before or 'none'} come"
        return f"{text}: never, as that takes {needed}, and {comes} before the end"
    return f"{text}, one {'a step' if every == 1 else f'in {every} steps'}"


def _counted(number: float, one: str) -> str:
    """A number, to three digits if it is no whole one, and what it counts."""
    text = f"{number:.3g}" if number != int(number) else f"{number:.0f}"
    return f"{text} {one}" if number == 1 else f"{text} {one}s"


def _gib(size: int) -> str:
    if size < 2**20:
        return f"{size / 2**10:.0f} KiB"
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def as_dict(plan: Plan) -> dict[str, Any]:
    """Plain data of a plan."""
    return dataclasses.asdict(plan)
