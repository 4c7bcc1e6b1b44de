"""Runs whose model answers: real commands from data to trained weights."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launcher.config.compose import compose
from launcher.core.errors import ExitCode
from launcher.core.rundir import RunDir
from launcher.objectives.grpo.advantages import advantages
from launcher.rollouts.answer import ScoredAnswer
from launcher.rollouts.journal import RolloutJournal
from support import project
from support.models import make_llama
from support.project import DIRECT, LAUNCHER, TORCHRUN, Project
from support.rollouts import kept

pytestmark = pytest.mark.slow

TRAIN = (*LAUNCHER, "train")
HERE = Path(__file__).parent
STEPS, ANSWERS, GROUP, NEW = 6, 16, 4, 6
GRADER = (
    "objective.grader={type: string_check, name: has, input: '{{sample.output_text}}',"
    " reference: '{{item.letter}}', operation: ilike}"
)
WORDS = (
    *("objective=grpo", GRADER, f"objective.group_size={GROUP}"),
    *(f"objective.max_new_tokens={NEW}", f"batch.sequences={ANSWERS}", f"train.steps={STEPS}"),
    *("data.max_length=64", "optim.lr=1e-2", "schedule=constant", "peft=none", "seed=3"),
    *("engine.precision=fp32", "checkpoint.every_steps=2", "checkpoint.keep_last=9"),
    "optim.eps=1e-4",  # or rounding of gradients that are 0 would have steps of full size
)


def questions(count: int) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Say {'aeiou'[i % 5]} {i}.", "completion": "aeiou"[i % 5], "letter": "e"}
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_llama(tmp_path_factory.mktemp("rollouts") / "model", initializer_range=0.1)


@pytest.fixture(scope="module")
def here(tmp_path_factory, model):
    made = Project(tmp_path_factory.mktemp("rollouts"), model)
    made.write_data(questions(24))
    return made


def trained(here: Project, name: str, *words: str, command: tuple[str, ...] = DIRECT) -> RunDir:
    done = here.run(command, *here.words(name, *WORDS, *words))
    assert done.code == ExitCode.ok, done.output
    return here.folder_of(name)


def rollouts(run: RunDir, answers: int = ANSWERS) -> dict[int, list[ScoredAnswer]]:
    return kept(run, answers)


def weights(run: RunDir) -> dict[str, str]:
    found = project.checkpoint_files(run)[STEPS]
    return {name: digest for name, digest in found.items() if name.startswith(("w", "o"))}


UPDATES = ("objective.updates_per_rollout=2", "objective.beta=0.2", "objective.max_redraws=1")


@pytest.fixture(scope="module")
def straight(here):
    return trained(here, "straight", *UPDATES)


def test_answers_are_kept_with_all_that_is_learned_of_them(straight):
    found = rollouts(straight, 2 * ANSWERS)
    assert list(found) == [0, 2, 4]
    options = compose.load(straight.config).objective
    for answers in found.values():
        assert [own.key for own in answers] == [(i // GROUP, i % GROUP) for i in range(32)]
        rewards = np.array([own.reward for own in answers], float).reshape(-1, GROUP)
        known = [own.advantage for own in answers]
        np.testing.assert_allclose(known, advantages(rewards, options).ravel())
        for own in answers:
            assert own.score == float("e" in own.text.lower())
            assert 1 <= len(own.tokens) == len(own.sampler_log_probs) == len(own.log_probs or [])
            assert own.cut is (len(own.tokens) == NEW and own.tokens[-1] not in (2, 6))
            assert len(own.tokens) <= NEW
            np.testing.assert_allclose(own.sampler_log_probs, own.log_probs, atol=1e-5)
    draws = {own.draw for answers in found.values() for own in answers}
    assert draws == {0, 1}
    lines = [json.loads(line) for line in straight.metrics.read_text().splitlines()]
    first, second = lines[:2]
    known = [own.score for own in found[0]]
    assert first["score"] == pytest.approx(np.mean(known))
    assert {"flat_groups", "cut_share", "grader_errors", "rollout_s", "kl"} <= first.keys()
    assert "score" not in second
    assert first["sampler_gap"] < 1e-5
    assert 0 < second["entropy"] <= np.log(300)


def plain_losses(run: RunDir, steps: int = STEPS) -> tuple[list[float], list[float]]:
    """The same training on the same answers by torch alone, with a second model as reference."""
    from transformers import AutoModelForCausalLM

    config = compose.load(run.config)
    options, optim = config.objective, config.optim
    model, base = (AutoModelForCausalLM.from_pretrained(config.model.name) for _ in range(2))
    betas = optim.beta1, optim.beta2
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=optim.lr, betas=betas, eps=optim.eps, weight_decay=0.0
    )
    found, losses, norms = rollouts(run, 2 * ANSWERS), [], []
    for step in range(steps):
        first, update = step - step % options.steps_per_rollout, step % 2
        places = range(update * ANSWERS // GROUP, (update + 1) * ANSWERS // GROUP)
        total = torch.zeros(())
        for own in (own for own in found[first] if own.place in places):
            new, reference = (_log_probs(one, own) for one in (model, base))
            ratio = (new - torch.tensor(own.log_probs)).exp()
            tis = (torch.tensor(own.log_probs) - torch.tensor(own.sampler_log_probs)).exp()
            policy = -torch.minimum(
                ratio * own.advantage, ratio.clamp(0.8, 1.2) * own.advantage
            ) * tis.clamp(max=2)
            d = new - reference.detach()
            total = total + (policy + options.beta * ((-d).exp() - 1 + d)).mean() / ANSWERS
        total.backward()
        squares = [p.grad.double().square().sum() for p in model.parameters()]
        norms.append(float(torch.stack(squares).sum().sqrt()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(total.detach()))
    return losses, norms


def _log_probs(model: Any, own: ScoredAnswer) -> torch.Tensor:
    ids = torch.tensor([[*own.prompt_tokens, *own.tokens]])
    scores = model(ids).logits[0, len(own.prompt_tokens) - 1 : -1].log_softmax(-1)
    found: torch.Tensor = scores.gather(1, torch.tensor(own.tokens)[:, None])[:, 0]
    return found


def test_a_run_is_that_of_plain_pytorch_on_its_answers(straight):
    losses, norms = plain_losses(straight)
    found = project.losses(straight, "grad_norm")
    np.testing.assert_allclose([found[s] for s in sorted(found)], norms, rtol=1e-5)
    found = project.losses(straight)
    np.testing.assert_allclose([found[s] for s in sorted(found)], losses, rtol=1e-4, atol=1e-7)


def test_answers_are_learned_from_in_several_passes(here):
    """Epochs count prompts, whatever is made of them."""
    words = ("objective.passes_per_rollout=2", "train.steps=null", "train.epochs=1")
    run = trained(here, "passes", *UPDATES, *words)
    found = rollouts(run, 2 * ANSWERS)
    assert list(found) == [0, 4, 8]  # 24 prompts, 8 of them a rollout, which has four steps
    losses, norms = plain_losses(run, 12)
    logged = project.losses(run, "grad_norm")
    np.testing.assert_allclose([logged[s] for s in sorted(logged)], norms, rtol=2e-5)
    assert any(project.losses(run, "clip_share")[step] > 0 for step in (3, 4))


CUTS = {
    "two": ("engine=zero2", "batch.micro=2"),
    "parts": ("engine=zero3", "data.packing=false"),
}


@pytest.mark.parametrize("cut", CUTS)
def test_two_ranks_answer_and_learn_alike(here, straight, cut):
    run = trained(here, cut, *UPDATES, *CUTS[cut], command=TORCHRUN)
    first, other = (rollouts(one, 2 * ANSWERS)[0] for one in (straight, run))
    assert [own.tokens for own in first] == [own.tokens for own in other]
    one, two = (project.losses(own, "grad_norm") for own in (straight, run))
    assert one[1] == pytest.approx(two[1], rel=1e-5)
    assert one[2] == pytest.approx(two[2], rel=1e-5)


# ---- killed


@pytest.mark.parametrize(
    ("place", "number"),
    [
        *(("rollout", 2), ("grading", 2), ("journal", 2), ("journal", 3)),
        *(("update", 2), ("update", 3), ("update", 4), ("save", 1), ("save", 3)),
    ],
)
def test_killed_anywhere_it_ends_with_the_same_bits(here, straight, place, number):
    name = f"killed-{place}-{number}"
    script = (sys.executable, str(HERE / "killed_rank.py"), place, str(number))
    done = here.run(script, *here.words(name, *WORDS, *UPDATES))
    assert done.code == -signal.SIGKILL, done.output
    run = here.folder_of(name)
    assert STEPS not in project.checkpoint_files(run)
    done = here.run(DIRECT, str(run))
    assert done.code == ExitCode.ok, done.output
    assert weights(run) == weights(straight)
    assert rollouts(run, 2 * ANSWERS) == rollouts(straight, 2 * ANSWERS)


def test_a_kept_rollout_is_learned_from_and_not_drawn_again(here, straight):
    """What is in the file decides, not what the model would say."""
    script = (sys.executable, str(HERE / "killed_rank.py"), "update", "1")
    here.run(script, *here.words("kept", *WORDS, *UPDATES))
    run = here.folder_of("kept")
    path = RolloutJournal(run, 2 * ANSWERS).path(0)
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(True)[:-1]))
    done = here.run(DIRECT, str(run))
    assert done.code == ExitCode.storage, done.output
    assert "31 answers, not 32" in done.output
    changed = whole.replace('"advantage": ', '"advantage": -').replace(": --", ": ")
    path.write_text(changed)
    done = here.run(DIRECT, str(run))
    assert done.code == ExitCode.ok, done.output
    assert path.read_text() == changed
    assert weights(run) != weights(straight)


def test_a_grader_that_is_edited_changes_later_runs_alone(here, straight):
    """A run goes on by its copy; what is wrong with a file is told by the key that names it."""
    path = here.folder / "edited.yaml"
    path.write_text(GRADER.partition("=")[2])
    words = (*WORDS, *UPDATES, "objective.grader=edited.yaml")
    script = (sys.executable, str(HERE / "killed_rank.py"), "update", "3")
    here.run(script, *here.words("edited", *words))
    run = here.folder_of("edited")
    path.write_text(path.read_text().replace("{{item.letter}}", "not in any answer"))
    done = here.run(DIRECT, str(run))
    assert done.code == ExitCode.ok, done.output
    assert weights(run) == weights(straight)
    path.write_text(path.read_text().replace("ilike", "alike"))
    said = refused(here, "mistyped", ExitCode.usage, "objective.grader=edited.yaml")
    assert "objective.grader.operation" in said


# ---- what goes wrong


def refused(here: Project, name: str, code: ExitCode, *words: str) -> str:
    done = here.run(TRAIN, *here.words(name, *WORDS, *words))
    assert done.code == code, done.output
    return done.output


def test_a_grader_that_gives_one_score_ends_the_run(here):
    never = GRADER.replace("{{item.letter}}", "not in any answer")
    said = refused(here, "same", ExitCode.data, never, "objective.constant_rollouts=2")
    assert "all answers of the first 2 rollouts score 0" in said
    assert list(rollouts(here.folder_of("same"))) == [0, 1]


def test_a_field_that_no_record_has_is_found_before_the_run(here):
    lacking = GRADER.replace("item.letter", "item.lettre")
    said = refused(here, "lacking", ExitCode.data, lacking)
    assert "data.jsonl:1" in said
    assert "lettre" in said
    assert not here.folder_of("lacking").rollouts.exists()


def test_prompts_that_leave_no_room_are_told(here):
    said = refused(here, "room", ExitCode.data, "objective.max_new_tokens=55")
    assert "prompts have more than the 9 tokens" in said
    hint = said.partition("HINT: ")[2].partition(",")[0].split()[0]
    assert hint.startswith("data.max_length=")
    trained(here, "room-again", "objective.max_new_tokens=55", hint, "train.steps=1")


def test_a_sampler_that_is_too_far_away_is_named(here):
    said = refused(here, "far", ExitCode.usage, "objective.max_sampler_gap=1e-12")
    assert "objective.max_sampler_gap" in said
    assert "nats a token from the trainer's" in said


#: Long enough for some answers to end.
LONG = ("objective.max_new_tokens=48",)


def test_cut_answers_are_left_out_on_wish(here):
    run = trained(here, "filter", "objective.cut_answers=filter", *LONG, "train.steps=1")
    found = rollouts(run)[0]
    assert any(own.cut for own in found)
    assert all(own.is_learned is not own.cut for own in found)


def test_answers_without_a_score_are_left_out_or_scored(here):
    code = "def grade(sample, item):\n    return 1.0 / ('e' in sample['output_text'])\n"
    wire = {"type": "python", "name": "p", "source": code}
    (here.folder / "grader.yaml").write_text(json.dumps(wire))
    grader = "objective.grader=grader.yaml"
    run = trained(here, "errors", grader, "train.steps=1")
    found = rollouts(run)[0]
    failed = [own for own in found if own.score is None]
    assert failed
    assert all(own.errors and not own.is_learned and own.reward is None for own in failed)
    more = ("objective.error_score=-1", "train.steps=1")
    run = trained(here, "scored", grader, *more)
    failed = [own for own in rollouts(run)[0] if own.score is None]
    assert failed
    assert all(own.is_learned and own.reward == -1 for own in failed)
