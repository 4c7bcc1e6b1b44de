"""Objectives over pairs of answers: formulas, and real ranks against plain PyTorch."""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from launcher.config.compose import compose
from launcher.config.schema import preference, variants
from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from launcher.data.cache import TokenCache
from launcher.data.chat.masking import ChatOptions
from launcher.data.formats.base import BadRecord, Preference
from launcher.data.tokenizer import load_tokenizer
from launcher.evals.metric import make_metrics, score_all
from launcher.evals.records import Results
from launcher.objectives.preference import drift, outcome
from launcher.objectives.preference.encoder import PairEncoder
from launcher.objectives.preference.pairs import Answers
from launcher.objectives.preference.records import PairRecord
from support import hints, project
from support.project import LAUNCHER, Project

TRAIN = (*LAUNCHER, "train")
STEPS, PAIRS = 3, 8


def answers(seed: int = 0, pairs: int = 5) -> Answers:
    """Random log-probabilities in fp64, of which gradients may be asked."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 9, (pairs, 2), generator=draw).double()
    nats = -tokens * torch.rand(pairs, 2, generator=draw, dtype=torch.float64) - 0.05
    reference = nats + torch.randn(pairs, 2, generator=draw, dtype=torch.float64)
    margins = torch.rand(pairs, generator=draw, dtype=torch.float64)
    return Answers(nats.requires_grad_(), tokens, reference, margins)


def judged(name: str, found: Answers, **options: Any) -> Any:
    made = variants.objective(variants.OPTIONS["objective"][name](name=name, **options))
    return made.judge_pairs(found)


def sigma(x: Any) -> Any:
    return 1 / (1 + math.exp(-x))


def by_hand(loss: str, found: Answers, i: int, beta: float, wrong: float) -> float:
    """The papers' formulas in plain numbers."""
    (lw, lv), (rw, rv) = found.log_probs[i].tolist(), found.reference[i].tolist()
    (nw, nv) = found.tokens[i].tolist()
    d = beta * ((lw - rw) - (lv - rv))
    return {
        "sigmoid": -(1 - wrong) * math.log(sigma(d)) - wrong * math.log(1 - sigma(d)),
        "robust": (-(1 - wrong) * math.log(sigma(d)) + wrong * math.log(1 - sigma(d)))
        / (1 - 2 * wrong),
        "hinge": max(0.0, 1 - d),
        "ipo": ((lw - rw) / nw - (lv - rv) / nv - 1 / (2 * beta)) ** 2,
        "apo_zero": 1 - sigma(beta * (lw - rw)) + sigma(beta * (lv - rv)),
        "apo_down": sigma(beta * (lw - rw)) + 1 - sigma(d),
        "orpo": -lw / nw
        - beta
        * math.log(
            sigma(
                math.log(math.exp(lw / nw) / (1 - math.exp(lw / nw)))
                - math.log(math.exp(lv / nv) / (1 - math.exp(lv / nv)))
            )
        ),
        "simpo": -math.log(sigma(beta * lw / nw - beta * lv / nv - 0.7)),
        "cpo": -math.log(sigma(beta * (lw - lv))) - 0.3 * lw / nw,
    }[loss]


@pytest.mark.parametrize("loss", list(preference.DpoLoss))
@pytest.mark.parametrize("seed", range(3))
def test_dpo_losses_are_those_of_the_papers(loss, seed):
    found = answers(seed)
    wrong = 0.2 if loss.name in ("sigmoid", "robust") else 0.0
    made = judged("dpo", found, loss=loss, beta=0.4, label_smoothing=wrong)
    known = [by_hand(loss.name, found, i, 0.4, wrong) for i in range(5)]
    np.testing.assert_allclose(made.losses.tolist(), known, rtol=1e-12)
    scale = found.tokens if loss.name == "ipo" else 1
    torch.testing.assert_close(made.rewards, 0.4 * (found.log_probs - found.reference) / scale)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("orpo", {"odds_weight": 0.4}),
        ("simpo", {"beta": 0.4, "gamma": 0.7}),
        ("cpo", {"beta": 0.4, "sft_weight": 0.3}),
    ],
)
def test_losses_without_a_reference_are_those_of_the_papers(name, options):
    found = answers(4)
    made = judged(name, found._replace(reference=None), **options)
    known = [by_hand(name, found, i, 0.4, 0.0) for i in range(5)]
    np.testing.assert_allclose(made.losses.tolist(), known, rtol=1e-12)


def test_what_is_added_to_a_loss():
    found = answers()
    plain = judged("dpo", found, beta=0.4)
    nats = -found.log_probs[:, 0] / found.tokens[:, 0]
    rpo = judged("dpo", found, beta=0.4, sft_weight=0.5)
    torch.testing.assert_close(rpo.losses, plain.losses + 0.5 * nats)
    lead = plain.rewards[:, 0] - plain.rewards[:, 1]
    led = judged("dpo", found, beta=0.4, margin_weight=0.5)
    torch.testing.assert_close(led.losses, -logsigmoid(lead - 0.5 * found.margins))
    each = judged("dpo", found, beta=0.4, length_normalization=True)
    torch.testing.assert_close(each.rewards, 0.4 * found.gains / found.tokens)


@pytest.mark.parametrize("name", ["dpo", "orpo", "simpo", "cpo"])
def test_extreme_answers_have_finite_gradients(name):
    nats = torch.tensor([[-1e-7, -9e3], [-9e3, -1e-7], [-5.0, -5.0]], requires_grad=True)
    tokens, margins = torch.full((3, 2), 4.0), torch.zeros(3)
    found = Answers(nats, tokens, torch.full((3, 2), -20.0), margins)
    judged(name, found).losses.sum().backward()
    assert torch.isfinite(nats.grad).all()


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["objective.beta=0"], "objective.beta"),
        (["objective.loss=hinge", "objective.label_smoothing=0.1"], "objective.label_smoothing"),
        (["objective.label_smoothing=0.5"], "objective.label_smoothing"),
        (["objective.loss=ipo", "objective.margin_weight=1"], "objective.margin_weight"),
        (["data.overlong=split"], "data.overlong"),
        (["data=chat"], "objective.name"),
    ],
)
def test_options_that_a_loss_has_no_use_for(words, where):
    from launcher.config.check import checks

    config = compose.compose(
        ["objective=dpo", "data=preference", "data.train=x.jsonl", "model.name=m", *words]
    )
    problems = list(checks.check(config, world_size=1, has_gpu=False))
    (problem,) = [one for one in problems if one.where == where]
    assert problem.hint


# ---- from record to documents


TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Two and two?"},
]


def said(content: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": content}]


def test_only_the_answers_are_learned(tiny_llama: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    encoder = PairEncoder(tokenizer, ChatOptions())
    pair = Preference(TURNS, said("Four."), said("Five, I think."))
    (found,) = encoder.encode([pair])
    assert not isinstance(found, BadRecord)
    (piece,) = found.pieces
    assert sum(piece.lengths) == len(piece.tokens)
    assert len(piece.lengths) == 2
    ends = np.cumsum(piece.lengths)
    parts = [slice(0, ends[0]), slice(ends[0], ends[1])]
    learned = [tokenizer.decode(piece.tokens[part][piece.targets[part] > 0]) for part in parts]
    assert learned == ["Four.<|end|>", "Five, I think.<|end|>"]
    whole = tokenizer.apply_chat_template([*TURNS, *pair.chosen], return_dict=True)["input_ids"]
    assert piece.tokens[parts[0]].tolist() == whole


def test_without_a_template_texts_are_prompt_and_completion(tiny_llama: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    tokenizer.chat_template = None
    encoder = PairEncoder(tokenizer, ChatOptions())
    (found,) = encoder.encode([Preference(TURNS[2:], said("Four."), said("Five."))])
    assert not isinstance(found, BadRecord)
    tokens, targets = found.pieces[0].tokens, found.pieces[0].targets
    first = found.pieces[0].lengths[0]
    text = tokenizer.decode(tokens[:first][targets[:first] > 0], skip_special_tokens=True)
    assert text == "Four."


# ---- held-out pairs


def record(number: int, chosen: float, rejected: float, reference: float = -4.0) -> PairRecord:
    rewards = chosen - reference, rejected - reference
    return PairRecord(number, chosen, rejected, *rewards, [2, 4], [reference, reference])


def test_what_is_scored():
    config = compose.compose(["objective=dpo", "model.name=m", "data.train=x", "eval=default"])
    config.eval.metrics = [*config.objective.metrics[1:]]
    records = [record(0, -2.0, -6.0), record(1, -6.0, -2.0), record(2, -3.0, -3.0)]
    records[:2] = [replace(one, divergence=one.id + 0.5) for one in records[:2]]
    scores = score_all(
        make_metrics(config.eval, config.objective.own_metrics), Results({"pairs": records})
    )
    assert scores == {
        "preference_accuracy": 0.5,
        "preference_margin": 0.0,
        "chosen_change": pytest.approx((2 - 2 + 1) / 6),
        "rejected_change": pytest.approx((-2 + 2 + 1) / 12),
        "reference_kl": pytest.approx((0.5 + 1.5) / 12),
    }


def test_chosen_answers_that_become_less_likely_are_warned_of():
    assert not outcome.warnings([record(0, -3.9, -9.0)])
    (told,) = outcome.warnings([record(0, -8.0, -90.0), record(1, -9.0, -90.0)])
    assert "-2.250 nats a token" in told
    assert "objective.sft_weight=1" in told
    made = outcome.section([record(0, -2.0, -6.0), record(1, -6.0, -2.0)])
    assert made["blocks"][-1]["rows"] == [["longer", "0", ""], ["as long", "0", ""]] + [
        ["shorter", "2", "50.0%"]
    ]


# ---- real ranks


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    words = ["red", "blue", "green", "seven", "eight", "nine", "apple", "pear", "plum"]

    def text(most: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(1, most)))

    made = ({"prompt": text(6), "chosen": text(9), "rejected": text(9)} for _ in range(9 * count))
    return [one for one in made if one["chosen"] != one["rejected"]][:count]


WORDS = (
    *("data=preference", "data.max_length=160", "data.shuffle=false", "data.packing=false"),
    *(f"batch.sequences={PAIRS}", "seed=3", f"train.steps={STEPS}", "optim.lr=1e-3"),
    *("schedule=constant", "optim.clip_norm=0", "checkpoint.every_steps=null", "peft=none"),
    "engine.precision=fp32",
)
TWO = ("launch.processes=2", "batch.micro=1", "engine=zero2")
DPO = ("objective=dpo", "objective.beta=0.5")
#: Others, with options that make each part of their losses count.
OTHERS = {
    "ipo": ("objective=dpo", "objective.loss=ipo", "objective.sft_weight=0.5"),
    "orpo": ("objective=orpo", "objective.odds_weight=0.5"),
    "simpo": ("objective=simpo", "objective.sft_weight=0.1"),
    "cpo": ("objective=cpo",),
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    made = Project(tmp_path_factory.mktemp("preference"))
    made.write_data(pairs(STEPS * PAIRS))
    text = "".join(json.dumps(one) + "\n" for one in pairs(9, seed=1))
    (made.folder / "held_out.jsonl").write_text(text)
    return made


def plain_losses(run, objective) -> list[float]:
    """The same training by one document a forward, torch's own log-softmax and AdamW."""
    from transformers import AutoModelForCausalLM

    config = compose.load(run.config)
    cache = TokenCache.open(read_json(run.data)["train"])
    load_tokenizer(config.model)
    model, base = (
        AutoModelForCausalLM.from_pretrained(config.model.name, dtype=torch.float32)
        for _ in range(2)
    )
    optim = config.optim
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=optim.lr, betas=(optim.beta1, optim.beta2), weight_decay=0.0
    )
    losses = []
    for step in range(STEPS):
        total = 0.0
        for number in range(step * PAIRS, (step + 1) * PAIRS):
            tokens, flags = (torch.from_numpy(x.astype(np.int64)) for x in cache.record(number))
            sums, counts, references, begin = [], [], [], 0
            for length in cache.documents(number):
                own, learned = tokens[begin : begin + length], flags[begin : begin + length]
                for one, into in ((model, sums), (base, references)):
                    scores = one(own[None]).logits[0, :-1].log_softmax(-1)
                    into.append((scores.gather(1, own[1:, None])[:, 0] * learned[1:]).sum())
                counts.append(learned[1:].sum().float())
                begin += length
            found = Answers(
                torch.stack(sums)[None],
                torch.stack(counts)[None],
                torch.stack(references).detach()[None],
                torch.zeros(1),
            )
            loss = objective.judge_pairs(found).losses.sum()
            (loss / PAIRS).backward()
            total += float(loss.detach())
        losses.append(total / PAIRS)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def trained(here: Project, name: str, *words: str) -> Any:
    done = here.run(TRAIN, *here.words(name, *WORDS, *words))
    assert done.code == ExitCode.ok, done.output
    return here.folder_of(name), done.output


def numbers(run: Any) -> list[float]:
    found = project.losses(run)
    return [found[step] for step in sorted(found)]


def objective_of(run: Any) -> Any:
    return variants.objective(compose.load(run.config).objective)


@pytest.fixture(scope="module")
def first(here):
    more = ("eval=default", "data.validation=held_out.jsonl", "eval.metrics=null")
    more += ("export.at_end=true",)
    return trained(here, "first", *DPO, *TWO, *more)


@pytest.mark.slow
def test_dpo_is_that_of_plain_pytorch(first):
    run, output = first
    np.testing.assert_allclose(numbers(run), plain_losses(run, objective_of(run)), rtol=1e-5)
    assert "reference: the model before training on 24 training records" in output
    scores = read_json(run.eval / "base.json")["metrics"]
    assert scores["loss"] == pytest.approx(math.log(2), rel=1e-6)
    # Whatever cut the reference was made by: the base has gained nothing, to the last digit.
    assert scores["preference_accuracy"] == 0.5
    assert scores["chosen_change"] == scores["rejected_change"] == 0
    assert scores["reference_kl"] == pytest.approx(0, abs=1e-6)
    comparison = read_json(run.eval / "comparison.json")
    assert comparison["metrics"].keys() == {*preference.DpoConfig.metrics}
    assert "Preferences" in (run.path / "report.html").read_text()


@pytest.mark.slow
def test_how_far_a_model_has_gone_is_that_of_plain_pytorch(first):
    from transformers import AutoModelForCausalLM

    run, _ = first
    cache = TokenCache.open(read_json(run.data)["validation"])
    folders = compose.load(run.config).model.name, str(run.export)
    base, tuned = map(AutoModelForCausalLM.from_pretrained, folders)
    counted, whole, count = 0.0, 0.0, 0
    for number in range(len(cache)):
        tokens, flags = (torch.from_numpy(x.astype(np.int64)) for x in cache.record(number))
        sizes = cache.documents(number)
        for own, learned in zip(tokens.split(sizes), flags.split(sizes), strict=True):
            rows = learned[1:].bool()
            with torch.no_grad():
                q, p = (one(own[None]).logits[0, :-1][rows].softmax(-1) for one in (tuned, base))
            terms = q * (q / p).log() - q + p
            counted += float(terms.gather(1, p.topk(drift.TOP).indices).sum())
            whole += float(terms.sum())
            count += int(rows.sum())
    found = read_json(run.eval / "comparison.json")["metrics"]["reference_kl"]
    assert found["base"] == pytest.approx(0, abs=1e-6)
    # A random model hardly prefers any token: most of it is in those that are drawn.
    assert counted < 0.2 * whole
    assert found["tuned"] == pytest.approx(whole / count, rel=0.1)


def test_what_is_drawn_stands_for_all_others():
    """Over many tokens the estimate is the divergence itself, for models near and far."""
    draw = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4000, 97, generator=draw)
    log_p = logits.log_softmax(-1)
    tokens, kept = drift._kept(log_p, torch.rand(4000, generator=draw, dtype=torch.float64))
    tokens = tokens.long()
    assert torch.equal(kept, log_p.gather(1, tokens))
    assert not (tokens[:, : drift.TOP, None] == tokens[:, None, drift.TOP :]).any()
    for size, rel in ((0.0, 0.0), (0.1, 0.01), (1.0, 0.05)):
        moved = logits + size * torch.randn(4000, 97, generator=draw)
        log_q = moved.log_softmax(-1)
        whole = float((log_q.exp() * (log_q - log_p)).sum(-1).mean())
        found = drift._divergence(kept, log_q.gather(1, tokens))
        assert float(found.min()) >= 0
        assert float(found.mean()) == pytest.approx(whole, rel=rel, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cut", "words"),
    {
        "one rank": ("launch.processes=1", "batch.micro=8", "engine=zero0"),
        "parameters in parts": ("launch.processes=2", "batch.micro=2", "engine=zero3"),
        "a document a line": ("launch.processes=1", "batch.micro=4", "model.attention=sdpa"),
    }.items(),
)
def test_dpo_does_not_depend_on_the_cut(here, first, cut, words):
    run, output = trained(here, cut.replace(" ", "-"), *DPO, *words)
    np.testing.assert_allclose(numbers(run), numbers(first[0]), rtol=1e-5)
    assert "reference: the model before" not in output  # the first run has asked it


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OTHERS))
def test_others_are_those_of_plain_pytorch(here, name):
    run, _ = trained(here, name, *OTHERS[name], *TWO)
    np.testing.assert_allclose(numbers(run), plain_losses(run, objective_of(run)), rtol=1e-5)


@pytest.mark.slow
def test_adapters_are_judged_against_their_base(here, first):
    lora = ("peft=lora", "peft.rank=4", "peft.dropout=0", "optim.lr=1e-2")
    one, output = trained(here, "lora", *DPO, *lora, "launch.processes=1", "batch.micro=4")
    assert "reference: the model before" not in output  # it is the base, which was asked before
    assert numbers(one)[0] == pytest.approx(math.log(2), rel=1e-5)
    assert numbers(one)[2] < numbers(one)[0]
    two, _ = trained(here, "lora-3", *DPO, *lora, "launch.processes=2", "engine=zero3")
    np.testing.assert_allclose(numbers(two), numbers(one), rtol=1e-5)


def typed(here: Project, done: Any) -> list[str]:
    """Type what is hinted at where data is missing; the verbs."""
    assert done.code == ExitCode.data, done.output
    found = hints.commands(done.output)
    for words in found:
        assert here.run(LAUNCHER, *words).code == ExitCode.ok
    return [words[0] for words in found]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_bit_and_a_lost_reference_is_made_again(here, first):
    more = ("checkpoint.every_steps=2", "eval=default", "data.validation=held_out.jsonl")
    more += ("train.steps=6", "data.cache=own", *TWO)
    whole, _ = trained(here, "whole", *DPO, *more)
    running = here.start(TRAIN, *here.words("killed", *WORDS, *DPO, *more))
    killed = here.folder_of("killed")
    running.wait_until(lambda: [*killed.checkpoints.glob("step-*2/manifest.json")], "a checkpoint")
    project.kill_rank(killed, 1, signal.SIGKILL)
    assert running.end().code != ExitCode.ok
    killed.reference.unlink()
    unknown = here.run((*LAUNCHER, "eval"), "runs/killed", "--checkpoint", "2")
    assert typed(here, unknown) == ["resume"]
    files = [
        sorted((run.checkpoints / "step-00000006").glob("*.safetensors")) for run in (whole, killed)
    ]
    assert files[0]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    shutil.rmtree(here.folder / "own" / "reference")
    assert typed(here, here.run((*LAUNCHER, "eval"), "runs/whole")) == ["eval"]
    assert here.run((*LAUNCHER, "eval"), "runs/whole").code == ExitCode.ok
    # Further steps read further records, and ask the base, not the model that has learned.
    longer = here.run((*LAUNCHER, "resume"), "runs/killed", "train.steps=8")
    assert longer.code == ExitCode.ok, longer.output
    straight, _ = trained(here, "straight", *DPO, *more, "train.steps=8")
    np.testing.assert_allclose(numbers(killed), numbers(straight), rtol=1e-5)


@pytest.mark.slow
def test_a_run_is_compared_with_the_fine_tuned_model_that_it_began_with(here):
    records = [project.chat(one["prompt"], one["chosen"]) for one in pairs(24)]
    (here.folder / "chats.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    tuned = here.run(
        TRAIN,
        *here.words("tuned", "data.train=chats.jsonl", "data.validation_share=0.2", "peft=none"),
        *("batch.sequences=4", "train.steps=4", "eval=default", "export.at_end=true"),
    )
    assert tuned.code == ExitCode.ok, tuned.output
    start = f"model.name={here.folder_of('tuned').export}"
    more = ("eval=default", "data.validation=held_out.jsonl", "launch.processes=1")
    run, _ = trained(here, "preferred", *DPO, *more, start)
    done = here.run((*LAUNCHER, "compare"), "tuned", "preferred", "--json")
    assert done.code == ExitCode.ok, done.output
    assert "preferred began with the export of tuned: preferred:base stands for it" in done.output
    (made,) = json.loads(done.output[done.output.index("[\n") :])
    own = read_json(run.eval / "comparison.json")["metrics"]
    assert made["metrics"].keys() == own.keys() == {*preference.DpoConfig.metrics}
    assert all(made["metrics"][name] == own[name] for name in own)
    backwards = here.run((*LAUNCHER, "compare"), "preferred", "tuned")
    assert "preferred:base against preferred" in backwards.output


@pytest.mark.slow
def test_packs_learn_what_single_pairs_do(here):
    """All pairs in each step, so that it does not matter which of them lie in a pack."""
    every = ("batch.sequences=24", "launch.processes=1", "batch.micro=4")
    alone, _ = trained(here, "alone", *DPO, *every)
    packed = ("data.packing=true", "data.max_length=480")
    once, _ = trained(here, "once", *DPO, *packed, "batch.sequences=1", "train.steps=1")
    packs = round(1 / project.losses(once, "epoch")[1])
    assert 2 <= packs <= 8
    ranks = ("launch.processes=2", "engine=zero2") if packs % 2 == 0 else ("engine=zero0",)
    run, _ = trained(here, "packed", *DPO, *packed, *ranks, f"batch.sequences={packs}")
    np.testing.assert_allclose(numbers(run), numbers(alone), rtol=1e-5)
