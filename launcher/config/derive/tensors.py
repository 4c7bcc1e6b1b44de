"""The tensors of a model by the headers of its weight files: what there is to train and to adapt.

Names are those of the files, which for fused experts differ from the model's: a matrix for each
expert there, one parameter for all of them in the model. Standard library only.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.schema import AdapterConfig

Tensors = Mapping[str, tuple[int, ...]]

#: Keys of the number of experts in a config.json.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
#: Model types of which a test holds that their adapters are counted to the number.
COUNTED = frozenset(
    (
        *("llama", "mistral", "qwen2", "qwen3", "smollm3", "phi3", "granite", "olmo2", "glm4"),
        *("gemma2", "gemma3", "gemma3_text", "gpt2", "mixtral", "qwen2_moe", "qwen3_moe"),
        *("qwen3_5", "qwen3_5_text", "qwen3_next", "glm4_moe", "deepseek_v3", "gpt_oss"),
        *("gemma4_text", "qwen3_5_moe_text", "llama4_text", "olmoe", "lfm2_moe"),
        *("falcon_h1", "mamba", "lfm2", "granitemoehybrid"),
    )
)
#: Ends of the names of linear layers whose weight the model reads itself, past any adapter.
_READ_DIRECTLY = {
    "falcon_h1": ("mamba.out_proj",),
    "granitemoehybrid": ("mamba.out_proj",),
    "mamba": ("mixer.x_proj", "mixer.dt_proj", "mixer.out_proj"),
}
_EMBEDDINGS = (
    "embed_tokens",
    "embeddings",
    "wte",
    "wpe",
    "embed_tokens_per_layer",
    "embed_in",
    "word_embeddings",
)
_HEADS = ("lm_head", "embed_out", "score", "classifier")
#: State and scales that lie among the weights without being parameters.
_BUFFER = re.compile(
    r"(e_score_correction_bias|expert_bias|layer_scalar|inv_freq|running_mean|running_var|masked_bias"
    r"|num_batches_tracked|\.attn\.bias|_scale_inv|_scales|\.absmax|\.quant_map|\.nested_\w+"
    r"|quant_state\.\w+)$"
)
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(w1|w2|w3|gate_proj|up_proj|down_proj)\.weight$")
_GRANITE = re.compile(r"(.*\.block_sparse_moe)\.(input|output)_linear\.weight$")
_OTHER_PART = re.compile(
    r"(^|\.)(visual|vision|audio|vision_\w+|audio_\w+|embed_(vision|audio)"
    r"|multi_modal_projector)(\.|$)"
)


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix beside or on which an adapter can be, or one for each of `experts`."""

    name: str
    """Of the module, or of the parameter of fused experts."""
    inputs: int
    outputs: int
    experts: int = 1


def read(folder: Path, content: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
    """Name -> shape of the parameters in a folder's safetensors files; None without any.

    `content` is config.json. Left out are buffers, scales and what the model does not load: layers
    that predict further tokens, and towers for images or sound of a model opened for text alone.
    """
    found = {}
    for name, tensor in _headers(folder):
        if not _BUFFER.search(name):
            name, shape = _unpacked(name, tuple(tensor["shape"]), tensor["dtype"])
            found[name] = shape
    if not found:
        return None
    text = content.get("text_config", content)
    layers = text.get("num_hidden_layers")
    tied = text.get("tie_word_embeddings", content.get("tie_word_embeddings"))
    if tied and any(_is_in(name, ["embed_tokens"]) for name in found):
        found.pop("lm_head.weight", None)
    return {name: shape for name, shape in found.items() if _is_loaded(name, layers, content)}


def _headers(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(length, 100_000_000)))
        yield from ((name, tensor) for name, tensor in header.items() if name != "__metadata__")


def in_adapter(folder: Path) -> int | None:
    """Parameters of an adapter that is trained further; None if it holds whole modules too, which
    may be there for their new rows alone, or cannot be read."""
    try:
        shapes = {name: tensor["shape"] for name, tensor in _headers(folder)}
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    if not shapes or not all(".lora_" in name for name in shapes):
        return None
    return int(sum(math.prod(shape) for shape in shapes.values()))


def _unpacked(name: str, shape: tuple[int, ...], dtype: str) -> tuple[str, tuple[int, ...]]:
    """MXFP4 keeps [experts, out, groups, 16] bytes of two numbers each."""
    if dtype == "U8" and name.endswith("_blocks") and len(shape) == 4:
        experts, outputs, groups, size = shape
        return name.removesuffix("_blocks"), (experts, groups * size * 2, outputs)
    return name, shape


def _is_loaded(name: str, layers: int | None, content: Mapping[str, Any]) -> bool:
    if re.match(r"(model\.)?mtp\.", name):
        return False
    number = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    if number and layers is not None and int(number[1]) >= layers and not _OTHER_PART.search(name):
        return False
    text_only = content.get("model_type") in ("qwen3_5", "llama4")
    return not (text_only and _OTHER_PART.search(name))


def count(tensors: Tensors) -> int:
    """Number of parameters."""
    return sum(math.prod(shape) for shape in tensors.values())


def trainable(
    config: AdapterConfig, tensors: Tensors, content: Mapping[str, Any]
) -> tuple[int, bool]:
    """Trained parameters of a run with adapters, and whether the tensors tell them for certain."""
    kind = str(content.get("model_type"))
    targets = [config.targets] if isinstance(config.targets, str) else config.targets
    wanted = list(config.modules_to_save)
    if "lm_head" in wanted and not any(_is_in(name, ["lm_head"]) for name in tensors):
        wanted.append("embed_tokens")  # tied: one matrix
    saved = {name for name in tensors if _is_in(name, wanted)}
    total = sum(math.prod(tensors[name]) for name in saved)
    matched = set()
    for matrix in _matrices(tensors, kind):
        if f"{matrix.name}.weight" in saved or _is_in(matrix.name, config.modules_to_save):
            continue
        asked = [t for t in targets if _asks(t, matrix, config, content, kind)]
        if asked:
            matched.update(asked)
            total += config.parameters(matrix.inputs, matrix.outputs, matrix.experts)
    return total, kind in COUNTED and set(targets) == matched


def of_experts(config: AdapterConfig, tensors: Tensors, content: Mapping[str, Any]) -> int:
    """Elements of the fused experts that adapters are on: each forward pass makes their sum."""
    targets = [config.targets] if isinstance(config.targets, str) else config.targets
    kind = str(content.get("model_type"))
    return sum(
        matrix.experts * matrix.inputs * matrix.outputs
        for matrix in _matrices(tensors, kind)
        if matrix.experts > 1 and any(_asks(t, matrix, config, content, kind) for t in targets)
    )


def _asks(
    target: str, matrix: Matrix, config: AdapterConfig, content: Mapping[str, Any], kind: str
) -> bool:
    name = matrix.name
    leaf = name.rpartition(".")[2]
    if target != "all-linear":
        inside = matrix.experts > 1 and _ends(name.rpartition(".")[0], target)
        return _ends(name, target) or inside
    if matrix.experts > 1:
        return config.experts
    if leaf in _EMBEDDINGS or leaf in _HEADS or _OTHER_PART.search(name):
        return False
    if any(_ends(name, end) for end in _READ_DIRECTLY.get(kind, ())):
        return False
    text = content.get("text_config", content)
    experts = next((n for key in EXPERTS if (n := text.get(key))), None)
    return not (leaf in ("gate", "router") and matrix.outputs == experts)


def _matrices(tensors: Tensors, kind: str) -> Iterator[Matrix]:
    fused: dict[tuple[str, str], list[tuple[int, ...]]] = {}
    numbers: dict[str, set[int]] = {}
    for name, shape in tensors.items():
        if expert := _EXPERT.match(name):
            into = "down_proj" if expert[3] in ("w2", "down_proj") else "gate_up_proj"
            fused.setdefault((expert[1], into), []).append(shape)
            numbers.setdefault(expert[1], set()).add(int(expert[2]))
        elif name.endswith(".weight") and len(shape) == 2:
            module = name.removesuffix(".weight")
            if module.endswith(".router.layer"):  # Granite's, in files
                module = module.removesuffix(".layer")
            outputs, inputs = shape
            if kind == "gpt2" or module.rpartition(".")[2] in _EMBEDDINGS:
                outputs, inputs = inputs, outputs  # multiplied from the other side, or looked up
            yield Matrix(module, inputs, outputs)
        elif len(shape) == 3 and (granite := _GRANITE.match(name)):
            into = "gate_up_proj" if granite[2] == "input" else "down_proj"
            yield Matrix(f"{granite[1]}.experts.{into}", shape[2], shape[1], shape[0])
        elif ".experts." in name and len(shape) == 3:
            yield Matrix(name, shape[1], shape[2], shape[0])
    for (prefix, into), shapes in fused.items():
        experts = len(numbers[prefix])
        each = len(shapes) // experts
        outputs, inputs = shapes[0]
        yield Matrix(f"{prefix}.{into}", inputs, each * outputs, experts)


def _is_in(tensor: str, modules: list[str]) -> bool:
    """Whether a tensor belongs to one of the modules, or to a module inside of one."""
    parts = tensor.split(".")[:-1]
    around = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(_ends(module, wanted) for module in around for wanted in modules)


def _ends(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def full_shape(parameter: Any) -> tuple[int, ...]:
    """Shape of the whole parameter, also if partitioned by ZeRO-3 or packed in 4 bits."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return tuple(state.shape)
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
