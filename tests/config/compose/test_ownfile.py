"""One file of one's own: what it says, what it gives way to, and how it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.cli import main
from launcher.config import create
from launcher.config.compose import compose, explanation, groups, ownfile
from launcher.config.schema import LoraConfig
from launcher.core.errors import ConfigError, ExitCode
from launcher.sweeps import preparation
from launcher.sweeps.trials import Maker
from support.hints import refused

BASE = "model: tiny\ndata: {train: x.jsonl, max_length: 256}\nbatch: {sequences: 4}\n"
EXPERIMENTS = groups.list_groups()["experiment"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")


def _write(text: str, name: str = "my.yaml") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    return name


@pytest.mark.parametrize(
    "words",
    [
        *([f"experiment={name}"] for name in EXPERIMENTS),
        [],
        ["peft=dora", "peft.rank=4", "eval=classify", "objective=classify"],
        ["engine=zero3_offload", "engine.extra={a: {b: 1}}", "track=wandb", "launch=slurm"],
        ["model=tiny", "train.steps=5", "batch.sequences=8", "cluster=gpu8", "schedule=wsd"],
        ["data.train=[a,{path: b, weight: 2}]", "eval.new={x: y}", "data.columns={prompt: no}"],
    ],
    ids=" ".join,
)
def test_the_printed_config_is_a_file_that_gives_it_back(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", *words]) == ExitCode.ok
    file = _write(capsys.readouterr().out)
    assert compose.compose([file]) == compose.compose(words)
    assert main(["config", file]) == ExitCode.ok
    assert capsys.readouterr().out == Path(file).read_text()


def test_plain_keys_choose_options_as_the_command_line_does() -> None:
    file = _write(f"{BASE}peft: {{name: lora, rank: 4}}\nengine: zero3\n")
    words = ["model=tiny", "data.train=x.jsonl", "data.max_length=256", "batch.sequences=4"]
    assert compose.compose([file]) == compose.compose(
        [*words, "peft=lora", "peft.rank=4", "engine=zero3"]
    )


def test_defaults_lie_below_the_file_and_overrides_over_it() -> None:
    file = _write("defaults:\n- override /experiment: lora\n- _self_\noptim.lr: 0.5\n")
    assert compose.compose([file]).optim.lr == 0.5
    for words in ([file, "optim.lr=0.1"], ["optim.lr=0.1", file]):
        config = compose.compose(words)
        assert (config.optim.lr, config.run.tags, config.peft.name) == (0.1, ["lora"], "lora")


def test_stating_one_of_a_pair_replaces_the_recipes_other_one() -> None:
    file = _write("defaults: [experiment: lora]\nbatch: {sequences: 8}\n")
    batch = compose.compose([file]).batch
    assert (batch.sequences, batch.tokens) == (8, None)
    batch = compose.compose([file, "batch.tokens=4096"]).batch
    assert (batch.sequences, batch.tokens) == (None, 4096)


def test_mappings_are_merged_over_the_file() -> None:
    file = _write("engine: {extra: {a: 1, b: 2}}\n")
    assert compose.compose([file, "engine.extra={b: 3}"]).engine.extra == {"a": 1, "b": 3}


def test_a_section_with_nothing_in_it_says_nothing() -> None:
    file = _write("defaults: [peft: lora]\npeft:\noptim:\n  # lr: 1\ncluster:\n  setup:\n")
    config = compose.compose([file])
    assert (config.peft.name, config.optim.lr, config.cluster.setup) == ("lora", 2e-5, [])


@pytest.mark.parametrize(
    ("word", "rank", "name"), [("peft=lora", 8, "lora"), ("peft=dora", 8, "lora")]
)
def test_an_option_typed_beside_the_file_decides_only_what_differs(
    word: str, rank: int, name: str
) -> None:
    file = _write("defaults: [peft: lora]\npeft: {rank: 8}\n")
    peft = compose.compose([file, word]).peft
    assert isinstance(peft, LoraConfig)
    assert (peft.rank, peft.name, peft.dora) == (rank, name, word == "peft=dora")


def test_an_option_typed_beside_a_full_config_is_taken() -> None:
    full = _write(compose.dump(compose.compose(["engine=zero3_offload", "experiment=lora"])))
    config = compose.compose([full, "engine=zero0", "peft=none"])
    assert (config.engine.zero, config.engine.offload_optimizer) == (0, False)
    assert (config.peft.name, config.optim.lr) == ("none", 2e-4)
    assert compose.compose([full, "eval=classify"]).eval.metrics[-1] == "ece"


def test_a_recipe_that_the_file_hides_is_not_passed_over_in_silence() -> None:
    full = _write(compose.dump(compose.compose([])))
    (problem,) = refused(full, "experiment=lora")
    assert problem.where == "experiment"
    assert "my.yaml sets all that it sets" in problem.found


def test_of_two_files_the_later_one_wins() -> None:
    one, two = _write(f"{BASE}seed: 1\npeft: lora\n"), _write("seed: 2\npeft: none\n", "b/two.yml")
    config = compose.compose([one, two])
    assert (config.seed, config.peft.name, config.data.train) == (2, "none", "x.jsonl")


def test_anchors_and_merges_are_yaml() -> None:
    file = _write("run: {tags: &t [12.10]}\ndata:\n  labels: *t\n  columns: {<<: {a: 1}, b: 2}\n")
    data = compose.compose([file]).data
    assert (data.labels, data.columns) == (["12.10"], {"a": "1", "b": "2"})


@pytest.mark.parametrize(
    ("text", "where", "found", "hint"),
    [
        ("seed: 1\noptim:\n  rl: 3\n", "my.yaml:3: optim.rl", "unknown key", "'optim.lr'"),
        ("seed: 1\noptim:\n  lr: abc\n", "my.yaml:3: optim.lr", "expected a number", "2e-5"),
        ("modle: hf\n", "my.yaml:1: modle", "unknown group", "did you mean 'model: hf'?"),
        ("optm:\n  lr: 1\n", "my.yaml:1: optm", "unknown group", "did you mean 'optim'?"),
        ("run: 3\n", "my.yaml:1: run", "is a section", "run.name"),
        ("engine: zero4\n", "my.yaml:1: engine", "unknown option 'zero4'", "'zero3'"),
        ("peft:\n  name: lroa\n", "my.yaml:2: peft.name", "unknown name 'lroa'", "'lora'"),
        ("peft:\n  rank: 8\n", "my.yaml:2: peft.rank", "not an option", "add peft=lora"),
        ("defaults:\n- engin: zero1\n", "my.yaml:2", "unknown group 'engin'", "'engine'"),
        ("defaults:\n- engine: zero9\n", "my.yaml:2: engine", "unknown option", "'zero"),
        ("defaults:\n- zero2\n", "my.yaml:1", "chooses no option", "GROUP: OPTION"),
        ("defaults: zero2\n", "my.yaml:1", "is no list", "GROUP: OPTION"),
        ("defaults:\n- _self_\n- peft: lora\n", "my.yaml:1", "not the last", "put _self_ last"),
        ("seed: 1\nrun: {tags: [a\n", "my.yaml:3", "is not YAML", "key: value"),
        ("a: b: c\n", "my.yaml:1", "is not YAML", "key: value"),
        ("seed: 1\nseed: 2\n", "my.yaml:2", "given twice, in line 1", "leave one"),
        ("- a\n", "my.yaml:1", "no mapping", "key: value"),
        ("seed: !odd 1\n", "my.yaml:1", "tag !odd", "leave the tag out"),
        ("data:\n  columns: &a\n    x: *a\n", "my.yaml:2", "holds itself", "alias"),
        ("", "my.yaml", "says nothing", "empties"),
        ("run:\n  tags: [null]\n", "my.yaml:2: run.tags", "expected text, got null", "value"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text: str, where: str, found: str, hint: str) -> None:
    (problem,) = refused(_write(text))
    assert problem.where == where
    assert found in problem.found
    assert hint in problem.hint


def test_values_out_of_range_are_named_with_their_line() -> None:
    file = _write(f"{BASE}optim:\n  lr: -1\n")
    with pytest.raises(ConfigError) as caught:
        create.checked([file])
    assert [problem.where for problem in caught.value.problems] == ["my.yaml:5: optim.lr"]


def test_a_file_that_is_not_there_is_told_by_its_neighbours() -> None:
    assert "`launcher config > my.yaml`" in refused("my.yaml")[0].hint
    _write("seed: 1\n", "conf/mine.yaml")
    (problem,) = refused("conf/mime.yaml")
    assert (problem.where, problem.found) == ("conf/mime.yaml", "no such file")
    assert "'conf/mine.yaml'" in problem.hint


def test_bytes_that_are_no_text_are_told() -> None:
    Path("my.yaml").write_bytes(b"run:\n  name: \xff\xfe\n")
    assert "is not YAML" in refused("my.yaml")[0].found


def test_paths_with_equals_signs_are_files_and_values_are_not() -> None:
    assert ownfile.is_named("runs/a=1,2/my.yaml")
    assert not ownfile.is_named("data.train=my.yaml")
    file = _write(BASE, "a=1,2/my.yaml")
    assert compose.compose([f"./{file}"]).data.train == "x.jsonl"


def test_explain_names_the_line() -> None:
    file = _write("defaults: [experiment: lora]\npeft:\n  rank: 4\n")
    assert explanation.explain([file], "peft.rank")[-1] == explanation.KeySource("my.yaml:3", 4)


def test_a_sweep_keeps_what_the_file_said() -> None:
    file = _write(f"{BASE}optim: {{lr: 0.25}}\n")
    sweep, request = preparation.request([file, "run.name=s", "seed=1,2"], [])
    request = preparation.make(sweep, request)
    _write("optim: {lr: 0.5}\n")
    for known in (request, sweep.request()):
        config, _ = Maker(sweep, known).composed(["seed=2"])
        assert (config.optim.lr, config.seed) == (0.25, 2)


@pytest.mark.parametrize("verb", ["plan", "config", "train --dry-run", "submit --dry-run"])
def test_verbs_take_it(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("x.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    assert main([*verb.split(), _write(BASE), "launch.processes=1"]) == ExitCode.ok
    assert capsys.readouterr().out


def test_an_option_typed_beside_the_file_decides_below_sections_too() -> None:
    words = ["model=tiny", "data.train=x.jsonl", "batch.sequences=4"]
    file = _write(compose.dump(compose.compose(words)), "full.yaml")
    assert compose.compose([file]).track.wandb.mode.name == "disabled"
    tracked = compose.compose([*words, "track=wandb"])
    assert compose.compose([file, "track=wandb"]).track == tracked.track


def test_the_hint_for_a_missing_file_can_be_typed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("my conf").mkdir()
    assert main(["plan", "my conf/my file.yaml"]) == ExitCode.usage
    assert "`launcher config > 'my conf/my file.yaml'` writes one" in capsys.readouterr().err
