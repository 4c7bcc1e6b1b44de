"""The sweep folder: what is written, trial folders, tables, the best trial, page, W&B file."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from launcher.cli import main
from launcher.config import create
from launcher.config.compose import compose
from launcher.core import processes
from launcher.core.errors import ConfigError, ExitCode, StorageError
from launcher.core.files import write_json
from launcher.core.rundir import RunDir, State, Status
from launcher.launch import local
from launcher.launch.retry import patiently
from launcher.launch.spec import job_file
from launcher.sweeps import (
    coordinates,
    folder,
    importance,
    page,
    pictures,
    pool,
    preparation,
    table,
    wandb_agents,
)
from launcher.sweeps.controller import SweepController
from launcher.sweeps.folder import Request, SweepDir, Trial
from launcher.sweeps.pool import Pool
from launcher.sweeps.trials import Maker

WORDS = ("model=tiny", "data.train=builtin:quickstart-text", "batch.sequences=4", "run.name=s")
Made = Callable[..., tuple[SweepDir, Request]]


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Make a sweep folder in an empty folder, from overrides."""
    monkeypatch.chdir(tmp_path)

    def make(*words: str) -> tuple[SweepDir, Request]:
        sweep, request = preparation.request((*WORDS, *words), [])
        preparation.make(sweep, request)
        return sweep, request

    return make


def _finish(sweep: SweepDir, number: int, *values: float, state: State = State.succeeded) -> None:
    trial = sweep.trial(number)
    assert trial is not None
    lines = [{"kind": "eval", "step": 10 * i, "eval/loss": v} for i, v in enumerate(values, 1)]
    trial.run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    code = ExitCode.ok if state is State.succeeded else ExitCode.diverged
    trial.run.set_status(state, exit_code=int(code), attempt=1, step=10 * len(values))


def _grid(made: Made) -> tuple[SweepDir, Request]:
    """Two keys, six trials: lr matters much, seed hardly; the last one diverged."""
    sweep, request = made("optim.lr=1e-4,1e-3,1e-2", "seed=1,2")
    maker = Maker(sweep, request)
    for number, words in enumerate(_product(request)):
        maker.make(number, words)
    for number, loss in enumerate((3.0, 3.01, 2.0, 1.99, 5.0)):
        _finish(sweep, number, loss + 1, loss)
    _finish(sweep, 5, 9.0, state=State.failed)
    return sweep, request


def _product(request: Request) -> list[list[str]]:
    first, second = request.swept
    return [[first.word(a), second.word(b)] for a in first.values for b in second.values]


@pytest.mark.parametrize(
    ("metric", "maximize"),
    {
        "eval/loss": False,
        "eval/general/loss": False,
        "eval/preference_accuracy": True,
        "eval/rejected_change": False,
        "eval/new.asked/chosen_change": True,
        "tokens_per_s": True,
    }.items(),
)
def test_it_is_known_which_way_a_metric_is_better(made: Made, metric: str, maximize: bool) -> None:
    words = ("objective=dpo", "data=preference", "optim.lr=1e-4,1e-3")
    _, request = made(*words, f"sweep.metric={metric}")
    assert request.maximize is maximize


def test_what_is_asked_for_survives_the_folder(made: Made) -> None:
    sweep, request = made("optim.lr=tag(log,interval(1e-5,1e-2))", "sweep=random", "seed=1,2")
    assert sweep.request() == request
    assert (request.kind, request.planned, request.maximize) == ("random", 20, False)
    sweep.file.write_text("{}")
    with pytest.raises(ConfigError, match=r"sweep\.json"):
        sweep.request()


def test_a_trial_is_a_run_folder_like_any_other(made: Made) -> None:
    sweep, request = made("optim.lr=1e-4,1e-3", "sweep.metric=loss")
    trial = Maker(sweep, request).make(3, ["optim.lr=0.001"])
    assert trial.run.path == sweep.path / "trial-0003"
    alone = create.create(
        [*(word for word in request.fixed if "sweep" not in word), "optim.lr=0.001"][:-1]
        + ["optim.lr=0.001", "run.name=alone"]
    )
    names = {path.name for path in alone.path.iterdir()}
    assert {path.name for path in trial.run.path.iterdir()} == names | {"trial.json"}
    ours, theirs = (compose.to_dict(compose.load(run.config)) for run in (trial.run, alone))
    assert ours["run"]["root"], ours["run"]["name"] == (str(sweep.path), "trial-0003")
    assert ours["track"]["wandb"]["group"] == "s"
    del ours["run"], theirs["run"], ours["track"], theirs["track"]
    assert ours == theirs
    config = compose.load(trial.run.config)
    assert trial.run.config.read_text() == compose.dump(config)
    assert trial.run.plan.read_text() == alone.plan.read_text()


def test_a_group_that_is_given_stays(made: Made) -> None:
    sweep, request = made("optim.lr=1e-4,1e-3", "track.wandb.group=mine")
    config, _ = Maker(sweep, request).composed(["optim.lr=0.001"])
    assert config.track.wandb.group == "mine"


def test_a_wrong_trial_is_made_as_failed(made: Made) -> None:
    sweep, request = made("peft=lora", "peft.rank=-1,8")
    trial = Maker(sweep, request).make(0, ["peft.rank=-1"])
    status = trial.run.status()
    assert (status.state, status.exit_code) == (State.failed, ExitCode.usage)
    assert "peft.rank" in status.reason
    assert not trial.run.exists()


def test_what_a_power_cut_has_left_of_trials_is_made_again(made: Made) -> None:
    sweep, request = made("seed=1,2,3,4,5")
    maker = Maker(sweep, request)
    words = [[f"seed={seed}"] for seed in range(1, 6)]
    for number, own in enumerate(words):
        maker.make(number, own)
    (sweep.trial_path(1) / "trial.json").write_text("")
    (sweep.trial_path(2) / "trial.json").unlink()
    config = sweep.trial_path(3) / "config.yaml"
    config.unlink()
    config.touch()
    controller = SweepController(sweep, request)
    trials = [controller.claim(own) for own in words]
    assert [trial.number for trial in trials] == [0, 1, 2, 3, 4]
    assert [trial.words for trial in sweep.trials()] == [tuple(own) for own in words]
    assert [compose.load(trial.run.config).seed for trial in trials] == [1, 2, 3, 4, 5]
    aside = sorted(path.name for path in sweep.path.glob(".trial-*"))
    assert aside == [".trial-0001.1", ".trial-0002.1", ".trial-0003.1"]


def test_one_of_two_sweeps_of_one_name_made_in_one_moment_is_refused(made: Made) -> None:
    asked = {seeds: preparation.request((*WORDS, f"seed={seeds}"), []) for seeds in ("1,2", "3,4")}
    sweep, first = asked["1,2"]
    assert preparation.make(sweep, first) == first
    with pytest.raises(ConfigError, match="of other overrides"):
        preparation.make(*asked["3,4"])
    assert preparation.make(sweep, dataclasses.replace(first, created=0.0)) == first
    assert sweep.request() == first
    assert [path.name for path in sweep.path.parent.iterdir()] == ["s"]


def test_a_folder_that_is_no_sweep_keeps_its_name(made: Made) -> None:
    asked = preparation.request((*WORDS, "seed=1,2"), [])
    (asked[0].path / "mine").mkdir(parents=True)
    with pytest.raises(ConfigError, match="of this name already"):
        preparation.make(*asked)
    (asked[0].path / "mine").rmdir()  # what a kill has left of a beginning
    assert preparation.make(*asked) == asked[1]


def test_a_second_controller_is_told_how_to_end_the_first(made: Made) -> None:
    sweep, request = made("seed=1,2")
    with RunDir(sweep.path).lock(), pytest.raises(StorageError, match="this sweep: host") as caught:
        SweepController(sweep, request).run()
    assert "`launcher sweep cancel s`" in caught.value.problems[0].hint


def test_a_sweep_in_the_place_of_a_run_is_told(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    made("seed=1,2")
    assert main(["status", "s"]) == ExitCode.usage
    told = capsys.readouterr().err
    assert "'s' is a sweep" in told
    assert "`launcher sweep status s`" in told


SUCCEEDED, DIVERGED = (State.succeeded, 0, ""), (State.failed, 5, "loss is nan")
STOPPED = (State.preempted, 75, "stopped at step 3")
LOST = (State.failed, 1, "job 12_3 lost a node")
CANCELLED = (State.cancelled, 130, "cancelled in Slurm")


@pytest.mark.parametrize(
    ("ends", "code", "again"),
    [
        ([SUCCEEDED, DIVERGED], 0, 0),
        ([DIVERGED, (State.failed, 3, "bad data")], 5, 0),
        ([SUCCEEDED, STOPPED], 75, 1),
        ([SUCCEEDED, CANCELLED], 130, 0),
        ([DIVERGED, CANCELLED, STOPPED], 75, 1),
        ([SUCCEEDED, (State.failed, 7, "No space left on device")], 0, 1),
        ([LOST], 1, 1),
        ([(State.failed, 1, "lost: a value")], 1, 0),
        ([SUCCEEDED, (State.running, None, "")], 0, 0),
        ([], 1, 0),
    ],
)
def test_a_sweeps_exit_code_tells_that_trials_were_stopped(
    ends: list[tuple[State, int | None, str]], code: int, again: int, tmp_path: Path
) -> None:
    rows = []
    for number, end in enumerate(ends):
        state, exit_code, reason = end
        status = Status(state, reason=reason, exit_code=exit_code, attempt=1, lost=end is LOST)
        trial = Trial(number, RunDir(tmp_path / str(number)), ())
        rows.append(table.TrialRow(trial, status, trial.state(status), None, 0))
    assert (table.exit_code(rows), table.again(rows)) == (code, again)


@pytest.mark.slow
def test_a_thousand_trials(made: Made) -> None:
    sweep, request = made("optim.lr=range(1,101)", "seed=range(1,11)")
    maker = Maker(sweep, request)
    for number, words in enumerate(_product(request)):
        maker.make(number, words)
    trials = sweep.trials()
    assert [trial.number for trial in trials] == list(range(1000))
    assert len({trial.words for trial in trials}) == 1000 == request.planned
    seeds = [compose.load(trial.run.config).seed for trial in trials[::100]]
    assert seeds == [1] * 10
    assert len({trial.run.tracking.read_text() for trial in trials}) == 1000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lr=-1,-2"], "optim.lr"),
        (["optim.lrr=1,2"], "optim.lr"),
        (["run.name=a,b"], "cannot differ"),
        (["sweep.trials=3", "sweep=grid"], "sweep.trials"),
        (["sweep=optuna"], "nothing varies"),
        (
            ["sweep=optuna", "seed=1,2", "sweep.metric=eval/nope", "sweep.direction=minimize"],
            "nope",
        ),
        (["sweep=optuna", "seed=1,2", "sweep.pruner=asha"], "eval.every_steps"),
        (["seed=1,2", "sweep.metric=mine"], "sweep.direction"),
        (["sweep=optuna", "seed=1,2", "hydra/sweeper=ax"], "leave one"),
        (["optim.lr=interval(0,1)"], "sweep=random"),
        (
            ["seed=1,2", "launch=torchrun", "launch.max_parallel=2", "launch.endpoint=h:5000"],
            "cannot all meet at port 5000",
        ),
    ],
)
def test_a_wrong_sweep_makes_nothing(made: Made, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(*words)
    assert not Path("runs").exists()


def test_a_sweep_asked_of_a_single_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="launcher train -m"):
        create.checked([*WORDS, "sweep=optuna"])
    with pytest.raises(ConfigError, match="launcher train -m"):
        create.checked([*WORDS, "optim.lr=1e-4,1e-3"])


def test_values_are_those_of_whole_finite_lines(tmp_path: Path, made: Made) -> None:
    sweep, request = made("seed=1,2")
    run = Maker(sweep, request).make(0, ["seed=1"]).run
    run.metrics.write_text(
        '{"step": 1, "eval/loss": 3.0}\n{"step": 2, "loss": 1}\n{"step": 3, "eval/loss": "nan"}\n'
        '{"step": 1, "eval/loss": 2.5}\n{"step": 4, "eval/loss": 2'
    )
    assert folder.values(run, "eval/loss") == [(1, 2.5)]


def test_table_and_best(made: Made) -> None:
    sweep, request = _grid(made)
    rows = table.rows(sweep)
    best = table.best(request, rows)
    assert best is not None
    assert (best.trial.number, best.value) == (3, 1.99)
    text = table.text(request, rows)
    assert "3*     succeeded  20    1.99       optim.lr=1e-3 seed=2" in text
    assert text.endswith("1 failed, 5 succeeded")


def test_a_trial_counts_with_the_weights_that_it_exports(made: Made) -> None:
    sweep, request = _grid(made)
    stopped = sweep.trial(4)
    assert stopped is not None
    _finish(sweep, 4, 1.5, 1.7, 1.8)
    write_json(stopped.run.best, {"weights": "best", "step": 10, "stopped": 30, "result": 10})
    assert folder.objective(stopped, "eval/loss") == 1.5
    best = table.best(request, table.rows(sweep))
    assert best is not None
    assert (best.trial.number, best.value, best.step) == (4, 1.5, 30)
    # Of the last weights, the last value.
    write_json(stopped.run.best, {"weights": "last", "step": 10, "stopped": 30, "result": 30})
    assert folder.objective(stopped, "eval/loss") == 1.8


def test_best_can_be_substituted_and_pasted(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    sweep, request = made("data.system='it''s','a b'", "seed=1,2")
    trial = Maker(sweep, request).make(0, ["data.system='a b'", "seed=1"])
    assert main(["sweep", "best", "s"]) == ExitCode.usage
    _finish(sweep, 0, 1.0)
    capsys.readouterr()
    assert main(["sweep", "best", "s"]) == ExitCode.ok
    printed, told = capsys.readouterr()
    (path,) = printed.split()  # words with blanks would be cut: a file stands for them
    assert compose.compose([path]) == compose.compose(trial.words)
    assert tuple(shlex.split(told.splitlines()[-1])[1:]) == trial.words


def test_a_sweep_that_is_not_there_is_said_with_close_names(
    made: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    made("seed=1,2", "run.name=search")
    assert main(["sweep", "status", "serch"]) == ExitCode.usage
    assert "did you mean 'search'" in capsys.readouterr().err


def test_the_page_has_every_trial_and_nothing_from_outside(made: Made) -> None:
    sweep, request = _grid(made)
    evil = Maker(sweep, request).make(6, ["data.system=<script>alert(1)</script>"])
    evil.run.set_status(State.failed, reason="<b>no</b>", exit_code=1)
    text = page.build(sweep).read_text()
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', text, flags=re.DOTALL))
    # A trial that has not ended well has its value of the middle of training.
    assert sections["coordinates"].count('class="trial"') == 6
    assert sections["against"].count("<figure") == 2  # optim.lr and seed
    assert sections["against"].count('class="trial dot"') == 12
    assert sections["curves"].count("data-trial=") == 6 * sections["curves"].count("<figure")
    assert sections["trials"].count('href="trial-0003/"') == 1
    assert text.count("<tr data-trial=") == 7
    assert "optim.lr=1e-3 seed=2" in text
    assert "<script>alert" not in text
    assert "<b>no" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert "5 trials have finished, and over fewer than 12" in sections["importance"]
    assert 'class="bars"' not in text
    (sweep.trial_path(3) / "report.html").touch()
    assert 'href="trial-0003/report.html"' in page.build(sweep).read_text()


def test_pictures_place_trials_where_they_belong(made: Made) -> None:
    sweep, request = made("optim.lr=1e-4,1e-3", "seed=1,2")
    for number, words in enumerate(_product(request)):
        Maker(sweep, request).make(number, words)
        _finish(sweep, number, 4.0, 2.0 - 0.1 * number)
    by_lr, by_seed = pictures.against(request, table.rows(sweep))
    assert (by_lr.across, by_lr.up) == ("optim.lr", "eval/loss")
    assert [label for _, label in by_lr.x_marks] == ["1e-4", "1e-3"]
    best = by_lr.traces[-1]
    assert (best.number, best.quality) == (3, 1.0)
    # The best of a metric of which less is better stands right, for its rate, and at the bottom.
    x, y = map(float, best.path.removeprefix("M").removesuffix("h0").split())
    assert x == by_lr.x_marks[-1][0]
    assert y == max(float(trace.path.split()[1].removesuffix("h0")) for trace in by_lr.traces)
    assert [label for _, label in by_lr.y_marks] == ["1.7", "1.8", "1.9", "2"]
    assert len(by_seed.traces) == 4
    (curves,) = pictures.curves(request, table.rows(sweep))
    assert (curves.across, curves.up) == ("step", "eval/loss")
    assert all(trace.path.count("L") == 1 for trace in curves.traces)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optim.lr=1e-4,1e-3", "seed=1,2,3", "sweep=optuna"], "9 trials, each with a choice"),
        (
            ["optim.lr=1e-4,1e-3", "seed=1,2,3", "sweep=optuna"],
            "6 combinations, some of them again",
        ),
        (["optim.lr=1e-4,1e-3", "sweep=random"], "2 combinations, each once at most; sweep=grid"),
        (["optim.lr=interval(1e-4,1e-3)", "seed=1,2", "sweep=optuna"], "of the values of seed"),
    ],
)
def test_a_grid_given_to_a_search_is_told_what_it_does(words: list[str], said: str) -> None:
    _, request = preparation.request((*WORDS, *words, "sweep.trials=9"), [])
    assert said in preparation.announced(request)


@pytest.mark.parametrize("words", [["seed=1,2"], ["sweep=optuna", "optim.lr=interval(1e-4,1e-3)"]])
def test_nothing_is_announced_where_nothing_surprises(words: list[str]) -> None:
    _, request = preparation.request((*WORDS, *words), [])
    assert preparation.announced(request) == ""


def test_status_lists_sweeps(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    _grid(made)
    capsys.readouterr()
    assert main(["status"]) == ExitCode.ok
    assert re.search(
        r"^s +grid +1 failed, 5 succeeded +trial-0003: eval/loss 1.99$",
        capsys.readouterr().out,
        flags=re.MULTILINE,
    )
    assert main(["status", "--json"]) == ExitCode.ok
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["best"] == {"name": "trial-0003", "value": 1.99}


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([(State.succeeded, 0), (State.failed, 5)], ExitCode.ok),
        ([(State.failed, 5), (State.failed, 2)], ExitCode.diverged),
        ([(State.preempted, 75), (State.preempted, 75)], ExitCode.preempted),
        ([(State.cancelled, 130)], ExitCode.interrupted),
    ],
)
def test_a_sweep_that_has_done_nothing_says_so(
    made: Made, ends: list[tuple[State, int]], code: ExitCode
) -> None:
    sweep, request = made("seed=1,2")
    for number, (state, own) in enumerate(ends):
        Maker(sweep, request).make(number, [f"seed={number}"])
        sweep.trial(number).run.set_status(state, attempt=1, exit_code=own)
    assert table.exit_code(table.rows(sweep)) == code


def test_a_page_without_results(made: Made) -> None:
    sweep, _ = made("seed=1,2")
    assert "No trial has finished" in page.build(sweep).read_text()


@pytest.mark.slow
def test_the_key_that_matters_is_found(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, request = made("optim.lr=tag(log,interval(1e-6,1e-1))", "seed=1,2", "sweep=random")
    maker = Maker(sweep, request)
    for number in range(importance.LEAST_FOR_ANOVA):
        lr = 10 ** (-6 + number / 4)
        maker.make(number, [f"optim.lr={lr:.6g}", f"seed={1 + number % 2}"])
        _finish(sweep, number, -math.log10(lr))
    rows = table.rows(sweep)
    name, found = importance.importances(request, rows)
    assert name == "PED-ANOVA (Optuna)"
    assert found[0][0] == "optim.lr"
    assert (
        importance.importances(request, rows[: importance.LEAST])[0]
        == "rank correlation or correlation ratio"
    )
    assert importance.importances(request, rows[: importance.LEAST - 1]) == ("", [])
    monkeypatch.setitem(sys.modules, "optuna", None)
    name, found = importance.importances(request, rows)
    assert name == "rank correlation or correlation ratio"
    assert found[0][0] == "optim.lr"
    assert all(0 <= value <= 1 for _, value in found)


def test_a_best_in_the_middle_matters_too(made: Made) -> None:
    sweep, request = made("optim.lr=1e-4,1e-3,1e-2", "seed=1,2,3,4", "data.system=a,b")
    maker = Maker(sweep, request)
    lrs, seeds, systems = (d.values for d in request.swept)
    words = [
        [f"optim.lr={lr}", f"seed={seed}", f"data.system={systems[n % 2]}"]
        for lr in lrs
        for n, seed in enumerate(seeds)
    ]
    for number, own in enumerate(words):
        maker.make(number, own)
        # The best rate is the middle one; the seed adds a little, the text nothing of its own.
        _finish(sweep, number, abs(number // 4 - 1) + 0.1 * (number % 4))
    found = dict(importance.importances(request, table.rows(sweep))[1])
    assert found["optim.lr"] > 0.7
    assert found["optim.lr"] > found["seed"] > found["data.system"]


def test_long_labels_have_room(made: Made) -> None:
    long = "be " * 200 + "kind"
    sweep, request = made(f"data.system={long},short", "seed=1,2")
    maker = Maker(sweep, request)
    for number, words in enumerate(_product(request)):
        maker.make(number, words)
        _finish(sweep, number, 2.0 - 0.1 * number)
    text = page.build(sweep).read_text(encoding="utf-8")
    labels = re.findall(r"<text[^>]*>([^<]*)<title>([^<]*)</title>", text)
    assert all(len(shown) < 60 for shown, _ in labels)
    assert [whole for _, whole in labels].count(long) == 2
    assert coordinates.short("one\ntwo three", 8) == "one two…"


def test_coordinates(made: Made) -> None:
    sweep, request = _grid(made)
    plot = coordinates.plot(request, table.rows(sweep))
    assert plot is not None
    assert [axis.title for axis in plot.axes] == ["optim.lr", "seed", "eval/loss"]
    assert [label for _, label in plot.axes[0].marks] == ["1e-4", "1e-3", "1e-2"]
    assert plot.lines[-1].number == 3
    assert math.isclose(plot.lines[-1].quality, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "log", "marks"),
    [
        (1e-5, 1e-2, True, [1e-5, 1e-4, 1e-3, 1e-2]),
        (2e-4, 8e-4, True, [2e-4, 4e-4, 6e-4, 8e-4]),
        (0, 59, False, [0, 20, 40]),
        (1.335, 4.308, False, [2, 3, 4]),
        (3, 64, False, [20, 40, 60]),
    ],
)
def test_axes_are_marked_at_round_numbers(low, high, log, marks) -> None:
    assert coordinates.round_numbers(low, high, log=log) == marks


def test_a_rehearsal_makes_nothing(made: Made, tmp_path: Path) -> None:
    sweep, request = preparation.request((*WORDS, "seed=1,2"), [])
    text = preparation.rehearsal(sweep, request)
    assert "launcher.train" in text
    assert "# trial-0001: seed=2" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_wandb_file(made: Made) -> None:
    _, request = made(
        "optim.lr=tag(log,interval(1e-5,1e-2))",
        "seed=1,2",
        "sweep=optuna",
        "sweep.trials=7",
        "data.system=it's $HOME",
    )
    found = yaml.safe_load(wandb_agents.sweep_file(request))
    assert found["method"] == "bayes"
    assert found["metric"] == {"name": "eval/loss", "goal": "minimize"}
    assert found["run_cap"] == 7
    log = {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2}
    assert found["parameters"] == {"optim.lr": log, "seed": {"values": ["1", "2"]}}
    utils = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    proposed = {"args": {"optim.lr": {"value": 0.001}, "seed": {"value": "2"}}}
    filled = utils.create_sweep_command_args(proposed)
    command = utils.create_sweep_command(found["command"])
    words: list[str] = []
    for word in command:
        words += filled["args_no_hyphens"] if word == "${args_no_hyphens}" else [word]
    assert words[:2] == ["launcher", "train"]
    config, _ = create.checked(words[2:])
    assert (config.optim.lr, config.seed, config.data.system) == (0.001, 2, "it's $HOME")
    assert config.run.name is None


def test_an_agents_run_has_the_agents_id(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "abcd1234")
    assert json.loads(create.create([*WORDS, "run.name=a"]).tracking.read_text()) != {
        "wandb": "abcd1234"
    }
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    run = create.create([*WORDS, "run.name=b"])
    assert json.loads(run.tracking.read_text()) == {"wandb": "abcd1234"}


def test_a_clock_that_was_put_back_makes_nobody_wait_longer(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "START_TIMEOUT_S", 0.2)
    sweep, request = made("seed=1,2")
    maker = Maker(sweep, request)
    trial = maker.make(0, ["seed=1"])
    trial.run.set_status(State.preparing, attempt=1)
    submitted = job_file(trial.run, 1)
    write_json(submitted, {"backend": "local"})
    ahead = time.time() + 3600
    os.utime(submitted, (ahead, ahead))
    began = time.monotonic()
    assert not Pool(sweep, maker.composed(["seed=1"])[0]).adopt(trial)
    assert time.monotonic() - began < 10


def test_a_trial_that_a_busy_machine_cannot_start_is_not_lost(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, request = made("seed=1,2")
    maker = Maker(sweep, request)
    trials = Pool(sweep, maker.composed(["seed=1"])[0])
    trial = maker.make(0, ["seed=1"])
    monkeypatch.setattr(local, "START_TIMEOUT_S", 0.0)
    monkeypatch.setattr(patiently, "__defaults__", (0.5,))
    before = set(processes.descendants(os.getpid()))
    with pytest.raises(local.SlowStartError) as caught:
        trials.start([trial])
    assert caught.value.exit_code == ExitCode.preempted
    assert "waiting: the supervisor did not start within 0 s" in capsys.readouterr().err
    status = trial.run.status()
    assert (status.state, status.exit_code) == (State.preempted, ExitCode.preempted)
    assert status.reason.startswith("not submitted: ")
    assert set(processes.descendants(os.getpid())) <= before
    assert not trials.running
    # Beside one that runs it waits, and so does what would be started next.
    trials.running[1] = maker.make(1, ["seed=2"])
    assert trials.start([trial]) == [trial]
    assert isinstance(trials.refusal, local.SlowStartError)
    trials.parallel = 5
    assert trials.room == 0


def test_trials_share_the_gpus(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.core.runtime.gpu_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    sweep, request = made("seed=1,2,3", "launch.max_parallel=2", "engine.precision=bf16")
    config, _ = Maker(sweep, request).composed(["seed=1"])
    pool = Pool(sweep, config)
    assert (pool.world_size, pool.room) == (2, 2)
    trial = Maker(sweep, request, pool.world_size).make(0, ["seed=1"])
    assert json.loads(trial.run.plan.read_text())["world_size"] == 2
    assert [pool.gpus_of(slot) for slot in (0, 1)] == [["3", "5"], ["6", "7"]]
    config.launch.processes = 3
    with pytest.raises(ConfigError, match=r"launch\.max_parallel=1"):
        Pool(sweep, config)
