"""What one rank will hold at most in a step, by use, estimated without loading the model.

What a rank holds changes through a step: activations grow in forward and shrink in backward while
gradients grow, and the optimizer has copies of its own. So the estimate is that of the moment at
which most is held. `tests/bench/memory.py` compares it with measured peaks. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from launcher.config.derive import memory, tensors
from launcher.config.derive.memory import ModelShape
from launcher.config.schema import AdapterConfig, Config, LoraConfig, Quantization

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
#: bytes a parameter of nf4: half a byte, and the scales of its blocks.
NF4_BYTES = 0.56
#: Logits in fp32 that the loss computes at once, as `launcher.model.target_logits` cuts them.
LOGITS = {"cpu": 1 << 20, "cuda": 1 << 27}
#: Largest communication bucket in elements, and the least one. DeepSpeed's default of 5e8 costs
#: 2 GB a rank in fp32.
BUCKET_ELEMENTS, LEAST_BUCKET = 50_000_000, 1_000_000
#: Elements that DeepSpeed sums over ranks at once at stage 0.
FLAT_ELEMENTS = 500_000_000
#: Under ZeRO-3 each rank keeps parameters smaller than this whole.
PERSISTENT = 100_000


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the layers of a model type keep for backward beyond those of Llama."""

    hidden: float = 0
    """Vectors of the residual width, a token and layer."""
    attention: float = 0
    """Vectors of the width of queries and keys."""
    inner: float = 0
    """Vectors of the MLP's inner width."""
    logits: float = 0
    """Copies of all logits: a model that changes them after its head holds them whole."""
    scores: float = 0
    """Copies of attention scores, heads x tokens x length of a document: for soft caps."""


_KINDS = {
    "qwen3": _Kind(attention=1),
    "qwen3_moe": _Kind(attention=1),
    "olmo2": _Kind(hidden=2, attention=1),
    "olmo3": _Kind(hidden=2, attention=1),
    "exaone4": _Kind(hidden=2, attention=1),
    "glm4": _Kind(hidden=2, inner=2),
    "phi3": _Kind(attention=1, inner=2),
    "granite": _Kind(logits=2),
    "gemma2": _Kind(hidden=2, attention=1, logits=3, scores=2),
    "gemma3_text": _Kind(hidden=2, attention=1),
    "gemma3": _Kind(hidden=2, attention=1),
}


@dataclass(frozen=True, slots=True)
class Cut:
    """How the work of a step is cut, and in what formats it is computed."""

    world_size: int
    micro_batch: int
    accumulation: int
    device: str
    """"cpu" or "cuda"."""
    precision: str
    dtype: str
    zero: int | None
    """ZeRO stage; None for the engine of one rank."""
    sequence_parallel: int = 1
    """Ranks that share a sequence."""
    recomputed: int | None = None
    """Layers that recompute their activations; None: all or none, as `gradient_checkpointing`
    says."""


def bucket(trained: int | None) -> int:
    """Elements of DeepSpeed's reduction bucket, a buffer that every rank has: a quarter of all
    gradients at most."""
    quarter = (trained or 4 * BUCKET_ELEMENTS) // 4
    return min(BUCKET_ELEMENTS, max(LEAST_BUCKET, quarter))


def recomputed(config: Config, shape: ModelShape, cut: Cut) -> int | None:
    """The least number of layers that must recompute their activations for those of a rank to stay
    within `model.activation_gib`, or all of them; None if that is not set."""
    if config.model.activation_gib is None:
        return None
    rank, most = _Rank(config, shape, cut), config.model.activation_gib * 2**30
    most -= rank.working()
    numbers = range(shape.layers)
    return next((n for n in numbers if sum(rank.activations(n)) <= most), shape.layers)


def estimate(
    config: Config, shape: ModelShape | None, cut: Cut, *, copies_checkpoint: bool = False
) -> dict[str, int] | None:
    """Bytes of one rank by use, at the moment at which it holds most; None without a shape.

    `weights`, `gradients`, `optimizer` (moments, and the fp32 copy of the weights), `activations`,
    `logits` (a chunk of them and the gradients of the head), `buffers` (of DeepSpeed: buckets,
    gathered parameters, copies of gradients), and `host`: what is offloaded, and with
    `copies_checkpoint` what is copied for checkpoints. Models that the objective holds beside the
    one in training are among the weights.
    """
    if shape is None:
        return None
    rank = _Rank(config, shape, cut)
    kept = {"weights": rank.weights, "optimizer": rank.optimizer}
    host = 0.0
    if config.engine.offload_optimizer:
        host += kept.pop("optimizer")
    if config.engine.offload_params:
        host += kept.pop("weights")
    if copies_checkpoint:
        ranks = cut.world_size if rank.stage >= 1 else 1
        host += rank.trained * (config.optim.moment_bytes + 4) / ranks
    most = max(rank.moments(), key=lambda moment: sum(moment.values()))
    uses = {**kept, **most, "host": host}
    uses["weights"] = uses.get("weights", 0.0) + beside(config, cut.dtype)
    if config.objective.asks_start(config):  # the former weights, and the new ones meanwhile
        uses["weights"] += 2 * rank.trained * rank.size
    names = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "host")
    return {name: int(uses.get(name, 0.0)) for name in names}


def beside(config: Config, dtype: str) -> int:
    """Bytes of the models that the objective holds beside the one in training, as far as they are
    known."""
    shapes = [memory.shape_of(*named) for named in config.objective.beside.values()]
    if config.objective.copies_model(config):
        shapes.append(memory.model_shape(config))
    return sum(shape.parameters * BYTES[dtype] for shape in shapes if shape)


class _Rank:
    """The sizes of one rank in bytes."""

    def __init__(self, config: Config, shape: ModelShape, cut: Cut) -> None:
        self.config, self.shape, self.cut = config, shape, cut
        self.stage, self.size = cut.zero or 0, BYTES[cut.precision]
        self.has_adapters = isinstance(config.peft, AdapterConfig)
        self.trained = memory.about_trainable(config, shape)
        self.share = self.trained / (cut.world_size if self.stage >= 1 else 1)
        # Of the whole row a rank has some heads in attention: as many numbers as of its stretch.
        self.tokens = math.ceil(cut.micro_batch * config.data.max_length / cut.sequence_parallel)
        text = shape.content.get("text_config", shape.content)
        self.text = text
        self.kind = _KINDS.get(str(text.get("model_type")), _Kind())
        self.is_tied = "lm_head.weight" not in shape.tensors
        self.matrix = shape.vocab * shape.hidden
        self.is_head_trained = not self.has_adapters and not config.objective.has_sequence_head
        # Sums over micro-batches and ranks are kept in fp32, by DeepSpeed where it offers that.
        is_summed = self.stage in (1, 2) or (self.stage == 3 and cut.precision == "bf16")
        has_fp32_sums = cut.zero is None or (is_summed and not config.engine.offload_optimizer)
        self.summed = 4 if has_fp32_sums else self.size

    @property
    def weights(self) -> float:
        """Parameters: under ZeRO-3 a rank's share (of a group's, too), and small ones whole."""
        nf4 = self.config.model.quantization is Quantization.nf4
        each = NF4_BYTES if nf4 else BYTES[self.cut.dtype]
        added = self.trained * self.size if self.has_adapters else 0
        if self.stage < 3:
            return self.shape.parameters * each + added
        whole, group = self.shape.parameters * each + added, self.config.engine.secondary_partition
        sharded = whole / self.cut.world_size + (whole / group if group else 0)
        return sharded + self.persistent * each + added

    @property
    def persistent(self) -> int:
        """Elements of the base's parameters that ZeRO-3 does not shard."""
        sizes = map(math.prod, self.shape.tensors.values())
        return sum(size for size in sizes if size < PERSISTENT)

    @property
    def optimizer(self) -> float:
        """Moments, and an fp32 copy of what is trained; without ZeRO fp32 weights need none."""
        copy = 0 if self.stage == 0 and self.cut.precision == "fp32" else 4
        return self.share * (self.config.optim.moment_bytes + copy)

    def moments(self) -> Iterator[dict[str, float]]:
        """What is held besides weights and optimizer, at each moment that may be the fullest."""
        number = self.cut.recomputed
        if number is None:
            number = self.shape.layers if self.config.model.gradient_checkpointing else 0
        kept, inner = self.activations(number)
        before, reducing = self._gradients()
        gathered = self._gathered()
        # The loss: all activations are there, and gradients of the micro-batches before.
        yield {
            "gradients": before,
            "activations": kept,
            "logits": self._logits(),
            "buffers": self._bucket(is_in_backward=False) + self._head_weight(),
        }
        # The last layer, first in backward (and under ZeRO-3 in forward, with the next gathered).
        head = self.matrix * self.size if self.is_head_trained else 0
        is_first = self.cut.accumulation == 1
        yield {
            "gradients": before + (head if is_first and self.stage < 3 else 0),
            "activations": kept + inner + self.working(),
            "buffers": self._bucket(),
        }
        yield {
            "gradients": before,
            "activations": kept + inner,
            "buffers": self._bucket() + gathered,
        }
        # The embedding, last in backward: gradients are whole, and are summed over the ranks.
        embedding = self.matrix * self.size * (2 if self.is_tied else 1)
        yield {
            "gradients": reducing + (0 if self.has_adapters else embedding),
            "buffers": self._bucket(),
        }
        yield {"gradients": reducing, "buffers": self._copies()}

    def activations(self, recomputed: int) -> tuple[float, float]:
        """Activations that all layers keep if so many of the first ones recompute theirs, and what
        one that does adds in backward, beyond what later layers have freed by then."""
        inputs = self.tokens * self.size * self.shape.hidden
        later = (self.shape.layers - recomputed) * self._inside(recomputes=False)
        again = self._inside(recomputes=True) if recomputed else 0.0
        return recomputed * inputs + later, max(0.0, again - later)

    def _inside(self, *, recomputes: bool) -> float:
        """Activations of one layer, if it keeps them or while it recomputes them."""
        shape, kind, config = self.shape, self.kind, self.config
        lean = not (recomputes or config.model.compile)
        hidden, inner_copies = (2, 2) if lean else (4, 4)
        if lean and config.model.fp8:  # its layers keep their inputs
            hidden, inner_copies = 4, 3
        inner, chosen = float(shape.intermediate), self._experts()
        if chosen:
            # Gate, up and their product and activation; inputs and outputs of the experts.
            inner = chosen * (2 * float(self.text.get("moe_intermediate_size") or inner))
            inner += chosen * shape.hidden
        width = shape.query_width + shape.kv_width * self._repeated()
        each: float = (2 + kind.attention) * width + (hidden + kind.hidden) * shape.hidden
        each += (inner_copies + kind.inner) * inner
        heads = int(self.text.get("num_attention_heads") or 1)
        each += kind.scores * heads * config.data.max_length
        found = self.tokens * self.size * each
        if isinstance(config.peft, AdapterConfig):
            found += self.tokens * self.size * 7 * _rank_of(config.peft)
            made = tensors.of_experts(config.peft, shape.tensors, shape.content)
            found += self.size * made / shape.layers
        return found

    def _repeated(self) -> float:
        """How often heads of keys are there where ranks share a sequence, as
        `launcher.model.sequence_parallel` sends them."""
        size, heads = self.cut.sequence_parallel, int(self.text.get("num_attention_heads") or 1)
        keys = int(self.text.get("num_key_value_heads") or heads)
        least = math.lcm(keys, size)
        return (least if heads % least == 0 else heads) / keys if keys % size else 1.0

    def _experts(self) -> int:
        """Experts that a token visits; 0 where layers have none."""
        names = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k")
        return next((int(self.text[name]) for name in names if self.text.get(name)), 0)

    def working(self) -> float:
        """What backward through an MLP holds beside the activations."""
        inner = self.shape.intermediate * (4 if self.has_adapters else 3)
        return self.tokens * self.size * (inner + 2 * self.shape.hidden)

    def _logits(self) -> float:
        """A chunk of logits, and what the head has gradients of."""
        objective, device = self.config.objective, self.cut.device
        outputs = self.shape.vocab
        if objective.has_sequence_head:
            outputs = objective.num_outputs(self.config.data.labels)
        chunk = min(self.tokens * outputs, LOGITS[device])
        if self.kind.logits:
            is_wide = self.size == 4  # logits in fp32 are not copied for the softmax
            return self.kind.logits * self.tokens * outputs * self.size + chunk * (
                4 + 4 * (not is_wide)
            )
        found = chunk * (8 + (0 if self.size == 4 else 4) + 4 * objective.logit_copies)
        found += 2 * self.tokens * self.shape.hidden * self.size
        return found + (4 * self.matrix if self.is_head_trained else 0)

    def _head_weight(self) -> float:
        return self.matrix * self.size if self.stage == 3 else 0.0

    def _gradients(self) -> tuple[float, float]:
        """Gradients that are held before the last micro-batch, and at the end of its backward."""
        whole, mine = self.trained * self.summed, self.share * self.summed
        is_first = self.cut.accumulation == 1
        if self.stage == 3:  # a buffer that is always there
            return mine, mine
        if self.stage == 2:
            # In one format, the copy has room for the whole of a tensor that is partly a rank's.
            is_cut = self.cut.world_size > 1 and self.summed == self.size and not self.has_adapters
            mine += self.summed * self._largest() * is_cut
            return (0 if is_first else mine), (mine if is_first else 2 * mine)
        return (0 if is_first else whole), whole

    def _bucket(self, *, is_in_backward: bool = True) -> float:
        """DeepSpeed's reduction bucket. ZeRO-1 keeps it from the first micro-batch to the last,
        ZeRO-2 in a backward, ZeRO-3 always."""
        is_kept = self.stage == 3 or (self.stage == 1 and self.cut.accumulation > 1)
        if self.stage == 0 or not (is_kept or is_in_backward):
            return 0.0
        overlaps = self.config.engine.overlap_comm
        if overlaps is None:
            overlaps = self.stage == 3 and self.cut.device == "cuda"
        return bucket(self.trained) * self.size * (2 if overlaps else 1)

    def _copies(self) -> float:
        """Of gradients, as the ranks sum them and the optimizer takes them."""
        norm = 0 if self.has_adapters else 8 * self._largest()
        if self.stage == 0:
            several = self.cut.world_size > 1
            return max(min(self.trained, FLAT_ELEMENTS) * self.summed * several, norm)
        return self._bucket() + max(4 * self.share, norm)

    def _largest(self) -> int:
        """Elements of the largest tensor."""
        return max(map(math.prod, self.shape.tensors.values()), default=0)

    def _gathered(self) -> float:
        """Whole parameters under ZeRO-3: of the layer at work, and of what comes next."""
        if self.stage < 3:
            return 0.0
        sharded = self.shape.parameters - self.persistent
        layer = sum(
            math.prod(size)
            for name, size in self.shape.tensors.items()
            if ".layers.0." in f".{name}" and math.prod(size) >= PERSISTENT
        )
        coming = min(sharded, BUCKET_ELEMENTS)
        return self.size * (coming + layer + self.matrix)


def _rank_of(peft: AdapterConfig) -> int:
    return peft.rank if isinstance(peft, LoraConfig) else 0
