"""Small configs of model families whose layers differ from a plain decoder's, by model type."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig

_SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
    "tie_word_embeddings": False,
}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_SHARED: dict[str, Any] = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1}
_MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 4,
    "v_head_dim": 12,
    "topk_group": 1,
}

#: Model type -> what differs from `_SIZES`.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True},
    "smollm3": {"tie_word_embeddings": True},
    "phi3": {},
    "gemma2": {"tie_word_embeddings": True},
    "gemma3_text": {"tie_word_embeddings": True},
    "glm4": {},
    "olmo2": {},
    "granite": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {
        **_EXPERTS,
        "num_experts": 4,
        "shared_expert_intermediate_size": 24,
    },
    "qwen3_moe": {**_EXPERTS, "num_experts": 4, "mlp_only_layers": [0]},
    "qwen3_5_text": {**_DELTA},
    "qwen3_next": {
        **_DELTA,
        **_EXPERTS,
        "num_experts": 4,
        "shared_expert_intermediate_size": 24,
    },
    "glm4_moe": {**_EXPERTS, **_SHARED, "topk_group": 1, "first_k_dense_replace": 1},
    "deepseek_v3": {**_EXPERTS, **_SHARED, **_MLA, "first_k_dense_replace": 1},
    "gpt_oss": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
    },
    "mamba": {"state_size": 8, "expand": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "gemma4_text": {
        "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "full_attention"],
        "global_head_dim": 16,
        "vocab_size_per_layer_input": 300,
        "hidden_size_per_layer_input": 8,
    },
    "qwen3_5_moe_text": {
        **_DELTA,
        **_EXPERTS,
        "num_experts": 4,
        "shared_expert_intermediate_size": 24,
    },
    "llama4_text": {
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 40,
        "interleave_moe_layer_step": 2,
    },
    "granitemoehybrid": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "shared_intermediate_size": 24,
    },
    "lfm2_moe": {
        **_EXPERTS,
        "num_experts": 4,
        "layer_types": ["conv", "full_attention"],
        "num_dense_layers": 1,
    },
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "tie_word_embeddings": True},
}


def family(name: str) -> Any:
    """The small config of a family."""
    sizes = _SIZES
    if name == "gpt2":
        known = ("vocab_size", "bos_token_id", "eos_token_id")
        sizes = {key: _SIZES[key] for key in known}
    return AutoConfig.for_model(name, **{**sizes, **FAMILIES[name]})
