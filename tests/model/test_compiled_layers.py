"""Compiled decoder layers: one graph for all layers and rows, and the numbers of the plain ones."""

import functools

import pytest
import torch
import transformers
from torch import nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef

from launcher.core.errors import ConfigError
from launcher.health.isolation import isolate
from launcher.model import attention
from launcher.model.head import TargetHead
from launcher.model.layers import compile_layers
from support import caches
from support.rows import make_row

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {"head_dim": 8, "sliding_window": 4}
FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "gemma3": (
        "Gemma3TextConfig",
        {**GEMMA, "layer_types": [*["sliding_attention"] * 2, "full_attention"]},
    ),
    "gemma2": ("Gemma2Config", {**GEMMA, "attn_logit_softcapping": 5.0}),
    "gpt-oss": (
        "GptOssConfig",
        {"head_dim": 8, "sliding_window": 4, "num_local_experts": 3, "num_experts_per_tok": 2},
    ),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention", "conv"]}),
}
ROWS = [(7, 2, 12, 3), (5, 9), (11,), (4, 4, 4, 4, 9), (3, 2, 30)]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No graphs of other tests. torch's own kernels run them: making code is for tests on ranks, as
    it takes ten times as long, and leaves processes."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def make(family, **changes):
    name, options = FAMILIES[family]
    config = getattr(transformers, name)(**{**SIZES, **options, **changes})
    attention.register()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=attention.DOCUMENT
    )
    torch.manual_seed(1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.train()


def row_of(lengths):
    return make_row(lengths, 61, seed=2, learns=lambda i: i % 3 != 1)


def trained(model, head):
    """Loss and gradients of every row."""
    for lengths in ROWS:
        model.zero_grad()
        loss = head.loss(model, row_of(lengths))
        loss.backward()
        yield loss, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def require_equal(model, reference, heads=None):
    heads = heads or (TargetHead(model), TargetHead(reference))
    pairs = zip(trained(model, heads[0]), trained(reference, heads[1]), strict=True)
    for (loss, gradients), (wanted, of_wanted) in pairs:
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
        assert gradients.keys() == of_wanted.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, of_wanted[name], rtol=1e-4, atol=1e-5, msg=name)


def checkpoint(model):
    options = {"use_reentrant": False, "context_fn": attention.checkpoint_contexts}
    model.gradient_checkpointing_enable(options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "graphs", "checkpoints"),
    [
        ("llama", 1, True),
        ("qwen3", 1, False),
        ("gemma3", 2, False),  # layers with a window are of another kind
        ("gpt-oss", 2, False),
    ],
)
def test_layers_of_a_kind_share_a_graph_for_rows_of_any_length(family, graphs, checkpoints):
    model, reference = make(family), make(family)
    if checkpoints:
        checkpoint(model)
    assert compile_layers(model) == 3
    require_equal(model, reference)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]
    row, heads = row_of(ROWS[0]), (TargetHead(model.eval()), TargetHead(reference.eval()))
    assert torch.equal(heads[0].score(model, row)[0], heads[1].score(reference, row)[0])
    assert counters["stats"]["unique_graphs"] == graphs  # evaluated as plain layers


@pytest.mark.slow
def test_capped_scores_are_computed_outside_of_graphs():
    model, reference = make("gemma2"), make("gemma2")
    checkpoint(model)
    compile_layers(model)
    require_equal(model, reference)
    before = counters["stats"]["unique_graphs"]
    require_equal(model, reference)
    assert counters["stats"]["unique_graphs"] == before


@pytest.mark.slow
def test_layers_that_run_once_a_document_may_be_compiled_and_computed_again(tmp_path):
    records = [(list(range(3, 3 + n)), [0] + [1] * (n - 1)) for n in (7, 19, 2, 11)]
    cache = caches.write(tmp_path / "cache", records, max_length=64)
    models, heads = [make("lfm2"), make("lfm2")], []
    for model in models:
        heads.append(TargetHead(model.eval()))
        isolate(heads[-1], model, model, cache, torch.device("cpu"))
        assert heads[-1].layout == "row, Lfm2ShortConv"
        model.train()
    checkpoint(models[0])
    compile_layers(models[0])
    require_equal(*models, heads)


@pytest.mark.slow
def test_no_copy_of_a_weight_is_kept_for_backward():
    """ZeRO-3 takes a layer's weights away after its forward and puts them back before backward."""
    model, reference = make("llama"), make("llama")
    compile_layers(model)
    loss = TargetHead(model).loss(model, row_of(ROWS[0]))
    weights = list(model.model.layers.parameters())
    memory = [StorageWeakRef(weight.untyped_storage()) for weight in weights]
    kept = [weight.detach().clone() for weight in weights]
    for weight in weights:
        weight.data = torch.empty(0)
    assert all(storage.expired() for storage in memory)
    for weight, data in zip(weights, kept, strict=True):
        weight.data = data
    loss.backward()
    TargetHead(reference).loss(reference, row_of(ROWS[0])).backward()
    wanted = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-5)


def test_varlen_attention_is_one_node_of_one_graph(monkeypatch):
    """Traced only, without numbers, as its kernel runs on GPUs alone."""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph.forward

    module = nn.Identity()
    monkeypatch.setattr(attention, "_has_kernel", lambda query, value: True)
    attention.prepare_compiled(module)

    @torch._dynamo.optimize(keep, dynamic=True, nopython=True)
    def attend(q, kv, starts, longest):
        told = {"cu_seq_lens_q": starts, "max_length_q": longest}
        return attention.varlen_attention(module, q, kv, kv, None, **told)[0]

    with FakeTensorMode():
        for tokens, documents, longest in ((32, 4, 9), (48, 6, 17)):
            q = torch.empty(1, 4, tokens, 16, dtype=torch.bfloat16)
            starts = torch.empty(documents + 1, dtype=torch.int32)
            assert attend(q, q[:, :2], starts, longest).shape == (1, tokens, 4, 16)
    assert len(graphs) == 1
    assert graphs[0].code.count("torch_attn._varlen_attn(") == 1


def test_a_layer_that_cannot_be_compiled_says_so(monkeypatch):
    def broken(graph, inputs):
        raise RuntimeError("no compiler for this device")

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken))
    model = make("llama")
    compile_layers(model)
    with pytest.raises(ConfigError, match="LlamaDecoderLayer cannot(?s:.)*for this device"):
        TargetHead(model).loss(model, row_of(ROWS[0]))


def test_a_model_that_names_no_layers_is_refused():
    with pytest.raises(ConfigError, match="Sequential does not say what(?s:.)*compile=false"):
        compile_layers(nn.Sequential(nn.Linear(2, 2)))
