from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from launcher.config import schema
from launcher.config.schema import Config, LoraConfig, ModelConfig, PeftConfig
from launcher.core.errors import LauncherError, StorageError
from launcher.model.export import Kind, Trained, export
from launcher.model.fragments import Fragment, FragmentReader, write_fragments
from launcher.model.rebuild import load_base, rebuild, with_adapters
from launcher.model.verify import open_export, verify
from support.adapted import family

SMALL: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
FAMILIES: dict[str, Callable[[bool], Any]] = {
    "llama": lambda tied: LlamaConfig(**SMALL, tie_word_embeddings=tied),
    "qwen3": lambda tied: Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=tied),
    "mixtral": lambda tied: MixtralConfig(
        **SMALL, num_local_experts=4, num_experts_per_tok=2, tie_word_embeddings=tied
    ),
}


def make_tokenizer(extra: int = 0) -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")
    tokenizer.add_tokens([f"<|extra{i}|>" for i in range(extra)], special_tokens=True)
    return tokenizer


def make_base(folder: Path, family: str = "llama", tied: bool = True) -> Path:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](tied))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def make_config(base: Path, peft: PeftConfig | None = None) -> Config:
    return Config(model=ModelConfig(name=str(base)), peft=peft or PeftConfig())


def write_checkpoint(folder: Path, tensors: dict[str, torch.Tensor], ranks: int) -> FragmentReader:
    """Cut the parameters, laid end to end, into equal runs over `ranks` files, as ZeRO does."""
    folder.mkdir(parents=True, exist_ok=True)
    total = sum(tensor.numel() for tensor in tensors.values())
    share = -(-total // ranks)
    files = []
    for rank in range(ranks):
        low, high, start, parts = rank * share, (rank + 1) * share, 0, []
        for name, tensor in tensors.items():
            first, last = max(low, start), min(high, start + tensor.numel())
            if first < last:
                piece = tensor.reshape(-1)[first - start : last - start]
                shape = tuple(tensor.shape)
                parts.append(
                    Fragment(name, shape, first - start, last - first, lambda piece=piece: piece)
                )
            start += tensor.numel()
        files.append(folder / f"weights-rank-{rank:05d}.safetensors")
        write_fragments(files[-1], parts)
    return FragmentReader(files)


def train(config: Config, base: Path, folder: Path, tokens: int = 0, ranks: int = 2) -> Trained:
    """A run whose trained parameters have all moved from where they started."""
    tokenizer = make_tokenizer(tokens)
    model = with_adapters(load_base(config.model, base, torch.float32, len(tokenizer)), config)
    torch.manual_seed(2)
    tensors = {
        name: parameter.detach() + 0.05 * torch.randn(parameter.shape)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    weights = write_checkpoint(folder / "checkpoint", tensors, ranks)
    return Trained(config, weights, tokenizer, torch.float32)


def run_export(trained: Trained, kind: Kind, out: Path, **options: Any) -> None:
    export(trained, kind, out, lambda folder: verify(trained, folder), **options)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = model(input_ids=torch.arange(5, 45)[None]).logits
    return output


def assert_same_logits(trained: Trained, base: Path, out: Path) -> None:
    expected = logits(
        rebuild(trained.config, trained.weights, base, torch.float32, trained.num_tokens)
    )
    found = logits(
        open_export(
            out,
            base,
            dtype=torch.float32,
            num_tokens=trained.num_tokens,
            trust_remote_code=False,
        )
    )
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    untrained = logits(load_base(trained.config.model, base, torch.float32, trained.num_tokens))
    assert (expected - untrained).abs().max() > 0.05


@pytest.mark.thorough
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_full_export_computes_what_was_trained(tmp_path: Path, family: str, tied: bool) -> None:
    base = make_base(tmp_path / "base", family, tied)
    trained = train(make_config(base), base, tmp_path, ranks=3)
    out = tmp_path / "export"
    run_export(trained, Kind.full, out)
    assert_same_logits(trained, base, out)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in out.iterdir()}


@pytest.mark.thorough
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dora": True},
        {"rslora": True, "alpha": 8.0},
        {"targets": ["q_proj", "down_proj"], "modules_to_save": ["embed_tokens"]},
        {"modules_to_save": ["embed_tokens", "lm_head"]},
    ],
    ids=["lora", "dora", "rslora", "embedding", "embedding-and-head"],
)
@pytest.mark.parametrize("kind", [Kind.adapter, Kind.merged])
def test_lora_exports_compute_what_was_trained(
    tmp_path: Path, kind: Kind, options: dict[str, Any], tied: bool
) -> None:
    base = make_base(tmp_path / "base", tied=tied)
    config = make_config(base, LoraConfig(rank=4, **options))
    trained = train(config, base, tmp_path)
    out = tmp_path / "export"
    run_export(trained, kind, out)
    assert_same_logits(trained, base, out)
    assert (out / "adapter_config.json").exists() is (kind is Kind.adapter)


def test_adapter_names_are_those_that_peft_writes(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    trained = train(make_config(base, LoraConfig(rank=4, dora=True)), base, tmp_path)
    run_export(trained, Kind.adapter, tmp_path / "export")
    model = rebuild(trained.config, trained.weights, base, torch.float32, trained.num_tokens)
    model.save_pretrained(tmp_path / "peft")
    from safetensors.torch import load_file

    ours = load_file(tmp_path / "export" / "adapter_model.safetensors")
    theirs = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor)


@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings_are_exported_with_the_new_size(tmp_path: Path, tied: bool) -> None:
    base = make_base(tmp_path / "base", tied=tied)
    trained = train(make_config(base), base, tmp_path, tokens=60)
    assert trained.num_tokens > SMALL["vocab_size"]
    out = tmp_path / "export"
    run_export(trained, Kind.full, out)
    assert json.loads((out / "config.json").read_text())["vocab_size"] == trained.num_tokens
    assert_same_logits(trained, base, out)


def test_shards_and_index_are_written_when_one_file_would_be_too_large(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tied=False)
    trained = train(make_config(base), base, tmp_path)
    out = tmp_path / "export"
    run_export(trained, Kind.full, out, shard_bytes=30_000)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert files == {p.name for p in out.glob("*.safetensors")}
    assert_same_logits(trained, base, out)


def test_sixteen_bit_export_keeps_its_dtype(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    trained = train(make_config(base, LoraConfig(rank=4)), base, tmp_path)
    trained = Trained(trained.config, trained.weights, trained.tokenizer, torch.bfloat16)
    run_export(trained, Kind.merged, tmp_path / "export")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", [Kind.full, Kind.merged])
def test_fused_experts_go_by_way_of_transformers(tmp_path: Path, kind: Kind) -> None:
    base = make_base(tmp_path / "base", "mixtral", tied=False)
    method = LoraConfig(rank=4) if kind is Kind.merged else PeftConfig()
    trained = train(make_config(base, method), base, tmp_path)
    run_export(trained, kind, tmp_path / "export")
    assert_same_logits(trained, base, tmp_path / "export")


#: A tensor of an expert, as the publishers of a family name it and inference engines read it.
PUBLISHED = {
    "qwen3_moe": "model.layers.1.mlp.experts.0.gate_proj.weight",
    "glm4_moe": "model.layers.1.mlp.experts.0.gate_proj.weight",
    "deepseek_v3": "model.layers.1.mlp.experts.0.gate_proj.weight",
    "mixtral": "model.layers.1.block_sparse_moe.experts.0.w1.weight",
    "gpt_oss": "model.layers.1.mlp.experts.gate_up_proj",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Kind.full, Kind.merged])
@pytest.mark.parametrize("name", PUBLISHED)
def test_experts_are_exported_as_they_are_published(tmp_path: Path, name: str, kind: Kind) -> None:
    base, out = tmp_path / "base", tmp_path / "export"
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(family(name)).save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    method = LoraConfig(rank=2) if kind is Kind.merged else PeftConfig()
    trained = train(make_config(base, method), base, tmp_path)
    run_export(trained, kind, out)
    assert_same_logits(trained, base, out)
    expected, found = (
        {key: tensor.shape for key, tensor in load_file(folder / "model.safetensors").items()}
        for folder in (base, out)
    )
    assert found == expected
    assert PUBLISHED[name] in found


def change(trained: Trained, folder: Path, name: str, edit: Callable[[Any], Any]) -> Trained:
    tensors = {n: trained.weights.tensor(n) for n in trained.weights.keys()}  # noqa: SIM118
    changed = edit(tensors.pop(name))
    if changed is not None:
        tensors[name] = changed
    weights = write_checkpoint(folder / "changed", tensors, 1)
    return Trained(trained.config, weights, trained.tokenizer, trained.dtype)


FIRST_B = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"


@pytest.mark.parametrize("kind", [Kind.adapter, Kind.merged])
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.fill_(float("nan")), "NaN or infinite"),
        (lambda t: t.index_fill_(0, torch.tensor([3]), float("inf")), "NaN or infinite"),
        (lambda t: t[:, :2], r"is \(32, 2\), not \(32, 4\)"),
        (lambda t: None, "is missing"),
    ],
    ids=["nan", "inf", "shape", "absent"],
)
def test_bad_tensors_are_refused_and_nothing_is_left(
    tmp_path: Path, kind: Kind, edit: Callable[[Any], Any], words: str
) -> None:
    base = make_base(tmp_path / "base")
    trained = train(make_config(base, LoraConfig(rank=4)), base, tmp_path)
    out = tmp_path / "out" / "export"
    with pytest.raises(LauncherError, match=words):
        run_export(change(trained, tmp_path, FIRST_B, edit), kind, out)
    assert list(out.parent.iterdir()) == []


@pytest.mark.parametrize("kind", [Kind.adapter, Kind.merged])
def test_adapters_that_never_moved_are_refused(tmp_path: Path, kind: Kind) -> None:
    base = make_base(tmp_path / "base")
    trained = train(make_config(base, LoraConfig(rank=4)), base, tmp_path)
    tensors = {
        name: trained.weights.tensor(name) * (".lora_B." not in name)
        for name in trained.weights.keys()  # noqa: SIM118
    }
    weights = write_checkpoint(tmp_path / "zero", tensors, 1)
    untouched = Trained(trained.config, weights, trained.tokenizer, trained.dtype)
    with pytest.raises(LauncherError, match="every lora_B is zero"):
        run_export(untouched, kind, tmp_path / "export")


def test_an_export_that_computes_something_else_is_not_kept(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    trained = train(make_config(base, LoraConfig(rank=4)), base, tmp_path)

    def sabotage(folder: Path) -> None:
        options = json.loads((folder / "adapter_config.json").read_text())
        options["lora_alpha"] /= 2
        (folder / "adapter_config.json").write_text(json.dumps(options))
        verify(trained, folder)

    out = tmp_path / "out" / "export"
    with pytest.raises(LauncherError, match="logits differ"):
        export(trained, Kind.adapter, out, sabotage)
    assert list(out.parent.iterdir()) == []


def test_an_export_that_forgot_the_training_is_not_kept(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    trained = train(make_config(base), base, tmp_path)

    def sabotage(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
        verify(trained, folder)

    with pytest.raises(LauncherError, match="logits differ"):
        export(trained, Kind.full, tmp_path / "export", sabotage)


def test_a_failed_export_leaves_the_older_one_and_a_good_one_replaces_it(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    trained = train(make_config(base, LoraConfig(rank=4)), base, tmp_path)
    out = tmp_path / "out" / "export"
    run_export(trained, Kind.merged, out)
    before = (out / "model.safetensors").read_bytes()
    broken = change(trained, tmp_path, FIRST_B, lambda t: t.fill_(float("nan")))
    with pytest.raises(LauncherError):
        run_export(broken, Kind.adapter, out)
    assert (out / "model.safetensors").read_bytes() == before
    run_export(trained, Kind.adapter, out)
    assert not (out / "model.safetensors").exists()
    assert [p.name for p in out.parent.iterdir()] == ["export"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("kind", [Kind.full, Kind.adapter])
def test_a_full_disk_is_a_storage_error_and_is_left_clean(
    tmp_path: Path, small_disk: Path, kind: Kind
) -> None:
    base = make_base(tmp_path / "base", tied=False)
    method = LoraConfig(rank=32) if kind is Kind.adapter else PeftConfig()
    trained = train(make_config(base, method), base, tmp_path)
    with pytest.raises(StorageError, match="No space left"):
        run_export(trained, kind, small_disk / "export")
    assert list(small_disk.iterdir()) == []


def test_quantized_training_exports_against_the_stored_base(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    config = make_config(base, LoraConfig(rank=4))
    config.model.quantization = schema.Quantization.nf4
    trained = train(config, base, tmp_path)
    run_export(trained, Kind.merged, tmp_path / "export")
    assert_same_logits(trained, base, tmp_path / "export")


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [Kind.adapter, Kind.merged])
@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_can_be_trained_beside_adapters_but_not_left_frozen(
    tmp_path: Path, kind: Kind, tied: bool
) -> None:
    base = make_base(tmp_path / "base", tied=tied)
    saved = ["embed_tokens", "lm_head"]
    config = make_config(base, LoraConfig(rank=4, modules_to_save=saved))
    trained = train(config, base, tmp_path, tokens=60)
    run_export(trained, kind, tmp_path / "export")
    assert_same_logits(trained, base, tmp_path / "export")

    frozen = train(make_config(base, LoraConfig(rank=4)), base, tmp_path / "frozen", tokens=60)
    with pytest.raises(LauncherError, match="new rows of the embedding were not trained"):
        run_export(frozen, kind, tmp_path / "refused")
