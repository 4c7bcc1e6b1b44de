"""Loading tokenizers by config."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.config.schema import ModelConfig, TinyModelConfig
from launcher.core.errors import ConfigError
from launcher.data.tokenizer import load_tokenizer


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


def framed(single: str | None, eos: str | None = "</s>") -> Any:
    """A tokenizer of bytes that puts special tokens around every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = ["<s>", "</s>", "[SEP]"]
    raw.train_from_iterator(
        ["a"],
        trainers.BpeTrainer(
            special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        ),
    )
    if single:
        raw.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[(name, i) for i, name in enumerate(specials)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token=eos)


@pytest.mark.parametrize("single", [None, "<s> $A", "<s> $A </s>", "$A </s>", "<s> $A [SEP]"])
@pytest.mark.parametrize("text", ["ab", "<s>ab", "ab</s>", "<s>ab</s>", "<s>ab</s>\n", "\n<s>ab"])
def test_special_tokens_are_never_put_twice(single: str | None, text: str) -> None:
    from launcher.data.formats.base import Pair, Text
    from launcher.data.prepare.encoding import Encoded, ExampleEncoder

    tokenizer = framed(single)
    pair = Pair(text[: text.index("b")], text[text.index("b") :])
    for example in (Text(text), pair):
        (item,) = ExampleEncoder(tokenizer).encode([example])
        assert isinstance(item, Encoded)
        ((tokens, targets, *_),) = item.pieces
        shown = tokenizer.decode(tokens)
        begins = (single or "").startswith("<s>") or "<s>" in text
        assert shown.count("<s>") == begins
        assert shown.count("</s>") == 1
        assert shown.startswith("<s>" if begins and text[0] != "\n" else text[0])
        if isinstance(example, Pair):
            assert tokenizer.decode(tokens[targets == 1]).startswith("b")
        else:
            assert targets.all()


def test_a_template_that_begins_texts_is_not_begun_again() -> None:
    from launcher.data.formats.base import Chat
    from launcher.data.prepare.encoding import Encoded, ExampleEncoder

    tokenizer = framed("<s> $A </s>")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
    )
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (item,) = ExampleEncoder(tokenizer).encode([Chat(turns)])
    assert isinstance(item, Encoded)
    assert tokenizer.decode(item.pieces[0][0]) == "<s>a</s>b</s>"
