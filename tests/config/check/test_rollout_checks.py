"""What `rollout=vllm` refuses, and that its hints mend it when they are typed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.config.check import checks
from launcher.core import registry
from support import hints
from support.configs import make_config

VLLM = {"name": "vllm", "python": sys.executable}
#: where, words of the finding, words of the hint, sections besides
RULES: list[tuple[str, str, str, dict[str, dict[str, Any]]]] = [
    ("rollout.name", "objective=sft", "rollout=local", {"objective": {"name": "sft"}}),
    (
        "objective.top_p",
        "0.9 with objective.temperature=0.7",
        "objective.top_p=1",
        {"objective": {"top_p": 0.9, "temperature": 0.7}},
    ),
    (
        "rollout.nodes",
        "1 with launch=local",
        "launch=slurm; else rollout.nodes=0",
        {"rollout": {"nodes": 1}},
    ),
    (
        "rollout.gpus",
        "GPUs for 2, and rollout.servers=1",
        "rollout.servers=2",
        {"rollout": {"gpus": ["6", "7"]}},
    ),
    (
        "rollout.gpus",
        "'6-7' is no list of GPUs",
        "rollout.gpus=['6,7']",
        {"rollout": {"gpus": ["6-7"]}},
    ),
    (
        "rollout.servers",
        "9 on nodes with cluster.gpus_per_node=8",
        "rollout.servers=8",
        {
            "rollout": {"servers": 9, "nodes": 1},
            "cluster": {"gpus_per_node": 8},
            "launch": {"name": "slurm"},
        },
    ),
    (
        "rollout.ahead",
        "True with rollout.sleep=true",
        "rollout.sleep=false",
        {"rollout": {"ahead": True, "sleep": True}},
    ),
    (
        "peft.dora",
        "true with rollout=vllm",
        "peft.dora=false",
        {"peft": {"name": "lora", "dora": True, "experts": False}},
    ),
    (
        "peft.modules_to_save",
        "['embed_tokens'] with rollout=vllm",
        "peft.modules_to_save=[]",
        {"peft": {"name": "lora", "modules_to_save": ["embed_tokens"]}},
    ),
]


def made(sections: dict[str, dict[str, Any]]) -> Any:
    base: dict[str, dict[str, Any]] = {
        "model": {"kind": "hf", "name": "folder"},
        "data": {"train": "train.jsonl"},
        "batch": {"sequences": 16},
        "train": {"steps": 10},
        "objective": {"name": "grpo", "grader": "grader.yaml"},
        "rollout": VLLM,
    }
    for name, values in sections.items():
        other = values.get("name", base.get(name, {}).get("name"))
        same = base.get(name, {}) if other == base.get(name, {}).get("name") else {}
        base[name] = {**same, **values}
    return make_config(**base)


def problems_of(config: Any, *, has_gpu: bool = False) -> list[Any]:
    return checks.check(config, world_size=2, has_gpu=has_gpu)


@pytest.mark.parametrize(
    ("gpus", "taken", "found"),
    [
        ([], None, "none for servers, and all GPUs are the ranks'"),
        (["7"], None, "and all GPUs are the ranks'"),
        (["1"], 2, "and the ranks have the first 2"),
        (["2"], 2, None),
    ],
)
def test_gpus_of_servers_are_not_those_of_ranks(gpus, taken, found, tmp_path):
    config = made({"rollout": {"gpus": gpus}, "launch": {"processes": taken}})
    problems = problems_of(config, has_gpu=True)
    assert [one.where for one in problems] == ["rollout.gpus"] * bool(found)
    if found:
        assert found in problems[0].found
        hints.require_mended(config, tmp_path / "own.yaml", world_size=2, has_gpu=True)
    config.rollout.sleep = True
    assert problems_of(config, has_gpu=True) == []


def test_a_plain_one_is_fine():
    assert problems_of(made({})) == []


@pytest.mark.parametrize(("where", "found", "hint", "sections"), RULES)
def test_what_cannot_be_honoured_is_refused_by_name(where, found, hint, sections):
    problems = problems_of(made(sections))
    broken = [one for one in problems if one.where == where and found in one.found]
    assert len(broken) == 1, problems
    assert hint in broken[0].hint


@pytest.mark.parametrize(("where", "found", "hint", "sections"), RULES)
def test_what_a_hint_says_to_type_mends_it(where, found, hint, sections, tmp_path: Path):
    hints.require_mended(made(sections), tmp_path / "own.yaml", world_size=2, has_gpu=False)


def test_a_python_without_vllm_is_told(tmp_path):
    for python, found in ((None, "has no vLLM"), (str(tmp_path / "python"), "no command")):
        (problem,) = problems_of(made({"rollout": {"python": python}}))
        assert problem.where == "rollout.python"
        assert found in problem.found
        assert "pip install vllm" in problem.hint


def test_a_folder_called_vllm_is_no_vllm(tmp_path, monkeypatch):
    (tmp_path / "vllm" / "bin").mkdir(parents=True)  # as `python -m venv vllm` makes it
    monkeypatch.syspath_prepend(tmp_path)
    assert not registry.installed("vllm")
    assert registry.installed("json")
