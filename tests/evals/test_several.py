"""Several answers to a prompt that is computed once, beside those of transformers' `generate`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from launcher.evals import generation, several
from launcher.evals.decoding import Decoding
from launcher.rollouts import sampling
from launcher.rollouts.answer import Question

VOCABULARY, NEW, STOP = 61, 24, 2
COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": STOP,
    "bos_token_id": 1,
}
#: Config class, options, and whether its prompts are computed once.
MODELS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama": ("LlamaConfig", {}, True),
    "windows": ("MistralConfig", {"sliding_window": 6}, True),
    "both": ("Gemma3TextConfig", {"sliding_window": 6, "sliding_window_pattern": 2}, True),
    "places": ("GPT2Config", {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 128}, True),
    "convolutions": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}, False),
    "states": (
        "Mamba2Config",
        {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 8},
        False,
    ),
}


class Tokenizer:
    pad_token_id = 0


def make(name: str) -> Any:
    kind, options, _ = MODELS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**(COMMON | options))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def asked(lengths: tuple[int, ...] = (5, 17, 11), group: int = 4) -> list[Question]:
    return [
        Question(place, number, 0, place, tuple((7 * place + 5 * i) % 58 + 3 for i in range(n)), ())
        for place, n in enumerate(lengths)
        for number in range(group)
    ]


def drawn(model: Any, **changes: Any) -> dict[int, Any]:
    decoding = Decoding(max_new_tokens=NEW, temperature=1.2, seed=5)
    options = {"batch_tokens": 4096, "rank": 0, "world_size": 1, "lockstep": False, **changes}
    more = {"stops": [STOP, 9, 14], "should_stop": lambda: False, **options}
    return sampling.draw(asked(), model, Tokenizer(), decoding, 3, **more)


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_generate(name, monkeypatch):
    model = make(name)
    with generation.inference(model):
        assert several.can_answer(model) is MODELS[name][2]
    found = drawn(model)
    small = drawn(model, batch_tokens=3 * (17 + NEW))
    monkeypatch.setattr(several, "can_answer", lambda model: False)
    expected = drawn(model)
    assert sorted(found) == sorted(small) == sorted(expected) == list(range(12))
    assert {own.ended for own in expected.values()} == {True, False}
    for place, own in expected.items():
        for other in (found[place], small[place]):
            assert (other.tokens, other.ended) == (own.tokens, own.ended)
            torch.testing.assert_close(
                torch.tensor(other.log_probs), torch.tensor(own.log_probs), atol=1e-4, rtol=0
            )


def test_prompts_are_computed_once_and_ended_answers_no_more():
    model, seen = make("llama"), []
    drawn(model)  # which finds out how it reads
    model.get_input_embeddings().register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].numel())
    )
    found = drawn(model)
    assert seen[0] == 3 * 17
    lengths = [len(own.tokens) for own in found.values()]
    assert seen[1:] == [sum(n > step for n in lengths) for step in range(1, max(lengths))]


def test_a_model_that_answers_otherwise_is_left_to_generate(monkeypatch):
    forgetful = make("llama")
    own = several._Layer.batch_select_indices

    def first(self: Any, indices: torch.Tensor) -> None:
        own(self, torch.zeros_like(indices))

    monkeypatch.setattr(several._Layer, "batch_select_indices", first)
    with generation.inference(forgetful):
        assert not several.can_answer(forgetful)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 8)), min_size=1, max_size=9),
    st.integers(1, 4),
    st.integers(1, 400),
)
def test_parts_hold_each_question_once_and_fit(groups, world, batch_tokens):
    questions = [
        Question(place, number, 0, place, tuple(range(length)), ())
        for place, (length, count) in enumerate(groups)
        for number in range(count)
    ]
    parts = sampling._parts(questions, world, batch_tokens, 10)
    assert sorted(place for part in parts for place in part) == list(range(len(questions)))
    assert len({len(part) for part in parts}) == 1
    assert all(len({questions[place].place for place in part}) == 1 for part in parts)
    longest = max(length for length, _ in groups) + 10
    assert len(parts[0]) == 1 or len(parts[0]) * longest <= batch_tokens


def test_groups_are_answered_together_where_ranks_have_equally_many():
    assert {len(part) for part in sampling._parts(asked(group=8), 1, 4096, 10)} == {8}
    assert {len(part) for part in sampling._parts(asked(group=8), 2, 4096, 10)} == {4}
    assert {len(part) for part in sampling._parts(asked((5,) * 8, 8), 4, 4096, 10)} == {8}
