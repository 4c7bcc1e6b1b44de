"""The trained model as a plain Hugging Face folder: full weights, an adapter, or the two merged.

Tensors are streamed from the base's files and the checkpoint's fragments into shards, so memory
stays at one shard, whatever the model's size. The folder appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import torch

from launcher import fingerprint
from launcher.config.schema import Config
from launcher.core import runtime
from launcher.core.errors import LauncherError
from launcher.core.files import (
    fsync_folder,
    give_usual_permissions,
    read_json,
    storage_errors,
    write_json,
)
from launcher.model import shards
from launcher.model.adapter import AdapterReader
from launcher.model.fragments import FragmentReader
from launcher.model.merge import Merger
from launcher.model.pretrained import is_quantised
from launcher.model.rebuild import (
    base_folder,
    meta_base,
    rebuild,
    require_same_parameters,
    with_adapters,
)
from launcher.model.sequence_head import SequenceHead

SHARD_BYTES = 2 * 1024**3

GENERATION = "generation_config.json"


class Kind(Enum):
    """What an export folder holds."""

    full = "full"
    adapter = "adapter"
    merged = "merged"


@dataclass(frozen=True, slots=True)
class Trained:
    """All that a trained model is made of; base and export are in `dtype`."""

    config: Config
    weights: FragmentReader | AdapterReader
    tokenizer: Any
    dtype: torch.dtype
    head: SequenceHead | None = None
    """What takes the place of the LM head."""
    taught: Sequence[int] = ()
    """Tokens that end a turn in the training data."""
    describe: Callable[[Path], None] = lambda folder: None
    """Writes into an exported folder what a user must know beside the model."""

    @property
    def num_tokens(self) -> int:
        """Rows that the embeddings have at least."""
        return len(self.tokenizer)

    def model(self, base: Path) -> Any:
        """Base and checkpoint as one model, ready for inference on the CPU."""
        return rebuild(self.config, self.weights, base, self.dtype, self.num_tokens, self.head)


def export(
    trained: Trained,
    kind: Kind,
    out: Path,
    check: Callable[[Path], None],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write the folder `out`, replacing one that is there, once `check` has passed on it.

    Raises `StorageError` (disk full, damaged checkpoint) or `LauncherError` (tensors missing,
    empty, not finite, adapters never trained, `check` failed); nothing is left behind then.
    """
    base = base_folder(trained.config.model)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with storage_errors(out):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            if kind is Kind.adapter:
                _write_adapter(trained, base, temporary)
            else:
                _write_model(trained, base, temporary, shard_bytes)
            trained.tokenizer.save_pretrained(temporary)
            if trained.head is None:
                _write_generation(trained, base, temporary)
            trained.describe(temporary)
            check(temporary)
            fingerprint.note_base(temporary, base if kind is Kind.adapter else None)
            give_usual_permissions(temporary)
            for path in temporary.iterdir():
                fsync_folder(path)
            _put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(temporary: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    if out.exists():
        out.rename(old)
    try:
        temporary.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    fsync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_adapter(trained: Trained, base: Path, folder: Path) -> None:
    from peft import get_peft_model_state_dict

    model = with_adapters(_structure(trained, base), trained.config, trained.head)
    require_same_parameters(trained.weights, model)
    _require_known_embeddings(trained, base, model)
    names = trained.weights.keys()
    tensors = {name: _checked(trained.weights, name) for name in names}
    _require_trained_adapters(tensors)
    for name, others in _aliases(model).items():
        if name in tensors:
            tensors.update((other, tensors[name].clone()) for other in others)
    # peft decides the names on disk.
    state = get_peft_model_state_dict(model, state_dict=tensors, save_embedding_layers=False)
    if len(state) < len(names):
        raise LauncherError(f"peft saves {len(state)} of {len(names)} trained tensors")
    names_in_file = getattr(model, "file_names", {})
    state = {
        names_in_file.get(name, name): tensor.to(trained.dtype).contiguous()
        for name, tensor in state.items()
    }
    shards.save(folder / "adapter_model.safetensors", state)
    options = model.peft_config["default"]
    options.inference_mode = True
    name = str(trained.config.model.name)
    options.base_model_name_or_path = str(base) if _is_local(trained.config) else name
    options.revision = trained.config.model.revision
    options.save_pretrained(str(folder))


def _write_generation(trained: Trained, base: Path, folder: Path) -> None:
    """Say where an answer ends: the base's generation config, and the ends that were taught.

    transformers and vLLM read it in a folder of a whole model. Beside an adapter it is for whoever
    loads one: both go by the base's there.
    """
    from transformers import AutoConfig, GenerationConfig

    content = read_json(base / GENERATION)
    if content is None:
        trust = trained.config.model.trust_remote_code
        structure = AutoConfig.from_pretrained(base, trust_remote_code=trust)
        content = GenerationConfig.from_model_config(structure).to_diff_dict()
    known, tokenizer = content.get("eos_token_id"), trained.tokenizer
    known = known if isinstance(known, list) else [known]
    # The base's come first: transformers pads with the first where no other token is for it.
    ends = dict.fromkeys([*known, tokenizer.eos_token_id, *trained.taught])
    found = [token for token in ends if token is not None]
    if found:
        content["eos_token_id"] = found if len(found) > 1 else found[0]
    if content.get("pad_token_id") is None and tokenizer.pad_token_id is not None:
        content["pad_token_id"] = tokenizer.pad_token_id
    content.pop("_from_model_config", None)  # it would be taken from config.json again
    write_json(folder / GENERATION, content)


def _structure(trained: Trained, base: Path) -> Any:
    return meta_base(trained.config.model, base, trained.num_tokens, trained.head)


def _is_local(config: Config) -> bool:
    name = config.model.name
    return name is None or config.model.adapter is not None or runtime.user_path(name).is_dir()


def _write_model(trained: Trained, base: Path, folder: Path, shard_bytes: int) -> None:
    model = _structure(trained, base)
    names = [*dict(model.named_parameters()), *_saved_buffers(model)]
    aliases = _aliases(model)
    structure = model.config
    structure.architectures = [type(model).__name__]
    adapted = with_adapters(model, trained.config, trained.head)
    require_same_parameters(trained.weights, adapted)
    _require_known_embeddings(trained, base, adapted)
    merger = Merger.of(adapted, trained.weights, trained.dtype)
    kept = [name for name in names if merger is None or merger.replacement(name) is None]
    # Fused experts are trained as a whole, but have a name each in the files of most publishers.
    fused = [name for name in names if ".experts." in name]
    source = _streamable(base, [*kept, *fused], aliases)
    if source is None or merger is None:
        _write_whole(trained, base, folder, shard_bytes)
    else:
        tensors = _stream(trained, merger, source, names, aliases)
        shards.write_shards(folder, tensors, shard_bytes)
        structure.dtype = trained.dtype
        structure.save_pretrained(folder)
    _copy_extras(base, folder, trained.config.model.trust_remote_code)
    if model.other_modalities:
        _copy(base, folder, "*processor_config.json")


def _stream(
    trained: Trained,
    merger: Merger,
    source: shards.ShardReader,
    names: list[str],
    aliases: dict[str, list[str]],
) -> Iterator[tuple[str, torch.Tensor]]:
    saved = set(trained.weights.keys())
    _require_trained_adapters({n: trained.weights.tensor(n) for n in saved if ".lora_B." in n})
    for name in names:
        replacement = merger.replacement(name)
        if replacement is not None:
            tensor = _checked(trained.weights, replacement)
        else:
            stored = next(n for n in (name, *aliases.get(name, ())) if n in source)
            tensor = merger.merge(name, source.tensor(stored), partial(_checked, trained.weights))
        yield name, tensor.to(trained.dtype) if tensor.is_floating_point() else tensor


def _streamable(
    base: Path, names: list[str], aliases: dict[str, list[str]]
) -> shards.ShardReader | None:
    """The base's files if they hold tensors as the model does; else transformers must convert."""
    if is_quantised(base):
        return None
    try:
        source = shards.ShardReader(base)
    except (FileNotFoundError, OSError):
        return None
    known = all(any(n in source for n in (name, *aliases.get(name, ()))) for name in names)
    return source if known else None


def _write_whole(trained: Trained, base: Path, folder: Path, shard_bytes: int) -> None:
    """By way of the model in memory, for bases whose names or adapter layers need conversion."""
    names = trained.weights.keys()
    for name in names:
        _checked(trained.weights, name)
    model = trained.model(base)
    if not trained.config.peft.trains_base:
        model = model.merge_and_unload()
    model.save_pretrained(folder, max_shard_size=shard_bytes)


def _saved_buffers(model: Any) -> list[str]:
    buffers = dict(model.named_buffers())
    return [name for name in model.state_dict() if name in buffers]


def _aliases(model: Any) -> dict[str, list[str]]:
    """Other names of each tied parameter; the files of a base may use any of them."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    aliases: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first[id(parameter)] != name:
            aliases.setdefault(first[id(parameter)], []).append(name)
    return aliases


def _checked(weights: FragmentReader | AdapterReader, name: str) -> torch.Tensor:
    """A trained tensor; `LauncherError` if it is empty or not finite."""
    tensor = weights.tensor(name)
    if tensor.numel() == 0:
        raise LauncherError(f"{name} is empty in the checkpoint")
    if not torch.isfinite(tensor).all():
        raise LauncherError(
            f"{name} holds NaN or infinite numbers", hint="export an older step with --checkpoint"
        )
    return tensor


def _require_trained_adapters(tensors: dict[str, torch.Tensor]) -> None:
    """lora_B starts at zero; if all of it is zero still, nothing was trained."""
    outer = [tensor for name, tensor in tensors.items() if ".lora_B." in name]
    if outer and not any(tensor.any() for tensor in outer):
        raise LauncherError(
            "every lora_B is zero: the adapters were never updated",
            hint="train for more steps, or check that the learning rate is not 0",
        )


def _require_known_embeddings(trained: Trained, base: Path, model: Any) -> None:
    """Rows that were added to frozen embeddings are in no file: nobody could load them again."""
    from transformers import AutoConfig

    trust = trained.config.model.trust_remote_code
    rows = AutoConfig.from_pretrained(base, trust_remote_code=trust).get_text_config().vocab_size
    embedding = model.get_input_embeddings()
    if trained.num_tokens > rows and not any(p.requires_grad for p in embedding.parameters()):
        raise LauncherError(
            f"the tokenizer has {trained.num_tokens} tokens, the base {rows}, and the new rows of"
            " the embedding were not trained",
            where="peft.modules_to_save",
            hint="train them: modules_to_save=[embed_tokens, lm_head]",
        )


def _copy_extras(base: Path, folder: Path, code: bool) -> None:
    patterns = ["generation_config.json", *(["*.py"] if code else [])]
    for pattern in patterns:
        _copy(base, folder, pattern)


def _copy(base: Path, folder: Path, pattern: str) -> None:
    for path in base.glob(pattern):
        with contextlib.suppress(shutil.SameFileError):
            shutil.copyfile(path, folder / path.name)
