"""The model's shape without loading it: its parameters, and which of them are trained.

`launcher.config.derive.peak` estimates from it what a rank will hold. Standard library only.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.config.derive import tensors
from launcher.config.schema import AdapterConfig, Config, TinyModelConfig
from launcher.core import runtime


@dataclass(frozen=True, slots=True)
class ModelShape:
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
    """Name -> shape of every parameter, from the weight files; without them those of a decoder like
    Llama."""
    content: Mapping[str, Any] = field(default_factory=dict)
    """What config.json says."""
    is_certain: bool = True
    """Whether the tensors are those of the model: from its files, or of a kind that is known."""


#: What GPT-2 and its like call a size.
_ELSEWHERE = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_inner": "intermediate_size",
}


def model_shape(config: Config) -> ModelShape | None:
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
    return shape_of(model.name, model.revision) if model.name else None


def shape_of(name: str, revision: str | None) -> ModelShape | None:
    """The shape of a model in a folder or in the hub's local cache, or None."""
    folder = local_folder(name, revision)
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


def _shape(
    text: dict[str, Any], folder: Path | None, whole: dict[str, Any] | None = None
) -> ModelShape:
    """The shape that the `text` part of a config.json gives; `whole` is all of it."""
    content = {_ELSEWHERE.get(key, key): value for key, value in text.items()}
    hidden = int(content["hidden_size"])
    heads = int(content.get("num_attention_heads") or 1)  # a model may do without attention
    head = int(content.get("head_dim") or hidden // heads)
    shape = ModelShape(
        parameters=0,
        vocab=int(content["vocab_size"]),
        hidden=hidden,
        intermediate=int(content.get("intermediate_size") or 4 * hidden),
        layers=int(content["num_hidden_layers"]),
        query_width=heads * head,
        kv_width=int(content.get("num_key_value_heads") or heads) * head,
        content=content if whole is None else whole,
    )
    found = tensors.read(folder, whole or content) if folder else None
    if found is None:
        found = dict(_plain(shape, content, head))
        shape = replace(shape, content=content, is_certain=content.get("model_type") in PLAIN)
    return replace(shape, parameters=tensors.count(found), tensors=found)


#: Model types whose tensors `_plain` gives.
PLAIN = ("llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma2", "gemma3_text", "granite")


def _plain(
    shape: ModelShape, content: Mapping[str, Any], head: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of the parameters of a decoder like Llama; `head` is the size of one head."""
    kind, hidden, mlp = content.get("model_type"), shape.hidden, shape.intermediate
    matrices = {
        "self_attn.q_proj": (shape.query_width, hidden),
        "self_attn.k_proj": (shape.kv_width, hidden),
        "self_attn.v_proj": (shape.kv_width, hidden),
        "self_attn.o_proj": (hidden, shape.query_width),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }
    biases = {"self_attn": content.get("attention_bias"), "mlp": content.get("mlp_bias")}
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    if kind in ("gemma2", "gemma3_text"):
        norms |= {"pre_feedforward_layernorm": hidden, "post_feedforward_layernorm": hidden}
    if kind in ("qwen3", "gemma3_text"):
        norms |= {"self_attn.q_norm": head, "self_attn.k_norm": head}
    for layer in range(shape.layers):
        block = f"model.layers.{layer}"
        for name, size in matrices.items():
            yield f"{block}.{name}.weight", size
            is_biased = kind == "qwen2" and name.endswith(("q_proj", "k_proj", "v_proj"))
            if is_biased or biases[name.partition(".")[0]]:
                yield f"{block}.{name}.bias", size[:1]
        for name, width in norms.items():
            yield f"{block}.{name}.weight", (width,)
    yield "model.embed_tokens.weight", (shape.vocab, hidden)
    yield "model.norm.weight", (hidden,)
    if not content.get("tie_word_embeddings"):
        yield "lm_head.weight", (shape.vocab, hidden)


def trainable(config: Config, shape: ModelShape) -> int | None:
    """Number of trained parameters: all of them, or what an adapter method adds; None if the
    model's files do not tell it to the number, and only the model itself can."""
    if config.objective.has_sequence_head or config.model.add_tokens:
        return None  # the head or new rows count too
    number, is_certain = _trained(config, shape)
    return number if is_certain else None


def about_trainable(config: Config, shape: ModelShape) -> int:
    """`trainable`, or the best guess: without what only the model itself knows of."""
    return _trained(config, shape)[0]


def _trained(config: Config, shape: ModelShape) -> tuple[int, bool]:
    peft = config.peft
    if not isinstance(peft, AdapterConfig):
        # Towers that no text trains are in the files of a model that reads more than text.
        return shape.parameters, shape.is_certain
    if peft.adapter:
        stored = tensors.in_adapter(Path(peft.adapter))
        if stored is not None:
            return stored, True
    number, is_certain = tensors.trainable(peft, shape.tensors, shape.content)
    return number, is_certain and shape.is_certain and peft.adapter is None


def knows_layers(peft: AdapterConfig, shape: ModelShape) -> bool:
    """Whether all layers that `peft` names are certain to be in the model, and to take adapters."""
    names = {peft.targets} if isinstance(peft.targets, str) else set(peft.targets)
    kind = shape.content.get("model_type")
    if not peft.modules_to_save and names == {"all-linear"}:
        return kind in tensors.COUNTED
    layers = {name.rsplit(".", 2)[-2] for name in shape.tensors if name.endswith("_proj.weight")}
    saved = set(peft.modules_to_save)
    return (
        kind in PLAIN and names <= {*layers, "all-linear"} and saved <= {"embed_tokens", "lm_head"}
    )
