"""Objectives over pairs of answers: formulas, and real ranks against plain PyTorch."""

from __future__ import annotations

import json
import math
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from launcher.config.compose import compose
from launcher.config.schema import preference, variants
from launcher.core.errors import ConfigError, ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.data.cache import TokenCache
from launcher.data.chat.masking import ChatOptions
from launcher.data.formats.base import BadRecord, Preference
from launcher.evals.comparison.paired import compare
from launcher.evals.metric import make_metrics, score_all
from launcher.evals.records import Results
from launcher.objectives.preference import drift, outcome
from launcher.objectives.preference.encoder import PairEncoder
from launcher.objectives.preference.pairs import Answers
from launcher.objectives.preference.records import PairRecord
from launcher.report import summary
from support import answers, hints, project
from support.answers import CUTS
from support.project import LAUNCHER, Project


def drawn(seed: int = 0, pairs: int = 5) -> Answers:
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
    found = drawn(seed)
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
    found = drawn(4)
    made = judged(name, found._replace(reference=None), **options)
    known = [by_hand(name, found, i, 0.4, 0.0) for i in range(5)]
    np.testing.assert_allclose(made.losses.tolist(), known, rtol=1e-12)


def test_what_is_added_to_a_loss():
    found = drawn()
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
        (["objective=cpo", "eval.metrics=[chosen_change]"], "eval.metrics"),
        (["objective=reward", "eval.metrics=[chosen_change]"], "eval.metrics"),
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


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_margins_without_ratings_are_refused_and_what_is_hinted_at_mends_it(tmp_path, name):
    words = (f"objective={name}", "data=preference", "data.train=x.jsonl", "model.name=m")

    def settle(cache: TokenCache, *more: str) -> None:
        config = compose.compose([*words, *more])
        variants.objective(config.objective).settle(config, cache, None)

    rated = answers.rated_cache(tmp_path / "rated", 0.0, 2.0)
    unrated = answers.rated_cache(tmp_path / "unrated", 0.0, 0.0)
    settle(rated, "objective.margin_weight=0.5")
    with pytest.raises(ConfigError, match=r"0\.5, and no pair of the training data") as caught:
        settle(unrated, "objective.margin_weight=0.5")
    (problem,) = caught.value.problems
    assert problem.where == "objective.margin_weight"
    (way,) = hints.ways(problem.hint)
    settle(unrated, "objective.margin_weight=0.5", *way)


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
    records = [replace(one, divergence=one.id + 0.5) for one in records]
    scores = score_all(
        make_metrics(config.eval, config.objective.own_metrics), Results({"pairs": records})
    )
    assert scores == {
        "preference_accuracy": 0.5,
        "preference_margin": 0.0,
        "chosen_change": pytest.approx((2 - 2 + 1) / 6),
        "rejected_change": pytest.approx((-2 + 2 + 1) / 12),
        "reference_kl": pytest.approx((0.5 + 1.5 + 2.5) / 18),
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


WORDS = ("data=preference", *answers.WORDS)
TWO = CUTS["two-ranks"]
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
    return answers.place(tmp_path_factory.mktemp("preference"), answers.pairs)


def plain_losses(run: RunDir, objective: Any) -> list[float]:
    """The same training by one document a forward, torch's own log-softmax and AdamW."""
    model, base = (answers.base_model(run) for _ in range(2))

    def losses_of(cache: TokenCache, numbers: Sequence[int]) -> Iterator[torch.Tensor]:
        for number in numbers:
            both = answers.documents(cache, number)
            sums, references = (
                torch.stack([answers.log_probs(one, document).sum() for document in both])
                for one in (model, base)
            )
            counts = torch.stack([learned[1:].sum().float() for _, learned in both])
            found = (sums[None], counts[None], references.detach()[None], torch.zeros(1))
            yield objective.judge_pairs(Answers(*found)).losses.sum()

    return answers.plain_losses(run, model, losses_of)


def objective_of(run: RunDir) -> Any:
    return variants.objective(compose.load(run.config).objective)


@pytest.fixture(scope="module")
def first(here):
    more = ("eval=default", "data.validation=held_out.jsonl", "eval.metrics=null")
    more += ("export.at_end=true",)
    return here.trained("first", *WORDS, *DPO, *TWO, *more)


@pytest.mark.slow
def test_dpo_is_that_of_plain_pytorch(first):
    run, output = first
    np.testing.assert_allclose(project.curve(run), plain_losses(run, objective_of(run)), rtol=1e-5)
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
    assert torch.equal(kept[:, :-1], log_p.gather(1, tokens))
    assert not (tokens[:, : drift.TOP, None] == tokens[:, None, drift.TOP :]).any()
    for size, rel in ((0.0, 0.0), (0.1, 0.01), (1.0, 0.05)):
        moved = logits + size * torch.randn(4000, 97, generator=draw)
        log_q = moved.log_softmax(-1)
        whole = float((log_q.exp() * (log_q - log_p)).sum(-1).mean())
        found = drift._divergence(kept, log_q.gather(1, tokens))
        assert float(found.min()) >= 0
        assert float(found.mean()) == pytest.approx(whole, rel=rel, abs=1e-6)


def test_the_divergence_is_right_at_the_edges():
    shift = torch.tensor([0.3], dtype=torch.float64)

    def found(reference: list[float], model: list[float]) -> float:
        log_p, log_q = (torch.tensor([x]).log_softmax(-1) for x in (reference, model))
        tokens, kept = drift._kept(log_p, shift)
        return float(drift._divergence(kept, log_q.gather(1, tokens.long())))

    # All but 2e-8 is in the likeliest tokens, and the model moves 1 % to the others.
    sure, moved = [0.0] * 16 + [-20.6] * 8, [0.0] * 16 + [-7.4 + 3.5] * 8
    p, q = (torch.tensor(x, dtype=torch.float64).log_softmax(-1) for x in (sure, moved))
    assert found(sure, moved) == pytest.approx(float((q.exp() * (q - p)).sum()), rel=1e-4)
    # Fewer tokens than are kept, and tokens that are ruled out.
    few = torch.linspace(0, 2, 12)
    p, q = few.log_softmax(-1), few.flip(0).log_softmax(-1)
    expected = float((q.exp() * (q - p)).sum())
    assert found(few.tolist(), few.flip(0).tolist()) == pytest.approx(expected, rel=1e-5)
    out = [-math.inf] * 20
    assert found(few.tolist() + out, few.flip(0).tolist() + out) == pytest.approx(expected, 1e-5)
    assert found([0.0, 1.0, 2.0], [0.0, 1.0, -math.inf]) == pytest.approx(
        math.log((1 + math.e + math.e**2) / (1 + math.e)), rel=1e-5
    )


def test_a_model_that_has_moved_is_not_the_worse_for_it():
    config = compose.compose(["objective=dpo", "model.name=m", "data.train=x", "eval=default"])
    config.eval.metrics = ["preference_accuracy", "reference_kl"]
    metrics = make_metrics(config.eval, config.objective.own_metrics)
    before = [replace(record(i, -4.0, -4.0), divergence=0.0) for i in range(40)]
    after = [replace(record(i, -3.0, -6.0), divergence=1.0 + i / 100) for i in range(40)]
    made = compare(Results({"pairs": before}), Results({"pairs": after}), metrics)
    assert made["metrics"]["reference_kl"]["verdict"] == "worse"
    assert summary.outcome(made) == "better"
    assert summary.headline_metric(made, "worse") is None


@pytest.mark.slow
def test_objectives_without_a_reference_are_scored(here):
    more = ("eval=default", "data.validation=held_out.jsonl", "eval.metrics=null")
    run, _ = here.trained("scored", *WORDS, "objective=orpo", *more, "launch.processes=1")
    found = read_json(run.eval / "comparison.json")["metrics"]
    assert found.keys() == {"loss", "preference_accuracy", "preference_margin"}


@pytest.mark.slow
@pytest.mark.parametrize("cut", [name for name in CUTS if name != "two-ranks"])
def test_dpo_does_not_depend_on_the_cut(here, first, cut):
    run, output = here.trained(cut, *WORDS, *DPO, *CUTS[cut])
    np.testing.assert_allclose(project.curve(run), project.curve(first[0]), rtol=1e-5)
    assert "reference: the model before" not in output  # the first run has asked it


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OTHERS))
def test_others_are_those_of_plain_pytorch(here, name):
    run, _ = here.trained(name, *WORDS, *OTHERS[name], *TWO)
    np.testing.assert_allclose(project.curve(run), plain_losses(run, objective_of(run)), rtol=1e-5)


@pytest.mark.slow
def test_adapters_are_judged_against_their_base(here, first):
    lora = ("peft=lora", "peft.rank=4", "peft.dropout=0", "optim.lr=1e-2")
    one, output = here.trained("lora", *WORDS, *DPO, *lora, "launch.processes=1", "batch.micro=4")
    assert "reference: the model before" not in output  # it is the base, which was asked before
    assert project.curve(one)[0] == pytest.approx(math.log(2), rel=1e-5)
    assert project.curve(one)[2] < project.curve(one)[0]
    two, _ = here.trained("lora-3", *WORDS, *DPO, *lora, "launch.processes=2", "engine=zero3")
    np.testing.assert_allclose(project.curve(two), project.curve(one), rtol=1e-5)


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
    whole, _ = here.trained("whole", *WORDS, *DPO, *more)
    running = here.start((*LAUNCHER, "train"), *here.words("killed", *WORDS, *DPO, *more))
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
    straight, _ = here.trained("straight", *WORDS, *DPO, *more, "train.steps=8")
    np.testing.assert_allclose(project.curve(killed), project.curve(straight), rtol=1e-5)


@pytest.mark.slow
def test_a_run_is_compared_with_the_fine_tuned_model_that_it_began_with(here):
    records = [project.chat(one["prompt"], one["chosen"]) for one in answers.pairs(24)]
    here.write_data(records, "chats.jsonl")
    here.trained(
        *("tuned", "data.train=chats.jsonl", "data.validation_share=0.2", "peft=none"),
        *("batch.sequences=4", "train.steps=4", "eval=default", "export.at_end=true"),
    )
    start = f"model.name={here.folder_of('tuned').export}"
    more = ("eval=default", "data.validation=held_out.jsonl", "launch.processes=1")
    run, _ = here.trained("preferred", *WORDS, *DPO, *more, start)
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
    alone, _ = here.trained("alone", *WORDS, *DPO, *every)
    packed = ("data.packing=true", "data.max_length=480")
    once, _ = here.trained("once", *WORDS, *DPO, *packed, "batch.sequences=1", "train.steps=1")
    packs = round(1 / project.losses(once, "epoch")[1])
    assert 2 <= packs <= 8
    ranks = ("launch.processes=2", "engine=zero2") if packs % 2 == 0 else ("engine=zero0",)
    run, _ = here.trained("packed", *WORDS, *DPO, *packed, *ranks, f"batch.sequences={packs}")
    np.testing.assert_allclose(project.curve(run), project.curve(alone), rtol=1e-5)
