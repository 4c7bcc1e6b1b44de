"""What a model can read: its tables of positions, and what its config.json says of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    RobertaConfig,
    RobertaModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from launcher.config.derive import architecture
from launcher.core.errors import ConfigError
from launcher.model.load import _position_tables, position_rows, require_positions
from support.families import small_config

SIZES: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
GPT: dict[str, Any] = {"vocab_size": 60, "n_embd": 16, "n_layer": 1, "n_head": 2}
MODELS: dict[str, tuple[Any, Any, int | None]] = {
    "bert": (BertModel, BertConfig(**SIZES, max_position_embeddings=12), 12),
    "roberta": (RobertaModel, RobertaConfig(**SIZES, max_position_embeddings=12), 10),
    "deberta": (DebertaV2Model, DebertaV2Config(**SIZES, max_position_embeddings=12), 12),
    "deberta 3": (
        DebertaV2Model,
        DebertaV2Config(
            **SIZES,
            max_position_embeddings=12,
            position_biased_input=False,
            relative_attention=True,
        ),
        None,
    ),
    "gpt2": (GPT2LMHeadModel, GPT2Config(**GPT, n_positions=12), 12),
    "gptj": (GPTJForCausalLM, GPTJConfig(**GPT, n_positions=12, rotary_dim=4), 12),
    "opt": (
        OPTForCausalLM,
        OPTConfig(
            **SIZES, ffn_dim=16, word_embed_proj_dim=16, max_position_embeddings=12, pad_token_id=1
        ),
        12,
    ),
    "llama": (LlamaForCausalLM, LlamaConfig(**SIZES, max_position_embeddings=12), None),
}


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_reads_as_many_tokens_as_are_said(kind: str) -> None:
    maker, config, count = MODELS[kind]
    model = maker(config).eval()
    assert position_rows(model) == count
    known = architecture.positions_in(config.to_dict())
    assert known is not None
    assert (known.count if known.are_rows else None) == count

    def read(length: int) -> None:
        model(input_ids=torch.full((1, length), 5), attention_mask=torch.ones(1, length))

    if count is None:
        read(20)
        require_positions(model, 20)
        return
    read(count)
    require_positions(model, count)
    with pytest.raises((IndexError, RuntimeError)):
        read(count + 1)
    message = rf"data.max_length: {count + 1} is beyond the {count} positions(?s:.)*={count}, or"
    with pytest.raises(ConfigError, match=message):
        require_positions(model, count + 1)


def test_tables_of_other_senses_do_not_count_tokens() -> None:
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(small_config("video_llava", "images"))
    assert any("tower" in name and "position" in name for name, _ in model.named_modules())
    assert position_rows(model) is None


#: Their tables count something else than the tokens of a text, or are no models of text.
OTHER = {"git", "moshi", "musicgen", "whisper", "perceiver", "trocr"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "maker"),
    [
        (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM),
        (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, AutoModelForSequenceClassification),
    ],
)
def test_the_config_tells_of_every_table_in_transformers(names: Any, maker: Any) -> None:
    """Each architecture by its default config, without weights; some defaults make no model."""
    differ, seen = {}, 0
    for name in set(names) - OTHER:
        model = default_model(name, maker)
        if model is None:
            continue
        known = architecture.positions_in(model.config.to_dict())
        said = known.count if known is not None and known.are_rows else None
        found = min(_position_tables(model), default=None)
        seen += found is not None
        if said != found:
            differ[name] = (said, found)
    # One builds its table anew each time, the other's is of a make of its own.
    assert differ.keys() <= {"mpt", "ibert"}
    assert seen > 30


def default_model(name: str, maker: Any) -> Any:
    try:
        config = CONFIG_MAPPING[name]()
        if not getattr(config, "layer_types", None):
            config.num_hidden_layers = 2
        with torch.device("meta"):
            return maker.from_config(config)
    except Exception:
        return None
