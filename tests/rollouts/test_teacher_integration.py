"""On-policy distillation by the real command: a teacher's word on each token that was drawn, or all
of its distribution there."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.config.schema.distill import Divergence
from launcher.core.errors import ExitCode
from launcher.core.rundir import RunDir
from launcher.rollouts.answer import ScoredAnswer
from launcher.rollouts.journal import RolloutJournal
from support import project
from support.distillation import divergence
from support.models import make_llama
from support.project import DIRECT, LAUNCHER, TORCHRUN, Project

pytestmark = pytest.mark.slow

TRAIN = (*LAUNCHER, "train")
HERE = Path(__file__).parent
STEPS, ANSWERS, NEW, HEAT = 4, 16, 8, 0.8
WORDS = (
    *("objective=grpo", "objective.loss=dapo", "objective.group_size=4", "seed=3"),
    *(f"objective.max_new_tokens={NEW}", f"objective.temperature={HEAT}"),
    *(f"batch.sequences={ANSWERS}", "data.max_length=64", "optim.lr=1e-2", "schedule=constant"),
    *("peft=none", "engine.precision=fp32", "checkpoint.every_steps=2", "checkpoint.keep_last=9"),
)
TAUGHT = ("objective.teacher=teacher", f"train.steps={STEPS}", "objective.updates_per_rollout=2")
KINDS = {
    "drawn": TAUGHT,
    "whole": (*TAUGHT, "objective.teacher_divergence=jsd", "objective.teacher_beta=0.3"),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught")
    made = Project(folder, make_llama(folder / "model", initializer_range=0.1))
    made.write_data([{"prompt": f"Say {i} and {i + 1}.", "completion": "a"} for i in range(32)])
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "initializer_range": 0.15}
    make_llama(made.folder / "teacher", seed=1, vocab_size=320, **sizes)
    return made


def trained(here: Project, name: str, *words: str, command: tuple[str, ...] = DIRECT) -> RunDir:
    done = here.run(command, *here.words(name, *WORDS, *words))
    assert done.code == ExitCode.ok, done.output
    return here.folder_of(name)


@pytest.fixture(scope="module")
def straight(here):
    return trained(here, "straight", *TAUGHT)


@pytest.fixture(scope="module")
def whole(here):
    return trained(here, "straight-whole", *KINDS["whole"])


@pytest.fixture(params=KINDS)
def kind(request) -> str:
    return str(request.param)


@pytest.fixture
def unbroken(kind, straight, whole) -> RunDir:
    return straight if kind == "drawn" else whole


def answers_of(run: RunDir, step: int) -> list[ScoredAnswer]:
    return RolloutJournal(run, 2 * ANSWERS).read(step) or []


def lines(run: RunDir) -> list[dict[str, Any]]:
    found = map(json.loads, run.metrics.read_text().splitlines())
    return [line for line in found if line["kind"] == "train"]


def logits(model: Any, own: ScoredAnswer) -> torch.Tensor:
    ids = torch.tensor([[*own.prompt_tokens, *own.tokens]])
    found: torch.Tensor = model(ids).logits[0, len(own.prompt_tokens) - 1 : -1, :300]
    return found / HEAT


@torch.no_grad()
def test_the_teacher_is_asked_for_each_token_that_was_drawn(here, straight):
    teacher = AutoModelForCausalLM.from_pretrained(here.folder / "teacher")
    apart = []
    for own in answers_of(straight, 0):
        chosen = torch.tensor(own.tokens)[:, None]
        expected = logits(teacher, own).log_softmax(-1).gather(1, chosen)[:, 0]
        np.testing.assert_allclose(own.teacher_log_probs, expected, atol=1e-5)
        assert (own.score, own.advantage, own.is_learned) == (None, 0.0, True)
        if own.place < ANSWERS // 4:
            apart += (torch.tensor(own.log_probs) - expected).tolist()
    first = lines(straight)[0]
    assert first["teacher_kl"] == pytest.approx(np.mean(apart), rel=1e-4)
    assert not {"score", "flat_groups"} & first.keys()


@torch.no_grad()
def test_all_of_the_teachers_distribution_is_learned(here, whole):
    student, teacher = (
        AutoModelForCausalLM.from_pretrained(here.folder / name) for name in ("model", "teacher")
    )
    far = []
    for own in answers_of(whole, 0)[:ANSWERS]:
        assert own.teacher_log_probs is None
        q, p = (logits(one, own).softmax(-1) for one in (student, teacher))
        far += divergence(Divergence.jsd, 0.3, p, q).tolist()
    first = lines(whole)[0]
    assert first["teacher_divergence"] == pytest.approx(np.mean(far), rel=1e-5)
    assert first["loss"] == pytest.approx(np.mean(far), rel=1e-5)  # without a grader
    assert not {"teacher_kl", "score"} & first.keys()


def test_two_ranks_learn_alike(here, kind, unbroken):
    run = trained(here, f"sharded-{kind}", *KINDS[kind], "engine=zero3", command=TORCHRUN)
    one, two = lines(unbroken), lines(run)
    for key in ("grad_norm", "teacher_kl" if kind == "drawn" else "teacher_divergence"):
        assert one[0][key] == pytest.approx(two[0][key], rel=1e-5)


@pytest.mark.parametrize(("place", "number"), [("update", 2), ("journal", 2)])
def test_killed_anywhere_it_ends_with_the_same_bits(here, kind, unbroken, place, number):
    name = f"killed-{kind}-{place}"
    script = (sys.executable, str(HERE / "killed_rank.py"), place, str(number))
    done = here.run(script, *here.words(name, *WORDS, *KINDS[kind]))
    assert done.code == -signal.SIGKILL, done.output
    done = here.run(DIRECT, str(here.folder_of(name)))
    assert done.code == ExitCode.ok, done.output
    kept = [project.checkpoint_files(run)[STEPS] for run in (unbroken, here.folder_of(name))]
    ours, theirs = ({k: v for k, v in own.items() if k[0] in "wo"} for own in kept)
    assert ours == theirs


def test_a_teacher_that_is_the_model_itself_teaches_nothing(here):
    run = trained(here, "itself", f"objective.teacher={here.folder}/model", "train.steps=1")
    (line,) = lines(run)
    assert abs(line["teacher_kl"]) < 1e-6
    assert line["grad_norm"] < 1e-5
    more = ("objective.teacher_divergence=forward", "train.steps=1")
    run = trained(here, "itself-whole", f"objective.teacher={here.folder}/model", *more)
    (line,) = lines(run)
    assert abs(line["teacher_divergence"]) < 1e-6
    assert line["grad_norm"] < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("learned", ["null", "jsd"])
def test_a_model_approaches_its_teacher_on_prompts_that_it_has_not_learned(here, learned):
    more = ("objective.teacher=teacher", "train.steps=60", "export.at_end=true")
    more += (f"objective.teacher_divergence={learned}", "batch.sequences=32")
    run = trained(here, f"longer-{learned}", *more, "checkpoint.every_steps=null")
    key = "teacher_kl" if learned == "null" else "teacher_divergence"
    found = [line[key] for line in lines(run)]
    assert np.mean(found[-5:]) < 0.7 * np.mean(found[:5])
    tokenizer = AutoTokenizer.from_pretrained(here.folder / "model")
    start, teacher, tuned = (
        AutoModelForCausalLM.from_pretrained(folder)
        for folder in (here.folder / "model", here.folder / "teacher", run.export)
    )
    far = []
    for model in (start, tuned):  # each on what it says itself
        torch.manual_seed(0)
        apart = []
        for i in range(60, 80):
            ids = tokenizer(f"Say {i} and {i + 1}.", return_tensors="pt")["input_ids"]
            said = model.generate(ids, max_new_tokens=NEW, do_sample=True)
            q, p = (
                (one(said).logits[0, ids.shape[1] - 1 : -1, :300] / HEAT).log_softmax(-1)
                for one in (model, teacher)
            )
            apart.append(float((q.exp() * (q - p)).sum(-1).mean()))
        far.append(np.mean(apart))
    before, after = far
    assert after < 0.85 * before


def test_a_grader_and_a_teacher_speak_together(here):
    grader = "{type: string_check, name: a, input: '{{sample.output_text}}', reference: a,"
    more = (f"objective.grader={grader} operation: ilike}}", "objective.teacher_weight=0.1")
    more += ("objective.teacher=teacher", "train.steps=1")
    run = trained(here, "both", *more)
    (line,) = lines(run)
    assert {"score", "teacher_kl", "flat_groups"} <= line.keys()
    assert any(own.advantage for own in RolloutJournal(run, ANSWERS).read(0) or [])
    lora = ("peft=lora", "objective.beta=0.1", "engine=zero2", "objective.loss=rloo")
    run = trained(here, "both-whole", *more, "objective.teacher_divergence=reverse", *lora)
    (line,) = lines(run)
    assert {"score", "teacher_divergence", "flat_groups", "kl"} <= line.keys()


def test_a_teacher_with_other_tokens_is_refused(here):
    make_llama(here.folder / "foreign")
    path = here.folder / "foreign" / "tokenizer.json"
    about = json.loads(path.read_text())
    words = about["model"]["vocab"]
    one, two = list(words)[-2:]
    words[one], words[two] = words[two], words[one]
    path.write_text(json.dumps(about))
    done = here.run(TRAIN, *here.words("foreign", *WORDS, "objective.teacher=foreign"))
    assert done.code == ExitCode.usage, done.output
    assert "foreign has another tokenizer than the model" in done.output
