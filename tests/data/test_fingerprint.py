"""Cache keys: what changes them and what does not; finding data; no heavy import."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher import fingerprint
from launcher.config.schema import Config
from launcher.core.errors import ConfigError, DataError
from launcher.fingerprint import BuiltinData, Hashes, HubData, data_keys, locate
from support.chats import chat

Configure = Callable[..., Config]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(chat("a", "b")))
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"format": "chat"},
        {"columns": {"prompt": "q"}},
        {"system": "Be kind."},
        {"max_length": 512},
        {"overlong": "drop"},
        {"ranked": "extremes"},
        {"bad_records": "skip"},
        {"limit": 5},
        {"validation_share": 0.1},
        {"labels": ["no", "yes"]},
        {"temperature": 2.0},
        {"objective": "text"},
        {"model": {"add_tokens": ["<x>"]}},
        {"model": {"kind": "tiny"}},
        {"model": {"kind": "tiny", "vocab_size": 300}},
    ],
)
def test_options_that_change_the_tokens_change_the_key(
    configure: Configure, data: Path, change: dict[str, Any]
) -> None:
    assert data_keys(configure(train=data))["train"] != data_keys(configure(train=data, **change))


@pytest.mark.parametrize("change", [{"packing": False}, {"shuffle": False}, {"workers": 7}])
def test_other_options_do_not(configure: Configure, data: Path, change: dict[str, Any]) -> None:
    assert data_keys(configure(train=data)) == data_keys(configure(train=data, **change))


def test_every_data_option_is_accounted_for() -> None:
    """A new option must be put into the key or, if it changes no token, into this list."""
    from dataclasses import fields

    from launcher.config.schema import DataConfig

    in_key = {"format", "columns", "system", "max_length", "overlong", "bad_records", "limit"}
    in_key |= {"ranked"}
    in_key |= {"template_options", "thoughts", "learn_empty_thoughts", "special_tokens"}
    in_key |= {"train", "validation", "validation_share", "revision", "labels", "temperature"}
    assert {f.name for f in fields(DataConfig)} - in_key == {
        "packing",
        "shuffle",
        "workers",
        "cache",
        "gate",
        "report",
    }


@pytest.mark.parametrize(
    "option",
    [
        {"template_options": {"enable_thinking": False}},
        {"thoughts": "none"},
        {"learn_empty_thoughts": False},
    ],
)
def test_how_thoughts_are_laid_out_decides(
    configure: Configure, data: Path, option: dict[str, Any]
) -> None:
    assert data_keys(configure(train=data, **option)) != data_keys(configure(train=data))


def test_content_decides_not_the_folder_or_the_time(
    configure: Configure, data: Path, tmp_path: Path
) -> None:
    before = data_keys(configure(train=data))
    copy = tmp_path / "elsewhere" / data.name
    copy.parent.mkdir()
    copy.write_bytes(data.read_bytes())
    os.utime(copy, (1, 1))
    assert data_keys(configure(train=copy)) == before
    copy.write_text(json.dumps(chat("a", "c")))
    assert data_keys(configure(train=copy)) != before


def test_tokenizer_and_template_files_count(
    configure: Configure, data: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    keys = []
    for name in ("tokenizer.json", "chat_template.jinja", "tokenizer_config.json", "vocab.json"):
        (model / name).write_text(name)
        keys.append(data_keys(configure({"name": str(model)}, train=data))["train"])
    (model / "model.safetensors").write_text("weights do not")
    assert data_keys(configure({"name": str(model)}, train=data))["train"] == keys[-1]
    template = tmp_path / "t.jinja"
    for text in ("a", "b"):
        template.write_text(text)
        options = {"name": str(model), "chat_template": str(template)}
        keys.append(data_keys(configure(options, train=data))["train"])
    assert len(set(keys)) == len(keys)


def test_seed_matters_only_to_a_held_out_share(configure: Configure, data: Path) -> None:
    def keys(seed: int, share: float) -> dict[str, str | None]:
        config = configure(train=data, validation_share=share)
        config.seed = seed
        return data_keys(config)

    assert keys(0, 0.0) == keys(1, 0.0)
    assert not set(keys(0, 0.5).values()) & set(keys(1, 0.5).values())


def test_hashes_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file, memo = tmp_path / "a", tmp_path / "memo.json"
    file.write_text("one")
    os.utime(file, (1000, 1000))
    first = Hashes(memo)
    digest = first.digest(file)
    first.save()
    known = json.loads(memo.read_text())
    known[str(file)][3] = "remembered"
    memo.write_text(json.dumps(known))
    assert Hashes(memo).digest(file) == "remembered"
    file.write_text("two")
    os.utime(file, (1001, 1001))
    assert Hashes(memo).digest(file) not in ("remembered", digest)
    memo.write_text("not JSON")
    assert len(Hashes(memo).digest(file)) == 32


def test_a_file_just_written_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("one")
    hashes = Hashes(tmp_path / "memo.json")
    hashes.digest(file)
    hashes.save()
    assert not (tmp_path / "memo.json").exists()


def test_locate(configure: Configure, tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.json", "sub/c.csv", "sub/.hidden.csv", "notes.md"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_text("x")

    def found(value: Any, split: str = "train") -> list[Any]:
        sources = locate(configure(**{split: value}), split)
        return [
            s.relative_to(tmp_path / "d").as_posix() if isinstance(s, Path) else s for s in sources
        ]

    folder = str(tmp_path / "d")
    assert found(folder) == ["a.json", "b.jsonl", "sub/c.csv"]
    assert found(f"{folder}/*.jsonl") == ["b.jsonl"]
    assert found(f"{folder}/**/*.csv") == ["sub/c.csv"]
    assert found([f"{folder}/b.jsonl", f"{folder}/a.json"]) == ["b.jsonl", "a.json"]
    assert found("org/name") == [HubData("org/name", None, ("train",), None)]
    assert found("org/name:main", "validation") == [
        HubData("org/name", "main", ("validation", "test"), None)
    ]
    assert found("org/name:main:test") == [HubData("org/name", "main", ("test",), None)]
    (builtin,) = found("builtin:x", "validation")
    assert isinstance(builtin, BuiltinData)
    assert (builtin.name, builtin.split) == ("x", "validation")


@pytest.mark.parametrize(
    ("value", "kind", "found"),
    [
        (None, ConfigError, "no data given"),
        ([], ConfigError, "no data given"),
        ([3], ConfigError, "3 is not a source of data"),
        ("missing.jsonl", DataError, "no such file"),
        ("/missing/folder/", DataError, "no such file"),
        ("missing/*.jsonl", DataError, "nothing matches"),
    ],
)
def test_locate_refuses(configure: Configure, value: Any, kind: type, found: str) -> None:
    with pytest.raises(kind) as caught:
        locate(configure(train=value), "train")
    assert caught.value.problems[0].where == "data.train"
    assert found in str(caught.value)


def test_folder_without_data(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data files"):
        locate(configure(train=str(tmp_path)), "train")


def test_missing_template(configure: Configure, data: Path) -> None:
    with pytest.raises(ConfigError, match="missing.jinja"):
        data_keys(configure({"chat_template": "missing.jinja"}, train=data))


@pytest.mark.slow
def test_asking_imports_nothing_heavy(data: Path, tmp_path: Path) -> None:
    script = f"""
import sys
from launcher import fingerprint
from launcher.config.schema import Config, DataConfig, ModelConfig
config = Config(
    model=ModelConfig(name="m"), data=DataConfig(train={str(data)!r}, cache={str(tmp_path)!r})
)
assert fingerprint.lookup(config) is None
heavy = {{"torch", "numpy", "transformers", "tokenizers", "datasets", "jinja2", "hydra"}}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_lookup_of_missing_data_is_an_error(configure: Configure) -> None:
    with pytest.raises(DataError):
        fingerprint.lookup(configure(train="missing.jsonl"))
