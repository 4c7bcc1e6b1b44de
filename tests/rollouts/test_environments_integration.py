"""Runs whose answers have several turns: real commands, environments in processes of their own."""

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
from launcher.rollouts.answer import ScoredAnswer
from support import project
from support.project import DIRECT, LAUNCHER, TORCHRUN, Project
from support.rollouts import kept
from support.speaking import CALCULATOR, make_speaker

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
STEPS, ANSWERS, GROUP, NEW, ROOM = 4, 16, 4, 8, 96
WORDS = (
    *("objective=grpo", "objective.environment=calculator.py", f"objective.group_size={GROUP}"),
    *(f"objective.max_new_tokens={NEW}", f"batch.sequences={ANSWERS}", f"train.steps={STEPS}"),
    *(f"data.max_length={ROOM}", "optim.lr=1e-2", "schedule=constant", "peft=none", "seed=3"),
    *("engine.precision=fp32", "checkpoint.every_steps=1", "checkpoint.keep_last=9"),
    "optim.eps=1e-4",  # or rounding of gradients that are 0 would have steps of full size
)
#: Every rollout is learned from in two steps, which makes old log-probabilities count.
TWICE = ("objective.updates_per_rollout=2",)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("environments")
    made = Project(folder, make_speaker(folder / "model"))
    made.write_data(
        [{"prompt": f"Add {i}.", "completion": str(i), "left": i, "right": 2} for i in range(24)]
    )
    (folder / "calculator.py").write_text(CALCULATOR)
    return made


def trained(here: Project, name: str, *words: str, command: tuple[str, ...] = DIRECT) -> RunDir:
    done = here.run(command, *here.words(name, *WORDS, *words))
    assert done.code == ExitCode.ok, done.output
    return here.folder_of(name)


def rollouts(run: RunDir, answers: int = 2 * ANSWERS) -> dict[int, list[ScoredAnswer]]:
    return kept(run, answers)


def weights(run: RunDir) -> dict[str, str]:
    found = project.checkpoint_files(run)[STEPS]
    return {name: digest for name, digest in found.items() if name.startswith(("w", "o"))}


@pytest.fixture(scope="module")
def straight(here):
    return trained(here, "straight", *TWICE)


def tokenizer_of(here: Project) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(here.model)


def test_conversations_are_laid_out_as_the_template_does(here, straight):
    """What was drawn stands as it was drawn; between it stands what the template writes."""
    tokenizer = tokenizer_of(here)
    found = rollouts(straight)
    assert list(found) == [0, 2]
    answers = [own for step in found.values() for own in step]
    assert {len(own.turns) for own in answers} == {1, 2}
    assert {own.cut for own in answers} == {True, False}
    for own in answers:
        opened, first, *more = own.messages
        record = 2 + own.record
        assert opened == {"role": "user", "content": f"{record - 2} + 2 ="}
        assert own.prompt_tokens == tokenizer.apply_chat_template(
            own.messages[:1], add_generation_prompt=True, return_dict=False
        )
        said = [tokenizer.decode(own.tokens[a:b], skip_special_tokens=True) for a, b in own.turns]
        assert said == [m["content"] for m in own.messages if m["role"] == "assistant"]
        assert own.text == said[-1]
        assert own.length == len(own.sampler_log_probs) == len(own.log_probs or [])
        if len(own.turns) == 1:
            assert own.cut
            continue
        (a, b), (c, d) = own.turns
        assert (a, d) == (0, len(own.tokens))
        between = f"<|user|>You said {first['content'][:9]}. Again?<|end|><|assistant|>"
        assert tokenizer.decode(own.tokens[b:c]) == between
        assert more[0] == {"role": "user", "content": f"You said {first['content'][:9]}. Again?"}
        if not own.cut:
            assert own.score == sum(len(text) % 2 == 0 for text in said)
    lines = [json.loads(line) for line in straight.metrics.read_text().splitlines()]
    first_line = lines[0]
    known = found[0]
    assert first_line["turns"] == pytest.approx(np.mean([len(own.turns) for own in known]))
    assert first_line["answer_tokens"] == pytest.approx(np.mean([own.length for own in known]))
    assert first_line["environment_errors"] == 0
    assert first_line["environment_s"] > 0
    assert first_line["sampler_gap"] < 1e-5


def _own_log_probs(model: Any, own: ScoredAnswer) -> torch.Tensor:
    ids = torch.tensor([[*own.prompt_tokens, *own.tokens]])
    scores = model(ids).logits[0, :-1].log_softmax(-1)
    found = scores.gather(1, ids[0, 1:, None])[:, 0]
    first = len(own.prompt_tokens) - 1
    return torch.cat([found[first + begin : first + end] for begin, end in own.turns])


def plain_losses(run: RunDir) -> tuple[list[float], list[float]]:
    """The same training on the same conversations by torch alone, of drawn tokens alone."""
    from transformers import AutoModelForCausalLM

    config = compose.load(run.config)
    optim = config.optim
    model = AutoModelForCausalLM.from_pretrained(config.model.name)
    betas = optim.beta1, optim.beta2
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=optim.lr, betas=betas, eps=optim.eps, weight_decay=0.0
    )
    found, losses, norms = rollouts(run), [], []
    for step in range(STEPS):
        places = range(step % 2 * ANSWERS // GROUP, (step % 2 + 1) * ANSWERS // GROUP)
        total = torch.zeros(())
        for own in (own for own in found[step - step % 2] if own.place in places):
            old = torch.tensor(own.log_probs)
            ratio = (_own_log_probs(model, own) - old).exp()
            tis = (old - torch.tensor(own.sampler_log_probs)).exp().clamp(max=2)
            kept = ratio.clamp(0.8, 1.2)
            policy = -torch.minimum(ratio * own.advantage, kept * own.advantage) * tis
            total = total + policy.mean() / ANSWERS
        total.backward()
        squares = [p.grad.double().square().sum() for p in model.parameters()]
        norms.append(float(torch.stack(squares).sum().sqrt()))
        torch.nn.utils.clip_grad_norm_(model.parameters(), optim.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(total.detach()))
    return losses, norms


def test_a_run_is_that_of_plain_pytorch_on_the_drawn_tokens(straight):
    losses, norms = plain_losses(straight)
    found = project.losses(straight, "grad_norm")
    np.testing.assert_allclose([found[s] for s in sorted(found)], norms, rtol=1e-5)
    found = project.losses(straight)
    np.testing.assert_allclose([found[s] for s in sorted(found)], losses, rtol=1e-4, atol=1e-7)


def test_two_ranks_with_parameters_in_parts_converse_alike(here, straight):
    words = (*TWICE, "engine=zero3", "batch.micro=2")
    run = trained(here, "parts", *words, command=TORCHRUN)
    first, other = (rollouts(one)[0] for one in (straight, run))
    assert [own.tokens for own in first] == [own.tokens for own in other]
    assert [own.messages for own in first] == [own.messages for own in other]
    one, two = (project.losses(own, "grad_norm") for own in (straight, run))
    assert one[1] == pytest.approx(two[1], rel=1e-5)
    assert one[2] == pytest.approx(two[2], rel=1e-5)


@pytest.mark.parametrize(
    ("place", "number"),
    [("turn", 2), ("turn", 40), ("journal", 2), ("save", 3)],
)
def test_killed_anywhere_it_ends_with_the_same_bits(here, straight, place, number):
    name = f"killed-{place}-{number}"
    script = (sys.executable, str(HERE / "killed_rank.py"), place, str(number))
    words = here.words(name, *WORDS, *TWICE)
    done = here.run(script, *words)
    assert done.code == -signal.SIGKILL, done.output
    run = here.folder_of(name)
    done = here.run(DIRECT, str(run))
    assert done.code == ExitCode.ok, done.output
    assert weights(run) == weights(straight)
    assert rollouts(run) == rollouts(straight)


# ---- rewards, limits and tools

GRADER = (
    "objective.grader={type: string_check, name: has, input: '{{sample.output_text}}',"
    " reference: e, operation: ilike}"
)


def variant(here: Project, name: str, old: str, new: str) -> str:
    """The calculator with another text somewhere, as a word of a command."""
    assert old in CALCULATOR
    (here.folder / f"{name}.py").write_text(CALCULATOR.replace(old, new))
    return f"objective.environment={name}.py"


def test_a_grader_decides_and_the_environment_is_told_beside_it(here):
    run = trained(here, "graded", GRADER, "train.steps=1")
    for own in rollouts(run, ANSWERS)[0]:
        assert own.score == float("e" in own.text.lower())
        assert own.sub_scores.keys() == {"environment"}


def test_a_grader_may_read_the_conversation(here):
    code = "def grade(sample, item):\n    return len(sample['messages']) + item['right']\n"
    (here.folder / "long.json").write_text(
        json.dumps({"type": "python", "name": "long", "source": code})
    )
    run = trained(here, "read", "objective.grader=long.json", "train.steps=1")
    found = rollouts(run, ANSWERS)[0]
    assert [own.score for own in found] == [len(own.messages) + 2 for own in found]


def test_an_endless_conversation_is_cut_at_its_turns_and_at_the_room(here):
    endless = variant(here, "endless", "if self.turns == 2:", "if False:")
    one = trained(here, "three", endless, "objective.max_turns=3", "train.steps=1")
    found = rollouts(one, ANSWERS)[0]
    assert max(len(own.turns) for own in found) == 3
    assert all(own.cut and own.score is not None for own in found)
    two = trained(here, "room", endless, "objective.max_turns=50", "train.steps=1")
    longest = [own for own in rollouts(two, ANSWERS)[0] if len(own.turns) > 1]
    for own in longest:
        total = len(own.prompt_tokens) + len(own.tokens)
        assert own.cut
        assert total <= ROOM
    assert any(own.turns[-1][1] - own.turns[-1][0] < NEW for own in longest)


def test_the_prompt_may_be_the_records(here):
    start = CALCULATOR.index('        return [{"role": "user", "content": f"{item')
    line = CALCULATOR[start : CALCULATOR.index("\n", start)]
    run = trained(here, "record", variant(here, "record", line, "        return"), "train.steps=1")
    for own in rollouts(run, ANSWERS)[0]:
        assert own.prompt == f"Add {own.record}."
        assert own.messages[0]["role"] == "assistant"


# ---- what goes wrong: the run goes on, or ends before its first step

FAULTS = {
    "hang": ("import time; time.sleep(99)", "it took longer than 1 s"),
    "exit": ("import os; os._exit(3)", "it ended itself with exit code 3"),
    "crash": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
    "raises": ("1 / 0", "line 9: ZeroDivisionError: division by zero"),
    "bombs": ("import os\n        while True: os.fork()", ""),
    "text": ("return 'more'", "step returned 'more', which is no list of messages"),
    "role": (
        "return [{'role': 'assistant', 'content': 'x'}]",
        "a message of role 'assistant'",
    ),
    "content": ("return [{'role': 'user'}]", "without a text as its content"),
    "long": ("return [{'role': 'user', 'content': 'x' * 99999}]", "more than the 65,536 allowed"),
    "object": ("return [{'role': 'user', 'content': self}]", "TypeError"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_environment_ends_its_answer_and_not_the_run(here, fault):
    """The grader scores what is there."""
    code, said = FAULTS[fault]
    line = "        self.turns += 1\n"
    environment = variant(here, fault, line, f"{line}        {code}\n")
    words = (GRADER, environment, "objective.turn_s=1", "train.steps=1")
    run = trained(here, f"fault-{fault}", *words)
    found = rollouts(run, ANSWERS)[0]
    failed = [own for own in found if not own.cut]
    assert failed
    for own in failed:
        (error,) = own.errors
        assert error.startswith("environment_error: step")
        assert said in error
        assert own.score is not None
    share = project.losses(run, "environment_errors")[1]
    assert share == pytest.approx(len(failed) / ANSWERS)


def refused(here: Project, name: str, code: ExitCode, *words: str) -> str:
    done = here.run((*LAUNCHER, "train"), *here.words(name, *WORDS, *words))
    assert done.code == code, done.output
    return done.output


REFUSALS = {
    "missing": ("objective.environment=nowhere.py", "no such file"),
    "name": ("objective.environment=calculator", "objective.environment=FILE.py"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_no_file_is_refused_before_the_run(here, name):
    word, said = REFUSALS[name]
    assert said in refused(here, f"no-{name}", ExitCode.usage, word)


LACKING = {
    "class": ("class Environment:", "class Other:", "Environment"),
    "syntax": ("def reset(self, item):", "def reset(self, item:", "line 3: SyntaxError"),
    "reset": ('"role": "user", "content": f"{item', '"role": "us", "content": f"{item', "'us'"),
    "score": ("def score(self):", "def result(self):", "has no score()"),
}


@pytest.mark.parametrize("name", LACKING)
def test_a_file_that_is_no_environment_is_refused_before_the_first_step(here, name):
    old, new, said = LACKING[name]
    shown = refused(here, f"lacks-{name}", ExitCode.usage, variant(here, f"lacks_{name}", old, new))
    assert said in shown
    assert not here.folder_of(f"lacks-{name}").metrics.exists()


def test_an_environment_that_always_fails_ends_the_run_with_its_error(here):
    environment = variant(here, "always", "self.turns += 1", "raise ValueError('no such tool')")
    shown = refused(here, "always", ExitCode.data, environment, "objective.max_new_tokens=40")
    assert "ValueError: no such tool" in shown
    assert "mend the environment" in shown
