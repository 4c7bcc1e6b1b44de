"""What one rank will hold in memory, estimated from the model's shape without loading it.

The estimate is meant to be right within a quarter for Llama-like models, to answer "does it fit?"
before anything is queued. Standard library only.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher import runtime
from launcher.config import tensors
from launcher.config.schema import Config, LoraConfig, Quantization, TinyModelConfig

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
#: bytes a parameter of nf4: half a byte, and the scales of its blocks.
NF4_BYTES = 0.56
#: bytes a trained parameter that an optimizer keeps (moments).
MOMENT_BYTES = {"adamw": 8, "adamw8bit": 2, "muon": 4}
#: target positions whose logits are held at once; the loss is computed in chunks of about this
#: size.
LOGIT_CHUNK = 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a decoder."""

    parameters: int
    vocab: int
    hidden: int
    intermediate: int
    layers: int
    query_width: int
    """Heads times head size."""
    kv_width: int
    """Key-value heads times head size."""
    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Name -> shape of every parameter, from the weight files; empty without them."""
    content: Mapping[str, Any] = field(default_factory=dict)
    """What config.json says."""

    def linears(self) -> dict[str, tuple[int, int]]:
        """Linear layers of one block by name -> (inputs, outputs)."""
        hidden, mlp = self.hidden, self.intermediate
        return {
            "q_proj": (hidden, self.query_width),
            "k_proj": (hidden, self.kv_width),
            "v_proj": (hidden, self.kv_width),
            "o_proj": (self.query_width, hidden),
            "gate_proj": (hidden, mlp),
            "up_proj": (hidden, mlp),
            "down_proj": (mlp, hidden),
        }


#: What GPT-2 and its like call a size.
_ELSEWHERE = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_inner": "intermediate_size",
}


def model_shape(config: Config) -> Shape | None:
    """The shape of a tiny model, or of one in a folder or in the hub's local cache, or None."""
    model = config.model
    if isinstance(model, TinyModelConfig):
        head = model.hidden_size // max(1, model.heads)
        return _shape(
            {
                "vocab_size": model.vocab_size,
                "hidden_size": model.hidden_size,
                "intermediate_size": model.intermediate_size,
                "num_hidden_layers": model.layers,
                "num_attention_heads": model.heads,
                "num_key_value_heads": model.kv_heads,
                "head_dim": head,
                "tie_word_embeddings": model.tie_embeddings,
                "model_type": "llama",
            },
            None,
        )
    folder = local_folder(model.name, model.revision) if model.name else None
    if folder is None:
        return None
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        text = content.get("text_config", content)
        return _shape(
            {"tie_word_embeddings": content.get("tie_word_embeddings"), **text}, folder, content
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        return None  # an estimate only: the loader reports what is wrong with the folder


def local_folder(name: str, revision: str | None) -> Path | None:
    """The folder of a model that needs no download: itself, or its snapshot in the hub's cache."""
    folder = runtime.user_path(name)
    if not (folder / "config.json").is_file():
        cached = runtime.hub_cache() / f"models--{name.replace('/', '--')}"
        reference = cached / "refs" / (revision or "main")
        commit = (
            reference.read_text(encoding="utf-8").strip()
            if reference.is_file()
            else (revision or "main")
        )
        folder = cached / "snapshots" / commit
    return folder if (folder / "config.json").is_file() else None


def _shape(text: dict[str, Any], folder: Path | None, whole: dict[str, Any] | None = None) -> Shape:
    """The shape that the `text` part of a config.json gives; `whole` is all of it."""
    content = {_ELSEWHERE.get(key, key): value for key, value in text.items()}
    hidden = int(content["hidden_size"])
    heads = int(content.get("num_attention_heads") or 1)  # a model may do without attention
    head = int(content.get("head_dim") or hidden // heads)
    shape = Shape(
        parameters=0,
        vocab=int(content["vocab_size"]),
        hidden=hidden,
        intermediate=int(content.get("intermediate_size") or 4 * hidden),
        layers=int(content["num_hidden_layers"]),
        query_width=heads * head,
        kv_width=int(content.get("num_key_value_heads") or heads) * head,
    )
    found = tensors.read(folder, whole or content) if folder else None
    if found is not None:
        number = tensors.count(found)
        return replace(shape, parameters=number, tensors=found, content=whole or content)
    block = sum(a * b for a, b in shape.linears().values()) + 2 * hidden
    embeddings = 1 if content.get("tie_word_embeddings") else 2
    number = shape.layers * block + embeddings * shape.vocab * hidden + hidden
    return replace(shape, parameters=number, content=content)


#: Model types whose blocks have the linear layers of `Shape.linears` and no others.
_PLAIN = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "granite")


def trainable(config: Config, shape: Shape) -> int | None:
    """Number of trained parameters: all of them, or the adapters of LoRA; None if the model's
    files do not tell it to the number, and only the model itself can."""
    if config.objective.classifies or config.model.add_tokens:
        return None  # the head or new rows count too
    if adapter := _adapter(config):
        return tensors.in_adapter(Path(adapter))
    if not isinstance(config.peft, LoraConfig):
        # Towers that no text trains are in the files of a model that reads more than text.
        return shape.parameters if shape.tensors or _is_plain(shape) else None
    if shape.tensors:
        return tensors.trainable(config.peft, shape.tensors, shape.content)
    return _plain_trainable(config.peft, shape) if _is_plain(shape) else None


def about_trainable(config: Config, shape: Shape) -> int:
    """`trainable`, or a guess by the layers of a plain decoder."""
    if not isinstance(config.peft, LoraConfig):
        return shape.parameters
    return trainable(config, shape) or _plain_trainable(config.peft, shape)


def _adapter(config: Config) -> str | None:
    return config.peft.adapter if isinstance(config.peft, LoraConfig) else None


def _is_plain(shape: Shape) -> bool:
    return shape.content.get("model_type") in _PLAIN


def knows_layers(peft: LoraConfig, shape: Shape) -> bool:
    """Whether all layers that `peft` names are certain to be in the model, and to take adapters."""
    names = {peft.targets} if isinstance(peft.targets, str) else set(peft.targets)
    if not peft.modules_to_save and names == {"all-linear"}:
        return shape.content.get("model_type") in tensors.COUNTED
    plain, whole = {*shape.linears(), "all-linear"}, {"embed_tokens", "lm_head"}
    return _is_plain(shape) and names <= plain and set(peft.modules_to_save) <= whole


def _plain_trainable(peft: LoraConfig, shape: Shape) -> int:
    linears = shape.linears()
    if isinstance(peft.targets, list) and "all-linear" not in peft.targets:
        linears = {name: size for name, size in linears.items() if name in peft.targets}
    adapters = sum(peft.rank * (inputs + outputs) for inputs, outputs in linears.values())
    magnitudes = sum(outputs for _, outputs in linears.values()) if peft.dora else 0
    embeddings = {"embed_tokens", "lm_head"} & set(peft.modules_to_save)
    number = 1 if embeddings and shape.content.get("tie_word_embeddings") else len(embeddings)
    return shape.layers * (adapters + magnitudes) + number * shape.vocab * shape.hidden


def estimate(
    config: Config,
    shape: Shape | None,
    *,
    world_size: int,
    micro_batch: int,
    precision: str,
    dtype: str,
) -> dict[str, int] | None:
    """Bytes of one rank: weights, gradients, optimizer, activations, logits, and host (offloaded).

    With N parameters, T trained ones, W ranks and b bytes a number:
    weights N*b, over W from ZeRO 3; gradients T*b (T*4 at ZeRO 1 and 2), over W from ZeRO 2;
    optimizer T * (moments + 4 for the fp32 copy), over W from ZeRO 1 (ZeRO 0 in fp32 updates the
    weights themselves, without a copy).
    Activations: a block keeps about 2 vectors of `hidden`, 2 of the query, 2 of the key-value and 2
    of the MLP width per token (`launcher.model.lean`; compiled, 4 of `hidden` and of the MLP); with
    gradient checkpointing only its input, and one block is alive at a time.
    Adapters on fused experts keep the sum of weights and update besides.
    Logits: a chunk of positions in `precision` and twice in fp32 (log-softmax and its gradient).
    """
    if shape is None:
        return None
    stage, size = config.engine.zero, BYTES[precision]
    trained = about_trainable(config, shape)
    nf4 = config.model.quantization is Quantization.nf4
    weights = shape.parameters * (NF4_BYTES if nf4 else BYTES[dtype])
    weights += trained * size if trained != shape.parameters else 0
    moments = MOMENT_BYTES[config.optim.name]
    copy = 0 if stage == 0 and precision == "fp32" else 4
    optimizer = trained * (moments + copy) / (world_size if stage >= 1 else 1)
    weights /= world_size if stage == 3 else 1
    # Sums over micro-batches and ranks are kept in fp32 where DeepSpeed offers it.
    summed = 4 if stage in (1, 2) and not config.engine.offload_optimizer else size
    gradients = trained * summed / (world_size if stage >= 2 else 1)
    tokens = micro_batch * config.data.max_length
    copies = 4 if config.model.gradient_checkpointing or config.model.compile else 2
    inside = 2 * (shape.query_width + shape.kv_width)
    inside += copies * (shape.hidden + shape.intermediate)
    if config.model.gradient_checkpointing:
        activations = tokens * size * (shape.layers * shape.hidden + inside)
    else:
        activations = tokens * size * shape.layers * inside
    if isinstance(config.peft, LoraConfig):
        made = tensors.of_experts(config.peft, shape.tensors, shape.content)
        activations += size * made // (shape.layers if config.model.gradient_checkpointing else 1)
    outputs = len(config.data.labels) if config.objective.classifies else shape.vocab
    logits = min(tokens, LOGIT_CHUNK) * outputs * (size + 8)
    host = 0.0
    if config.engine.offload_optimizer:
        host, optimizer = host + optimizer, 0.0
    if config.engine.offload_params:
        host, weights = host + weights, 0.0
    uses = {
        "weights": weights,
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": activations,
        "logits": logits,
        "host": host,
    }
    return {use: int(amount) for use, amount in uses.items()}
