from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from launcher.config.derive.cards import peak_flops
from launcher.config.derive.tensors import full_shape
from launcher.config.schema import LoraConfig
from launcher.peft import lora
from launcher.track.meters import (
    Meter,
    ModelFlops,
    UnknownFlops,
    Work,
    known_flops,
    model_flops,
    peak_memory_bytes,
    work_of,
)

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@dataclass
class Row:
    document_starts: torch.Tensor
    targets: torch.Tensor


@given(st.lists(st.lists(st.integers(1, 50), min_size=1), min_size=1, max_size=4))
def test_work_counts_each_document_by_itself(rows: list[list[int]]) -> None:
    made = [
        Row(torch.tensor([0, *lengths]).cumsum(0), torch.zeros(len(lengths))) for lengths in rows
    ]
    lengths = [length for row in rows for length in row]
    expected = Work(sum(lengths), len(lengths), sum(length**2 for length in lengths))
    assert work_of(made) == expected


def ticks(*times: float) -> Iterator[float]:
    return iter(times)


def test_only_the_time_between_begin_and_end_counts() -> None:
    clock = ticks(10.0, 12.0, 100.0, 101.0)
    meter = Meter(clock=lambda: next(clock))
    meter.begin()
    meter.end(Work(300, 30, 0))
    meter.begin()  # 88 seconds of evaluation and saving lie before it
    meter.end(Work(600, 60, 0))
    values = meter.read()
    assert values["tokens_per_s"] == pytest.approx(300)
    assert values["target_tokens_per_s"] == pytest.approx(30)
    assert values["step_time_s"] == pytest.approx(1.5)
    assert (values["tokens"], values["target_tokens"]) == (900, 90)


def test_a_reading_starts_a_new_window_but_totals_go_on_from_a_resume() -> None:
    clock = ticks(0.0, 1.0, 1.0, 5.0)
    meter = Meter(totals=Work(1000, 100, 5), clock=lambda: next(clock))
    meter.begin()
    meter.end(Work(50, 5, 0))
    meter.read()
    meter.begin()
    meter.end(Work(80, 8, 0))
    values = meter.read()
    assert values["tokens_per_s"] == pytest.approx(20)
    assert values["tokens"] == 1130
    assert meter.totals == Work(1130, 113, 5)


def test_mfu_is_model_flops_per_second_over_the_peak() -> None:
    clock = ticks(0.0, 2.0)
    flops = ModelFlops(per_token=10, per_target=100, per_squared_length=1, per_pair=5)
    meter = Meter(flops=flops, peak_flops=4000, clock=lambda: next(clock))
    meter.begin()
    meter.end(Work(40, 4, 200))
    # Of 40 tokens in documents whose squared lengths are 200 together, 120 pairs are causal.
    assert meter.read()["mfu"] == pytest.approx((400 + 400 + 200 + 5 * 120) / 2 / 4000)


def test_mfu_is_absent_where_the_peak_is_unknown() -> None:
    meter = Meter(flops=ModelFlops(1, 1, 1), peak_flops=None)
    meter.begin()
    meter.end(Work(1, 1, 1))
    assert meter.read()["mfu"] is None


def test_reading_without_a_step_gives_no_step_time() -> None:
    values = Meter().read()
    assert values["step_time_s"] is None
    assert values["tokens_per_s"] == 0


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165.2),
    ],
)
def test_peaks_are_found_by_device_name(name: str, tflops: float) -> None:
    assert peak_flops(name, "bf16") == tflops * 1e12
    assert peak_flops(name, "fp32") is None


def test_an_unknown_device_has_no_peak() -> None:
    assert peak_flops("NVIDIA A10G", "bf16") is None
    assert peak_flops("AMD Instinct MI300X", "bf16") is None


def counted(model: Any, length: int, kept: torch.Tensor) -> int:
    """FLOPs of forward and backward as torch counts them; its own attention counts are excluded."""
    tokens = torch.arange(length)[None] % 300
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, logits_to_keep=kept).logits.sum().backward()
    return counter.get_total_flops()


def whole(length: int, targets: int, windows: int = 0) -> Work:
    """A document whose attention counts in full: torch counts what a mask hides too."""
    pairs = length**2
    return Work(length, targets, 2 * pairs - length, (pairs,) * windows)


def test_causal_attention_is_half_of_a_square_and_half_a_diagonal() -> None:
    """By hand: the smallest Llama, a document of three tokens, one target."""
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = LlamaConfig(vocab_size=5, hidden_size=2, intermediate_size=3, **sizes)
    row = Row(torch.tensor([0, 3]), torch.zeros(1))
    matrices = 4 * 2 * 2 + 3 * 2 * 3  # query, key, value, output; gate, up, down
    # Six scores (1 + 2 + 3) and as many uses of a value, two numbers wide: a multiplication and an
    # addition each, once forward and twice backward.
    attention = (6 + 6) * 2 * 2 * 3
    head = 5 * 2
    expected = 6 * matrices * 3 + attention + 6 * head * 1
    assert model_flops(LlamaForCausalLM(config)).of(work_of([row])) == expected == 816


@given(st.integers(1, 60), st.integers(1, 40))
def test_a_window_counts_the_pairs_that_its_mask_lets_through(length: int, window: int) -> None:
    place = torch.arange(length)
    behind = place[:, None] - place[None]
    seen = int(((behind >= 0) & (behind < window)).sum())
    work = work_of([Row(torch.tensor([0, length]), torch.zeros(0))], [window])
    assert work.windowed == (seen,)
    assert work.pairs == int((behind >= 0).sum())


def test_an_encoder_attends_in_both_directions() -> None:
    config = BertConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"})
    flops = model_flops(BertForSequenceClassification(config))
    assert (flops.per_pair, flops.per_squared_length) == (0, 12 * 2 * 32)


@pytest.mark.parametrize("tied", [True, False])
def test_full_fine_tuning_agrees_with_torchs_own_count(tied: bool) -> None:
    config = LlamaConfig(**SMALL, tie_word_embeddings=tied, attn_implementation="eager")
    model = LlamaForCausalLM(config)
    kept = torch.tensor([3, 17, 20])
    expected = model_flops(model).of(whole(40, 3))
    # The gradient of the first layer's input goes to the embedding: torch counts it too.
    assert counted(model, 40, kept) == pytest.approx(expected, rel=0.01)


def test_adapters_cost_six_and_frozen_matrices_four() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False))
    frozen = sum(p.numel() for n, p in model.named_parameters() if "proj" in n)
    adapted = lora.apply(model, LoraConfig(rank=4))
    added = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    flops = model_flops(adapted)
    assert flops.per_token == 4 * frozen + 6 * added
    assert flops.per_target == 4 * 300 * 32


def test_a_trained_head_is_counted_once_beside_its_frozen_original() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False))
    plain = model_flops(lora.apply(model, LoraConfig(rank=4)))
    model = LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False))
    saved = model_flops(lora.apply(model, LoraConfig(rank=4, modules_to_save=["lm_head"])))
    assert saved.per_token == plain.per_token
    assert saved.per_target == 6 * 300 * 32


def test_experts_count_by_the_share_that_a_token_visits() -> None:
    def per_token(chosen: int) -> float:
        config = MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=chosen)
        return model_flops(MixtralForCausalLM(config)).per_token

    expert = 6 * 2 * 3 * 32 * 48  # six FLOPs, two layers, three matrices
    assert per_token(2) - per_token(1) == pytest.approx(expert)


def small_gemma4(**options: Any) -> Any:
    """Layers with heads of two widths, as all of them have, and a window in one."""
    config = Gemma4TextConfig(
        **SMALL,
        head_dim=8,
        global_head_dim=16,
        sliding_window=16,
        layer_types=["sliding_attention", "full_attention"],
        hidden_size_per_layer_input=4,
        vocab_size_per_layer_input=300,
        attn_implementation="eager",
        **options,
    )
    return Gemma4ForCausalLM(config)


LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
LATENT |= {"num_key_value_heads": 4}
ELSE: dict[str, Callable[[], Any]] = {
    "heads of two widths": small_gemma4,
    "keys wider than values": lambda: DeepseekV3ForCausalLM(
        DeepseekV3Config(**(SMALL | LATENT), v_head_dim=12, first_k_dense_replace=2)
    ),
    "transposed matrices": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4, attn_implementation="eager")
    ),
}


@pytest.mark.parametrize("kind", ELSE)
def test_other_attention_agrees_with_torchs_own_count(kind: str) -> None:
    torch.manual_seed(0)
    model = ELSE[kind]()
    model.set_attn_implementation("eager")
    tokens = torch.arange(40)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens).logits.sum().backward()
    flops = model_flops(model)
    expected = flops.of(whole(40, 40, len(flops.windows)))
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.03)


def test_a_mixer_without_attention_costs_its_matrices() -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2))
    matrices = sum(p.numel() for n, p in model.named_parameters() if p.dim() > 1 and "mixer" in n)
    assert model_flops(model) == ModelFlops(6 * matrices, 6 * 300 * 32)


def test_attention_is_counted_layer_by_layer() -> None:
    flops = model_flops(small_gemma4())
    # Scores and values, four heads: of 8 numbers within 16 tokens, of 16 numbers in the other.
    assert flops.per_windowed == {16: 12 * 4 * 8}
    assert flops.per_pair == 12 * 4 * 16
    rows = [Row(torch.tensor([0, 10, 40]), torch.zeros(0))]
    work = work_of(rows, flops.windows)
    assert work == Work(40, 0, 100 + 900, (10 * 11 // 2 + 16 * 17 // 2 + 14 * 16,))
    assert flops.of(work + work) == 2 * flops.of(work)
    # A resumed run has counted its work before by its lengths alone.
    assert (Work(5, 1, 25) + work).windowed == work.windowed


def test_a_window_of_all_layers_and_chunks_are_read_off_the_config() -> None:
    sizes = {**SMALL, "num_key_value_heads": 2}
    mistral = MistralForCausalLM(MistralConfig(**sizes, sliding_window=16))
    assert model_flops(mistral).per_windowed == {16: 12 * 2 * 32}
    config = Llama4TextConfig(
        **{**sizes, "num_hidden_layers": 4},
        head_dim=8,
        attention_chunk_size=16,
        num_local_experts=2,
        intermediate_size_mlp=48,
    )
    flops = model_flops(Llama4ForCausalLM(config))
    assert (flops.per_windowed, flops.per_pair) == ({16: 12 * 3 * 32}, 12 * 32)


def test_what_is_not_known_is_said_once_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=2))
    model.config.num_experts_per_tok = 0
    assert known_flops(model, said.append) is None
    assert said == ["mfu is not measured: its config does not say how many experts a token visits"]
    said.clear()
    monkeypatch.setattr(model, "get_output_embeddings", lambda: 1 / 0)
    assert known_flops(model, said.append) is None
    (line,) = said
    assert "ZeroDivisionError" in line
    assert known_flops(ELSE["transposed matrices"](), said.append) is not None
    assert len(said) == 1


#: Heads that no layer of a known name tells of, or experts that the default config does not.
UNKNOWN = {"cpmant", "deepseek_v2", "deepseek_v4", "inkling2_text", "jetmoe", "moshi", "xlnet"}


@pytest.mark.slow
def test_the_formula_holds_for_every_causal_model_of_transformers() -> None:
    """Each architecture by its default config, without weights; some defaults make no model."""
    known, unknown = set(), set()
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        model = default_model(name)
        if model is None:
            continue
        try:
            assert model_flops(model).per_token > 0
            known.add(name)
        except UnknownFlops:
            unknown.add(name)
    assert len(known) > 150
    assert unknown <= UNKNOWN


def default_model(name: str) -> Any:
    try:
        config = CONFIG_MAPPING[name]()
        if not getattr(config, "layer_types", None):
            config.num_hidden_layers = 2
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception:
        return None


def test_sizes_of_partitioned_and_packed_parameters_are_those_of_the_whole() -> None:
    partitioned = torch.nn.Parameter(torch.empty(0))
    partitioned.ds_shape = torch.Size([8, 4])  # type: ignore[attr-defined]
    assert full_shape(partitioned) == (8, 4)
    assert full_shape(torch.nn.Parameter(torch.empty(3, 5))) == (3, 5)


@pytest.mark.slow
def test_memory_on_the_cpu_is_the_peak_of_the_process() -> None:
    before = peak_memory_bytes("cpu")
    block = torch.ones(before // 4 + 2**26)  # larger than all that was ever resident
    assert peak_memory_bytes("cpu") >= before
    assert peak_memory_bytes("cpu") >= block.nbytes
    assert math.isfinite(peak_memory_bytes("cpu"))
