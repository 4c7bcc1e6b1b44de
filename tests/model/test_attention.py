"""Packed documents never see each other: loss and gradients as unpacked, per model family."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, masking_utils

from launcher.model import attention
from launcher.model.head import TargetHead, packed_inputs
from support.rows import make_row

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


def row_of(lengths):
    return make_row(lengths, 61, seed=2, learns=lambda i: i % 3 != 1)


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
    row = row_of(LENGTHS)
    reference = make(family, "eager")
    expected = one_by_one(reference, row)
    expected.backward()
    model = make(family, attention.IMPLEMENTATIONS[packed])
    loss = TargetHead(model).loss(model, row)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=2e-5, atol=1e-4)
    wanted = gradients(reference)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=2e-4, atol=2e-4, msg=name)


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma3"])
@pytest.mark.parametrize("unpacked", ["sdpa", "eager"])
def test_padded_rows_of_other_attentions_give_the_same(family, unpacked):
    row = row_of(LENGTHS)
    expected = one_by_one(make(family, "eager"), row)
    model = make(family, unpacked)
    torch.testing.assert_close(TargetHead(model).loss(model, row), expected, rtol=2e-5, atol=1e-4)


def test_a_document_is_blind_to_its_neighbours():
    row = row_of(LENGTHS)
    model = make("llama", attention.DOCUMENT)
    head = TargetHead(model)
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


def attend(query, key, value, **options):
    starts = torch.tensor([0, 4, 12, 13], dtype=torch.int32)
    with attention.packed_row(starts):
        return attention.document_attention(torch.nn.Identity(), query, key, value, None, **options)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_kernel_gives_what_the_plain_formula_gives(window, sinks, bias):
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, 13, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for heads in (4, 2, 2)
    )
    more = {}
    if sinks:
        more["s_aux"] = torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()
    if bias:
        draw = torch.randn(1, 4, 13, 13, generator=generator, dtype=torch.float64)
        more["position_bias"] = draw.requires_grad_()
    leaves = [query, key, value, *more.values()]
    out, _ = attend(query, key, value, sliding_window=window, **more)
    pieces = []
    for start, end in ((0, 4), (4, 12), (12, 13)):
        k, v = (x[:, :, start:end].repeat_interleave(2, dim=1) for x in (key, value))
        scores = query[:, :, start:end] @ k.transpose(-1, -2) / 8**0.5
        if bias:
            scores = scores + more["position_bias"][:, :, start:end, start:end]
        ahead = torch.arange(end - start)[:, None] - torch.arange(end - start)
        seen = (ahead >= 0) & (ahead < (window or 99))
        weights = scores.masked_fill(~seen, -torch.inf).exp()
        total = weights.sum(-1, keepdim=True)
        if sinks:
            total = total + more["s_aux"].exp().view(1, 4, 1, 1)
        pieces.append((weights / total @ v).transpose(1, 2))
    expected = torch.cat(pieces, dim=1)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    wanted = torch.autograd.grad(expected, leaves, upstream)
    torch.testing.assert_close(torch.autograd.grad(out, leaves, upstream), wanted)


class Layer(torch.nn.Module):
    def __init__(self, kind=None, **own):
        super().__init__()
        self.layer_idx = 0
        self.config = SimpleNamespace(layer_types=[kind], attention_chunk_size=4, sliding_window=3)
        vars(self).update(own)


def of_layer(layer, starts, **options):
    q = torch.randn(1, 2, 12, 8, generator=torch.Generator().manual_seed(0))
    with attention.packed_row(torch.tensor(starts, dtype=torch.int32)):
        return attention.document_attention(layer, q, q, q, None, **options)[0]


def test_chunks_cut_documents_from_their_beginnings():
    got = of_layer(Layer("chunked_attention"), [0, 6, 12])
    assert torch.equal(got, of_layer(Layer("full_attention"), [0, 4, 6, 10, 12]))


def test_a_layer_that_says_its_window_by_its_type_alone_has_one():
    got = of_layer(Layer("sliding_attention"), [0, 12])
    assert torch.equal(got, of_layer(Layer("full_attention"), [0, 12], sliding_window=3))


@pytest.mark.parametrize(
    ("layer", "options"),
    [
        (Layer("compressed_sparse_attention"), {}),
        (Layer("full_attention", is_causal=False), {}),
        (Layer("full_attention"), {"is_causal": False}),
        (Layer("full_attention"), {"indices": torch.zeros(1, 12, 2)}),
    ],
)
def test_what_attention_within_documents_does_not_know_is_refused(layer, options):
    with pytest.raises(attention.Unknown):
        of_layer(layer, [0, 5, 12], **options)


def test_a_model_that_does_not_hand_boundaries_on_has_them_all_the_same():
    q = torch.randn(1, 2, 13, 8, generator=torch.Generator().manual_seed(0))
    starts = torch.tensor([0, 4, 12, 13], dtype=torch.int32)
    told, _ = attention.document_attention(torch.nn.Identity(), q, q, q, None, cu_seq_lens_q=starts)
    assert torch.equal(attend(q, q, q)[0], told)


def test_what_is_computed_again_in_backward_has_the_boundaries_of_its_forward():
    row = row_of(LENGTHS)
    plain = make("llama", attention.DOCUMENT)
    TargetHead(plain).loss(plain, row).backward()
    again = make("llama", attention.DOCUMENT).train()
    options = {"use_reentrant": False, "context_fn": attention.checkpoint_contexts}
    again.gradient_checkpointing_enable(options)
    for layer in again.model.layers:  # a model that keeps the boundaries to itself
        own = layer.self_attn.forward
        layer.self_attn.forward = lambda *a, own=own, cu_seq_lens_q=None, **k: own(*a, **k)
    TargetHead(again).loss(again, row).backward()
    wanted = gradients(plain)
    for name, gradient in gradients(again).items():
        torch.testing.assert_close(gradient, wanted[name], msg=name)


class Reads(TorchDispatchMode):
    """Counts the numbers that the host reads from tensors: on a GPU it waits for each."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("implementation", [attention.DOCUMENT, attention.VARLEN])
@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral-window", "gemma2-softcap", "gemma3"])
def test_no_forward_of_a_packed_row_waits_for_the_device(family, implementation, monkeypatch):
    """transformers would look into the positions for documents, once a mask."""
    model, row = make(family, implementation), row_of(LENGTHS)
    inputs = {
        **packed_inputs(row, shares=False)[0],
        "use_cache": False,
        "logits_to_keep": row.target_index,
    }

    def forward():
        with Reads() as reads, attention.packed_row(row.document_starts), torch.no_grad():
            return model(**inputs).logits, reads.count

    logits, reads = forward()
    assert reads == 0
    wrapped = masking_utils.find_packed_sequence_indices
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", wrapped.__wrapped__)
    before, reads = forward()
    assert reads > 0
    assert torch.equal(logits, before)


def test_documents_are_still_looked_for_where_they_are_not_known():
    attention.register()
    positions = torch.tensor([[0, 1, 0, 1, 2]])
    find = masking_utils.find_packed_sequence_indices
    assert find(positions).tolist() == [[0, 0, 1, 1, 1]]
    with attention.packed_row(torch.tensor([0, 2, 5], dtype=torch.int32)):
        assert find(positions) is None
