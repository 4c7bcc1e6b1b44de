"""What cannot be trained is refused before anything is scored; adapters that no gradient reaches
are named after the first step."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from launcher.config.schema import LoraConfig, SftConfig
from launcher.core.errors import ConfigError
from launcher.health.selftest import require_trainable, silent_adapters
from launcher.model.fragments import ParameterShard
from launcher.model.head import TargetHead
from launcher.objectives.sft import Sft
from launcher.peft.lora import apply
from support import caches
from support.families import small_config


@pytest.fixture
def cache(tmp_path):
    return caches.write(tmp_path / "cache", [([5, 6, 7, 8], [0, 0, 1, 1]), ([9] * 9, [1] * 9)])


def check(model, cache):
    model.config.use_cache = False
    require_trainable(Sft(SftConfig()), TargetHead(model), model.eval(), cache, torch.device("cpu"))


def make(name, **changes):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(small_config(name, **changes))


def test_adapters_that_no_gradient_reaches_are_refused(cache):
    check(make("reformer"), cache)
    with pytest.raises(ConfigError, match="no gradient") as caught:
        check(apply(make("reformer"), LoraConfig(rank=2)), cache)
    assert caught.value.problems[0].hint.endswith("peft=none")


def test_the_check_of_gradients_leaves_nothing_behind(cache):
    model = apply(make("llama"), LoraConfig(rank=2, dropout=0.5))
    state = torch.get_rng_state()
    check(model, cache)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_trained_row_that_opening_sets_to_zero_is_refused(cache):
    with pytest.raises(ConfigError, match="row of token 0 in model.embed_tokens"):
        check(make("youtu"), cache)
    check(apply(make("youtu"), LoraConfig(rank=2)), cache)
    check(make("youtu", pad_token_id=None), cache)
    check(make("youtu", tie_word_embeddings=False), cache)
    check(make("llama", tie_word_embeddings=True), cache)


def test_an_adapter_that_the_first_step_left_at_zero_is_named():
    flat = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0, -1e-9])

    def piece(name, start, size):
        return ParameterShard(name, (size,), 0, size, flat, start)

    pieces = [
        piece("layers.0.q_proj.lora_A.default.weight", 0, 2),
        piece("layers.0.q_proj.lora_B.default.weight", 2, 2),
        piece("layers.0.v_proj.lora_B.default.weight", 4, 1),
        piece("layers.0.v_proj.lora_B.default.weight", 5, 1),
    ]
    assert silent_adapters(pieces) == ["layers.0.q_proj"]
    assert silent_adapters(pieces[2:]) == []
