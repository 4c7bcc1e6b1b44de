"""A small random model of every architecture that transformers knows for texts.

The config of an architecture comes from its class: what has a name in `SIZES` becomes small, lists
with an entry a layer are cut down to layers that show every kind once. Where that does not do,
`OVERRIDES` says what else it takes.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from support.models import make_tokenizer

VOCABULARY = 320
POSITIONS = 256
#: Windows, chunks and numbers of selected tokens: less than a document, so that they matter.
WINDOW = 8

WIDTH = ("hidden_size", "d_model", "n_embd", "dim", "embedding_dim", "lru_width", "emb_dim")
WIDTH += ("word_embed_proj_dim", "embedding_size", "pooler_hidden_size", "backbone_hidden_size")
WIDTH += ("attention_hidden_size", "input_embedding_size", "output_embedding_size", "d_latents")
INNER = ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "d_inner")
INNER += ("d_ff", "dim_ff", "dff", "ffn_hidden_size", "hidden_dim", "moe_intermediate_size")
INNER += ("shared_expert_intermediate_size", "shared_experts_intermediate_size", "mlp_hidden_size")
INNER += ("moe_shared_expert_intermediate_size", "expert_ffn_hidden_size", "feed_forward_size")
INNER += ("shared_intermediate_size", "dense_intermediate_size", "intermediate_size_mlp")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads")
HEADS += ("decoder_attention_heads", "attention_heads", "num_encoder_attention_heads")
HEADS += ("num_decoder_attention_heads", "swa_num_attention_heads", "index_n_heads")
HEADS += ("linear_num_value_heads", "linear_num_heads", "n_mamba_heads", "num_query_groups")
GROUPS = ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "linear_num_key_heads")
HEAD_WIDTH = ("head_dim", "v_head_dim", "d_kv", "d_head", "dim_head", "swa_head_dim", "kv_channels")
HEAD_WIDTH += ("linear_head_dim", "attention_head_size", "global_head_dim")
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
LAYERS += ("encoder_layers", "num_encoder_layers", "num_decoder_layers", "num_blocks")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
ONES = ("num_shared_experts", "n_shared_experts", "moe_num_shared_experts", "num_dense_layers")
ONES += ("first_k_dense_replace", "num_random_blocks")
WINDOWS = ("sliding_window", "attention_chunk_size", "index_topk", "local_attention", "window_size")
WINDOWS += ("sliding_window_size", "attention_window_size", "keep_window_size", "chunk_size")
WINDOWS += ("mamba_chunk_size", "rel_extent", "block_size", "local_attention_window_len")
PLACES = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length")
PLACES += ("max_target_positions", "max_source_positions", "context_length")

#: What a field is set to, where a config class has a field of this name with a number in it.
SIZES: dict[str, int] = {
    **dict.fromkeys(WIDTH, 32),
    **dict.fromkeys(INNER, 48),
    **dict.fromkeys(HEADS, 4),
    **dict.fromkeys(GROUPS, 2),
    **dict.fromkeys(HEAD_WIDTH, 8),
    **dict.fromkeys(LAYERS, 2),
    **dict.fromkeys(EXPERTS, 4),
    **dict.fromkeys(PER_TOKEN, 2),
    **dict.fromkeys(ONES, 1),
    **dict.fromkeys(WINDOWS, WINDOW),
    **dict.fromkeys(PLACES, POSITIONS),
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "original_max_position_embeddings": POSITIONS,
    "n_group": 2,
    "num_expert_group": 2,
    "topk_group": 1,
    "q_lora_rank": 12,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "index_head_dim": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "state_size": 8,
    "ssm_state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_num_heads": 8,
    "mamba_d_head": 8,
    "mamba_head_dim": 8,
    "mamba_headdim": 8,
    "mamba_dt_rank": 4,
    "time_step_rank": 4,
    "n_groups": 2,
    "rotary_dim": 4,
    "max_window_layers": 1,
    "type_vocab_size": 2,
}

#: What the generic way does not find, by model type.
OVERRIDES: dict[str, dict[str, Any]] = {}

#: Not instantiated, and why.
SKIPPED: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model type, and what it can be: "causal", "classes", or both."""

    name: str
    heads: tuple[str, ...]
    aliases: list[str] = field(default_factory=list)
    """Other model types with the same config class."""


def architectures() -> dict[str, Architecture]:
    """Every model type of transformers' tables for causal and for sequence classification models;
    those that share a config class and a model class are one."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    classes = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    found: dict[Any, Architecture] = {}
    for name in sorted({*causal, *classes}):
        heads = tuple(h for h, names in (("causal", causal), ("classes", classes)) if name in names)
        known = found.setdefault((CONFIG_MAPPING[name], heads), Architecture(name, heads))
        if known.name != name:
            known.aliases.append(name)
    return {one.name: one for one in found.values()}


def small_config(name: str, head: str = "causal", **changes: Any) -> Any:
    """A small config of the model type `name`; `changes` are fields of it."""
    from transformers import CONFIG_MAPPING

    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    overrides = OVERRIDES.get(name, {})
    return _small(CONFIG_MAPPING[name], special | overrides | changes)


def _small(kind: Any, changes: dict[str, Any]) -> Any:
    names = {one.name for one in dataclasses.fields(kind)}
    nested = {key: value for key, value in changes.items() if isinstance(value, _Nested)}
    plain = {key: value for key, value in changes.items() if not isinstance(value, _Nested)}
    needed = {key: value for key, value in plain.items() if key not in SIZES}
    try:
        whole = kind()
    except Exception:  # a class whose own defaults do not fit together
        whole = kind(**needed)
    options: dict[str, Any] = {
        key: size
        for key, size in SIZES.items()
        if key in names and isinstance(getattr(whole, key, None), int)
    }
    options |= {
        key: 0.0
        for key in names
        if ("drop" in key or key.endswith("_pdrop")) and isinstance(getattr(whole, key), float)
    }
    options |= _layers(whole, names)
    for key in getattr(kind, "sub_configs", {}):
        part = getattr(whole, key, None)
        if part is not None and hasattr(part, "to_dict"):
            own = nested[key].changes if key in nested else {}
            options[key] = _small(type(part), own)
    options |= {k: v for k, v in plain.items() if k in names or k not in _SPECIAL}
    return kind(**options)


_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")


@dataclass(frozen=True, slots=True)
class _Nested:
    """Changes of a config within a config."""

    changes: dict[str, Any]


def nested(**changes: Any) -> Any:
    """Overrides of a config within a config."""
    return _Nested(changes)


def _layers(whole: Any, names: set[str]) -> dict[str, Any]:
    """The number of layers, and the lists with an entry a layer: the first layer of every kind."""
    key = next((name for name in LAYERS if name in names), None)
    count = getattr(whole, key, None) if key else None
    if not isinstance(count, int):
        return {}
    lists = {
        name: list(value)
        for name in sorted(names)
        if isinstance(value := getattr(whole, name, None), list | tuple)
        and len(value) == count
        and all(isinstance(one, str | int | float | None) for one in value)
    }
    if not lists:
        return {}
    kinds: dict[Any, int] = {}
    for place, layer in enumerate(zip(*lists.values(), strict=True)):
        kinds.setdefault(layer, place)
    chosen = sorted(kinds.values())[:6]
    if len(chosen) < 2:
        chosen = [0, 1]
    return {key: len(chosen)} | {
        name: [values[place] for place in chosen] for name, values in lists.items()
    }


def make_family(name: str, folder: Path, head: str = "causal", **changes: Any) -> Path:
    """Save a random model of the architecture and a tokenizer in `folder`, and return it.

    Weights are drawn wide, so that every token matters to every later one.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    config = small_config(name, head, **changes)
    make_tokenizer(folder)
    torch.manual_seed(0)
    opener = AutoModelForCausalLM if head == "causal" else AutoModel
    model = opener.from_config(config)
    draw(model)
    model.save_pretrained(folder)
    return folder


@torch.no_grad()
def draw(model: nn.Module) -> None:
    """Weights that tell layers and tokens apart: matrices anew, vectors moved a little."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            parameter.copy_(0.2 * noise)
        else:
            parameter.add_(0.1 * noise)
    for name, buffer in model.named_buffers():
        if "correction_bias" in name:
            buffer.add_(torch.randn(buffer.shape, generator=generator))
