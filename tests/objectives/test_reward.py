"""Reward models: the loss by hand, ends that are kept, answers laid out as in training; and real
ranks against plain PyTorch, whose exports give plain transformers the same rewards."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from launcher.config.compose import compose
from launcher.config.schema import Overlong, preference, variants
from launcher.core.errors import DataError, ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.data.cache import TokenCache
from launcher.data.chat.masking import ChatOptions
from launcher.data.formats.base import Preference
from launcher.data.tokenizer import load_tokenizer
from launcher.evals.metric import make_metrics, score_all
from launcher.evals.records import LossRecord, Results
from launcher.graders.sample import Sample
from launcher.graders.wire import from_wire
from launcher.model.classifier import open_classifier
from launcher.objectives.preference.encoder import MARGIN
from launcher.objectives.preference.records import RewardRecord
from launcher.objectives.preference.reward import Reward, RewardEncoder
from launcher.objectives.preference.reward_export import tokens_of
from support import answers, project, rows
from support.answers import CUTS
from support.configs import make_config
from support.models import make_llama, make_tokenizer
from support.project import LAUNCHER, Project


class Known:
    """A head whose outputs are known."""

    def __init__(self, outputs: list[float]) -> None:
        self.values = torch.tensor(outputs, requires_grad=True)

    def outputs(self, caller: Any, row: Any) -> torch.Tensor:
        return self.values[:, None]


def objective(**options: Any) -> Reward:
    return Reward(preference.RewardConfig(**options))


def row_of(pairs: int, margins: list[float], weights: list[float] | None = None) -> Any:
    made = rows.make_row([3, 5] * pairs, 90, learns=lambda position: position % 2 == 0)
    return replace(
        made,
        records=list(range(pairs)),
        sizes=[2] * pairs,
        columns={MARGIN: torch.tensor(margins).repeat_interleave(2)},
        record_weights=None if weights is None else torch.tensor(weights),
    )


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 3.0]])
@pytest.mark.parametrize(("margin_weight", "centering"), [(0.0, 0.0), (0.7, 0.0), (0.7, 0.01)])
def test_the_loss_is_that_of_the_papers(margin_weight, centering, weights):
    given, margins = [(0.4, -0.3), (-1.0, 2.0), (0.2, 0.2)], [1.0, 0.5, 2.0]
    head, row = Known([value for pair in given for value in pair]), row_of(3, margins, weights)
    made = objective(margin_weight=margin_weight, centering=centering)
    found = made.loss(head, None, row)
    each = [
        math.log(1 + math.exp(-(w - v - margin_weight * m))) + centering * (w + v) ** 2
        for (w, v), m in zip(given, margins, strict=True)
    ]
    used = weights or [1.0] * 3
    assert float(found.total.detach()) == pytest.approx(np.dot(each, used), rel=1e-6)
    assert made.weight(row) == sum(used)
    found.total.backward()
    for i, ((w, v), m) in enumerate(zip(given, margins, strict=True)):
        slope = -1 / (1 + math.exp(w - v - margin_weight * m))
        pull = 2 * centering * (w + v)
        expected = [used[i] * (slope + pull), used[i] * (-slope + pull)]
        assert head.values.grad[2 * i : 2 * i + 2].tolist() == pytest.approx(expected, rel=1e-5)
    logged = {name: float(a) / b for name, (a, b) in found.sums.items()}
    assert logged["preference_accuracy"] == pytest.approx(0.5)  # right, wrong, equal
    assert logged["reward_margin"] == pytest.approx(np.mean([w - v for w, v in given]))
    assert logged["reward_chosen"] == pytest.approx(np.mean([w for w, _ in given]))


def test_held_out_pairs_give_losses_rewards_and_metrics():
    head, made = Known([0.4, -0.3, -1.0, 2.0]), objective(centering=0.5)
    row = row_of(2, [0.0, 0.0])
    found = Results(made.score(head, None, iter([(row, [7, 9]), (None, []), (row, [])]), None))
    losses, pairs = found.passes["loss"], found.passes["pairs"]
    assert [(record.id, record.correct) for record in losses] == [(7, 1), (9, 0)]
    assert sum(record.loss_sum for record in losses) == pytest.approx(
        float(made.loss(head, None, row).total.detach()), rel=1e-6
    )
    assert [pair.margin for pair in pairs] == pytest.approx([0.7, -3.0])
    learned = [int((row.document_of_targets() == i).sum()) for i in range(4)]
    assert [pair.tokens for pair in pairs] == [learned[:2], learned[2:]]
    config = make_config(objective={"name": "reward"})
    names = list(config.objective.metrics)
    assert names == variants.metrics_of(config)
    config.eval.metrics = names
    scores = score_all(make_metrics(config.eval, config.objective.own_metrics), found)
    assert scores["preference_accuracy"] == 0.5
    assert scores["preference_margin"] == pytest.approx(-1.15)
    section = made.sections(found, {})[0]
    assert section["blocks"][1]["rows"][0] == ["Chosen", "-0.300", "0.700"]
    assert made.about(found)["preferences"]["margin"] == pytest.approx(-1.15)
    lines = made.lines(None, found, [], str, str)
    assert [line["tuned"] for line in lines] == ["margin 0.700", "margin -3.000"]
    assert made.sections(Results({"loss": [LossRecord(0, 1.0, 1, 1)]}), {}) == []


def preference_of(prompt: str, chosen: str, rejected: str) -> Preference:
    first, *answers = (
        [{"role": role, "content": content}]
        for role, content in (("user", prompt), ("assistant", chosen), ("assistant", rejected))
    )
    return Preference(first, *answers)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    plain = make_tokenizer(root / "plain", chat_template=None)
    folders = {"template": make_tokenizer(root / "template"), "plain": plain}
    return {name: AutoTokenizer.from_pretrained(folder) for name, folder in folders.items()}


def test_a_pair_that_is_too_long_keeps_its_ends(tokenizers):
    encoder = RewardEncoder(tokenizers["template"], ChatOptions())
    example = preference_of("How many apples are left? " * 5, "Nine apples.", "Three, I think.")
    (encoded,) = encoder.encode([example])
    (whole,) = encoded.pieces
    first, second = (whole.tokens[: whole.lengths[0]], whole.tokens[whole.lengths[0] :])
    assert encoder.cut(whole, len(whole.tokens), Overlong.truncate) == ([whole], None)
    longest = len(whole.tokens) - 9
    (kept,), done = encoder.cut(whole, longest, Overlong.truncate)
    assert done is Overlong.truncate
    assert longest - 1 <= sum(kept.lengths) <= longest
    cut = kept.lengths[0]
    assert kept.tokens[:cut].tolist() == first[-cut:].tolist()
    assert kept.tokens[cut:].tolist() == second[-kept.lengths[1] :].tolist()
    assert kept.targets.sum() == whole.targets.sum()
    assert encoder.cut(whole, longest, Overlong.drop) == ([], Overlong.drop)
    assert encoder.cut(whole, 2, Overlong.truncate) == ([], Overlong.drop)


@pytest.mark.parametrize("kind", ["template", "plain"])
def test_one_answer_is_laid_out_as_in_training(tokenizers, kind):
    tokenizer = tokenizers[kind]
    prompt, chosen = "How many apples?", "Nine apples are left."
    config = make_config(objective={"name": "reward"}, data={"max_length": 500})
    encoder = RewardEncoder(tokenizer, ChatOptions.of(config.data))
    (encoded,) = encoder.encode([preference_of(prompt, chosen, "None.")])
    piece = encoded.pieces[0]
    expected = piece.tokens[: piece.lengths[0]].tolist()
    record = {"prompt": prompt, "completion": chosen}
    assert tokens_of(tokenizer, config, json.dumps(record)) == expected
    config.data.max_length = 5
    assert tokens_of(tokenizer, config, json.dumps(record)) == expected[-5:]


@pytest.mark.parametrize(
    "text", ["How many apples?", "[1]", '{"prompt": "a"}', '{"prompt": "a", "completion": ""}']
)
def test_what_is_no_record_with_an_answer_is_refused(tokenizers, text):
    config = make_config(objective={"name": "reward"})
    with pytest.raises(DataError, match="HINT"):
        tokens_of(tokenizers["template"], config, text)


def test_the_heads_seed_is_that_of_the_run(tmp_path):
    config = make_config(objective={"name": "reward"})
    config.seed = 5
    made = objective()
    made.settle(config, answers.rated_cache(tmp_path / "data", 0.0, 0.0), None)
    again = objective()
    again.restore(made.state)
    head = again.sequence_head(3)
    assert (head.seed, head.padding, head.names) == (5, 3, ("reward",))
    model, fresh = open_classifier(make_llama(tmp_path), head)
    assert fresh == ("score",)
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    assert RewardRecord(0, 1.0, 0.5, [1, 2]).task == (1, 2)


# ---- real ranks

WORDS = (
    *("objective=reward", "objective.centering=0.05", "objective.margin_weight=0.5"),
    *("data=preference", *answers.WORDS),
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    made = answers.place(tmp_path_factory.mktemp("reward"), answers.rated_pairs, held_out=24)
    made.write_data(answers.rated_pairs(160, 2), "many.jsonl")
    return made


def plain_losses(run: RunDir) -> list[float]:
    """The same training by one document a forward, transformers' own classifier and AdamW."""
    model_of = compose.load(run.config).model
    made = objective()
    made.restore(read_json(run.objective)["state"])
    head = made.sequence_head(load_tokenizer(model_of).pad_token_id)
    model, _ = open_classifier(model_of.name, head)
    model.float()
    margins = [pair["margin"] for pair in answers.rated_pairs(answers.STEPS * answers.BATCH)]

    def losses_of(cache: TokenCache, records: Sequence[int]) -> Iterator[torch.Tensor]:
        for record in records:
            chosen, rejected = (
                model(tokens[None]).logits[0, 0] for tokens, _ in answers.documents(cache, record)
            )
            lead = chosen - rejected - 0.5 * margins[record]
            yield (1 + (-lead).exp()).log() + 0.05 * (chosen + rejected).square()

    return answers.plain_losses(run, model, losses_of)


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS)
def test_losses_are_those_of_plain_pytorch(here, cut):
    run, _ = here.trained(cut, *WORDS, *CUTS[cut])
    np.testing.assert_allclose(project.curve(run), plain_losses(run), rtol=1e-5)


LEARNING = (
    *("data.train=many.jsonl", "data.validation=held_out.jsonl", "eval=default"),
    *("export.at_end=true", "launch.processes=2", "engine=zero2", "data.packing=true"),
    *("data.max_length=320", "batch.sequences=2", "train.steps=16", "optim.lr=3e-3"),
)


@pytest.fixture(scope="module")
def full(here):
    run, _ = here.trained("full", *WORDS, *LEARNING)
    return run


def held_out(here: Project) -> list[tuple[str, str]]:
    records = map(json.loads, (here.folder / "held_out.jsonl").open())
    return [(r["prompt"], r[name]) for r in records for name in ("chosen", "rejected")]


def stored(run: RunDir) -> list[float]:
    """Rewards of the held-out answers by the run's own evaluation, in the order of `held_out`."""
    found = read_json(run.eval / "tuned.json")["passes"]["pairs"]
    both = zip(found["reward_chosen"], found["reward_rejected"], strict=True)
    return [reward for pair in both for reward in pair]


def require_same_rewards(here: Project, run: RunDir, folder: Path) -> None:
    """Fail unless the code in the README of `folder` and `launcher generate` give the rewards that
    the run has stored."""
    asked = held_out(here)
    code = (folder / "README.md").read_text("utf-8").split("```python\n")[1].split("```")[0]
    begin = code.index("records = ")
    code = code[:begin] + f"records = {asked!r}\n" + code[code.index("for prompt") :]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert [float(x) for x in done.stdout.split()] == pytest.approx(stored(run), abs=2e-4)
    words = [w for p, c in asked for w in ("-p", json.dumps({"prompt": p, "completion": c}))]
    said = here.run((*LAUNCHER, "generate", run.name, *words)).output
    found = [float(line) for line in said.splitlines() if line.lstrip("-")[:1].isdigit()]
    assert found == pytest.approx(stored(run), abs=2e-4)
    grader = from_wire({"type": "reward_model", "name": "reward", "model": str(folder)})
    pairs = [({"prompt": prompt}, Sample(answer)) for prompt, answer in asked]
    grades = grader.grade_all([({}, Sample("no prompt")), *pairs])
    assert (grades[0].score, grades[0].errors[0].kind) == (None, "invalid_variable_error")
    assert [grade.score for grade in grades[1:]] == pytest.approx(stored(run), abs=1e-5)
    assert grader.grade(*pairs[0]).score == pytest.approx(stored(run)[0], abs=1e-5)


@pytest.mark.slow
def test_a_run_is_compared_and_its_export_gives_transformers_the_same_rewards(here, full):
    made = read_json(full.eval / "comparison.json")
    row = made["metrics"]["preference_accuracy"]
    assert row["verdict"] == "better"
    assert row["tuned"] > 0.9
    assert made["preferences"]["margin"] == pytest.approx(
        made["metrics"]["preference_margin"]["tuned"], abs=1e-5
    )
    model = AutoModelForSequenceClassification.from_pretrained(full.export).eval()
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    tokenizer = AutoTokenizer.from_pretrained(full.export)
    chats = [
        [{"role": "user", "content": p}, {"role": "assistant", "content": c}]
        for p, c in held_out(here)
    ]
    texts = tokenizer.apply_chat_template(chats, tokenize=False)
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        rewards = model(**batch).logits[:, 0]
    assert rewards.tolist() == pytest.approx(stored(full), abs=1e-4)
    require_same_rewards(here, full, full.export)
    assert "How both answers" not in (page := (full.path / "report.html").read_text())
    assert "Preferences" in page
    assert "Standard deviation" in page
    refused = here.run((*LAUNCHER, "chat", "full"))
    assert refused.code == ExitCode.usage
    assert "a reward model" in refused.output


@pytest.mark.slow
def test_adapters_are_saved_with_their_head(here):
    words = ("peft=lora", "engine=zero3", "optim.lr=1e-2", "train.steps=8")
    run, _ = here.trained("adapters", *WORDS, *LEARNING, *words)
    assert read_json(run.export / "adapter_config.json")["task_type"] == "SEQ_CLS"
    assert read_json(run.export / "classes.json") == {"names": ["reward"]}
    require_same_rewards(here, run, run.export)
