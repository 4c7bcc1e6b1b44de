"""The list of groups and options."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.config import schema
from launcher.config.compose import compose, groups
from launcher.config.schema import conversion, suggestions
from launcher.core import runtime
from launcher.core.errors import ConfigError


def test_the_options_that_the_documentation_promises() -> None:
    found = groups.list_groups()
    promised = {
        "engine": {"zero0", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"},
        "peft": {"none", "lora", "dora"},
        "objective": {"sft", "text"},
        "data": {"auto", "chat", "prompt", "alpaca", "text"},
        "schedule": {"constant", "linear", "cosine", "wsd"},
        "optim": {"adamw", "adamw8bit", "muon"},
        "eval": {"none", "default", "exact_match"},
        "track": {"none", "default", "wandb", "tensorboard"},
        "experiment": {"gsm8k", "lora", "full"},
        "launch": {"local"},
        "model": {"hf", "tiny", "llama3.1-8b", "qwen3-0.6b", "gemma3-1b", "smollm2-135m"},
    }
    for group, options in promised.items():
        assert options <= set(found[group])


def test_every_group_is_a_section_and_in_the_order_of_help() -> None:
    sections = set(conversion.fields(schema.Config)) | {"experiment"}
    assert set(groups.list_groups()) <= sections
    assert list(groups.list_groups())[: len(groups.GROUPS)] == list(groups.GROUPS)


def test_numbers_sort_as_numbers() -> None:
    dense = re.compile(r"qwen3(\.5)?-[\d.]+b")
    qwen = [name for name in groups.list_groups()["model"] if dense.fullmatch(name)]
    sizes = ["0.6b", "1.7b", "4b", "8b", "14b", "32b"]
    newer = ["0.8b", "2b", "4b", "9b", "27b"]
    assert qwen == [*(f"qwen3-{size}" for size in sizes), *(f"qwen3.5-{size}" for size in newer)]


def test_a_folder_of_the_user_comes_besides(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "mine.yaml").touch()
    assert "mine" in groups.list_groups([tmp_path])["optim"]
    assert "mine" not in groups.list_groups()["optim"]


def test_a_time_of_day_stays_text(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "site.yaml").write_text("name: site\ntime: 2:00:00\nmemory: 64\n")
    words = ["model=tiny", "data.train=x.jsonl", "batch.sequences=4", "cluster=site"]
    config = compose.compose(words, config_dirs=[tmp_path])
    assert config.cluster.time == "2:00:00"
    assert config.cluster.memory == "64"


def test_an_option_that_exists_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "optim" / "adamw.yaml").touch()
    with pytest.raises(ConfigError, match="both define 'adamw'"):
        groups.list_groups([tmp_path])


def test_option_file() -> None:
    folders = [runtime.conf_dir()]
    assert groups.option_file(folders, "optim/adamw") == folders[0] / "optim" / "adamw.yaml"
    assert groups.option_file(folders, "optim/none") is None


def test_habits_of_other_tools_lead_to_keys_that_exist() -> None:
    assert set(suggestions.HABITS.values()) <= set(conversion.leaves())
    assert not set(suggestions.HABITS) & set(conversion.leaves())
    for habit, key in suggestions.HABITS.items():
        assert suggestions.near_keys(habit, conversion.leaves())[0] == key
