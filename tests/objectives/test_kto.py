"""Good and bad answers: the formula, and real ranks against plain PyTorch for every cut."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.compose import compose
from launcher.config.schema.preference import KtoConfig
from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.data.cache import TokenCache
from launcher.data.chat.masking import ChatOptions
from launcher.data.formats.base import BadRecord, Unpaired
from launcher.evals.metric import make_metrics, score_all
from launcher.evals.records import Results
from launcher.objectives.preference import verdicts
from launcher.objectives.preference.encoder import VerdictEncoder
from launcher.objectives.preference.kto import Kto, Verdicts
from launcher.objectives.preference.verdicts import VerdictRecord
from support import answers, project, rows
from support.project import LAUNCHER


def test_the_loss_is_that_of_the_paper():
    options = KtoConfig(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    gains, good = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64), torch.tensor([1.0, 1.0, 0.0])
    found = Verdicts(gains, torch.ones(3), torch.zeros(3), good.double())
    losses = Kto(options).judge_answers(found, 0.7)
    known = [
        1.5 * (1 - 1 / (1 + math.exp(-0.3 * (1.0 - 0.7)))),
        1.5 * (1 - 1 / (1 + math.exp(-0.3 * (-2.0 - 0.7)))),
        0.5 * (1 - 1 / (1 + math.exp(-0.3 * (0.7 - 3.0)))),
    ]
    np.testing.assert_allclose(losses.tolist(), known, rtol=1e-12)


def record(number: int, is_good: bool, change: float, mismatched: float = 0.0) -> VerdictRecord:
    return VerdictRecord(number, is_good, 0.1 * change, -5 + change, -5.0, 4, mismatched)


def test_what_is_scored():
    config = compose.compose(["objective=kto", "model.name=m", "data.train=x", "eval=default"])
    config.eval.metrics = [*config.objective.metrics]
    records = [record(0, True, 2.0, 1.0), record(1, True, -1.0, 3.0), record(2, False, -4.0)]
    records = [replace(one, divergence=0.75) for one in records]
    results = Results({"verdicts": records})
    Kto(config.objective).judge(results)
    scores = score_all(make_metrics(config.eval, config.objective.own_metrics), results)
    baseline = 4 / 3
    losses = [1 - 1 / (1 + math.exp(-0.1 * lead)) for lead in (2 - baseline, -1 - baseline)]
    losses.append(1 - 1 / (1 + math.exp(-0.1 * (baseline + 4))))
    assert scores == {
        "loss": pytest.approx(np.mean(losses)),
        "verdict_accuracy": pytest.approx(2 / 3),
        "reward_gap": pytest.approx(0.05 + 0.4),
        "good_change": pytest.approx(1 / 8),
        "bad_change": pytest.approx(-1.0),
        "reference_kl": pytest.approx(0.75 / 4),
    }
    assert not verdicts.warnings(records)
    (told,) = verdicts.warnings([record(0, True, -4.0)])
    assert "-1.000 nats a token" in told


def test_mismatched_answers_are_of_other_prompts(tiny_llama: Path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)

    def one(prompt: str, answer: str, label: bool) -> Unpaired:
        turns = [{"role": "user", "content": prompt}], [{"role": "assistant", "content": answer}]
        return Unpaired(*turns, label)

    given = [one("a", "One.", True), one("b", "Two.", True), one("b", "Three.", False)]
    found = VerdictEncoder(tokenizer, ChatOptions()).encode(given)
    learned = []
    for own in found:
        assert not isinstance(own, BadRecord)
        (piece,) = own.pieces
        first = piece.lengths[0]
        for part in (slice(0, first), slice(first, None)):
            learned.append(tokenizer.decode(piece.tokens[part][piece.targets[part] > 0]))
    ends = [text.removesuffix("<|end|>") for text in learned]
    assert ends == ["One.", "Three.", "Two.", "One.", "Three.", "One."]


@given(st.lists(st.tuples(st.integers(2, 9), st.integers(2, 9)), min_size=1, max_size=6))
def test_every_second_document_of_a_row(lengths: list[tuple[int, int]]) -> None:
    flat = [length for pair in lengths for length in pair]
    row = rows.make_row(flat, 50)
    row.records, row.sizes = list(range(len(lengths))), [2] * len(lengths)
    row.columns = {"place": torch.arange(len(flat))}
    parts = row.input_ids.split(flat)
    for first in (0, 1):
        alone = rows.make_row(flat[first::2], 50)
        part = row.every(2, first)
        assert torch.equal(part.input_ids, torch.cat(parts[first::2]))
        assert torch.equal(part.targets, torch.cat([own[1:] for own in parts[first::2]]))
        assert part.columns["place"].tolist() == list(range(first, len(flat), 2))
        for name in ("position_ids", "document_starts", "target_index"):
            assert torch.equal(getattr(part, name), getattr(alone, name)), name
        assert (part.sizes, part.longest) == (alone.sizes, alone.longest)


# ---- real ranks


WORDS = (
    *("objective=kto", "objective.beta=0.5", "objective.undesirable_weight=1.5", "data=unpaired"),
    *answers.WORDS,
)
CUTS = ("two-ranks", "one-rank", "parameters-in-parts")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return answers.place(tmp_path_factory.mktemp("kto"), answers.verdicts)


def plain_losses(run: RunDir) -> list[float]:
    """The same training by one document a forward, torch's own log-softmax and AdamW; the baseline
    is that of the whole batch."""
    model, base = (answers.base_model(run) for _ in range(2))
    beta = compose.load(run.config).objective.beta

    def gain(document: answers.Document) -> torch.Tensor:
        own, other = (answers.log_probs(of, document).sum() for of in (model, base))
        return own - other.detach()

    def losses_of(cache: TokenCache, records: Sequence[int]) -> Iterator[torch.Tensor]:
        found = [answers.documents(cache, record) for record in records]
        with torch.no_grad():
            gains = [float(gain(mismatched)) for _, mismatched in found]
        baseline = max(0.0, np.mean(gains))
        for record, (answer, _) in zip(records, found, strict=True):
            lead = beta * (gain(answer) - baseline)
            is_good = bool(cache.column("verdict", record)[0])
            yield 1 - torch.sigmoid(lead) if is_good else 1.5 * (1 - torch.sigmoid(-lead))

    return answers.plain_losses(run, model, losses_of)


@pytest.fixture(scope="module")
def first(here):
    more = ("eval=default", "data.validation=held_out.jsonl")
    run, _ = here.trained("first", *WORDS, *answers.CUTS["two-ranks"], *more)
    return run


@pytest.mark.slow
def test_losses_are_those_of_plain_pytorch(first):
    np.testing.assert_allclose(project.curve(first), plain_losses(first), rtol=1e-5)
    assert project.losses(first, "baseline")[answers.STEPS] > 0  # it has part in the last loss
    comparison = read_json(first.eval / "comparison.json")
    assert comparison["metrics"].keys() == {*KtoConfig.metrics}
    assert comparison["metrics"]["verdict_accuracy"]["base"] == pytest.approx(0.5)
    assert "Good and bad answers" in (first.path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS[1:])
def test_losses_do_not_depend_on_the_cut(here, first, cut):
    run, _ = here.trained(cut, *WORDS, *answers.CUTS[cut])
    np.testing.assert_allclose(project.curve(run), project.curve(first), rtol=1e-5)


@pytest.mark.slow
def test_pairs_are_a_good_and_a_bad_answer_each_and_one_kind_alone_is_refused(here):
    pairs = [
        {"prompt": one["prompt"], "chosen": one["completion"], "rejected": "nothing at all"}
        for one in answers.verdicts(8)
    ]
    here.write_data(pairs, "pairs.jsonl")
    here.write_data([{**one, "label": True} for one in answers.verdicts(8)], "good.jsonl")
    more = ("data=preference", "data.train=pairs.jsonl", "train.steps=1")
    run, _ = here.trained("pairs", *WORDS, *more)
    cache = TokenCache.open(read_json(run.data)["train"])
    assert [float(cache.column("verdict", i)[0]) for i in range(len(cache))] == [1.0, 0.0] * 8
    refused = here.run((*LAUNCHER, "train"), *here.words("good", *WORDS, "data.train=good.jsonl"))
    assert refused.code == ExitCode.data, refused.output
    assert "all 8 answers are good" in refused.output
