"""A small byte-level BPE, tokenizers with given templates, data files and configs for them."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from launcher.config.schema import Config
from support.chats import CHATML_TAGGED, SPECIALS
from support.configs import make_config

TEXTS = [
    "The quick brown fox jumps over the lazy dog. How many foxes are there in all?",
    "user assistant system [INST] [/INST] think Natalia sold 48 clips. #### 72",
    "Ein Satz mit Umlauten: äöü ß, emoji 🙂 and 日本語.\n\nA second paragraph.",
]


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the BPE with the tagged ChatML template; `<|im_end|>` is its end of sequence."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXTS, trainer)
    folder = tmp_path_factory.mktemp("tokenizer")
    bpe.save(str(folder / "tokenizer.json"))
    options = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<pad>",
        "chat_template": CHATML_TAGGED,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(options))
    return folder


@pytest.fixture(scope="session")
def make_tokenizer(tokenizer_folder: Path) -> Callable[..., Any]:
    """A tokenizer with the given chat template and end-of-sequence token; shared, so read-only."""
    from transformers import AutoTokenizer

    @functools.cache
    def make(template: str | None = CHATML_TAGGED, eos: str | None = "<|im_end|>") -> Any:
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        tokenizer.chat_template = template
        tokenizer.eos_token = eos
        return tokenizer

    return make


@pytest.fixture
def make_data(tmp_path: Path) -> Callable[..., Path]:
    """Write records (objects, or lines as they are) as JSONL and give the path."""

    def make(records: Iterable[Any], name: str = "train.jsonl") -> Path:
        path = tmp_path / name
        lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in records]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return make


@pytest.fixture
def configure(tokenizer_folder: Path, tmp_path: Path) -> Callable[..., Config]:
    """A config with the BPE, a cache of its own, one worker and no split; options are `data`'s."""

    def make(model: dict[str, Any] | None = None, objective: str = "sft", **data: Any) -> Config:
        defaults = {"cache": str(tmp_path / "cache"), "workers": 1, "validation_share": 0.0}
        data = {**defaults, **data}
        for split in ("train", "validation"):
            if isinstance(data.get(split), Path):
                data[split] = str(data[split])
        return make_config(
            model={"name": str(tokenizer_folder), **(model or {})},
            objective={"name": objective},
            data=data,
        )

    return make
