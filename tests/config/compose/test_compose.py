"""Composition: every file of conf/, layers, round trips, files of the user, start-up."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launcher.config import create, schema
from launcher.config.check import checks
from launcher.config.compose import compose, groups
from launcher.config.schema import conversion
from launcher.core.errors import ConfigError
from support.ranks import environment

OPTIONS = [(group, option) for group, options in groups.list_groups().items() for option in options]
#: options that need something beside them before they can run anywhere.
NEEDS = {
    "objective=classify": ["eval=classify"],
    "eval=classify": ["objective=classify"],
    "objective=distill": ["objective.teacher=somebody/a-larger-model"],
    "rollout=vllm": [
        *("objective=grpo", "objective.grader=grader.yaml"),
        *("launch.processes=1", "rollout.gpus=['1']"),
    ],
    "objective=grpo": ["objective.grader=grader.yaml"],
    "data=text": ["objective=text"],
    "objective=text": ["data=text"],
}


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_passes_the_checks(group: str, option: str) -> None:
    word = f"{group}={option}"
    base = ["data.train=train.jsonl", "batch.sequences=64"]
    if group != "model":
        base.append("model=tiny")
    if option == "hf":
        base.append("model.name=folder")
    config = compose.compose([word, *NEEDS.get(word, []), *base])
    found = checks.check(config, world_size=2, has_gpu=True)
    # A package that is not there, and data of other objectives than this one.
    judged = dict.fromkeys(("preference", "ranked", "unpaired"), "objective.name")
    missing = {"adamw8bit": "optim.name", "vllm": "rollout.python", **judged}.get(option)
    assert {problem.where for problem in found} <= {missing}
    assert conversion.build(compose.to_dict(config)) == (config, [])


def test_defaults_of_a_bare_command_line() -> None:
    config = compose.compose([])
    assert type(config.model) is schema.ModelConfig
    assert type(config.peft) is schema.PeftConfig
    assert config.engine.zero == 2
    assert config.train.epochs == 1
    assert config.batch.tokens == 65536


def test_a_group_option_brings_its_class() -> None:
    config = compose.compose(["peft=lora", "optim=muon", "schedule=wsd", "model=tiny"])
    assert type(config.peft) is schema.LoraConfig
    assert type(config.optim) is schema.MuonConfig
    assert type(config.schedule) is schema.WsdConfig
    assert type(config.model) is schema.TinyModelConfig


def test_experiment_wins_over_groups_and_the_command_line_over_both() -> None:
    assert compose.compose(["experiment=gsm8k"]).optim.lr == 1e-3
    assert compose.compose(["experiment=gsm8k", "optim.lr=5e-4"]).optim.lr == 5e-4
    assert compose.compose(["optim.lr=5e-4", "experiment=gsm8k"]).optim.lr == 5e-4
    assert compose.compose(["experiment=gsm8k", "engine=zero3"]).engine.zero == 3


def test_no_experiment_by_null() -> None:
    assert compose.compose(["experiment=null"]) == compose.compose([])


@pytest.mark.parametrize(
    ("word", "path", "value"),
    [
        ("seed=1", "seed", 1),
        ("train.steps=1e3", "train.steps", 1000),
        ("optim.lr=1", "optim.lr", 1.0),
        ("data.train=[a,b c]", "data.train", ["a", "b c"]),
        ("data.train=data/*.jsonl", "data.train", "data/*.jsonl"),
        ("data.train=my data (1).jsonl", "data.train", "my data (1).jsonl"),
        ("data.columns={prompt: question}", "data.columns", {"prompt": "question"}),
        ("data.columns.prompt=question", "data.columns", {"prompt": "question"}),
        ("engine.extra.a.b=5e7", "engine.extra", {"a": {"b": 5e7}}),
        ("engine.extra.flags=[1,true,null,x]", "engine.extra", {"flags": [1, True, None, "x"]}),
        ("engine.precision=bf16", "engine.precision", schema.Dtype.bf16),
        ("batch.micro=auto", "batch.micro", schema.MicroBatch.auto),
        ("batch.micro=4", "batch.micro", 4),
        ("batch.micro=null", "batch.micro", None),
        ("data.packing=No", "data.packing", False),
        ("model.name=null", "model.name", None),
        ("run.name=2024", "run.name", "2024"),
        ("model.revision=12e4567", "model.revision", "12e4567"),
        ("run.name='quoted'", "run.name", "quoted"),
        ("eval.answer_pattern=#### (-?[0-9.,]+)", "eval.answer_pattern", "#### (-?[0-9.,]+)"),
        ("data.system=a = b, c", "data.system", "a = b, c"),
        ("data.system=", "data.system", ""),
    ],
)
def test_values_arrive_with_their_type(word: str, path: str, value: Any) -> None:
    node: Any = compose.compose([word])
    for name in path.split("."):
        node = getattr(node, name)
    assert node == value
    assert type(node) is type(value)


def test_mappings_are_merged_and_lists_replaced() -> None:
    words = ["experiment=gsm8k", "data.columns={prompt: q}", "eval.metrics=[loss]"]
    config = compose.compose(words)
    assert config.data.columns == {"prompt": "q", "completion": "answer"}
    assert config.eval.metrics == ["loss"]


def test_the_last_of_two_overrides_wins() -> None:
    assert compose.compose(["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize(
    ("word", "kept", "cleared"),
    [
        ("batch.sequences=8", ("batch", "sequences", 8), ("batch", "tokens")),
        ("batch.tokens=8192", ("batch", "tokens", 8192), ("batch", "sequences")),
        ("train.steps=5", ("train", "steps", 5), ("train", "epochs")),
        ("train.epochs=2", ("train", "epochs", 2.0), ("train", "steps")),
    ],
)
def test_stating_one_of_a_pair_replaces_the_other_of_a_recipe(
    word: str, kept: tuple[str, str, Any], cleared: tuple[str, str]
) -> None:
    recipe = "experiment=lora" if word.startswith(("batch.s", "train.s")) else "experiment=gsm8k"
    config = compose.compose([recipe, word])
    assert getattr(getattr(config, kept[0]), kept[1]) == kept[2]
    assert getattr(getattr(config, cleared[0]), cleared[1]) is None


def test_stating_both_of_a_pair_keeps_both_for_the_check() -> None:
    config = compose.compose(["batch.sequences=8", "batch.tokens=8192"])
    assert (config.batch.sequences, config.batch.tokens) == (8, 8192)


def test_interpolation_reaches_overrides_files_and_schema_defaults() -> None:
    words = ["peft=lora", "peft.rank=4", "run.name=r${peft.rank}-${optim.eps}-${seed}"]
    assert compose.compose(words).run.name == "r4-1e-08-0"


def test_interpolation_of_an_unknown_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing") as caught:
        compose.compose(["run.name=${nothing.here}"])
    assert caught.value.problems[0].where == "run.name"


def _containers(value: Any) -> list[type]:
    if dataclasses.is_dataclass(value):
        inner = [getattr(value, field.name) for field in dataclasses.fields(value)]
    elif isinstance(value, dict):
        inner = list(value.values())
    elif isinstance(value, list):
        inner = value
    else:
        return [type(value)]
    return [type(value), *(kind for item in inner for kind in _containers(item))]


def test_only_plain_objects_leave() -> None:
    config = compose.compose(["experiment=gsm8k", "engine.extra.a={b: [1, {c: 2}]}"])
    plain = {str, int, float, bool, type(None), list, dict}
    for kind in _containers(config):
        ours = issubclass(kind, Enum) or kind.__module__.startswith("launcher.config.schema")
        assert kind in plain or ours


def test_a_saved_config_loads_equal(tmp_path: Path) -> None:
    words = ["data.train=[a,b]", "engine.extra={a: {b: 5e7}, c: 1e-5}", "peft=dora", "optim=muon"]
    words += ["schedule=wsd", "model=tiny", "objective=text", "batch.micro=auto"]
    config = compose.compose(words)
    compose.save(config, tmp_path / "config.yaml")
    loaded = compose.load(tmp_path / "config.yaml")
    assert loaded == config
    assert type(loaded.peft) is schema.LoraConfig


@settings(deadline=None, max_examples=30)
@example(text="a\x85 b\u2028 c", number=1e-5)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    number=st.floats(allow_nan=False, allow_infinity=False),
)
def test_any_text_and_number_survives_the_file(
    text: str, number: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = schema.Config()
    config.data.system = text
    config.data.columns = {text: text}
    config.optim.lr = number
    file = tmp_path_factory.mktemp("run") / "config.yaml"
    compose.save(config, file)
    assert compose.load(file) == config


def test_to_dict_is_json() -> None:
    data = compose.to_dict(compose.compose(["engine.precision=bf16"]))
    assert json.loads(json.dumps(data)) == data
    assert data["engine"]["precision"] == "bf16"


def test_an_override_does_not_reach_what_is_composed_later_from_the_same_files() -> None:
    sources = compose.Sources()
    words = ["model=hf", "model.name=base"]
    before, _ = compose.try_compose(words, sources=sources)
    changed, _ = compose.try_compose([*words, "optim.lr=0.5", "seed=9"], sources=sources)
    after, _ = compose.try_compose(words, sources=sources)
    assert changed.optim.lr == 0.5
    assert after == before


def test_composing_twice_shares_nothing() -> None:
    words = ["experiment=quickstart"]  # a list in a file
    first, second = compose.compose(words), compose.compose(words)
    first.eval.metrics.append("x")
    first.engine.extra["x"] = 1
    first.run.tags.append("x")
    for later in (second, compose.compose(words)):
        assert "x" not in later.eval.metrics
        assert later.engine.extra == {}
        assert later.run.tags == ["quickstart"]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("seed: [", "cannot be read"),
        ("- a", "is not a config"),
        ("seed: one", "expected a whole number"),
        ("sed: 1", "unknown key"),
        ("peft: {name: lroa}", "unknown name 'lroa'"),
        ("model: 3", "is a section"),
    ],
)
def test_a_wrong_resolved_file_is_refused(tmp_path: Path, content: str, found: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=found) as caught:
        compose.load(file)
    assert str(file) in caught.value.problems[0].where


def test_a_missing_resolved_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        compose.load(tmp_path / "none.yaml")


def _recipe(folder: Path, text: str, name: str = "mine") -> Path:
    (folder / "experiment").mkdir(exist_ok=True)
    (folder / "experiment" / f"{name}.yaml").write_text(text)
    return folder


def test_a_folder_of_the_user_adds_options(weird_tmp_path: Path) -> None:
    text = "# @package _global_\ndefaults:\n  - override /peft: lora\npeft:\n  rank: 3\n"
    config = compose.compose(["experiment=mine"], [_recipe(weird_tmp_path, text)])
    assert isinstance(config.peft, schema.LoraConfig)
    assert config.peft.rank == 3


def test_a_folder_of_the_user_cannot_replace_an_option_in_silence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both define 'gsm8k'"):
        compose.compose([], [_recipe(tmp_path, "seed: 1\n", "gsm8k")])


def test_a_missing_folder_of_the_user_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        compose.compose([], [tmp_path / "none"])


@pytest.mark.parametrize(
    ("text", "where", "found"),
    [
        ("optim:\n  lr: fast\n", "optim.lr", "expected a number, got 'fast'"),
        ("optim:\n  learning_rate: 1\n", "optim.learning_rate", "unknown key"),
        ("peft:\n  rank: 3\n", "peft.rank", "not an option of the chosen peft"),
        ("data:\n  packing: [true]\n", "data.packing", "expected true or false"),
    ],
)
def test_wrong_values_in_a_recipe_name_its_file(
    tmp_path: Path, text: str, where: str, found: str
) -> None:
    folder = _recipe(tmp_path, f"# @package _global_\n{text}")
    with pytest.raises(ConfigError) as caught:
        compose.compose(["experiment=mine"], [folder])
    (problem,) = caught.value.problems
    assert problem.where == where
    assert found in problem.found
    assert "mine.yaml" in problem.found


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"# @package _global_\na: [", "mine.yaml"),
        (b"# @package _global_\na: 1\na: 2\n", "duplicate key a"),
        (b"# @package _global_\nseed: ${x\n", "seed"),
        (b"# @package _global_\nseed: \xff\n", "can't decode"),
        (b"# @package _global_\ndefaults: 3\n", "defaults must be a list"),
        (b"# @package _global_\ndefaults:\n  - override /engine: zero9\n", "engine/zero9"),
        (b"# @package _global_\ndefaults:\n  - nothing: here\n", "nothing/here"),
        (b"# @package\n", "header"),
        (b"- a\n", "holds no mapping"),
    ],
)
def test_a_broken_recipe_is_refused(tmp_path: Path, content: bytes, found: str) -> None:
    folder = _recipe(tmp_path, "")
    (folder / "experiment" / "mine.yaml").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        compose.compose(["experiment=mine"], [folder])
    (problem,) = caught.value.problems
    assert found in problem.found
    assert problem.hint


@pytest.mark.parametrize("text", ["", "seed: 2\n"])
def test_a_recipe_without_its_first_line_is_told_so(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose.compose(["experiment=mine"], [_recipe(tmp_path, text)])
    (problem,) = caught.value.problems
    assert "mine.yaml" in problem.found
    assert "@package _global_" in problem.hint


def test_a_recipe_can_build_on_another(tmp_path: Path) -> None:
    text = "# @package _global_\ndefaults:\n  - gsm8k\n  - _self_\nseed: 4\n"
    config = compose.compose(["experiment=mine"], [_recipe(tmp_path, text)])
    assert (config.seed, config.optim.lr) == (4, 1e-3)


PROBE = """
import resource, sys
from launcher.config.check import checks
from launcher.config.compose import compose
from launcher.config.derive import plan
from launcher.core.errors import ConfigError
try:
    config = compose.compose(sys.argv[1:])
    checks.check(config, world_size=2, has_gpu=False)
    plan.make(config, world_size=2, has_gpu=False)
except ConfigError as error:
    assert len(error.problems) == 3, error
heavy = {"torch", "numpy", "transformers", "deepspeed", "peft", "datasets", "wandb"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""


def _cpu_s(folder: Path, *arguments: str) -> float:
    """CPU seconds of a Python process with warm byte code; the least of two runs."""
    environ = environment(PYTHONPYCACHEPREFIX=str(folder), PYTHONDONTWRITEBYTECODE="")
    spent = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", *arguments]
        result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(spent[1:])


@pytest.mark.slow
def test_composing_and_failing_are_cheap_and_load_no_run_library(tmp_path: Path) -> None:
    good = ["experiment=gsm8k", "model=tiny", "data.train=a", "peft=lora", "engine.extra.x=[1]"]
    bad = ["engine=zero4", "optim.lr=abc", "batch.tokns=1"]
    # Other processes on the same cores make CPU seconds longer, of Hydra's import alone too.
    allowed_s = max(0.5, 2.2 * _cpu_s(tmp_path, "import hydra"))
    assert _cpu_s(tmp_path, PROBE, *good) < allowed_s
    assert _cpu_s(tmp_path, PROBE, *bad) < allowed_s


def test_an_unknown_option_that_was_typed_is_not_blamed_on_a_file() -> None:
    with pytest.raises(ConfigError) as told:
        compose.compose(["experiment=lora", "engine=zero4"])
    (problem,) = told.value.problems
    assert (problem.where, problem.found) == ("engine", "unknown option 'zero4'")


def test_a_metric_that_does_not_fit_is_not_suggested() -> None:
    words = ["model=tiny", "data.train=x.jsonl", "experiment=lora"]
    with pytest.raises(ConfigError) as told:
        create.checked([*words, "train.early_stop.metric=accuracy"])
    (problem,) = told.value.problems
    assert problem.hint == "train.early_stop.metric=loss"
    create.checked([*words, problem.hint])


def test_a_run_folder_of_an_earlier_version_loads_under_the_names_of_now(tmp_path: Path) -> None:
    config = compose.compose(["watchdog.timeout_s=7", "watchdog.save_s=9"])
    data = compose.to_dict(config)
    data["watchdog"] = {name.removesuffix("_s"): value for name, value in data["watchdog"].items()}
    assert data["watchdog"]["timeout"] == 7
    (tmp_path / "config.yaml").write_text(compose.dump_plain(data))
    assert compose.load(tmp_path / "config.yaml") == config
