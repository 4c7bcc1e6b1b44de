"""Packed documents never see each other: loss and gradients as unpacked, per model family."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM

from launcher.errors import ConfigError
from launcher.model import attention
from launcher.model.head import TargetHead

COMMON = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "mistral-window": ("MistralConfig", {"sliding_window": 5}),
    "gemma2-softcap": (
        "Gemma2Config",
        {
            "head_dim": 8,
            "sliding_window": 4,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 4}),
    "smollm3": ("SmolLM3Config", {"no_rope_layers": [1, 0]}),
    "phi3": ("Phi3Config", {}),
    "olmo2": ("Olmo2Config", {}),
}
LENGTHS = (7, 1, 12, 3)


def make(family, implementation):
    import transformers

    name, options = FAMILIES[family]
    config = getattr(transformers, name)(**COMMON, **options)
    attention.register()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation)
    torch.manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def make_row(lengths):
    generator = torch.Generator().manual_seed(2)
    total = sum(lengths)
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    ids = torch.randint(3, 61, (total,), generator=generator)
    last = set((starts[1:] - 1).tolist())
    index = torch.tensor([i for i in range(total) if i not in last and i % 3 != 1])
    positions = torch.cat([torch.arange(n) for n in lengths])
    return SimpleNamespace(
        input_ids=ids,
        position_ids=positions,
        document_starts=starts,
        target_index=index,
        targets=ids[index + 1],
        longest=max(lengths),
        weights=None,
        lengths=lengths,
    )


def one_by_one(model, row):
    """Sum of the loss with transformers' own attention, one document at a time."""
    total = 0
    starts = row.document_starts.tolist()
    for start, end in zip(starts[:-1], starts[1:], strict=True):
        chosen = (row.target_index >= start) & (row.target_index < end)
        if chosen.any():
            logits = model(row.input_ids[start:end].unsqueeze(0)).logits[0]
            picked = logits[row.target_index[chosen] - start]
            total = total + torch.nn.functional.cross_entropy(
                picked, row.targets[chosen], reduction="sum"
            )
    return total


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("packed", ["document", "varlen"])
def test_packed_equals_one_document_at_a_time(family, packed):
    row = make_row(LENGTHS)
    reference = make(family, "eager")
    expected = one_by_one(reference, row)
    expected.backward()
    model = make(family, attention.IMPLEMENTATIONS[packed])
    loss = TargetHead(model, packed).loss(model, row)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=2e-5, atol=1e-4)
    wanted = gradients(reference)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=2e-4, atol=2e-4, msg=name)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3"])
@pytest.mark.parametrize("unpacked", ["sdpa", "eager"])
def test_padded_rows_of_other_attentions_give_the_same(family, unpacked):
    row = make_row(LENGTHS)
    expected = one_by_one(make(family, "eager"), row)
    model = make(family, unpacked)
    torch.testing.assert_close(
        TargetHead(model, unpacked).loss(model, row), expected, rtol=2e-5, atol=1e-4
    )


def test_a_document_is_blind_to_its_neighbours():
    row = make_row(LENGTHS)
    model = make("llama", attention.DOCUMENT)
    head = TargetHead(model, "document")
    before, _ = head.score(model, row)
    first = (row.target_index < LENGTHS[0]).sum()
    row.input_ids[LENGTHS[0] + 1 :] = 5
    after, _ = head.score(model, row)
    assert torch.equal(before[:first], after[:first])


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma2-softcap"])
def test_generation_with_padding_equals_transformers_own_attention(family):
    ids = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    reference, model = make(family, "eager"), make(family, attention.DOCUMENT)
    expected = reference(ids, attention_mask=mask).logits
    got = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(got[0, 4:], expected[0, 4:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-4, atol=1e-4)


def test_attention_without_boundaries_is_an_error_inside_a_packed_row():
    q = torch.randn(1, 2, 4, 8)
    with attention.packed_row(), pytest.raises(ConfigError, match="see each other"):
        attention.document_attention(torch.nn.Identity(), q, q, q, None)


def test_attention_sinks_are_refused():
    q = torch.randn(1, 2, 4, 8)
    starts = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(ConfigError, match="sinks"):
        attention.document_attention(
            torch.nn.Identity(), q, q, q, None, cu_seq_lens_q=starts, s_aux=torch.zeros(2)
        )
