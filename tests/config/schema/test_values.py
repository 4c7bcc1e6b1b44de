"""One value, every way in and back: as it was typed."""

from __future__ import annotations

import functools
import re
import subprocess
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config import create
from launcher.config.compose import compose, groups
from launcher.config.schema import Config, conversion, values
from launcher.core.errors import ConfigError
from launcher.core.rundir import RunDir, State, Status
from launcher.report import collect
from launcher.sweeps import multirun, preparation, space, table, wandb_agents
from launcher.sweeps.folder import SweepDir, Trial
from support.odd import EVERY, ODD

BASE = ("model=tiny", "data.train=x.jsonl", "batch.sequences=4")
#: What an argument of a process cannot hold, and what is no text.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
#: YAML cannot write these bare; as escapes in quotes it can.


def _word(text: str) -> str:
    """What a user types behind `key=` for this text: itself, unless the grammar has a say."""
    said = _literal(text)
    is_taken = said == "null" or values.unquoted(said) is not None
    return _in_quotes(said) if is_taken else said


def _quoted(text: str) -> str:
    """What a user types for it in a list, a mapping or a sweep."""
    return _in_quotes(_literal(text))


def _in_quotes(text: str) -> str:
    quote = "'" if '"' in text and "'" not in text else '"'
    inner = re.sub(rf"(\\*)({quote}|\Z)", lambda m: m[1] * 2 + ("\\" * bool(m[2])) + m[2], text)
    return f"{quote}{inner}{quote}"


def _literal(text: str) -> str:
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


@functools.cache
def _sources() -> compose.Sources:
    return compose.Sources()


def _composed(words: Sequence[str]) -> Config:
    """`compose.compose`, with the files of the groups read once for all."""
    config, problems = compose.try_compose(words, sources=_sources())
    assert not problems
    return config


# ---- ways: each brings a text into a config, and says what came of it


def _by_override(text: str, folder: Path) -> str | None:
    return _composed([f"data.system={_word(text)}"]).data.system


def _by_list(text: str, folder: Path) -> str | None:
    (found,) = _composed([f"run.tags=[{_quoted(text)}]"]).run.tags
    return found


def _by_mapping(text: str, folder: Path) -> str | None:
    word = f"data.columns={{prompt: {_quoted(text)}}}"
    return _composed([word]).data.columns["prompt"]


def _by_mixture(text: str, folder: Path) -> str | None:
    found = _composed([f"data.train=[{{path: x, name: {_quoted(text)}, weight: 2}}]"])
    assert found.data.train[0]["weight"] == 2
    return str(found.data.train[0]["name"])


def _by_own_file(text: str, folder: Path) -> str | None:
    file = folder / "own.yaml"
    file.write_text(compose.dump_plain({"data": {"system": text}}), encoding="utf-8")
    return _composed([str(file)]).data.system


def _by_group_file(text: str, folder: Path) -> str | None:
    (folder / "conf" / "experiment").mkdir(parents=True, exist_ok=True)
    file = folder / "conf" / "experiment" / "mine.yaml"
    said = compose.dump_plain({"data": {"system": text}})
    file.write_text(f"# @package _global_\n{said}", encoding="utf-8")
    return compose.compose(["experiment=mine"], [folder / "conf"]).data.system


def _by_resolved_config(text: str, folder: Path) -> str | None:
    """`launcher config > my.yaml`, and back."""
    before = _composed([f"data.system={_word(text)}"])
    file = folder / "resolved.yaml"
    file.write_text(compose.dump(before), encoding="utf-8")
    after = _composed([str(file)])
    assert after == before
    return after.data.system


def _by_stored_config(text: str, folder: Path) -> str | None:
    """What a resumed run reads; set on the typed config, as the service does."""
    config = Config()
    config.track.wandb.name, config.run.tags = text, [text]
    compose.save(config, folder / "config.yaml")
    found = compose.load(folder / "config.yaml")
    assert found.run.tags == [text]
    return found.track.wandb.name


def _by_grid(text: str, folder: Path) -> str | None:
    read = space.read([f"data.system={_quoted(text)},'other, one'"], {})
    first, second = space.grid(read)
    assert _composed(second).data.system == "other, one"
    return _composed(first).data.system


def _by_random(text: str, folder: Path) -> str | None:
    read = space.read([f"data.system=choice({_quoted(text)})", "seed=interval(1,2)"], {})
    ((word, _),) = space.draws(read, 1, 0)
    return _composed([word]).data.system


WAYS: dict[str, Callable[[str, Path], str | None]] = {
    way.__name__[1:]: way
    for way in (
        *(_by_override, _by_list, _by_mapping, _by_mixture, _by_own_file, _by_group_file),
        *(_by_resolved_config, _by_stored_config, _by_grid, _by_random),
    )
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
@EVERY
def test_an_odd_text_arrives_as_typed(
    text: str, way: Callable[[str, Path], str | None], tmp_path: Path
) -> None:
    assert way(text, tmp_path) == text


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(text=TEXT)
def test_any_text_arrives_as_typed(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    assert {name: way(text, folder) for name, way in WAYS.items()} == dict.fromkeys(WAYS, text)


@given(text=TEXT)
def test_quotes_are_undone(text: str) -> None:
    assert values.unquoted(_in_quotes(text)) == text
    assert values.parts(f"{_in_quotes(text)}, b") == [_in_quotes(text), "b"]


# ---- all at once: what a sweep hands to others


@functools.cache
def _swept() -> tuple[str, ...]:
    return tuple(f"data.system={_quoted(text)}" for text in ODD.values())


def _systems(words: Sequence[str]) -> list[str | None]:
    return [_composed([word]).data.system for word in words]


def _word_of_sweep() -> str:
    return f"data.system={','.join(_quoted(text) for text in ODD.values())}"


def test_hydras_sweepers_hand_texts_back_as_typed(tmp_path: Path) -> None:
    read, got = space.read([_word_of_sweep()], {}), []

    def launch(batch: list[list[str]]) -> list[float | None]:
        got.extend(word for words in batch for word in words)
        return [None] * len(batch)

    multirun.run(read, groups.list_groups(), SweepDir(tmp_path), launch)
    assert _systems(got) == list(ODD.values())


def test_keys_of_any_letters_go_through_hydra(tmp_path: Path) -> None:
    read, got = space.read(["data.columns.été=a,b", "optim.lr=1e-3,1.0e-3"], {}), []

    def launch(batch: list[list[str]]) -> list[float | None]:
        got.extend(batch)
        return [None] * len(batch)

    multirun.run(read, groups.list_groups(), SweepDir(tmp_path), launch)
    assert got == space.grid(read)
    assert got[0] == ["data.columns.été=a", "optim.lr=1e-3"]


def test_optuna_hands_texts_back_as_typed() -> None:
    optuna = pytest.importorskip("optuna")
    from launcher.sweeps.proposals import distribution

    (dimension,) = space.read([_word_of_sweep()], {}).swept.values()
    kinds = optuna.distributions
    stored = kinds.json_to_distribution(kinds.distribution_to_json(distribution(dimension)))
    assert _systems([dimension.word(choice) for choice in stored.choices]) == list(ODD.values())


@pytest.mark.thorough
def test_wandb_hands_texts_back_as_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    _, request = preparation.request(
        [*BASE, f"run.tags=[{_quoted(ODD['clock'])}]", _word_of_sweep()], []
    )
    found = yaml.safe_load(wandb_agents.sweep_file(request))
    words = []
    for value in found["parameters"]["data.system"]["values"]:
        arguments = utils.create_sweep_command_args({"args": {"data.system": {"value": value}}})
        words += arguments["args_no_hyphens"]
    assert _systems(words) == list(ODD.values())
    fixed = [word for word in utils.create_sweep_command(found["command"]) if "=" in word]
    assert _composed(fixed).run.tags == [ODD["clock"]]


def test_an_agent_of_wandb_reads_a_file_that_names_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    said = {
        "run": {"name": "s", "tags": list(ODD.values())},
        "sweep": {"name": "random", "trials": 3, "metric": "mine", "direction": "maximize"},
        "track": {"wandb": {"mode": "disabled"}},
    }
    Path("own.yaml").write_text(compose.dump_plain(said), encoding="utf-8")
    sweep, request = preparation.request([*BASE, "own.yaml", "seed=1,2,3"], [])
    request = preparation.make(sweep, request)
    found = wandb_agents.content(request)
    assert (found["method"], found["run_cap"]) == ("random", 3)
    assert found["metric"] == {"name": "train/mine", "goal": "maximize"}
    config, _ = create.checked([*found["command"][2:-1], "seed=2"])
    assert config.run.name is None
    assert config.run.tags == list(ODD.values())
    assert (config.seed, config.track.wandb.mode.name) == (2, "auto")


@pytest.mark.thorough
def test_a_shell_hands_the_best_trial_back_as_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`launcher train my.yaml $(launcher sweep best s)`, which a shell cuts at blanks."""
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    sweep, request = preparation.request([*BASE, "run.name=s", _word_of_sweep()], [])
    preparation.make(sweep, request)
    script, more = [], ("peft=lora", "optim.lr=1e-3")
    for number, word in enumerate(_swept()):
        trial = Trial(number, RunDir(sweep.trial_path(number)), (word, *more))
        row = table.TrialRow(trial, Status(State.succeeded), "succeeded", 1.0, 1)
        printed = tmp_path / f"printed-{number}"
        printed.write_text(table.substituted(sweep, row) + "\n", encoding="utf-8")
        best = tmp_path / "runs/s/best.yaml"
        if best.exists():
            best.rename(tmp_path / f"{number}.yaml")
            said = printed.read_text(encoding="utf-8").replace("runs/s/best", str(number))
            printed.write_text(said, encoding="utf-8")
        script.append(f"printf '%s\\0' $(cat {printed.name}); printf '\\0'")
    shell = subprocess.run(["bash", "-c", "\n".join(script)], capture_output=True, check=True)
    lines = shell.stdout.decode().split("\0\0")[:-1]
    configs = [_composed(line.strip("\0").split("\0")) for line in lines]
    assert [config.data.system for config in configs] == list(ODD.values())
    assert {(config.peft.name, config.optim.lr) for config in configs} == {("lora", 1e-3)}


def test_the_best_trial_of_a_folder_with_blanks_is_handed_on_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    sweep, request = preparation.request([*BASE, "run.name=s", "run.root=my runs", "seed=1,2"], [])
    preparation.make(sweep, request)
    trial = Trial(0, RunDir(sweep.trial_path(0)), ("data.system=be kind",))
    row = table.TrialRow(trial, Status(State.succeeded), "succeeded", 1.0, 1)
    Path("printed").write_text(table.substituted(sweep, row), encoding="utf-8")
    shell = subprocess.run(
        ["bash", "-c", "printf '%s\\0' $(cat printed)"], capture_output=True, check=True
    )
    words = shell.stdout.decode().split("\0")[:-1]
    assert _composed(words).data.system == "be kind"


def test_the_run_folder_and_the_report_know_what_was_typed(tmp_path: Path) -> None:
    words = [*BASE, f"run.root={tmp_path}", "run.name=odd", *_swept()]
    run = create.create(words)
    assert yaml.safe_load(run.overrides.read_text(encoding="utf-8")) == words
    assert collect.collect(run).overrides == words


# ---- one rule for what is no text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("8", 8), ("010", "010"), ("1_000", 1000), ("+8", 8), ("0x10", "0x10"), ("1e3", 1000.0)),
        *((".5", 0.5), ("5.", 5.0), ("0.10", 0.1), ("1.5e-3", 0.0015), ("-0", 0), ("00.5", "00.5")),
        *(("true", True), ("FALSE", False), ("yes", "yes"), ("on", "on"), ("None", "None")),
        *(("null", None), ("2026-11-29", "2026-11-29"), ("1:30", "1:30"), ("", ""), ("٣", "٣")),
    ],
)
def test_bare_words_mean_the_same_in_a_file_and_on_the_command_line(
    text: str, value: object, tmp_path: Path
) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(f"engine: {{extra: {{x: {text}}}}}\n", encoding="utf-8")
    for words in ([str(file)], [f"engine.extra.x={text}"], [f"engine.extra={{x: {text}}}"]):
        found = compose.compose(words).engine.extra["x"]
        # Nothing at all is null to YAML.
        expected = None if text == "" and words == [str(file)] else value
        assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize(
    ("text", "value"), [("010", 10), ("1e3", 1000), ("1_000", 1000), ("8.0", 8), ("+8", 8)]
)
def test_numbers_mean_the_same_in_a_file_and_on_the_command_line(
    text: str, value: int, tmp_path: Path
) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(f"batch: {{sequences: {text}}}\n", encoding="utf-8")
    for word in (str(file), f"batch.sequences={text}"):
        assert compose.compose([word]).batch.sequences == value


@pytest.mark.parametrize("text", ["0x10", "1:30", "yes", "1.5", "٣x"])
def test_what_is_no_number_is_refused_in_both(text: str, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(f"batch:\n  sequences: {text}\n", encoding="utf-8")
    for word, where in ((str(file), f"{file}:2: batch.sequences"), (f"batch.sequences={text}", "")):
        with pytest.raises(ConfigError, match="expected a whole number") as caught:
            compose.compose([word])
        assert caught.value.problems[0].where == (where or "batch.sequences")
        assert caught.value.problems[0].hint


MANY = [key for key, hint in conversion.leaves().items() if typing.get_origin(hint) in (list, dict)]


@pytest.mark.parametrize("key", MANY)
def test_null_is_an_empty_list_or_mapping(key: str) -> None:
    section = key.partition(".")[0]
    option = next(iter(conversion.owners(key)), None)
    choice = [f"{section}={option}"] if option in groups.list_groups().get(section, ()) else []
    config = compose.try_compose([*choice, f"{key}=null"])[0]
    assert conversion.select(conversion.to_dict(config), key) in ([], {})


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        compose.compose(["data.system=a\udcff"])


def test_an_interpolation_that_cannot_be_read_says_how_to_write_the_characters() -> None:
    with pytest.raises(ConfigError) as caught:
        compose.compose(["data.system=costs ${"])
    (problem,) = caught.value.problems
    assert problem.where == "data.system"
    assert r"\${" in problem.hint
    assert compose.compose([r"data.system=costs \${"]).data.system == "costs ${"
