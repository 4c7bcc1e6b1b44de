"""Peak memory of the loss at a vocabulary of 128 k: in chunks, and with all logits in fp32."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from launcher.data.pack.loader import Row
from launcher.model import attention, target_logits
from launcher.model.head import TargetHead
from support import gpu

pytestmark = gpu.ONLY

VOCAB, TOKENS = 128_256, 4096


@pytest.fixture
def model():
    attention.register()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=TOKENS,
        tie_word_embeddings=False,
    )
    made = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention.VARLEN, dtype=torch.bfloat16
    )
    return made.to("cuda")


@pytest.fixture
def row():
    """One document, every token of it a target."""
    ids = torch.randint(VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(0))
    return Row(
        input_ids=ids,
        position_ids=torch.arange(TOKENS),
        document_starts=torch.tensor([0, TOKENS], dtype=torch.int32),
        target_index=torch.arange(TOKENS - 1),
        targets=ids[1:],
        longest=TOKENS,
        records=[0],
        packs=[0],
        sizes=[1],
    ).to("cuda")


def plain_loss(model, row):
    """What most training code does: all logits, made fp32, then the cross entropy."""
    logits = model(input_ids=row.input_ids.unsqueeze(0), use_cache=False).logits[0]
    logits = logits[row.target_index].float()
    return torch.nn.functional.cross_entropy(logits, row.targets, reduction="sum")


def test_chunks_take_a_third_of_the_memory_at_most(model, row):
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("sdpa")
    head = TargetHead(model)
    losses = {}

    def run(name, loss):
        losses[name] = loss.detach()
        (loss / len(row.targets)).backward()

    all_logits = gpu.peak_bytes(lambda: run("plain", plain_loss(plain, row)))
    chunked = gpu.peak_bytes(lambda: run("chunked", head.loss(model, row)))
    assert head.head is not None, "the loss was not computed inside the head"
    sizes = f"chunked {chunked / 2**20:.0f} MiB, all logits {all_logits / 2**20:.0f} MiB"
    assert chunked < all_logits / 3, sizes
    # Logits in fp32 alone; less would mean that the comparison is with something else.
    assert all_logits > 2 * 4 * VOCAB * TOKENS, sizes
    torch.testing.assert_close(losses["chunked"], losses["plain"], rtol=1e-3, atol=0)
    wanted, got = plain.lm_head.weight.grad.float(), model.lm_head.weight.grad.float()
    assert (got - wanted).norm() < 2e-2 * wanted.norm()


def test_scoring_holds_no_more_than_chunks(model, row):
    head = TargetHead(model.eval())
    peak = gpu.peak_bytes(lambda: head.score(model, row))
    assert peak < 4 * VOCAB * TOKENS / 2, f"{peak / 2**20:.0f} MiB"


def test_the_weights_gradient_is_that_of_one_chunk(model, row, monkeypatch):
    """Summed in fp32 over 33 chunks, by a kernel that adds to fp32 where torch has it."""
    found = {}
    for rows in (TOKENS, TOKENS // 32):
        monkeypatch.setitem(target_logits.CHUNK_ELEMENTS, "cuda", rows * VOCAB)
        model.zero_grad()
        TargetHead(model).loss(model, row).backward()
        found[rows] = model.lm_head.weight.grad.float()
    one, many = found.values()
    assert (one - many).norm() < 4e-3 * one.norm()
