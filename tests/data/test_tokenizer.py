"""Loading tokenizers by config."""

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config.schema import ModelConfig, TinyModelConfig
from launcher.data.tokenizer import load_tokenizer
from launcher.errors import ConfigError


def test_template_is_replaced_and_tokens_added(tokenizer_folder: Path, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{{ messages }}")
    plain = load_tokenizer(ModelConfig(name=str(tokenizer_folder)))
    changed = load_tokenizer(
        ModelConfig(
            name="ignored",
            tokenizer=str(tokenizer_folder),
            chat_template=str(template),
            add_tokens=["<tool>"],
        )
    )
    assert changed.chat_template == "{{ messages }}"
    assert len(changed) == len(plain) + 1
    assert changed.tokenize("a<tool>b") == ["a", "<tool>", "b"]


def test_tiny_model_is_made() -> None:
    tokenizer = load_tokenizer(TinyModelConfig(vocab_size=300))
    assert tokenizer.chat_template
    assert len(tokenizer) == 300


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({}, "model.name"),
        ({"name": "/missing/model"}, "model.name"),
        ({"name": "org/not-in-the-cache"}, "model.name"),
        ({"name": "x", "tokenizer": "org/not-in-the-cache"}, "model.tokenizer"),
    ],
)
def test_no_tokenizer(options: dict[str, str], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(ModelConfig(**options))
    assert caught.value.problems[0].where == where


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ConfigError, match="no tokenizer can be loaded"):
        load_tokenizer(ModelConfig(name=str(tmp_path)))


def test_unreadable_template(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_bytes(b"\xff")
    for name in ("t.jinja", "missing.jinja"):
        with pytest.raises(ConfigError, match=name):
            load_tokenizer(
                ModelConfig(name=str(tokenizer_folder), chat_template=str(tmp_path / name))
            )


@pytest.mark.slow
def test_hidden_torch_is_never_imported(tokenizer_folder: Path) -> None:
    script = f"""
import sys
from launcher.data.tokenizer import hide_torch, load_tokenizer
from launcher.config.schema import ModelConfig
hide_torch()
import launcher.data.prepare
tokenizer = load_tokenizer(ModelConfig(name={str(tokenizer_folder)!r}))
print(tokenizer.apply_chat_template([{{"role": "user", "content": "hi"}}], tokenize=False))
assert sys.modules["torch"] is None
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.startswith("<|im_start|>user\nhi")
