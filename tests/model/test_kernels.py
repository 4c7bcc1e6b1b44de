"""Kernels of Liger in a model: which modules they replace, and what is refused.

What they compute is compared on a GPU (tests/gpu/test_kernels.py).
"""

import importlib
import importlib.util
import sys

import pytest
import transformers

from launcher.core.errors import ConfigError
from launcher.model.kernels import use_liger

IS_THERE = importlib.util.find_spec("liger_kernel") is not None
needs_liger = pytest.mark.skipif(not IS_THERE, reason="needs liger-kernel: pip install it")

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make(config, **options):
    made = getattr(transformers, config)(**SIZES, **options)
    return transformers.AutoModelForCausalLM.from_config(made)


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Liger replaces functions and classes of transformers' modules for good."""
    for name in ("llama", "gemma2", "qwen3_moe"):
        module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
        for key, value in vars(module).items():
            if not key.startswith("__"):
                monkeypatch.setattr(module, key, value)


@needs_liger
@pytest.mark.parametrize(
    ("config", "options", "changed"),
    [
        ("LlamaConfig", {}, {"LlamaRMSNorm": 5, "LlamaMLP": 2}),
        ("Gemma2Config", {"head_dim": 8}, {"Gemma2RMSNorm": 9, "Gemma2MLP": 2}),
        (
            "Qwen3MoeConfig",
            {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2},
            {"Qwen3MoeRMSNorm": 9},
        ),
    ],
)
def test_norms_and_mlps_run_with_its_kernels_and_the_head_does_not(config, options, changed):
    model = make(config, **options)
    number = use_liger(model)
    found: dict[str, int] = {}
    for module in model.modules():
        if "forward" in vars(module):
            found[type(module).__name__] = found.get(type(module).__name__, 0) + 1
    assert found == changed
    assert number == sum(changed.values())


@needs_liger
def test_a_model_that_it_does_not_know_is_refused():
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 61}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
    with pytest.raises(ConfigError, match="no kernels for GPT2LMHeadModel(?s:.)*kernels=torch"):
        use_liger(model)


def test_one_that_does_not_fit_is_refused_by_name(monkeypatch, tmp_path):
    """Such a liger-kernel has no table of the models that it knows, or cannot be imported."""
    package = tmp_path / "liger_kernel" / "transformers"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "monkey_patch.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("", ".transformers", ".transformers.monkey_patch"):
        monkeypatch.delitem(sys.modules, f"liger_kernel{name}", raising=False)
    with pytest.raises(ConfigError, match="does not fit transformers(?s:.)*--upgrade liger-kernel"):
        use_liger(make("LlamaConfig"))
