"""An objective of a user's own, over pairs of documents with a column: one file and one YAML.

Its loss is that of plain PyTorch however the work is cut.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launcher.config.check import checks
from launcher.config.compose import compose
from launcher.core.errors import ConfigError, ExitCode
from launcher.core.rundir import read_json
from launcher.data.cache import TokenCache
from launcher.data.tokenizer import load_tokenizer
from support import project
from support.project import LAUNCHER, Project

HERE = Path(__file__).parent / "pairs"
TRAIN = (*LAUNCHER, "train", "--config-dir", str(HERE))
STEPS, PAIRS = 3, 8
WORDS = (
    *("objective=pairs", "data=preference", "data.max_length=160"),
    *("data.shuffle=false", "data.packing=false", f"batch.sequences={PAIRS}", "seed=3"),
    *(f"train.steps={STEPS}", "optim.lr=1e-3", "schedule=constant", "optim.clip_norm=0"),
    *("checkpoint.every_steps=null", "peft=none", "engine.precision=fp32"),
)
#: Ways to cut the same work, the one that asks most first: two ranks, micro-batches, packs.
CUTS = {
    "two ranks": ("launch.processes=2", "batch.micro=1", "engine=zero2"),
    "one rank": ("launch.processes=1", "batch.micro=8", "engine=zero0"),
    "parameters in parts": ("launch.processes=2", "batch.micro=2", "engine=zero3"),
    "a document a line": ("launch.processes=2", "batch.micro=4", "model.attention=sdpa"),
}


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    words = ["red", "blue", "green", "seven", "eight", "nine", "apple", "pear", "plum"]

    def text(most: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(1, most)))

    made = ({"prompt": text(6), "chosen": text(9), "rejected": text(9)} for _ in range(9 * count))
    return [one for one in made if one["chosen"] != one["rejected"]][:count]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    made = Project(tmp_path_factory.mktemp("pairs"))
    made.write_data(pairs(STEPS * PAIRS))
    text = "".join(json.dumps(record) + "\n" for record in pairs(9, seed=1))
    (made.folder / "held_out.jsonl").write_text(text)
    return made


def plain_losses(run) -> list[float]:
    """The same training by one document a forward, torch's own log-softmax and AdamW."""
    from transformers import AutoModelForCausalLM

    config = compose.load(run.config)
    cache = TokenCache.open(read_json(run.data)["train"])
    vocabulary = len(load_tokenizer(config.model))
    model = AutoModelForCausalLM.from_pretrained(config.model.name, dtype=torch.float32)
    optim = config.optim
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=optim.lr, betas=(optim.beta1, optim.beta2), weight_decay=0.0
    )
    losses = []
    for step in range(STEPS):
        total = 0.0
        for record in range(step * PAIRS, (step + 1) * PAIRS):
            tokens, flags = (torch.from_numpy(x.astype(np.int64)) for x in cache.record(record))
            gains, begin = [], 0
            for length in cache.documents(record):
                own, learned = tokens[begin : begin + length], flags[begin : begin + length]
                scores = model(own[None]).logits[0, :-1].log_softmax(-1)
                chances = scores.gather(1, own[1:, None])[:, 0]
                gain = (chances * learned[1:]).sum() + learned[1:].sum() * np.log(vocabulary)
                gains.append(gain)
                begin += length
            assert len(gains) == 2
            loss = -torch.nn.functional.logsigmoid(0.5 * (gains[0] - gains[1]))
            (loss / PAIRS).backward()
            total += float(loss.detach())
        losses.append(total / PAIRS)
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.fixture(scope="module")
def first(here):
    """The run that is held out to, evaluated, exported and reported too."""
    more = ("eval=default", "data.validation=held_out.jsonl", "export.at_end=true")
    done = here.run(TRAIN, *here.words("first", *WORDS, *CUTS["two ranks"], *more))
    assert done.code == ExitCode.ok, done.output
    return here.folder_of("first"), done.output


@pytest.mark.slow
def test_losses_are_those_of_plain_pytorch(first):
    run, output = first
    losses = project.losses(run)
    np.testing.assert_allclose(
        [losses[step] for step in sorted(losses)], plain_losses(run), rtol=2e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("cut", [name for name in CUTS if name != "two ranks"])
def test_losses_do_not_depend_on_the_cut(here, first, cut):
    done = here.run(TRAIN, *here.words(cut.replace(" ", "-"), *WORDS, *CUTS[cut]))
    assert done.code == ExitCode.ok, done.output
    found, known = project.losses(here.folder_of(cut.replace(" ", "-"))), project.losses(first[0])
    assert found.keys() == known.keys()
    np.testing.assert_allclose(list(found.values()), list(known.values()), rtol=2e-5)


@pytest.mark.slow
def test_what_it_logs_scores_and_keeps_is_there(first):
    run, output = first
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    shares = [line["pair_accuracy"] for line in lines if line["kind"] == "train"]
    assert len(shares) == STEPS
    assert all(0 <= share <= 1 and (share * PAIRS) % 1 == 0 for share in shares)
    comparison = read_json(run.eval / "comparison.json")
    assert comparison["metrics"].keys() == {"loss"}
    assert comparison["metrics"]["loss"]["records"] == 9
    base, tuned = (read_json(run.eval / f"{side}.json") for side in ("base", "tuned"))
    assert base["mean_margin"] != tuned["mean_margin"] == comparison["mean_margin"]
    answers = [json.loads(line) for line in (run.eval / "predictions.jsonl").open()]
    assert [line["id"] for line in answers] == list(range(9))
    report = (run.path / "report.html").read_text()
    assert "Margins" in report
    assert answers[0]["where"] in report
    assert (run.export / "config.json").is_file()


@pytest.mark.slow
def test_a_run_does_not_go_on_under_another_file(here, first):
    own = here.folder / "objective"
    own.mkdir()
    for file in (HERE / "objective").glob("pairs.*"):
        (own / file.name).write_text(file.read_text())
    command = (*LAUNCHER, "train", "--config-dir", str(here.folder))
    words = (*WORDS, *CUTS["one rank"], "checkpoint.every_steps=1")
    assert here.run(command, *here.words("own", *words)).code == ExitCode.ok
    with (own / "pairs.py").open("a") as file:
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


def test_an_unknown_metric_of_an_objective_is_told(tmp_path):
    text = (HERE / "objective" / "pairs.py").read_text()
    own = tmp_path / "objective"
    own.mkdir()
    changed = text.replace('= ("loss",)\n\n', '= ("loss", "margin")\n\n')
    assert changed != text
    (own / "pairs.py").write_text(changed)
    (own / "pairs.yaml").write_text((HERE / "objective" / "pairs.yaml").read_text())
    words = ("objective=pairs", "data=preference", "data.train=x.jsonl", "model.name=m")
    config = compose.compose([*words, "eval=default"], [tmp_path])
    problems = [
        p.found
        for p in checks.check(config, world_size=1, has_gpu=False)
        if p.where == "eval.metrics"
    ]
    assert problems == ["unknown metric 'margin'"]
