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
from safetensors.torch import save_file
from torch import nn

from support.models import make_tokenizer

VOCABULARY = 320
#: Parameters of a small model at most.
LARGEST = 8_000_000
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

#: Further ones of models that are no causal ones: what towers for images and sound have.
TOWERS: dict[str, int] = {
    "depth": 2,
    "embed_dim": 32,
    "out_hidden_size": 32,
    "text_hidden_size": 32,
    "projection_dim": 32,
}


@dataclass(frozen=True, slots=True)
class Nested:
    """Changes of a config within a config."""

    changes: dict[str, Any]


def nested(**changes: Any) -> Nested:
    """Overrides of a config within a config."""
    return Nested(changes)


#: Gemma 3n and 4: later layers take keys and values of earlier ones.
SHARING = {
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "num_kv_shared_layers": 2,
}
GEMMA4 = {"global_head_dim": 16}
MOE = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
QSA = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8}
#: Places in three dimensions share out the halves of a head's width.
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2}

#: What the generic way does not find, by model type.
OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "num_hidden_layers": 3},
    "blt": {
        "encoder_hash_byte_group_vocab": 50,
        "encoder_config": nested(hidden_size_global=32),
        "decoder_config": nested(hidden_size_global=32),
    },
    "canine": {"num_hash_buckets": POSITIONS},
    "chameleon": {"vocabulary_map": {"<image>": 5}},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [1, 1, 2],
            },
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}
            | {"mrope_section": [1, 1, 2]},
        }
    },
    "cosmos3_edge_text": MROPE,
    "dbrx": {
        "attn_config": nested(rope_theta=10000.0, kv_n_heads=2, clip_qkv=8.0),
        "ffn_config": nested(moe_top_k=2),
    },
    "deepseek_v2": MOE | {"n_group": 2, "topk_group": 1, "topk_method": "group_limited_greedy"},
    "deepseek_v4": {"o_lora_rank": 8, "o_groups": 2},
    "dots1": MOE,
    "dots3_note": {"vision_config": nested(adapter_in_dim=32)},
    "dots3_note_text": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 4}
    | {"swa_q_lora_rank": 12, "swa_kv_lora_rank": 12, "swa_head_dim": 12}
    | {"swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8},
    "ernie4_5_vl_moe_text": MROPE,
    "esm": {"vocab_size": VOCABULARY},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": SHARING
    | {
        "intermediate_size": [48] * 6,
        "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0, 0.0, 0.0],
    },
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": GEMMA4,
    "glm4v_moe_text": {
        "rope_parameters": MROPE["rope_parameters"] | {"partial_rotary_factor": 1.0}
    },
    "glm4v_text": MROPE,
    "glm5_next_text": {"index_kpool": 4},
    "glm_ocr_text": MROPE,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
        "num_hidden_layers": 3,
    },
    "hunyuan_vl_text": {
        "rope_parameters": MROPE["rope_parameters"] | {"mrope_section": [1, 1, 1, 1]}
    },
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"max_2d_position_embeddings": 64, "coordinate_size": 5, "shape_size": 6},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3},
    "lilt": {"hidden_size": 48},
    "llama": GROUPED,
    "longcat_flash": {"zero_expert_num": 2, "head_dim": 4},
    "luke": {"entity_vocab_size": 20, "entity_emb_size": 32},
    "mamba2": {"num_heads": 8},
    "markuplm": {"max_depth": 4},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "mt5": {"decoder_start_token_id": 0},
    "nemotron": GROUPED,
    "paddleocr_vl_text": MROPE,
    "qwen2_5_omni_text": MROPE,
    "qwen2_5_omni_thinker": {"vision_start_token_id": 5},
    "qwen2_5_vl_text": MROPE,
    "qwen2_vl_text": MROPE,
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 5},
    "radio": {"video_temporal_patch_size": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "qwen4_exp_text": QSA | {"indexer_compress_ratio": 2, "hc_lowrank": 8},
    "reformer": {
        "axial_pos_embds": False,
        "attn_layers": ["local", "lsh"],
        "local_attn_chunk_length": 64,
        "lsh_attn_chunk_length": 64,
        "is_decoder": True,
    },
    "roc_bert": {"pronunciation_vocab_size": 20, "pronunciation_embed_dim": 8}
    | {"shape_vocab_size": 20, "shape_embed_dim": 8},
    "t5": {"decoder_start_token_id": 0},
    "umt5": {"decoder_start_token_id": 0},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX"},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zaya": {"num_experts_per_tok": 1},
}

#: Those whose own tokenizers end every text with the end-of-sequence token, where they read it.
ENDED = ("bart", "bigbird_pegasus", "mbart", "mt5", "mvp", "plbart", "t5", "umt5")

#: Further models of an architecture that take another way through its code.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert, bidirectional": ("bert", {"is_decoder": False}),
    "gemma4_text, shared keys": ("gemma4_text", GEMMA4 | SHARING),
    "gemma4_text, experts": (
        "gemma4_text",
        GEMMA4
        | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2}
        | {"moe_intermediate_size": 16, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
    ),
    "llama, tied": ("llama", GROUPED | {"tie_word_embeddings": True}),
    "mistral, no window": ("mistral", {"sliding_window": None}),
    "youtu, no padding": ("youtu", {"pad_token_id": None}),
    "qwen2, window": ("qwen2", {"use_sliding_window": True}),
    "falcon, alibi": ("falcon", {"alibi": True}),
}

#: The families that people tune, first in a sweep.
MAIN = ("llama", "qwen3", "qwen3_moe", "qwen3_5_text", "qwen3_5_moe_text", "qwen3_next")
MAIN += ("gemma3_text", "gemma4_text", "gpt_oss", "glm4_moe", "deepseek_v3", "phi3", "mistral")
MAIN += ("mixtral", "llama4_text", "falcon_h1", "granitemoehybrid", "lfm2", "mamba2", "bamba")
MAIN += ("gemma4_text, shared keys", "gemma4_text, experts", "gemma2", "qwen2", "smollm3")
MAIN += ("mistral, no window", "qwen2, window", "llama, tied")


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model type, and what it can be: "causal", "classes", or both; or "images", for models of
    images and texts that transformers does not open as causal ones: they are given texts alone."""

    name: str
    heads: tuple[str, ...]
    aliases: list[str] = field(default_factory=list)
    """Other model types with the same config class."""


def architectures() -> dict[str, Architecture]:
    """Every model type of transformers' tables for causal and for sequence classification models,
    and those for images and texts that are no causal ones; those of one config class are one."""
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    causal = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    classes = modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    images = modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.keys() - causal.keys()
    tables = {"causal": causal, "classes": classes, "images": images}
    found: dict[Any, Architecture] = {}
    for name in sorted({*causal, *classes, *images}):
        heads = tuple(head for head, names in tables.items() if name in names)
        known = found.setdefault((CONFIG_MAPPING[name], heads), Architecture(name, heads))
        if known.name != name:
            known.aliases.append(name)
    every = {one.name: one for one in found.values()}
    every |= {name: Architecture(name, ("causal",)) for name in VARIANTS}
    return {name: every[name] for name in dict.fromkeys([*MAIN, *sorted(every)])}


def small_config(name: str, head: str = "causal", **changes: Any) -> Any:
    """A small config of a model type or variant; `changes` are fields of it."""
    from transformers import CONFIG_MAPPING

    kind, special = VARIANTS.get(name, (name, {}))
    overrides = OVERRIDES.get(kind, {}) | special | changes
    sizes = SIZES | TOWERS if head == "images" else SIZES
    return _small(CONFIG_MAPPING[kind], overrides, sizes, decodes=head == "causal")


def _small(
    kind: Any, changes: dict[str, Any], sizes: dict[str, int], *, decodes: bool = False
) -> Any:
    names = {one.name for one in dataclasses.fields(kind)}
    own = {key: value for key, value in changes.items() if not isinstance(value, Nested)}
    try:
        whole = kind()
    except Exception:  # defaults that do not fit together
        whole = kind(**own)
    options = {
        name: size for name, size in sizes.items() if name in names and _is_size(whole, name)
    }
    if _value(whole, "num_key_value_heads") == _value(whole, "num_attention_heads"):
        options.pop("num_key_value_heads", None)
        options |= {"num_key_value_heads": 4} if "num_key_value_heads" in names else {}
    options |= {name: 0.0 for name in names if "drop" in name and _is_rate(whole, name)}
    options |= _layers(whole, names)
    if "vocab_size" in names or "pad_token_id" in names:
        options |= {name: token for name, token in SPECIAL.items() if name in names}
    if "is_decoder" in names and decodes:
        options["is_decoder"] = True
    for name in getattr(kind, "sub_configs", {}):
        part = _value(whole, name)
        if hasattr(part, "to_dict"):
            asked = changes[name].changes if name in changes else OVERRIDES.get(part.model_type, {})
            options[name] = _small(type(part), asked, sizes)
    return kind(**options | own)


SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def _value(config: Any, name: str) -> Any:
    """A field of a config; of one that differs by layer, that of none."""
    try:
        return getattr(config, name, None)
    except Exception:  # a class of transformers' own, which it does not export
        return config.__dict__.get(name)


def _is_size(config: Any, name: str) -> bool:
    value = _value(config, name)
    return name == "head_dim" if value is None else isinstance(value, int)


def _is_rate(config: Any, name: str) -> bool:
    return isinstance(_value(config, name), float)


def _layers(whole: Any, names: set[str]) -> dict[str, Any]:
    """The number of layers, and the lists with an entry a layer: the first layer of every kind."""
    key = next((name for name in LAYERS if name in names), None)
    count = _value(whole, key) if key else None
    if not isinstance(count, int):
        return {}
    lists = {
        name: list(value)
        for name in sorted(names)
        if isinstance(value := _value(whole, name), list | tuple)
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

    Weights are drawn wide, so that every token matters to every later one. Of a model that plain
    transformers cannot make there is the config, and a file without weights: the launcher comes as
    far with it. What was raised then goes on.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForSequenceClassification,
    )

    make_tokenizer(folder)
    if name in ENDED:
        _end_texts(folder)
    config = small_config(name, head, **changes)
    config.save_pretrained(folder)
    save_file({}, folder / "model.safetensors", {"format": "pt"})
    torch.manual_seed(0)
    decodes = type(config) in AutoModelForCausalLM._model_mapping and not hasattr(
        config, "is_decoder"
    )
    opener = AutoModelForSequenceClassification
    if head == "causal" or decodes:
        opener = AutoModelForCausalLM
    if head == "images":
        opener = AutoModelForImageTextToText
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in opener.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size:,} parameters, as not all of its sizes are known here")
    model = opener.from_config(config)
    draw(model)
    if opener is AutoModelForSequenceClassification:  # a base has no head for classes
        model = getattr(model, model.base_model_prefix, model)
    model.save_pretrained(folder)
    return folder


def _end_texts(folder: Path) -> None:
    """Have the tokenizer in `folder` put the end-of-sequence token behind every text."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    ends = [("<eos>", SPECIAL["eos_token_id"])]
    tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=ends)
    tokenizer.save(path)


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
