"""Sections of the training itself: `batch`, `train`, `engine`, `checkpoint` and `export`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

from launcher.config.schema.model import Dtype
from launcher.config.schema.ranges import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
)


class OnNonFinite(Enum):
    """What happens when the loss or the gradient norm is NaN or Inf."""

    stop = "stop"
    skip = "skip"


class MicroBatch(Enum):
    """A micro-batch that is no number."""

    auto = "auto"


class Weights(Enum):
    """Which weights of a run are its result."""

    best = "best"
    last = "last"


@dataclass(kw_only=True, slots=True)
class BatchConfig:
    """The global batch of one optimizer step; micro-batch and accumulation are solved from it."""

    tokens: PositiveInt | None = None
    """Global batch in tokens: `data.max_length` times the packs. Give this or `batch.sequences`."""
    sequences: PositiveInt | None = None
    """Global batch in sequences (packs, if packing is on). Give this or `batch.tokens`."""
    micro: PositiveInt | MicroBatch | None = None
    """Sequences a rank computes at once; null: the most that divide the batch and have no more than
    1,024 tokens on CPU, 16,384 on CUDA. auto: the start of a run finds the fastest that fits."""


@dataclass(kw_only=True, slots=True)
class EarlyStopConfig:
    """Ending the training once held-out records show no more progress."""

    patience: PositiveInt | None = None
    """Evaluations in a row without progress after which training ends; null: never early."""
    metric: str = "loss"
    """Which of `eval.metrics` tells, for `export.weights=best` too; one that needs no generated
    answers. Whether less or more is better is known of each."""
    min_change: NonNegativeFloat = 0.0
    """Least change for the better, against the score that counted last, that counts as progress."""


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """How long to train and what to do at each step."""

    steps: PositiveInt | None = None
    """Optimizer steps. Give this or `train.epochs`."""
    epochs: PositiveFloat | None = None
    """Passes over the training data; the last step is filled up from the next pass."""
    log_every_steps: PositiveInt = 10
    """Write a line of metrics every N steps."""
    token_accuracy: bool = False
    """Log the share of target tokens that the model would have chosen; costs a pass over logits."""
    router_aux: NonNegativeFloat | None = None
    """Coefficient of the loss that balances experts, over the global batch (docs/experts.md). null:
    the model's own `router_aux_loss_coef` if its config.json has `output_router_logits: true`."""
    on_nonfinite: OnNonFinite = OnNonFinite.stop
    """NaN or Inf in loss or gradient norm: `stop` (exit 5) or `skip` the step."""
    deterministic: bool = False
    """Sum in a fixed order everywhere, so that a repeated run gives the same bits; slower on GPUs.
    What has no such kernel is refused when it is computed (exit 2)."""
    threads: PositiveInt | None = None
    """Compute threads per rank on CPU; default: CPUs divided by the ranks of this host."""
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)
    """When to end before the last step."""


@dataclass(kw_only=True, slots=True)
class EngineConfig:
    """DeepSpeed ZeRO."""

    zero: Annotated[int, Range(0, 3)] = 2
    """ZeRO stage: 0 replicates all, 1 shards optimizer state, 2 gradients too, 3 parameters too."""
    precision: Dtype = Dtype.auto
    """Computation: `auto` is bf16 on CUDA and fp32 on CPU."""
    offload_optimizer: bool = False
    """Keep optimizer state and its update on the CPU (stages 1 to 3)."""
    offload_params: bool = False
    """Keep parameters on the CPU and fetch them when needed (stage 3)."""
    overlap_comm: bool | None = None
    """Reduce gradients while backward goes on (stages 1 and 2: beside every micro-batch, with a
    second bucket; stage 3: gathers too). null: at stage 3 on GPUs."""
    secondary_partition: Annotated[int, Range(2)] | None = None
    """Ranks of a group, a node's as a rule, that keep all parameters between them after a forward,
    so that backward gathers within the group (hpZ of ZeRO++, Wang et al. 2023, arXiv:2306.10209;
    stage 3)."""
    sequence_parallel: PositiveInt = 1
    """Ranks that share each sequence, of which every one computes a stretch; in attention each has
    some of the heads over the whole of it (DeepSpeed-Ulysses, Jacobs et al. 2023,
    arXiv:2309.14509). For sequences whose activations do not fit one rank."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further DeepSpeed keys, merged last over the dict that `launcher config --deepspeed` prints;
    those that would have no effect here are refused."""


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """Saving and keeping state."""

    every_steps: PositiveInt | None = None
    """Save every N steps; a checkpoint at the end and at a clean stop is always written."""
    keep_last: PositiveInt = 2
    """Newest checkpoints to keep."""
    keep_best: NonNegativeInt = 0
    """Checkpoints with the lowest held-out loss to keep besides (needs evaluation)."""
    background: bool = True
    """Write from a copy in host memory while training goes on; false: training waits for it."""


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """The Hugging Face folder written at the end."""

    at_end: bool = True
    """Write `export/` when training has finished."""
    merge: bool = False
    """Fold adapters into the base weights; false writes the adapter alone."""
    weights: Weights | None = None
    """Which weights are compared with the base and exported: the `last`, or the `best` of all
    evaluations by `train.early_stop.metric`, whose checkpoint is kept. null: the best with
    `train.early_stop.patience`, else the last."""
