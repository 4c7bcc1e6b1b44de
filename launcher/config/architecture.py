"""What the config.json of a model says about its kind, where it is at hand without a download."""

from __future__ import annotations

import json
from typing import Any

from launcher.config import memory, tensors
from launcher.config.schema import ModelConfig, TinyModelConfig

#: How the class names of language models end. A classifier made from one is called otherwise and
#: counts as an encoder, which costs it packing, and nothing else.
_DECODERS = ("ForCausalLM", "LMHeadModel")
_CLASSIFIER = "ForSequenceClassification"


def is_encoder(model: ModelConfig) -> bool:
    """Whether the model reads a text in both directions; False if nothing is known of it."""
    names = _content(model).get("architectures") or []
    return bool(names) and not any(name.endswith(_DECODERS) for name in names)


def head_names(model: ModelConfig) -> list[str] | None:
    """Names of the classes of the model's own classification head in order; None without one."""
    content = _content(model)
    if not any(name.endswith(_CLASSIFIER) for name in content.get("architectures") or []):
        return None
    names = content.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return [str(names[key]) for key in sorted(names, key=int)]


def ties_embeddings(model: ModelConfig) -> bool:
    """Whether embedding and head are known to be one matrix."""
    if isinstance(model, TinyModelConfig):
        return model.tie_embeddings
    content = _content(model)
    text = content.get("text_config")
    own = text.get("tie_word_embeddings") if isinstance(text, dict) else None
    return bool(content.get("tie_word_embeddings") if own is None else own)


def has_experts(model: ModelConfig) -> bool:
    """Whether the layers are known to choose among experts."""
    content = _content(model)
    text = content.get("text_config")
    text = text if isinstance(text, dict) else content
    return any(text.get(key) for key in tensors.EXPERTS)


def _content(model: ModelConfig) -> dict[str, Any]:
    if isinstance(model, TinyModelConfig) or not model.name:
        return {}
    folder = memory.local_folder(model.name, model.revision)
    try:
        found = json.loads((folder / "config.json").read_text("utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}  # the loader reports what is wrong with the folder
    return found if isinstance(found, dict) else {}
