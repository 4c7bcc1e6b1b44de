"""Wrong command lines: every problem at once, each with path, value and a hint."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launcher.config.compose import compose, groups, overrides
from launcher.config.schema import conversion
from launcher.core.errors import ConfigError
from support.hints import refused


@pytest.mark.parametrize(
    ("word", "where", "found", "hint"),
    [
        ("engine=zero4", "engine", "unknown option 'zero4'", "did you mean 'zero3'"),
        ("engine=xyz", "engine", "unknown option 'xyz'", "choose one of: zero0, zero1"),
        ("experiment=gsm9k", "experiment", "unknown option 'gsm9k'", "'gsm8k'"),
        ("peft=null", "peft", "unknown option 'null'", "choose one of: dora, lora, none"),
        ("model=Qwen/Qwen3-8B", "model", "'Qwen/Qwen3-8B'", "write model.name=Qwen/Qwen3-8B"),
        ("model=./folder", "model", "unknown option", "model.name=./folder"),
        ("data=train.jsonl", "data", "unknown option", "data.train=train.jsonl"),
        ("peft=none,lora", "peft", "'none,lora'", "give one option"),
        ("optim={lr: 3}", "optim", "unknown option", "adamw"),
        ("modle=hf", "modle", "unknown group", "did you mean model=hf?"),
        ("foo=1", "foo", "unknown key (got '1')", "launcher config"),
        ("optm.lr=1", "optm.lr", "unknown key (got '1')", "did you mean 'optim.lr'?"),
        ("optim.rl=1", "optim.rl", "unknown key", "'optim.lr'"),
        ("lr=1", "lr", "unknown key", "did you mean 'optim.lr'?"),
        ("model.max_length=1", "model.max_length", "unknown key", "'data.max_length'"),
        ("track.wandb.projct=x", "track.wandb.projct", "unknown key", "'track.wandb.project'"),
        ("learning_rate=1", "learning_rate", "unknown key", "did you mean 'optim.lr'"),
        ("watchdog.timeout=5", "watchdog.timeout", "unknown key", "mean 'watchdog.timeout_s'"),
        ("watchdog.start=5", "watchdog.start", "unknown key", "mean 'watchdog.start_s'"),
        ("watchdog.eval=5", "watchdog.eval", "unknown key", "mean 'watchdog.eval_s'"),
        ("watchdog.save=5", "watchdog.save", "unknown key", "mean 'watchdog.save_s'"),
        ("optim.zzzz=1", "optim.zzzz", "unknown key", "keys of optim: optim.name"),
        ("data.columns.a.b=c", "data.columns.a.b", "unknown key", ""),
        ("optim=adamw.lr=1", "optim", "unknown option", ""),
        ("optim.name=muon", "optim.name", "is set by the group optim", "write optim=muon"),
        ("optim.name=moun", "optim.name", "is set by the group optim", "'muon'"),
        ("model.kind=tiny", "model.kind", "is set by the group model", "write model=tiny"),
        ("run=3", "run", "is a section", "run.name"),
        ("track.wandb=online", "track.wandb", "is a section", "track.wandb.mode"),
        ("+foo=1", "foo", "unknown key", ""),
        ("+optim.lr=1", "+optim.lr=1", "+ is not needed", "write optim.lr=1"),
        ("++optim.lr=1", "++optim.lr=1", "++ is not needed", "write optim.lr=1"),
        ("+engine=zero3", "+engine=zero3", "+ is not needed", "write engine=zero3"),
        ("~peft", "~peft", "nothing can be deleted", "write peft=none"),
        ("~optim.lr", "~optim.lr", "nothing can be deleted", "leave the override out"),
        ("seed", "seed", "not of the form key=value", "did you mean seed=...?"),
        ("zero3", "zero3", "not of the form key=value", "did you mean engine=zero3?"),
        ("", "", "not of the form key=value", "optim.lr=1e-4"),
        ("=1", "=1", "'' is not a key", "key=value"),
        ("a b=1", "a b=1", "'a b' is not a key", "without spaces"),
        ("optim..lr=1", "optim..lr=1", "is not a key", ""),
        ("engine@foo=zero1", "engine@foo=zero1", "is not a key", ""),
        ("optim.lr=abc", "optim.lr", "expected a number, got 'abc'", "2e-5"),
        ("optim.lr=null", "optim.lr", "expected a number, got null", "leave the key out"),
        ("optim.lr=", "optim.lr", "expected a number, got ''", ""),
        ("optim.lr=[1]", "optim.lr", "expected a number, got [1]", ""),
        ("optim.lr=1e-3,1e-4", "optim.lr", "got several values", ""),
        ("batch.tokens=1.5", "batch.tokens", "expected a whole number, got 1.5", "digits"),
        ("batch.tokens=true", "batch.tokens", "expected a whole number, got True", ""),
        ("data.packing=maybe", "data.packing", "expected true or false, got 'maybe'", ""),
        ("data.packing=1", "data.packing", "expected true or false, got 1", ""),
        ("engine.precision=bf61", "engine.precision", "unknown value 'bf61'", "'bf16'"),
        ("engine.precision=null", "engine.precision", "expected one of: auto, fp32", ""),
        ("engine.precision=[]", "engine.precision", "unknown value []", ""),
        ("eval.metrics=loss", "eval.metrics", "expected a list, got 'loss'", "write [loss]"),
        ("eval.metrics=[{a: 1}]", "eval.metrics", "expected text, got {'a': 1}", ""),
        ("data.columns=x", "data.columns", "expected a mapping, got 'x'", "{name: value}"),
        ("data.train=a,b", "data.train", "got several values: 'a,b'", "data.train=[a,b]"),
        ("data.train=[a", "data.train", "cannot read '[a'", "quotes"),
        ("peft.rank=8", "peft.rank", "not an option of the chosen peft", "add peft=lora"),
        ("schedule.decay=0.1", "schedule.decay", "not an option of", "add schedule=wsd"),
    ],
)
def test_one_wrong_override(word: str, where: str, found: str, hint: str) -> None:
    (problem,) = refused(word)
    assert problem.where == where
    assert found in problem.found
    assert hint in problem.hint
    assert problem.hint


def test_all_problems_come_at_once_in_order() -> None:
    words = ["modle=hf", "engine=zero4", "seed", "optim.lr=abc", "batch.tokns=1", "train.steps=x"]
    places = [problem.where for problem in refused(*words, "model.name=good")]
    assert places == ["modle", "engine", "seed", "batch.tokns", "train.steps", "optim.lr"]


def test_the_message_shows_every_problem_with_its_hint() -> None:
    with pytest.raises(ConfigError) as caught:
        compose.compose(["engine=zero4", "optim.lr=abc"])
    message = str(caught.value)
    assert message.count("HINT:") == 2
    assert "'zero4'" in message
    assert "'abc'" in message


def test_keys_of_a_misspelt_option_are_not_blamed() -> None:
    (problem,) = refused("peft=lroa", "peft.rank=8")
    assert problem.where == "peft"


def test_wrong_values_leave_the_rest_of_the_config_to_be_checked() -> None:
    config, found = compose.try_compose(["engine=zero4", "optim.lr=abc", "seed=7"])
    assert len(found) == 2
    assert config.seed == 7
    assert config.engine.zero == 2
    assert config.optim.lr == 2e-5


@pytest.mark.parametrize("key", sorted(conversion.leaves()))
def test_a_slip_in_any_key_is_recognised(key: str) -> None:
    slip = key[:-1] if len(key.rpartition(".")[2]) > 2 else f"{key}x"
    if slip in conversion.leaves():
        return
    (problem,) = overrides.read([f"{slip}=1"], {}).problems
    assert problem.where == slip
    assert key in problem.hint


def test_a_path_alone_is_told_its_key(tmp_path: Path) -> None:
    data, model = tmp_path / "my data.jsonl", tmp_path / "model"
    data.touch()
    model.mkdir()
    (model / "config.json").touch()
    assert refused(str(data))[0].hint == f"did you mean 'data.train={data}'?"
    assert refused(str(model))[0].hint == f"did you mean model.name={model}?"


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=40))
@example("a=\0")
@example("data.train=$")
@example("data.train=\\")
@example("data.train=${")
@example("engine.extra.x=[${}]")
def test_no_word_breaks_the_reader(word: str) -> None:
    result = overrides.read([word], groups.list_groups())
    assert bool(result.problems) != bool(result.groups or result.values)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="$"), max_size=40))
def test_text_is_taken_as_typed(text: str) -> None:
    read = overrides.read([f"data.system={text}"], {})
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    expected = None if text == "null" else text[1:-1] if quoted else text
    assert read.values == {"data.system": expected}
