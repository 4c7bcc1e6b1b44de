"""Where the models that the launcher makes itself are kept. Standard library only, so both planes can ask."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher import __version__
from launcher.config.schema import Config, TinyModelConfig

#: The options that decide what a tiny model is; the rest of its config says how it is used.
TINY_OPTIONS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "layers",
    "heads",
    "kv_heads",
    "max_positions",
    "tie_embeddings",
)

#: Source files that decide what a tiny model is.
_TINY_SOURCES = ("stories.py", "model/tiny.py")

#: Options without influence on the weights that a recipe ends with.
_IDLE = {
    "model": ("recipe",),
    "data": ("validation", "cache", "workers"),
    "batch": ("micro",),
    "train": ("log_every_steps", "threads"),
}
_SECTIONS = ("model", "data", "objective", "peft", "batch", "train", "optim", "schedule")


def tiny_folder(config: TinyModelConfig, cache_dir: Path) -> Path:
    """Where the tiny model of these options lies, whether made yet or not."""
    options = {name: getattr(config, name) for name in TINY_OPTIONS}
    return cache_dir / "tiny" / _digest(_sources(*_TINY_SOURCES), options)


def base_folder(config: Config, cache_dir: Path) -> Path:
    """Where the base that the recipe `config` pre-trains lies, whether trained yet or not."""
    return cache_dir / "bases" / base_key(config)


def base_key(config: Config) -> str:
    """Key of the base that the recipe `config` pre-trains: a hash of what decides its weights.

    The cut into ranks, ZeRO stage, logging, evaluation and launch do not.
    """
    raw = asdict(config)
    for section, options in _IDLE.items():
        for option in options:
            raw[section].pop(option, None)
    sections = {name: raw[name] for name in _SECTIONS}
    sources = _sources(*_TINY_SOURCES, "data/builtin.py")
    return _digest(__version__, sources, config.seed, config.engine.precision, sections)


@functools.cache
def _sources(*names: str) -> str:
    package = Path(__file__).parent
    return _digest(*(package.joinpath(name).read_text(encoding="utf-8") for name in names))


def _digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=lambda member: member.name)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()
