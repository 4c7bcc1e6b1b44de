"""What `objective=grpo` refuses, and that its hints mend it when they are typed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.config.check import checks
from launcher.config.derive import plan
from launcher.config.schema import MicroBatch
from launcher.config.schema.reinforce import PolicyLoss
from support import hints
from support.configs import make_config
from support.models import make_llama

#: where, words of finding and hint, options of the objective, other sections
RULES: list[tuple[str, str, str, dict[str, Any], dict[str, dict[str, Any]]]] = [
    ("objective.grader", "nothing scores", "objective.grader=", {"grader": None}, {}),
    (
        "objective.environment",
        "calculator is no Python file",
        "objective.environment=",
        {"environment": "calculator"},
        {},
    ),
    (
        "objective.loss",
        "gspo with objective.teacher",
        "objective.loss=dapo",
        {"loss": "gspo", "teacher": "some/teacher"},
        {},
    ),
    (
        "objective.teacher_divergence",
        "reverse without objective.teacher",
        "objective.teacher_divergence=null",
        {"teacher_divergence": "reverse"},
        {},
    ),
    (
        "objective.teacher_beta",
        "0.3 with objective.teacher_divergence=null",
        "objective.teacher_divergence=jsd",
        {"teacher": "some/teacher", "teacher_beta": 0.3},
        {},
    ),
    (
        "objective.teacher_beta",
        "0.3 with objective.teacher_divergence=forward",
        "objective.teacher_beta=null",
        {"teacher": "some/teacher", "teacher_divergence": "forward", "teacher_beta": 0.3},
        {},
    ),
    (
        "objective.max_redraws",
        "2 without objective.grader",
        "objective.max_redraws=0",
        {"grader": None, "teacher": "some/teacher", "max_redraws": 2},
        {},
    ),
    (
        "objective.group_size",
        "compares the answers of a group",
        "objective.loss=reinforce",
        {"group_size": 1},
        {},
    ),
    (
        "objective.clip_low",
        "which has no such end",
        "objective.clip_low=null",
        {"loss": "cispo", "clip_low": 0.1},
        {},
    ),
    (
        "objective.clip_high",
        "which has no such end",
        "objective.loss=grpo",
        {"loss": "reinforce", "clip_high": 0.1},
        {},
    ),
    (
        "objective.advantage",
        "group with objective.loss=reinforce",
        "objective.advantage=batch",
        {"loss": "reinforce", "advantage": "group"},
        {},
    ),
    (
        "objective.updates_per_rollout",
        "2 with objective.loss=reinforce",
        "objective.updates_per_rollout=1",
        {"loss": "reinforce", "updates_per_rollout": 2},
        {},
    ),
    (
        "objective.passes_per_rollout",
        "3 with objective.loss=reinforce",
        "objective.passes_per_rollout=1",
        {"loss": "reinforce", "passes_per_rollout": 3},
        {},
    ),
    (
        "objective.max_redraws",
        "with groups of 1",
        "objective.max_redraws=0",
        {"loss": "reinforce", "group_size": 1, "max_redraws": 1},
        {},
    ),
    (
        "batch.sequences",
        "cannot be cut into groups of 8",
        "batch.sequences=8",
        {},
        {"batch": {"sequences": 12}},
    ),
    (
        "batch.tokens",
        "cannot be cut into groups of 8",
        "batch.tokens=8192",
        {},
        {"batch": {"sequences": None, "tokens": 12 * 1024}},
    ),
    (
        "batch.micro",
        "auto with objective=grpo",
        "batch.micro=null",
        {},
        {"batch": {"micro": MicroBatch.auto}},
    ),
    (
        "objective.max_new_tokens",
        "1024 with data.max_length=1024",
        "data.max_length=2048",
        {"max_new_tokens": 1024},
        {},
    ),
    (
        "objective.soft_penalty",
        "200 with objective.max_new_tokens=100",
        "objective.soft_penalty=25",
        {"max_new_tokens": 100, "soft_penalty": 200},
        {},
    ),
    (
        "objective.beta",
        "0.1 with model.add_tokens",
        "peft=lora",
        {"beta": 0.1},
        {"model": {"add_tokens": ["<a>"]}, "peft": {"name": "none"}},
    ),
    ("data.overlong", "split", "data.overlong=cut_prompt", {}, {"data": {"overlong": "split"}}),
    (
        "objective.name",
        "grpo with data.format=text",
        "objective=text",
        {},
        {"data": {"format": "text"}},
    ),
]


def made(options: dict[str, Any], sections: dict[str, dict[str, Any]]) -> Any:
    base: dict[str, dict[str, Any]] = {
        "model": {"kind": "hf", "name": "folder"},
        "data": {"train": "train.jsonl"},
        "batch": {"sequences": 16},
        "train": {"steps": 10},
        "objective": {"name": "grpo", "grader": "grader.yaml", **options},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return make_config(**base)


@pytest.mark.parametrize(("where", "found", "hint", "options", "sections"), RULES)
def test_what_cannot_be_honoured_is_refused_by_name(where, found, hint, options, sections):
    problems = checks.check(made(options, sections), world_size=2, has_gpu=False)
    broken = [one for one in problems if one.where == where and found in one.found]
    assert len(broken) == 1, problems
    assert hint in broken[0].hint


@pytest.mark.parametrize(("where", "found", "hint", "options", "sections"), RULES)
def test_what_a_hint_says_to_type_mends_it(where, found, hint, options, sections, tmp_path: Path):
    config = made(options, sections)
    hints.require_mended(config, tmp_path / "own.yaml", world_size=2, has_gpu=False)


def test_a_reference_beside_the_model_is_in_the_estimate(tmp_path):
    folder = make_llama(tmp_path / "model")
    sections = {"model": {"name": str(folder)}, "peft": {"name": "none"}}
    plain, beside = (
        plan.make(made({"beta": beta}, sections), world_size=2, has_gpu=False)
        for beta in (0.0, 0.1)
    )
    assert plain.memory
    assert beside.memory
    assert plain.parameters
    assert beside.memory["weights"] - plain.memory["weights"] == 4 * plain.parameters
    sections["peft"] = {"name": "lora"}
    first, second = (
        plan.make(made({"beta": beta}, sections), world_size=2, has_gpu=False).memory
        for beta in (0.0, 0.1)
    )
    assert first == second


@pytest.mark.parametrize("loss", [*PolicyLoss])
def test_each_loss_has_what_its_paper_takes(loss):
    config = made({}, {})
    config.objective.loss = loss
    assert not checks.check(config, world_size=2, has_gpu=False)
    low, high = config.objective.clip
    assert (low is None) == (loss.name in ("cispo", "reinforce"))
    assert (high is None) == (loss.name == "reinforce")
