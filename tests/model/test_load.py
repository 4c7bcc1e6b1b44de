"""What cannot be loaded is refused with a hint that helps; what can, with the attention it has."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from transformers import (
    CanineConfig,
    CanineModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from launcher.config.derive import plan as plans
from launcher.core.errors import ConfigError
from launcher.model.load import load_model
from launcher.model.sequence_head import SequenceHead
from support.configs import make_config
from support.models import make_llama

HEAD = SequenceHead(("bug", "bill"), "single_label_classification")
SIZES: dict[str, Any] = {"vocab_size": 60, "num_hidden_layers": 1, "intermediate_size": 16}


def load(folder: Path, head: SequenceHead | None = None, **model: Any) -> Any:
    config = make_config(
        model={"name": str(folder), **model},
        objective={"name": "classify"} if head else {},
        data={"packing": False, "max_length": 32},
        batch={"sequences": 1},
        train={"steps": 1},
    )
    plan = plans.make(config, world_size=1, has_gpu=False)
    return load_model(config.model, plan, 1, head=head)


@pytest.fixture(scope="module")
def deberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder that transformers has no SDPA for."""
    folder = tmp_path_factory.mktemp("deberta")
    config = DebertaV2Config(
        **SIZES, hidden_size=16, num_attention_heads=2, max_position_embeddings=64
    )
    DebertaV2ForMaskedLM(config).save_pretrained(folder)
    return folder


def test_auto_takes_the_attention_that_the_model_has(deberta: Path, tiny_llama: Path) -> None:
    assert load(deberta, HEAD).config._attn_implementation == "eager"
    assert load(deberta, HEAD, attention="eager").config._attn_implementation == "eager"
    assert load(tiny_llama, attention="sdpa").config._attn_implementation == "sdpa"


def test_auto_pads_texts_for_a_head_that_packed_rows_are_not_for(tmp_path: Path) -> None:
    sizes = {"vocab_size": 60, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(tmp_path)
    assert load(tmp_path).config._attn_implementation == "launcher_document"
    assert load(tmp_path, HEAD).config._attn_implementation == "sdpa"
    with pytest.raises(ConfigError, match=r"has no document attention\n.*model.attention=sdpa"):
        load(tmp_path, HEAD, attention="document")


def test_a_model_without_rows_for_tokens_is_refused(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    CanineModel(CanineConfig(**sizes, num_hash_buckets=64)).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no embedding with a row for each token"):
        load(tmp_path, HEAD)


def test_a_model_that_transformers_has_no_code_for_is_refused(tmp_path: Path) -> None:
    """MusicGen is in the table of language models, with a config that its class cannot read."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "musicgen"}))
    save_file({}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"cannot load .*has no attribute 'dropout'"):
        load(tmp_path)


def test_attention_that_the_model_has_not_is_refused_with_one_that_it_has(deberta: Path) -> None:
    for asked in ("sdpa", "document"):
        with pytest.raises(ConfigError, match=r"HINT: set model.attention=eager"):
            load(deberta, HEAD, attention=asked)
    with pytest.raises(ConfigError, match=r"HINT: model.attention=auto"):
        load(deberta, HEAD, attention="flash")


def rewritten(**changes: Any) -> Callable[[Path], Any]:
    """Changes the config.json of a model; None takes a field out."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text()) | changes
        kept = {key: value for key, value in content.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


REMOTE = {"AutoConfig": "made_up.Config", "AutoModelForCausalLM": "made_up.Model"}


@pytest.mark.parametrize(
    ("spoil", "found", "hint"),
    [
        (
            rewritten(model_type="newest"),
            "does not recognize",
            "pip install --upgrade transformers",
        ),
        (rewritten(model_type=None, architectures=None), "model_type", "config.json names its"),
        (rewritten(model_type="x", auto_map=REMOTE), "custom code", "model.trust_remote_code=true"),
        (rewritten(hidden_size="wide"), "hidden_size", "mend config.json"),
        (rewritten(num_attention_heads=5), "attention heads", "mend config.json"),
        (rewritten(hidden_size=64), "no fitting weights", "is the checkpoint complete"),
        (lambda folder: (folder / "config.json").write_text("{"), "JSON", "mend config.json"),
        (lambda folder: (folder / "config.json").unlink(), "", "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named", "no weights"),
        (cut_off, "deserializing", "a file of weights is damaged"),
        (shutil.rmtree, "", "there is no such folder"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused_with_the_way_out(
    tmp_path: Path, spoil: Callable[[Path], Any], found: str, hint: str
) -> None:
    folder = make_llama(tmp_path / "model")
    spoil(folder)
    with pytest.raises(ConfigError) as caught:
        load(folder, attention="sdpa")
    (problem,) = caught.value.problems
    assert problem.where == "model.name"
    assert found in problem.found
    assert hint in problem.hint


@pytest.mark.thorough
def test_a_model_of_another_kind_is_no_language_model(tmp_path: Path) -> None:
    config = T5Config(vocab_size=60, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"HINT: transformers has no such model of this kind"):
        load(tmp_path)
