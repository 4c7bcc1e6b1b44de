"""What the weights of a run stand on: the content of its base and its tokenizer, as digests.

Beside the weights counts what says how to compute with them: config.json and code beside it.

A base of 60 GB is not read as a whole at each start. Of a file of weights up to 256 MiB every byte
counts; of a larger one its size, its first MiB (where safetensors keep names, types and shapes) and
64 KiB of every 4 MiB after that. So other weights are seen, and every change in a small model, but
perhaps not a single number that was changed in a large one. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.config.derive import memory
from launcher.config.schema import Config
from launcher.core.errors import ConfigError
from launcher.core.files import read_json, write_json
from launcher.fingerprint.hashes import Hashes
from launcher.fingerprint.keys import tokenizer_identity
from launcher.fingerprint.located import cache_root

#: In every export: only a folder that has it may be replaced by another. That of an adapter holds
#: the digest of its base.
MARKER = ".launcher-export"

_WHOLE = 256 << 20
_HEAD = 1 << 20
_STRIDE = 4 << 20
_SAMPLE = 64 << 10
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
#: Of config.json, what says nothing of how the model computes (the run has a type of its own).
_IDLE = (
    "transformers_version",
    "_name_or_path",
    "torch_dtype",
    "dtype",
    "use_cache",
    "architectures",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "id2label",
    "label2id",
    "_attn_implementation",
)
#: What transformers looks for, first the first.
_STEMS = ("model.safetensors", "pytorch_model.bin")
#: Beside the weights of a model may lie those of an adapter, and what a trainer has left.
_OTHERS = ("adapter_", "optimizer", "scheduler", "training_args", "rng_state")


def origin(config: Config, base: Path | None) -> dict[str, str]:
    """Digests of the weights in `base`, the folder of the run's base, of how it computes with them,
    of its tokenizer, of an objective in a file of the user's, and of models that it learns from.

    Without a folder the base has no digest.
    """
    hashes = Hashes(cache_root(config) / "hashes.json")
    tokenizer = json.dumps(tokenizer_identity(config.model, hashes), sort_keys=True)
    digest = hashlib.blake2b(tokenizer.encode(), digest_size=16).hexdigest()
    model = model_digest(base, with_code=config.model.trust_remote_code) if base else ""
    own = config.objective.name
    others = {
        key: weights_digest(folder) + model_digest(folder) if folder else ""
        for key, named in config.objective.models.items()
        for folder in (memory.local_folder(*named),)
    }
    return {
        "base": weights_digest(base) if base else "",
        "model": model,
        "tokenizer": digest,
        **({"objective": hashes.digest(Path(own))} if own.endswith(".py") else {}),
        **({"adapter": _adapter_digest(config)} if config.objective.asks_start(config) else {}),
        **others,
    }


def weights_digest(folder: Path) -> str:
    """BLAKE2b (16 bytes, hex) of a model's weights, by the names of their files; empty if there are
    none in the folder."""
    files = [[path.name, _file_digest(path)] for path in _weight_files(folder) if path.is_file()]
    text = json.dumps(files).encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest() if files else ""


def _adapter_digest(config: Config) -> str:
    """Of the weights of the adapter that the run goes on from."""
    folder = Path(config.peft.adapter)  # type: ignore[attr-defined]
    files = [_file_digest(path) for path in sorted(folder.glob("adapter_model.*"))]
    return hashlib.blake2b(json.dumps(files).encode(), digest_size=16).hexdigest()


def model_digest(folder: Path, *, with_code: bool = False) -> str:
    """BLAKE2b (16 bytes, hex) of what a model's config.json says of how it computes, and of the
    code beside it; empty if there is no readable one."""
    about = read_json(folder / "config.json")
    if not isinstance(about, dict):
        return ""
    code = sorted(folder.glob("*.py")) if with_code else []
    said = [_essential(about), [[path.name, _file_digest(path)] for path in code]]
    text = json.dumps(said, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _essential(said: Any) -> Any:
    """What counts of a config, and of the configs inside of it; a key that is null is not there."""
    if not isinstance(said, dict):
        return said
    counts = {key: value for key, value in said.items() if key not in _IDLE and value is not None}
    return {key: _essential(value) for key, value in counts.items()}


def _weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads, in its order of preference: another format beside them, or
    the same weights in one file, is not the model."""
    for stem in _STEMS:
        if (folder / stem).is_file():
            return [folder / stem]
        index = read_json(folder / f"{stem}.index.json")
        if isinstance(index, dict):
            return sorted({folder / str(name) for name in index.get("weight_map", {}).values()})
    named = (path for path in folder.iterdir() if path.suffix in _WEIGHTS)
    return sorted(path for path in named if not path.name.startswith(_OTHERS))


def _file_digest(path: Path) -> str:
    size = path.stat().st_size
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    with open(path, "rb") as file:
        if size <= _WHOLE:
            while block := file.read(_HEAD):
                digest.update(block)
            return digest.hexdigest()
        digest.update(file.read(_HEAD))
        for place in [*range(_STRIDE, size, _STRIDE), size - _SAMPLE]:
            file.seek(place)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


_WORDS = {
    "base": "the base's weights",
    "model": "the base's config.json or code",
    "tokenizer": "the tokenizer or its chat template",
    "objective": "the file of the objective",
    "teacher": "the weights of the teacher",
    "adapter": "the adapter to go on from",
}


def changes(began: Mapping[str, str] | None, now: Mapping[str, str]) -> list[str]:
    """What of a run's origin is no longer what its checkpoint says: keys of `origin`."""
    before = began or {}
    return [
        name for name in _WORDS if before.get(name) and now.get(name) and before[name] != now[name]
    ]


def require_same(
    config: Config, began: Mapping[str, str] | None, now: Mapping[str, str], where: Path
) -> list[str]:
    """What has to be said of a checkpoint whose run began on `began`, if it is used on `now`.

    Raises `ConfigError` if its weights would be put on another base, or it learned other tokens.
    """
    changed = changes(began, now)
    source = config.model.name or config.model.kind
    words = [_WORDS[name] for name in changed]
    if changed and (not config.peft.trains_base or changed != ["base"]):
        raise ConfigError(
            f"{' and '.join(words)} of {source} changed since the run began, and the checkpoint"
            " learned upon the former",
            where=str(where),
            hint="put the former files back, or start a new run (under another run.name) on these",
        )
    return [f"{text} of {source} changed since the run began" for text in words]


def note_base(folder: Path, base: Path | None) -> None:
    """Mark `folder` as an export; with the digests of `base` if it stands on that."""
    found = {"base": weights_digest(base), "model": model_digest(base)} if base else {}
    write_json(folder / MARKER, found)


def require_base(adapter: str | Path, base: Path | None) -> None:
    """`ConfigError` if the adapter was exported for other weights than those in `base`.

    One that another tool wrote says nothing of them.
    """
    marker = Path(adapter) / MARKER
    noted = read_json(marker, {})
    if base is None or not isinstance(noted, dict):
        return
    now = {"base": weights_digest(base), "model": model_digest(base)}
    changed = changes(noted, now)
    if not changed:
        return
    other = "other weights than those" if "base" in changed else "another config.json than that"
    raise ConfigError(
        f"the adapter was trained upon {other} in {base}",
        where=str(adapter),
        hint="give the base that it was trained upon (model.name=FOLDER); if these are the same"
        f" weights in another format, delete {marker}",
    )
