"""Going on from an adapter that lies in a folder, ours or another's: layout, weights, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import peft
from launcher.config.derive import adapter
from launcher.config.schema import Config, LoraConfig, ModelConfig, PeftConfig
from launcher.core.errors import ConfigError
from launcher.inference.fold import fold
from launcher.model.adapter import AdapterReader
from launcher.model.export import Kind, export
from launcher.model.rebuild import load_start, with_adapters
from launcher.model.verify import open_export, verify
from model.test_export import logits, make_tokenizer, train
from support.adapted import family
from support.draws import some

OTHERS: dict[str, dict[str, Any]] = {
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"v_proj": 5},
        "alpha_pattern": {"q_proj": 20},
    },
    "regex": {"target_modules": r".*layers\.1\..*_proj", "use_rslora": True},
    "dora": {"target_modules": ["o_proj"], "use_dora": True},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "layers": {"target_modules": ["q_proj"], "layers_to_transform": [1]},
}


def make_base(folder: Path, name: str) -> Path:
    torch.manual_seed(1)
    config = family(name)
    config.tie_word_embeddings = False
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def saved(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter that peft itself has written, with weights that are not those of a start."""
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_pretrained(base)
    model = peft.get_peft_model(
        model, peft.LoraConfig(**{"r": 3, "lora_alpha": 6, "task_type": "CAUSAL_LM", **options})
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    return folder


def settled(folder: Path, method: PeftConfig) -> Config:
    config = Config(model=ModelConfig(name=str(folder)), peft=method)
    assert not adapter.settle(config)
    if config.model.tokenizer is None:
        config.model.tokenizer = config.model.name
    return config


def opened(folder: Path, base: Path) -> Any:
    return open_export(folder, base, dtype=torch.float32, num_tokens=257, trust_remote_code=False)


@pytest.mark.parametrize("other", some(OTHERS, "layers"))
def test_anothers_adapter_goes_on_as_one_adapter_of_the_base(tmp_path: Path, other: str) -> None:
    base = make_base(tmp_path / "base", "llama")
    folder = saved(base, tmp_path / "theirs", **OTHERS[other])
    config = settled(folder, LoraConfig(rank=99))
    assert config.model.name == str(base)
    expected = logits(opened(folder, base))
    start = load_start(config, base, torch.float32, 257)
    torch.testing.assert_close(logits(start), expected, atol=1e-5, rtol=1e-5)
    trained = train(config, base, tmp_path)
    export(trained, Kind.adapter, tmp_path / "out", lambda written: verify(trained, written))
    again = peft.LoraConfig.from_pretrained(tmp_path / "out")
    assert again.base_model_name_or_path == str(base)
    assert (again.r, again.rank_pattern) == (3, OTHERS[other].get("rank_pattern", {}))
    assert (logits(opened(tmp_path / "out", base)) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", some(["llama", "glm4_moe", "mixtral", "gpt_oss"], "llama"))
def test_our_adapters_of_experts_go_on_and_merge(tmp_path: Path, name: str) -> None:
    base = make_base(tmp_path / "base", name)
    method = LoraConfig(rank=2)
    trained = train(Config(model=ModelConfig(name=str(base)), peft=method), base, tmp_path)
    export(trained, Kind.adapter, tmp_path / "first", lambda folder: verify(trained, folder))
    expected = logits(opened(tmp_path / "first", base))
    config = settled(tmp_path / "first", LoraConfig())
    start = load_start(config, base, torch.float32, 257)
    torch.testing.assert_close(logits(start), expected, atol=1e-5, rtol=1e-5)
    config = settled(tmp_path / "first", PeftConfig())
    assert config.model.adapter == str(tmp_path / "first")
    fold(config, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llama")
    folder = saved(base, tmp_path / "theirs", target_modules=["o_proj", "down_proj"])
    config = settled(folder, LoraConfig())
    wide = family("llama")
    wide.intermediate_size = 64
    model = with_adapters(AutoModelForCausalLM.from_config(wide), config)
    with pytest.raises(ConfigError, match="the model has"):
        AdapterReader(folder, model)
    (folder / "adapter_model.safetensors").unlink()
    model = with_adapters(AutoModelForCausalLM.from_pretrained(base), config)
    with pytest.raises(ConfigError, match="cannot be read"):
        AdapterReader(folder, model)
