"""An objective of a user's own, over pairs of documents with a column: one file and one YAML.

Its loss is that of plain PyTorch however the work is cut.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from launcher.config import create
from launcher.config.check import checks
from launcher.config.compose import completion, compose, explanation
from launcher.config.schema import Config
from launcher.core.errors import ConfigError, ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.data.cache import TokenCache
from launcher.data.tokenizer import load_tokenizer
from launcher.evals.comparison.paired import compare
from launcher.evals.metric import make_metrics, score_all
from launcher.evals.records import Results, ValueRecord, passes
from launcher.evals.store import read_results
from launcher.fingerprint import objective_identity
from launcher.report import summary
from launcher.runs import status
from support import answers, project
from support.answers import CUTS
from support.html import Page
from support.project import LAUNCHER

HERE = Path(__file__).parent / "pairs"
TRAIN = (*LAUNCHER, "train", "--config-dir", str(HERE))
NAME = "objective.name"
WORDS = ("objective=pairs", "data=preference", *answers.WORDS)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return answers.place(tmp_path_factory.mktemp("pairs"), answers.pairs)


def plain_losses(run: RunDir) -> list[float]:
    """The same training by one document a forward, torch's own log-softmax and AdamW."""
    chances = len(load_tokenizer(compose.load(run.config).model))
    model = answers.base_model(run)

    def gain(document: answers.Document) -> torch.Tensor:
        return answers.log_probs(model, document).sum() + document[1][1:].sum() * np.log(chances)

    def losses_of(cache: TokenCache, records: Sequence[int]) -> Iterator[torch.Tensor]:
        for record in records:
            chosen, rejected = map(gain, answers.documents(cache, record))
            yield -torch.nn.functional.logsigmoid(0.5 * (chosen - rejected))

    return answers.plain_losses(run, model, losses_of)


@pytest.fixture(scope="module")
def first(here):
    """The run that is held out to, evaluated, exported and reported too."""
    more = ("eval=default", "data.validation=held_out.jsonl", "export.at_end=true")
    more += ("train.token_accuracy=true",)
    run, _ = here.trained("first", *WORDS, *CUTS["two-ranks"], *more, command=TRAIN)
    return run


@pytest.mark.slow
def test_losses_are_those_of_plain_pytorch(first):
    np.testing.assert_allclose(project.curve(first), plain_losses(first), rtol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [name for name in CUTS if name != "two-ranks"])
def test_losses_do_not_depend_on_the_cut(here, first, cut):
    run, _ = here.trained(cut, *WORDS, *CUTS[cut], command=TRAIN)
    np.testing.assert_allclose(project.curve(run), project.curve(first), rtol=2e-5)


@pytest.mark.slow
def test_what_it_logs_scores_and_keeps_is_there(first):
    run = first
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    shares = [line["pair_accuracy"] for line in lines if line["kind"] == "train"]
    assert len(shares) == answers.STEPS
    assert all(0 <= share <= 1 and (share * answers.BATCH) % 1 == 0 for share in shares)
    assert all(0 <= line["token_accuracy"] <= 1 for line in lines if line["kind"] == "train")
    comparison = read_json(run.eval / "comparison.json")
    assert comparison["metrics"].keys() == {"loss", "margin", "right_order"}
    assert comparison["metrics"]["margin"]["tuned"] == pytest.approx(comparison["mean_margin"])
    assert comparison["metrics"]["loss"]["records"] == 9
    base, tuned = (read_json(run.eval / f"{side}.json") for side in ("base", "tuned"))
    assert base["mean_margin"] != tuned["mean_margin"] == comparison["mean_margin"]
    told = [json.loads(line) for line in (run.eval / "predictions.jsonl").open()]
    assert [line["id"] for line in told] == list(range(9))
    # Its own records of held-out pairs are kept and read again.
    stored = read_results(run.eval / "tuned.json", passes(compose.load(run.config).objective))
    own = comparison["metrics"]["right_order"]
    assert own["tuned"] == np.mean([record.is_right for record in stored.passes["pairs"]])
    assert read_results(run.eval / "tuned.json") is None
    page = Page((run.path / "report.html").read_text())
    assert "objective-1" in page.ids
    assert f"Margins The mean margin is {comparison['mean_margin']:.3f}. Quantile" in page.text
    assert summary.headline_metric(comparison) == "right_order"
    assert told[0]["where"] in page.text
    assert (run.export / "config.json").is_file()


@pytest.mark.slow
def test_a_run_goes_on_with_the_file_it_began_with(here, first):
    own = here.folder / "objective"
    own.mkdir()
    for file in (HERE / "objective").glob("pairs.*"):
        (own / file.name).write_text(file.read_text())
    command = (*LAUNCHER, "train", "--config-dir", str(here.folder))
    words = (*WORDS, *CUTS["one-rank"], "checkpoint.every_steps=1")
    here.trained("own", *words, command=command)
    (own / "pairs.py").write_text("another objective\n")
    done = here.run((*LAUNCHER, "resume"), "own", "train.steps=4")
    assert done.code == ExitCode.ok, done.output
    with (here.folder_of("own").path / "objective.py").open("a") as file:
        file.write("# another objective\n")
    done = here.run((*LAUNCHER, "resume"), "own", "train.steps=5")
    assert done.code == ExitCode.usage, done.output
    assert "the file of the objective" in done.output
    assert "changed since the run began" in done.output


@pytest.mark.slow
def test_its_runs_are_compared(here, first):
    done = here.run((*LAUNCHER, "compare"), "runs/first:base", "runs/first")
    assert done.code == ExitCode.ok, done.output
    assert "verdict:" in done.output


def test_its_options_are_keys_like_any_others(tmp_path, monkeypatch):
    words = ("objective=pairs", "data=preference", "data.train=x.jsonl", "model.name=m")
    config = compose.compose([*words, "objective.beta=0.3"], [HERE])
    assert config.objective.beta == 0.3
    assert config.objective.name == str(HERE / "objective" / "pairs.py")
    with pytest.raises(ConfigError, match=r"objective\.betta: unknown key"):
        compose.compose([*words, "objective.betta=0.3"], [HERE])
    # A path in a file of one's own counts from where the command is typed, and is kept whole.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text((HERE / "objective" / "pairs.py").read_text())
    (tmp_path / "my.yaml").write_text("objective: {name: own.py, beta: 0.7}\n")
    config = compose.compose(["my.yaml", *words[1:]])
    assert (config.objective.beta, config.objective.name) == (0.7, str(tmp_path / "own.py"))
    compose.save(config, tmp_path / "config.yaml")
    monkeypatch.chdir("/")
    assert compose.load(tmp_path / "config.yaml").objective == config.objective


def test_its_options_are_explained_and_completed(tmp_path, monkeypatch):
    folder, file = f"--config-dir={HERE}", HERE / "objective" / "pairs.py"
    words = ["objective=pairs", "objective.beta=0.3"]
    places = [
        (one.place, one.value) for one in explanation.explain(words, "objective.beta", [HERE])
    ]
    assert places == [
        (f"schema default of objective={file}", 0.1),
        (str(file.with_suffix(".yaml")), 0.5),
        ("override objective.beta=0.3", 0.3),
    ]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text(f"objective: {{name: {file}, beta: 0.7}}\n")
    assert explanation.explain(["my.yaml"], "objective.beta")[-1].place == "my.yaml:1"
    with pytest.raises(ConfigError, match=r"objective\.betta: unknown key") as caught:
        explanation.explain(["objective=pairs"], "objective.betta", [HERE])
    assert "objective.beta" in caught.value.problems[0].hint
    lines = (
        [folder, "objective=pairs"],
        ["--config-dir", str(HERE), "objective=pairs"],
        [f"objective.name={file}"],
        ["my.yaml"],
    )
    for line in lines:
        assert completion.words(["train"], ["train", *line], "objective.be") == ["objective.beta="]
    assert completion.words(["train"], ["train", folder], "objective=pai") == ["objective=pairs"]
    # An option that no objective of the launcher's has.
    (tmp_path / "own.py").write_text(file.read_text().replace("beta", "bezel"))
    own = completion.words(["train"], ["train", "objective.name=own.py"], "objective.bez")
    assert own == ["objective.bezel="]
    for line in (["objective=sft"], ["objective.name=gone.py"], ["gone.yaml"], ["--config-dir=no"]):
        assert completion.words(["train"], ["train", *line], "objective.bez") == []


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A new run, whose own file is gone since."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text((HERE / "objective" / "pairs.py").read_text())
    (tmp_path / "mine.py").write_text("class Format:\n    def read(self, record): ...\n")
    words = ("objective.name=own.py", "objective.beta=0.7", "data.train=x.jsonl", "model.name=m")
    words += ("batch.sequences=1", "train.steps=1", "run.name=kept", "run.root=runs")
    monkeypatch.setattr(checks, "check", lambda *_, **__: [])  # neither model nor data is there
    mask = os.umask(0)  # what all may write, but for code
    try:
        run = create.create([*words, "data.format=mine.py"])
    finally:
        os.umask(mask)
    (tmp_path / "own.py").unlink()
    (tmp_path / "mine.py").unlink()
    return run


def test_a_run_keeps_the_files_it_names_and_may_move(kept, tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    plain = yaml.safe_load(kept.config.read_text())
    assert (plain["objective"]["name"], plain["data"]["format"]) == ("objective.py", "format.py")
    config = compose.load(kept.config)
    assert (config.objective.beta, config.objective.learns) == (0.7, ("pairs",))
    assert config.objective.name == str(kept.path / "objective.py")
    assert (kept.path / "format.py").is_file()
    moved = kept.path.rename(tmp_path / "moved")
    config = compose.load(moved / "config.yaml")
    assert config.objective.name == str(moved / "objective.py")
    assert config.data.format == str(moved / "format.py")
    # As a file of one's own it is the same run again.
    again = compose.compose([str(moved / "config.yaml")])
    assert again.objective == config.objective


def test_bookkeeping_runs_no_file_and_needs_none(kept):
    (kept.path / "objective.py").write_text("raise SystemExit('run')\n")
    assert compose.load(kept.config, runs_code=False).objective.name.endswith("objective.py")
    assert status.details(kept)["tags"] == []
    (kept.path / "objective.py").unlink()
    assert status.details(kept)["tags"] == []
    with pytest.raises(ConfigError, match=r"objective\.py cannot be used"):
        compose.load(kept.config)


def test_code_that_others_can_have_written_is_not_run(kept, monkeypatch):
    code = kept.path / "objective.py"
    code.chmod(0o666)
    with pytest.raises(ConfigError, match="another user can have written") as caught:
        compose.load(kept.config)
    command = caught.value.problems[0].hint.split("`")[1]
    monkeypatch.setenv("LAUNCHER_TRUST_CODE", "1")
    assert compose.load(kept.config).objective.beta == 0.7
    monkeypatch.delenv("LAUNCHER_TRUST_CODE")
    subprocess.run(command, shell=True, check=True)  # noqa: S602 - the hint works when typed
    assert compose.load(kept.config).objective.beta == 0.7
    kept.path.chmod(0o777)
    with pytest.raises(ConfigError, match="another user can have written"):
        compose.load(kept.config)
    kept.path.chmod(0o755)
    other = kept.path.parent / "config.yaml"  # one that names the file elsewhere, as it was typed
    code.chmod(0o666)
    other.write_text(kept.config.read_text().replace("objective.py", str(code)))
    with pytest.raises(ConfigError, match="another user can have written"):
        compose.load(kept.config)
    assert compose.load(other).objective.beta == 0.7
    code.chmod(0o644)
    owner, code = code.stat().st_uid, kept.path / "format.py"
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    if owner == 0:  # whose files may be run by all
        os.chown(code, 4711, -1)
    with pytest.raises(ConfigError, match=r"are uid|and you are") as caught:
        compose.load(kept.config)
    assert "LAUNCHER_TRUST_CODE=1" in caught.value.problems[0].hint


def of_changed(folder: Path, *changes: tuple[str, str], more: tuple[str, ...] = ()) -> Config:
    """A config of the objective with other words in its file."""
    text = (HERE / "objective" / "pairs.py").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    own = folder / "objective"
    own.mkdir(parents=True)
    (own / "pairs.py").write_text(text)
    (own / "pairs.yaml").write_text((HERE / "objective" / "pairs.yaml").read_text())
    words = ("objective=pairs", "data=preference", "data.train=x.jsonl", "model.name=m")
    return compose.compose([*words, "eval=default", *more], [folder])


@pytest.mark.parametrize(
    ("changes", "where", "found"),
    [
        ([('"loss", "margin",', '"loss", "margn",')], "eval.metrics", "unknown metric 'margn'"),
        ([("own_metrics: ClassVar = {", 'own_metrics: ClassVar = {"f1": 1, ')], NAME, "'f1'"),
        ([(":Margin", ":Margins")], NAME, "no class at launcher_own_pairs"),
        ([('name = "margin"', 'name = "gap"')], NAME, "no class at launcher_own_pairs"),
        ([(':Margin", "values")', ':Margin", "value")')], NAME, "made of nothing known"),
        ([('"pairs": f"', '"loss": f"'), (', "pairs")', ', "loss")')], NAME, "the launcher's"),
        ([(":PairRecord", ":PairRecords")], NAME, "no class at launcher_own_pairs"),
        ([('variants.MetricRow(f"{__name__}:Margin", "values")', '"m:M"')], NAME, "has no row"),
        ([('("loss", "values", ', '("loss", ')], NAME, "of which it has none"),
        ([(':Margin", "values"', ':Margin", "values", lower_is_better=True')], NAME, "unlike its"),
    ],
)
def test_what_is_wrong_with_its_metrics_is_told_before_anything_starts(
    tmp_path, changes, where, found
):
    config = of_changed(tmp_path, *changes)
    (problem,) = (
        one
        for one in checks.check(config, world_size=1, has_gpu=False)
        if one.where in ("eval.metrics", NAME)
    )
    assert problem.where == where
    assert found in problem.found
    assert problem.hint


def test_results_are_those_of_a_file_and_its_options(tmp_path):
    known = objective_identity(of_changed(tmp_path / "a"))
    assert objective_identity(of_changed(tmp_path / "b")) == known
    assert objective_identity(of_changed(tmp_path / "c", more=("objective.beta=9",))) != known
    assert objective_identity(of_changed(tmp_path / "d", ("sigmoid", "tanh"))) != known
    assert objective_identity(Config()) == ["sft"]


def test_its_metric_is_one_like_any_other(tmp_path):
    config = of_changed(tmp_path, more=("eval.metrics=[margin]", "eval.times=2"))
    config.data.validation = "y.jsonl"
    config.train.early_stop.metric = "margin"
    config.train.early_stop.patience = 2
    problems = list(checks.check(config, world_size=1, has_gpu=False))
    assert not [one for one in problems if "metric" in f"{one.where}{one.found}"]
    (metric,) = make_metrics(config.eval, config.objective.own_metrics)
    records = [ValueRecord(0, {"margin": 0.5}), ValueRecord(1, {"margin": 1.5})]
    results = Results({"values": records})
    assert score_all([metric], results) == {"margin": 1.0}
    tuned = Results({"values": [ValueRecord(0, {"margin": 2.5}), ValueRecord(1, {"margin": 1.5})]})
    row = compare(results, tuned, [metric])["metrics"]["margin"]
    assert (row["base"], row["tuned"], row["improved"], row["records"]) == (1.0, 2.0, 1, 2)
    with pytest.raises(ConfigError, match="unknown name 'margin'"):
        make_metrics(config.eval)
