"""Parameter counts against real files and known models; how the estimate follows the config."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from launcher.config.derive import memory, peak, plan
from support.configs import make_config

# Shapes as published; the parameter counts in the tests are those of the model cards.
LLAMA_32_1B = {
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
LLAMA_31_8B = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}


def folder_of(tmp_path: Path, config: dict[str, Any]) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def shape_of(name: str | Path, **model: Any) -> memory.ModelShape | None:
    return memory.model_shape(make_config(model={"name": str(name), **model}))


@pytest.mark.parametrize(
    ("content", "parameters"), [(LLAMA_32_1B, 1_235_814_400), (LLAMA_31_8B, 8_030_261_248)]
)
def test_parameters_from_config_json(
    tmp_path: Path, content: dict[str, Any], parameters: int
) -> None:
    shape = shape_of(folder_of(tmp_path, content))
    assert shape is not None
    assert shape.parameters == parameters


def test_nested_text_config(tmp_path: Path) -> None:
    content = {"text_config": {k: v for k, v in LLAMA_32_1B.items() if k != "tie_word_embeddings"}}
    shape = shape_of(folder_of(tmp_path, {**content, "tie_word_embeddings": True}))
    assert shape is not None
    assert shape.parameters == 1_235_814_400


def test_parameters_of_a_real_model(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    shape = shape_of(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert shape is not None
    assert shape.parameters == sum(p.numel() for p in model.parameters())


def test_stored_parameters_win_over_the_formula(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, LLAMA_32_1B)
    for part, rows in (("a", 3), ("b", 4)):
        header = {
            "__metadata__": {"format": "pt"},
            f"{part}.weight": {"dtype": "F32", "shape": [rows, 5], "data_offsets": [0, 0]},
            f"{part}.scale": {"dtype": "F32", "shape": [], "data_offsets": [0, 0]},
        }
        text = json.dumps(header).encode()
        (folder / f"{part}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    shape = shape_of(folder)
    assert shape is not None
    assert shape.parameters == 3 * 5 + 1 + 4 * 5 + 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"num_attention_heads": "x"}'])
def test_a_folder_that_cannot_be_read_gives_no_estimate(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert shape_of(tmp_path) is None


def test_a_damaged_weight_file_gives_no_estimate(tmp_path: Path) -> None:
    (folder_of(tmp_path, LLAMA_32_1B) / "model.safetensors").write_bytes(b"\x01")
    assert shape_of(tmp_path) is None


def test_a_hub_model_is_found_in_the_local_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert shape_of("org/name") is None
    repository = tmp_path / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    folder_of(repository / "snapshots" / "abc", LLAMA_32_1B)
    assert shape_of("org/name") is not None
    assert shape_of("org/name", revision="abc") is not None
    assert shape_of("org/name", revision="other") is None


def test_lora_counts_its_adapters(tiny_llama: Path) -> None:
    from transformers import AutoModelForCausalLM

    import peft

    for options, targets in (
        ({"rank": 4}, "all-linear"),
        ({"rank": 3, "targets": ["q_proj", "v_proj"]}, ["q_proj", "v_proj"]),
        ({"rank": 4, "dora": True}, "all-linear"),
    ):
        config = make_config(model={"name": str(tiny_llama)}, peft={"name": "lora", **options})
        shape = memory.model_shape(config)
        assert shape is not None
        model = AutoModelForCausalLM.from_pretrained(tiny_llama)
        dora = bool(options.get("dora"))
        lora = peft.LoraConfig(r=options["rank"], target_modules=targets, use_dora=dora)
        tuned = peft.get_peft_model(model, lora)
        trained = sum(p.numel() for p in tuned.parameters() if p.requires_grad)
        assert memory.trainable(config, shape) == trained


def estimate(
    world_size: int = 4,
    precision: str = "bf16",
    *,
    copies_checkpoint: bool = False,
    **sections: Any,
) -> dict[str, int]:
    config = make_config(**{"model": {"kind": "tiny"}, **sections})
    zero = plan.resolve_zero(config, world_size, precision)
    cut = peak.Cut(world_size, 2, 2, "cuda", precision, precision, zero)
    shape = memory.model_shape(config)
    result = peak.estimate(config, shape, cut, copies_checkpoint=copies_checkpoint)
    assert result is not None
    return result


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(0, 2, 2, 12), (1, 2, 4, 3), (2, 2, 1, 3), (3, 0.5, 1, 3)],
)
def test_zero_stages_shard_one_part_after_another(
    stage: int, weights: float, gradients: float, optimizer: float
) -> None:
    shape = memory.model_shape(make_config(model={"kind": "tiny"}))
    assert shape is not None
    found = estimate(engine={"zero": stage})
    count = shape.parameters
    # The tensors of this model are all so small that ZeRO-3 keeps them whole besides.
    whole = 2 * count if stage == 3 else 0
    assert found["weights"] == int(count * weights) + whole
    assert found["gradients"] == int(count * gradients)
    assert found["optimizer"] == int(count * optimizer)


def test_groups_keep_a_copy_and_overlapping_takes_a_second_bucket() -> None:
    plain, grouped = (
        estimate(8, engine={"zero": 3, "secondary_partition": group}) for group in (None, 4)
    )
    shape = memory.model_shape(make_config(model={"kind": "tiny"}))
    assert shape is not None
    assert grouped["weights"] - plain["weights"] == shape.parameters * 2 // 4
    for stage, overlaps in ((1, True), (3, None)):  # at stage 2 the loss is the fullest moment
        alone = estimate(engine={"zero": stage, "overlap_comm": False})
        both = estimate(engine={"zero": stage, "overlap_comm": overlaps})
        assert both["buffers"] > alone["buffers"]


def test_as_many_layers_recompute_as_the_budget_needs() -> None:
    sizes = {"layers": 8, "hidden_size": 64}
    sections: dict[str, Any] = {"batch": {"sequences": 8, "micro": 2}, "train": {"steps": 1}}

    def made(**model: Any) -> plan.Plan:
        config = make_config(model={"kind": "tiny", **sizes, **model}, **sections)
        return plan.make(config, world_size=2, has_gpu=False)

    def activations(found: plan.Plan) -> int:
        assert found.memory is not None
        return found.memory["activations"]

    none, every = activations(made()), activations(made(gradient_checkpointing=True))
    numbers = []
    for share in (1.01, 0.8, 0.5, 0.01):
        found = made(activation_gib=share * none / 2**30)
        numbers.append(found.recomputed)
        assert activations(found) <= max(share * none, every)
    assert numbers[0] == 0 < numbers[1] < numbers[2] < numbers[3] == 8
    assert activations(found) <= every
    assert "the first 8 recompute" in plan.describe(
        make_config(model={"kind": "tiny", "activation_gib": 1}, **sections), found
    )
    assert made().recomputed is None


def test_offload_moves_to_the_host() -> None:
    plain = estimate(engine={"zero": 3})
    moved = estimate(engine={"zero": 3, "offload_optimizer": True, "offload_params": True})
    assert moved["optimizer"] == moved["weights"] == 0
    assert moved["host"] == plain["optimizer"] + plain["weights"]


def test_the_copy_of_a_checkpoint_lies_on_the_host() -> None:
    for stage, ranks in ((0, 1), (1, 2), (3, 2)):
        plain = estimate(ranks, engine={"zero": stage})
        found = estimate(ranks, engine={"zero": stage}, copies_checkpoint=True)
        shape = memory.model_shape(make_config(model={"kind": "tiny"}))
        assert shape is not None
        # The fp32 weights and both moments.
        assert found == {**plain, "host": shape.parameters * 12 // ranks}


def test_what_makes_it_smaller() -> None:
    plain = estimate()
    assert estimate(peft={"name": "lora"})["optimizer"] < plain["optimizer"] / 4
    checkpointed = {"kind": "tiny", "gradient_checkpointing": True}
    assert estimate(model=checkpointed)["activations"] < plain["activations"]
    assert estimate(optim={"name": "adamw8bit"})["optimizer"] < plain["optimizer"]
    assert estimate(precision="fp32")["weights"] == 2 * plain["weights"]
    quantized = {"kind": "tiny", "quantization": "nf4"}
    assert estimate(model=quantized, peft={"name": "lora"})["weights"] < plain["weights"]


def test_layers_in_fp8_keep_their_inputs() -> None:
    """What norms and gated MLPs give, which plain layers make again in backward."""
    plain = estimate()["activations"]
    eight = estimate(model={"kind": "tiny", "fp8": True})["activations"]
    shape = memory.model_shape(make_config(model={"kind": "tiny"}))
    assert shape is not None
    tokens = 2 * make_config().data.max_length
    kept = 2 * shape.hidden + shape.intermediate
    assert eight - plain == shape.layers * tokens * 2 * kept
    checkpointed = {"kind": "tiny", "gradient_checkpointing": True}
    assert estimate(model=checkpointed) == estimate(model={**checkpointed, "fp8": True})


def test_fp32_without_zero_keeps_no_second_copy() -> None:
    found = estimate(precision="fp32", engine={"zero": 0})
    assert found["optimizer"] == 2 * found["weights"]


@pytest.mark.parametrize(
    ("kind", "peft", "known"),
    [
        ("llama", {}, True),
        ("mixtral", {}, True),
        ("nobody-counted-it", {}, False),
        ("llama", {"targets": ["q_proj", "down_proj"]}, True),
        ("llama", {"targets": ["all-linear", "q_proj"]}, True),
        ("llama", {"targets": ["q_proj", "nope"]}, False),
        ("mixtral", {"targets": ["q_proj"]}, False),
        ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}, True),
        ("llama", {"modules_to_save": ["head"]}, False),
    ],
)
def test_layers_are_known_where_any_model_of_the_kind_has_them(
    tmp_path: Path, kind: str, peft: dict[str, Any], known: bool
) -> None:
    shape = shape_of(folder_of(tmp_path, {**LLAMA_32_1B, "model_type": kind}))
    assert shape is not None
    assert memory.knows_layers(make_config(peft={"name": "lora", **peft}).peft, shape) is known
