"""The tiny model: complete, loadable by transformers, and the same however often it is made."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launcher import bases
from launcher.config.schema import Config, TinyModelConfig
from launcher.core.errors import StorageError
from launcher.model import tiny
from support.ranks import environment

CHAT = [
    {"role": "user", "content": "How many?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.ensure(TinyModelConfig(), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("tied", [True, False])
def test_transformers_finds_every_weight(tied, tmp_path):
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    folder = tiny.ensure(TinyModelConfig(tie_embeddings=tied), tmp_path)
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, LlamaForCausalLM)
    assert not any(report.values())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    assert model.generation_config.eos_token_id == 2


def test_tokenizer_has_its_special_tokens(tokenizer, folder):
    config = json.loads((folder / "config.json").read_text())
    assert len(tokenizer) <= config["vocab_size"]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|pad|>", "<|end|>")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (
        config["pad_token_id"],
        config["eos_token_id"],
    )
    assert tokenizer.encode("<|turn|>user") == [1, *tokenizer.encode("user")]


@pytest.mark.parametrize(
    "text", ["Mia has 7 + 5 = 12 apples.", "naïve \u4f60\u597d \U0001f600\n\ttab"]
)
def test_tokenizer_gives_back_any_text(text, tokenizer):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_story_takes_one_token_a_word(tokenizer):
    assert len(tokenizer.tokenize("Mia has 7 + 5 = 12 apples.")) == 9


def test_template_marks_what_the_assistant_says(tokenizer):
    rendered = tokenizer.apply_chat_template(
        CHAT, return_assistant_tokens_mask=True, return_dict=True
    )
    ids, mask = rendered["input_ids"], rendered["assistant_masks"]
    said = tokenizer.decode([token for token, marked in zip(ids, mask, strict=True) if marked])
    assert said == "Two.<|end|>Yes.<|end|>"
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(CHAT, tokenize=False)


def test_prompt_is_the_beginning_of_the_conversation(tokenizer):
    prompt = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.apply_chat_template(CHAT, tokenize=False).startswith(f"{prompt}Two.<|end|>")


def test_template_renders_tools_and_calls(tokenizer):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [
        {"role": "user", "content": "1 + 2?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
    ]
    tools = [{"type": "function", "function": {"name": "add", "description": "adds"}}]
    text = tokenizer.apply_chat_template(turns, tools=tools, tokenize=False)
    assert text.index('"adds"') < text.index("1 + 2?") < text.index('{"name": "add", "arg')
    assert text.endswith("<|turn|>tool\n3<|end|>\n")


@pytest.mark.parametrize(
    ("roles", "message"),
    [(["user", "robot"], "unknown role robot"), (["user", "system"], "must be the first")],
)
def test_template_refuses_wrong_roles(roles, message, tokenizer):
    turns = [{"role": role, "content": "x"} for role in roles]
    with pytest.raises(Exception, match=message):
        tokenizer.apply_chat_template(turns, tokenize=False)


def test_making_it_again_gives_the_same_bytes(folder, tmp_path):
    again = tiny.ensure(TinyModelConfig(), tmp_path)
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    for name in names:
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_existing_model_is_not_made_again(tmp_path):
    folder = tiny.ensure(TinyModelConfig(), tmp_path)
    (folder / "config.json").write_text("mine")
    assert tiny.ensure(TinyModelConfig(dtype=TinyModelConfig().dtype), tmp_path) == folder
    assert (folder / "config.json").read_text() == "mine"


def test_remains_of_a_killed_process_do_not_matter(tmp_path):
    folder = bases.tiny_folder(TinyModelConfig(), tmp_path)
    remains = folder.with_suffix(".tmp")
    remains.mkdir(parents=True)
    (remains / "half").write_text("x")
    assert tiny.ensure(TinyModelConfig(), tmp_path) == folder
    assert not (folder / "half").exists()
    assert not remains.exists()


def test_many_at_once_get_one_folder(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda _: tiny.ensure(TinyModelConfig(), tmp_path), range(4)))
    assert made == {bases.tiny_folder(TinyModelConfig(), tmp_path)}
    assert (made.pop() / "model.safetensors").is_file()


def test_a_file_in_the_way_is_a_storage_error(tmp_path):
    (tmp_path / "tiny").write_text("not a folder")
    with pytest.raises(StorageError):
        tiny.ensure(TinyModelConfig(), tmp_path / "tiny")


@pytest.mark.parametrize("option", bases.TINY_OPTIONS)
def test_every_option_of_the_model_changes_the_folder(option, tmp_path):
    config = TinyModelConfig()
    value = getattr(config, option)
    other = dataclasses.replace(
        config, **{option: not value if isinstance(value, bool) else 2 * value}
    )
    assert bases.tiny_folder(other, tmp_path) != bases.tiny_folder(config, tmp_path)


def test_making_it_needs_no_torch(tmp_path):
    code = (
        "import pathlib, sys\n"
        "from launcher.config.schema import TinyModelConfig\n"
        "from launcher.model import tiny\n"
        "tiny.ensure(TinyModelConfig(), pathlib.Path(sys.argv[1]))\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], env=environment(), check=False)
    assert done.returncode == 0


def test_key_of_a_base_follows_what_decides_its_weights():
    key = bases.base_key(Config(model=TinyModelConfig()))

    def changed(section: str, **options: object) -> str:
        config = Config(model=TinyModelConfig())
        part = dataclasses.replace(getattr(config, section), **options)
        return bases.base_key(dataclasses.replace(config, **{section: part}))

    assert key == bases.base_key(Config(model=TinyModelConfig()))
    assert key == changed("launch", processes=2)
    assert key == changed("engine", zero=3)
    assert key == changed("data", workers=3)
    assert key == changed("run", name="other")
    assert key != changed("optim", lr=1.0)
    assert key != changed("train", steps=7)
    assert key != changed("model", layers=2)
    assert key != bases.base_key(Config(model=TinyModelConfig(), seed=1))
