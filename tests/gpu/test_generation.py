"""Generation with a model that trains with varlen attention: padding, cache, patched head."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.evals.decoding import Decoding
from launcher.evals.generation import generate_records
from launcher.evals.records import TokenizedPrompt
from launcher.model import attention
from launcher.model.head import TargetHead
from support import gpu
from support.models import make_llama

pytestmark = gpu.ONLY

TEXTS = ("The quick brown fox", "How many apples are left if three of twelve are", "Nine")


@pytest.fixture
def folder(tmp_path):
    return make_llama(
        tmp_path / "model", hidden_size=128, num_attention_heads=2, num_key_value_heads=1
    )


def load(folder, implementation):
    attention.register()
    model = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation=implementation, dtype=torch.bfloat16
    )
    return model.to("cuda").eval()


def padded(tokenizer):
    """Ids and mask, padded on the left."""
    rows = [tokenizer(text)["input_ids"] for text in TEXTS]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device="cuda")
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device="cuda")
    return ids, mask


def test_padded_batches_give_the_logits_of_sdpa(folder):
    ids, mask = padded(AutoTokenizer.from_pretrained(folder))
    with torch.inference_mode():
        wanted = load(folder, "sdpa")(input_ids=ids, attention_mask=mask).logits
        got = load(folder, attention.VARLEN)(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(got[mask.bool()], wanted[mask.bool()], rtol=2e-2, atol=2e-2)


def test_generate_runs_with_varlen_attention_itself(folder):
    ids, mask = padded(AutoTokenizer.from_pretrained(folder))
    model = load(folder, attention.VARLEN)
    TargetHead(model)
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False
        )
    assert output.shape == (len(TEXTS), ids.shape[1] + 8)


def test_evaluation_answers_as_a_plain_model_would(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    prompts = [
        TokenizedPrompt(i, tokenizer(text)["input_ids"], "", f"f:{i}")
        for i, text in enumerate(TEXTS)
    ]

    def answers(model):
        found = generate_records(prompts, model, tokenizer, Decoding(12), batch_tokens=4096)
        return {record.id: record.answer for record in found}

    model = load(folder, attention.VARLEN)
    TargetHead(model)
    got = answers(model)
    assert got == answers(load(folder, "sdpa"))
    assert model.config._attn_implementation == attention.VARLEN
