"""Models of usual shapes, made offline: a config, and a file of zeros that takes no space."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000,
    "tie_word_embeddings": True,
    "vocab_size": 151_936,
}
_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "max_position_embeddings": 131_072,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128_256,
}


def _shape(base: dict[str, Any], hidden: int, mlp: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        **base,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "dtype": "bfloat16",
    }


#: Shapes of Qwen3 0.6B, 1.7B and 4B and of Llama 3.1 8B; tiny is for machines without a GPU.
MODELS = {
    "tiny": {**_shape(_LLAMA, 64, 128, 2, 4), "vocab_size": 512, "num_key_value_heads": 2},
    "0.6b": _shape(_QWEN3, 1024, 3072, 28, 16),
    "1.7b": _shape(_QWEN3, 2048, 6144, 28, 16),
    "4b": _shape(_QWEN3, 2560, 9728, 36, 32),
    "8b": _shape(_LLAMA, 4096, 14336, 32, 32),
}


def write_config(name: str, folder: Path) -> None:
    """Write the model's config.json and a tokenizer of three words, which nothing is read with."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MODELS[name], indent=1))
    words = {"<pad>": 0, "<eos>": 1, "<unk>": 2}
    added = [
        {"id": number, "content": word, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for word, number in words.items()
    ]
    model = {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}
    parts = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    tokenizer = {"version": "1.0", "added_tokens": added, "model": model, **dict.fromkeys(parts)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | kind))


def write_weights(folder: Path) -> None:
    """Write a safetensors file with all weights of the model in `folder`, zero, as a sparse file.

    16 GB would take minutes to draw on the CPU and to write; `randomise` draws them on the device.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    path = folder / "model.safetensors"
    if path.exists():
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, parameter in model.named_parameters():  # a tied head is listed once
        end = position + 2 * math.prod(parameter.shape)
        shape = list(parameter.shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
        position = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    temporary = path.with_suffix(f".{os.getpid()}")  # two may make it at once
    with open(temporary, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + position)
    temporary.rename(path)


def randomise(model: Any) -> None:
    """Draw the weights where they lie: zeros would compute faster than numbers do."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                continue  # drawn, or zero as adapters begin
            state = getattr(parameter, "quant_state", None)
            if state is not None:
                # Blocks of zeros have a scale of zero: the mean of all scales is what is added.
                parameter.data.view(torch.uint8).random_(0, 256)
                state.offset.fill_(0.05)
                continue
            shape = getattr(parameter, "ds_shape", parameter.shape)
            here = getattr(parameter, "ds_tensor", parameter)  # ZeRO-3: this rank's part
            if len(shape) > 1:
                here.normal_(std=0.02)
            else:
                here.fill_(1.0)
