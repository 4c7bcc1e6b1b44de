"""What the config.json of a model says about its kind, where it is at hand without a download."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from launcher.config.derive import memory, quantized, tensors
from launcher.config.schema import ModelConfig, TinyModelConfig

#: How the class names of language models end. A classifier made from one is called otherwise and
#: counts as an encoder, which costs it packing, and nothing else.
_DECODERS = ("ForCausalLM", "LMHeadModel")
_CLASSIFIER = "ForSequenceClassification"


def is_encoder(model: ModelConfig) -> bool:
    """Whether the model reads a text in both directions; False if nothing is known of it."""
    content = _content(model)
    names = content.get("architectures") or []
    if "text_config" in content:  # a decoder that also sees or hears
        return False
    return bool(names) and not any(name.endswith(_DECODERS) for name in names)


def head_names(model: ModelConfig) -> list[str] | None:
    """Names of the classes of the model's own classification head in order; None without one."""
    content = _content(model)
    if not any(name.endswith(_CLASSIFIER) for name in content.get("architectures") or []):
        return None
    names = content.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return [str(names[key]) for key in sorted(names, key=int)]


#: Models with a table of positions, one row a token, by `model_type` in config.json.
_TABLES = (
    "albert bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot blenderbot-small"
    " canine codegen convbert ctrl deberta deberta-v2 distilbert electra ernie flaubert fnet gpt2"
    " gpt_bigcode gpt_neo gptj jina_embeddings_v3 layoutlm marian mbart megatron-bert mobilebert"
    " mpt mra mvp nomic_bert nystromformer openai-gpt opt pegasus perceiver plbart rembert roc_bert"
    " roformer squeezebert tapas trocr xlm yoso"
)
#: Those whose table begins behind the number of the padding token: RoBERTa's 514 rows hold 512.
_TABLES_BEHIND_PADDING = (
    "camembert data2vec-text ibert layoutlmv3 lilt longformer luke markuplm mpnet prophetnet"
    " roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod"
)
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


@dataclass(frozen=True, slots=True)
class Positions:
    """How many tokens a model's makers gave it places for; `are_rows`: it cannot take more."""

    count: int
    are_rows: bool


def positions(model: ModelConfig) -> Positions | None:
    """The positions of a model whose config.json is at hand; None if it does not tell."""
    return positions_in(_content(model))


def positions_in(content: dict[str, Any]) -> Positions | None:
    """The positions that the content of a config.json tells of.

    Positions that are worked out (rotary, ALiBi) go on beyond what training has seen.
    """
    text = content.get("text_config")
    content = text if isinstance(text, dict) else content
    kind = content.get("model_type")
    found = [content[name] for name in _POSITIONS if isinstance(content.get(name), int)]
    if not found:
        return None
    if kind in _TABLES_BEHIND_PADDING.split():
        padding = content.get("pad_token_id")
        return Positions(found[0] - (1 if padding is None else int(padding)) - 1, are_rows=True)
    # DeBERTa may do without its table.
    are_rows = kind in _TABLES.split() and content.get("position_biased_input") is not False
    return Positions(found[0], are_rows)


def quantization(model: ModelConfig) -> dict[str, Any] | None:
    """How the weights of the model are quantised, as its config.json says; None if they are plain
    or nothing is known of it."""
    return quantized.of(_content(model))


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


def is_dense(model: ModelConfig) -> bool:
    """Whether the layers are known to have no experts to choose among."""
    return isinstance(model, TinyModelConfig) or (bool(_content(model)) and not has_experts(model))


def _content(model: ModelConfig) -> dict[str, Any]:
    if isinstance(model, TinyModelConfig) or not model.name:
        return {}
    folder = memory.local_folder(model.name, model.revision)
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}  # the loader reports what is wrong with the folder
    return found if isinstance(found, dict) else {}
