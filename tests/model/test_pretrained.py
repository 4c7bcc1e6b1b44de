"""Checkpoints as people download them: quantised, of several modalities, or not complete."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from launcher.config.derive import plan as plans
from launcher.config.schema import (
    Attention,
    BatchConfig,
    Config,
    LoraConfig,
    ModelConfig,
    PeftConfig,
    TrainConfig,
)
from launcher.core.errors import ConfigError
from launcher.model.export import Kind
from launcher.model.load import load_model
from launcher.model.pretrained import freeze_as_built, from_structure, open_pretrained
from launcher.model.rebuild import rebuild
from launcher.model.sequence_head import SequenceHead
from support.draws import some
from support.families import make_family
from tests.model.test_export import make_config, make_tokenizer, run_export, train

TEXT: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def load(base: Path, **options: Any) -> Any:
    """As a run on one rank loads it."""
    model = ModelConfig(name=str(base), **options)
    config = Config(model=model, train=TrainConfig(steps=1), batch=BatchConfig(sequences=1))
    plan = plans.make(config, world_size=1, has_gpu=False)
    return load_model(config.model, plan, 0)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(5, 45)[None]).logits
    return found


def rewrite(base: Path, change: Callable[[dict[str, torch.Tensor]], None], **about: Any) -> None:
    """Change the tensors of a folder, and what its config.json says."""
    tensors = load_file(base / "model.safetensors")
    change(tensors)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(content | about))


def in_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[experts, inputs, outputs] as the open MX formats store it: along the inputs, blocks of 32
    numbers, two to a byte with the first in the low half, and an exponent with bias 127 to each."""
    blocks = weight.transpose(1, 2).reshape(weight.shape[0], weight.shape[2], -1, 32)
    exponents = torch.floor(torch.log2(blocks.abs().amax(-1).clamp(min=1e-30))) - 2
    scaled = blocks / torch.exp2(exponents)[..., None]
    codes = (scaled[..., None] - FP4).abs().argmin(-1).to(torch.uint8)
    return codes[..., 0::2] | (codes[..., 1::2] << 4), (exponents + 127).to(torch.uint8)


def of_mxfp4(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    numbers = torch.stack([FP4[(codes & 15).long()], FP4[(codes >> 4).long()]], -1).flatten(-2)
    numbers = numbers * torch.exp2(scales.float() - 127)[..., None]
    return numbers.flatten(-2).transpose(1, 2)


def gpt_oss(folder: Path) -> dict[str, torch.Tensor]:
    """A small gpt-oss as published: experts in MXFP4. Returns the numbers that this stands for."""
    torch.manual_seed(1)
    structure = transformers.GptOssConfig(
        **TEXT, num_local_experts=4, num_experts_per_tok=2, sliding_window=16
    )
    transformers.GptOssForCausalLM(structure).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    meant: dict[str, torch.Tensor] = {}

    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
            codes, scales = in_mxfp4(tensors.pop(name))
            tensors |= {f"{name}_blocks": codes, f"{name}_scales": scales}
            meant[name] = of_mxfp4(codes, scales)

    rewrite(folder, quantise, quantization_config={"quant_method": "mxfp4"})
    return meant


def in_fp8(folder: Path, block: int | None) -> dict[str, torch.Tensor]:
    """Make the linear layers of a folder's decoder FP8, by blocks or with a scale for each matrix.
    Returns the numbers that this stands for."""
    meant: dict[str, torch.Tensor] = {}

    def quantise(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.endswith("_proj.weight")]:
            weight = tensors[name]
            rows, columns = weight.shape
            tall, wide = (block, block) if block else (rows, columns)
            parts = weight.reshape(rows // tall, tall, columns // wide, wide)
            scales = parts.abs().amax((1, 3)) / 448
            small = (parts / scales[:, None, :, None]).to(torch.float8_e4m3fn)
            meant[name] = (small.float() * scales[:, None, :, None]).reshape(rows, columns)
            tensors[name] = small.reshape(rows, columns)
            tensors[f"{name}_scale_inv"] = scales if block else scales.reshape(())
            if not block:
                tensors[name.replace(".weight", ".activation_scale")] = torch.tensor(0.1)

    about = {"quant_method": "fp8", "activation_scheme": "dynamic" if block else "static"}
    size = [block, block] if block else None
    rewrite(folder, quantise, quantization_config=about | {"weight_block_size": size})
    return meant


def qwen3(folder: Path) -> Path:
    torch.manual_seed(1)
    structure = transformers.Qwen3Config(**TEXT, tie_word_embeddings=False)
    transformers.Qwen3ForCausalLM(structure).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def assert_holds(model: Any, meant: dict[str, torch.Tensor]) -> None:
    found = dict(model.named_parameters())
    for name, numbers in meant.items():
        torch.testing.assert_close(found[name].data, numbers, rtol=0, atol=0)


def test_experts_in_mxfp4_become_plain_weights_that_learn(tmp_path: Path) -> None:
    meant = gpt_oss(tmp_path)
    model = load(tmp_path, attention=Attention.eager)
    assert len(meant) == 4
    assert_holds(model, meant)
    ids = torch.arange(5, 45)[None]
    before = model.model.layers[0].mlp.experts.down_proj.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    assert not torch.equal(before, model.model.layers[0].mlp.experts.down_proj)


def deepseek_v3(folder: Path) -> Path:
    torch.manual_seed(1)
    structure = transformers.DeepseekV3Config(
        **TEXT | {"num_key_value_heads": 4, "head_dim": 16},
        moe_intermediate_size=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=16,
    )
    transformers.DeepseekV3ForCausalLM(structure).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


FP8: dict[str, Callable[[Path], Any]] = {
    "qwen3": qwen3,
    "deepseek_v3": deepseek_v3,
    "ministral3": lambda folder: several(folder, "ministral3"),
    "qwen3_5": lambda folder: several(folder, "qwen3_5"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("block", [16, None], ids=["by blocks", "a scale for each matrix"])
@pytest.mark.parametrize("family", FP8)
def test_weights_in_fp8_become_plain_weights(
    tmp_path: Path, family: str, block: int | None
) -> None:
    stored, plain = tmp_path / "stored", tmp_path / "plain"
    FP8[family](stored)
    FP8[family](plain)
    meant = in_fp8(stored, block)
    rewrite(plain, lambda tensors: tensors.update(meant))
    model = load(stored)
    assert len(meant) >= 14
    torch.testing.assert_close(logits(model), logits(load(plain)), rtol=0, atol=0)
    assert not hasattr(model.config, "quantization_config")


LORA = LoraConfig(name="lora", rank=4, targets=["q_proj", "o_proj"])


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [Kind.full, Kind.merged, Kind.adapter])
@pytest.mark.parametrize("storage", ["mxfp4", "fp8"])
def test_an_export_of_dequantised_weights_is_plain(
    tmp_path: Path, storage: str, kind: Kind
) -> None:
    base, out = tmp_path / "base", tmp_path / "out"
    meant = gpt_oss(base) if storage == "mxfp4" else in_fp8(qwen3(base), 16)
    trained = train(make_config(base, None if kind is Kind.full else LORA), base, tmp_path)
    run_export(trained, kind, out)
    if kind is Kind.adapter:
        content = json.loads((out / "adapter_config.json").read_text())
        assert content["base_model_name_or_path"] == str(base)
        return
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    plain = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    expected = rebuild(trained.config, trained.weights, base, torch.float32, 0)
    torch.testing.assert_close(logits(plain), logits(expected), rtol=1e-5, atol=1e-5)
    if kind is Kind.merged:
        untouched = {name: w for name, w in meant.items() if "q_proj" not in name}
        assert_holds(plain, {n: w for n, w in untouched.items() if "o_proj" not in n})


@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors", "bitsandbytes", "torchao"])
def test_other_quantised_weights_are_refused_with_the_original_to_train(
    tmp_path: Path, method: str
) -> None:
    base = qwen3(tmp_path / "Small-1B-AWQ")
    rewrite(base, lambda tensors: None, quantization_config={"quant_method": method})
    with pytest.raises(
        ConfigError, match=f"quantised by {method}, which cannot be trained"
    ) as info:
        load(base)
    assert f"model.name={tmp_path}/Small-1B" in str(info.value)
    assert "Small-1B-AWQ\n" not in str(info.value).split("HINT")[1]


def test_nf4_of_weights_that_are_stored_in_fp8_is_refused(tmp_path: Path) -> None:
    in_fp8(qwen3(tmp_path), 16)
    with pytest.raises(ConfigError, match="nf4, but .* is stored as fp8"):
        open_pretrained(tmp_path, None, nf4=object(), dtype=torch.float32)


@pytest.mark.parametrize("fault", ["absent", "of another size", "under other names"])
def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path: Path, fault: str) -> None:
    name = "model.layers.1.mlp.up_proj.weight"

    def damage(tensors: dict[str, torch.Tensor]) -> None:
        if fault == "under other names":
            for key in list(tensors):
                tensors[f"base_model.model.{key}"] = tensors.pop(key)
        elif fault == "absent":
            del tensors[name]
        else:
            tensors[name] = tensors[name][:8].clone()

    rewrite(qwen3(tmp_path), damage)
    with pytest.raises(ConfigError, match="no fitting weights for") as info:
        load(tmp_path)
    assert fault == "under other names" or name in str(info.value)


def test_a_classifier_begins_its_head_anew_and_nothing_else(tmp_path: Path) -> None:
    head = SequenceHead(("a", "b"), "single_label_classification")
    base = qwen3(tmp_path)
    model = open_pretrained(base, head, dtype=torch.float32)
    assert model.fresh_modules == ("score",)
    rewrite(base, lambda tensors: tensors.pop("model.layers.0.mlp.up_proj.weight"))
    with pytest.raises(ConfigError, match=r"no fitting weights .* model\.layers\.0\.mlp\.up_proj"):
        open_pretrained(base, head, dtype=torch.float32)


@pytest.mark.parametrize("family", ["gemma3", "qwen3_5"])
def test_a_classifier_of_a_model_that_sees_learns_from_text(tmp_path: Path, family: str) -> None:
    head = SequenceHead(("a", "b"), "single_label_classification", padding=3)
    base = several(tmp_path, family)
    model = open_pretrained(base, head, dtype=torch.float32)
    assert model.fresh_modules == ("score",)
    structure = from_structure(base, head, trust_remote_code=False)
    for made in (model, structure):
        frozen = [name for name, p in made.named_parameters() if not p.requires_grad]
        assert frozen
        assert all(name.split(".")[1] in str(model.other_modalities) for name in frozen)
    texts = torch.tensor([[5, 6, 7], [5, 3, 3]])  # the second is padded
    alone = model(input_ids=texts[1:, :1]).logits
    torch.testing.assert_close(model(input_ids=texts).logits[1:], alone, rtol=1e-5, atol=1e-5)


def gemma3(folder: Path) -> None:
    text = TEXT | {"sliding_window": 16}
    structure = transformers.Gemma3Config(text_config=text, vision_config=VISION)
    transformers.Gemma3ForConditionalGeneration(structure).save_pretrained(folder)


def gemma4(folder: Path) -> None:
    text = TEXT | {
        "num_hidden_layers": 6,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 300,
        "global_head_dim": 16,
        "sliding_window": 16,
    }
    structure = transformers.Gemma4Config(text_config=text, vision_config=VISION, audio_config=None)
    transformers.Gemma4ForConditionalGeneration(structure).save_pretrained(folder)


def ministral3(folder: Path) -> None:
    structure = transformers.Mistral3Config(
        text_config=TEXT | {"model_type": "ministral3"},
        vision_config=VISION | {"model_type": "pixtral"},
    )
    transformers.Mistral3ForConditionalGeneration(structure).save_pretrained(folder)


def qwen3_5(folder: Path) -> None:
    text = TEXT | {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_hidden_layers": 4,
    }
    vision = {"hidden_size": 32, "intermediate_size": 48, "depth": 2, "num_heads": 2}
    structure = transformers.Qwen3_5Config(
        text_config=text, vision_config=vision | {"out_hidden_size": 32}
    )
    transformers.Qwen3_5ForConditionalGeneration(structure).save_pretrained(folder)


def llama4(folder: Path) -> None:
    structure = transformers.Llama4Config(
        text_config=TEXT | {"intermediate_size_mlp": 48, "num_local_experts": 2},
        vision_config=VISION
        | {"vision_output_dim": 32, "pixel_shuffle_ratio": 0.5}
        | {"projector_input_dim": 32, "projector_output_dim": 32},
    )
    transformers.Llama4ForConditionalGeneration(structure).save_pretrained(folder)


SEVERAL: dict[str, Callable[[Path], None]] = {
    "gemma3": gemma3,
    "gemma4": gemma4,
    "ministral3": ministral3,
    "qwen3_5": qwen3_5,
    "llama4": llama4,
}
#: Those of which transformers opens the decoder alone.
DECODER_ALONE = ("qwen3_5", "llama4")


def several(folder: Path, family: str) -> Path:
    torch.manual_seed(1)
    SEVERAL[family](folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def adapters(family: str) -> PeftConfig:
    # The router of Llama 4 is a linear layer that returns two tensors.
    return LORA if family == "llama4" else LoraConfig(name="lora", rank=4)


@pytest.mark.parametrize("family", some(SEVERAL, "gemma3"))
def test_of_a_model_that_sees_the_text_part_learns(tmp_path: Path, family: str) -> None:
    base = several(tmp_path, family)
    model = load(base)
    frozen = {
        name.split(".layers.")[0] for name, p in model.named_parameters() if not p.requires_grad
    }
    assert bool(frozen) == (family not in DECODER_ALONE)
    assert not any("language_model" in name for name in frozen)
    ids = torch.arange(5, 45)[None]
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    whole = transformers.AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    torch.testing.assert_close(logits(model), logits(whole), rtol=1e-5, atol=1e-5)
    structure = from_structure(base, None, trust_remote_code=False)
    assert [(n, p.requires_grad) for n, p in structure.named_parameters()] == [
        (n, p.requires_grad) for n, p in model.named_parameters()
    ]


@pytest.mark.thorough
@pytest.mark.parametrize("peft", ["none", "lora"])
@pytest.mark.parametrize("family", some(SEVERAL, "gemma3"))
def test_an_export_of_a_model_that_sees_opens_again(tmp_path: Path, family: str, peft: str) -> None:
    base, out = several(tmp_path / "base", family), tmp_path / "out"
    (base / "preprocessor_config.json").write_text("{}")
    config = adapters(family) if peft == "lora" else None
    trained = train(make_config(base, config), base, tmp_path)
    learned = trained.weights.keys()
    assert not any("vision" in name or "visual" in name for name in learned)
    run_export(trained, Kind.full if config is None else Kind.merged, out)
    content = json.loads((out / "config.json").read_text())
    model: Any = open_pretrained(out, None, dtype=torch.float32)
    assert (out / "preprocessor_config.json").is_file() == (family not in DECODER_ALONE)
    if family in DECODER_ALONE:
        assert "vision_config" not in content
        assert content["architectures"][0].endswith("ForCausalLM")
    else:
        assert (
            content["architectures"]
            == json.loads((base / "config.json").read_text())["architectures"]
        )
        before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
        seeing = [name for name in before if "vision_tower" in name]
        assert seeing
        assert all(torch.equal(before[name], after[name]) for name in seeing)
    expected = rebuild(trained.config, trained.weights, base, torch.float32, 0)
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("family", some(SEVERAL, "gemma3"))
def test_an_adapter_of_a_model_that_sees_fits_what_its_auto_class_opens(
    tmp_path: Path, family: str
) -> None:
    import peft

    base, out = several(tmp_path / "base", family), tmp_path / "out"
    trained = train(make_config(base, adapters(family)), base, tmp_path)
    run_export(trained, Kind.adapter, out)
    opener: Any = transformers.AutoModelForCausalLM
    if family == "ministral3":
        opener = transformers.AutoModelForImageTextToText
    adapted = peft.PeftModel.from_pretrained(
        opener.from_pretrained(base, dtype=torch.float32), str(out)
    )
    expected = rebuild(trained.config, trained.weights, base, torch.float32, 0)
    torch.testing.assert_close(logits(adapted), logits(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "frozen"), [("blt", "model.patcher."), ("afmoe", "expert_bias")])
def test_what_the_code_of_a_model_freezes_stays_frozen(
    tmp_path: Path, name: str, frozen: str
) -> None:
    base = make_family(name, tmp_path)
    model = open_pretrained(base, None, dtype=torch.float32)
    freeze_as_built(model)
    for parameter, tensor in model.named_parameters():
        assert tensor.requires_grad is (frozen not in parameter), parameter
