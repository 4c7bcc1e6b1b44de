"""What is found out about a teacher once tokenizers and models can be opened."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.config.schema import TinyModelConfig, variants
from launcher.core.errors import ConfigError
from launcher.data.cache import TokenCache
from launcher.data.pack.loader import make_row
from launcher.model.tiny import ensure
from launcher.objectives import teacher
from launcher.objectives.distill.objective import LOG_PROBS, TOKENS, Distill
from support import caches
from support.configs import make_config
from support.models import make_llama


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a student, a teacher and a prepared record."""
    folder = tmp_path_factory.mktemp("teacher")
    make_llama(folder / "student")
    make_llama(folder / "teacher", seed=1, hidden_size=48, initializer_range=0.3)
    caches.write(folder / "cache", [(list(range(7, 27)), [0, 1] * 10)], max_length=64)
    return folder


def config_of(here, model: dict[str, Any] | None = None, **objective: Any):
    return make_config(
        model=model or {"name": str(here / "student")},
        data={"max_length": 64},
        objective={"name": "distill", "teacher": str(here / "teacher"), **objective},
    )


def settled(here, config) -> Distill:
    made: Distill = variants.objective(config.objective)
    made.settle(config, TokenCache.open(here / "cache"), None)
    return made


def test_facts_are_kept_with_the_run(here):
    made = settled(here, config_of(here))
    assert made.facts.tokens == len(AutoTokenizer.from_pretrained(here / "student"))
    assert made.facts.is_folder
    again: Distill = variants.objective(config_of(here).objective)
    again.restore(made.state)
    assert again.facts == made.facts


def test_another_tokenizer_is_refused_of_a_model_that_is_made_here(here, tmp_path, monkeypatch):
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path))
    config = config_of(here, {"kind": "tiny"})
    made: Distill = variants.objective(config.objective)
    made.foresee(config, lambda split: [])  # not made yet: nothing is known
    ensure(TinyModelConfig())
    for work in (lambda: made.foresee(config, lambda split: []), lambda: settled(here, config)):
        with pytest.raises(ConfigError, match="has another tokenizer than the model") as caught:
            work()
        assert caught.value.problems[0].where == "objective.teacher"


def test_tokenizers_are_opened_where_their_files_do_not_tell(here, tmp_path, monkeypatch):
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path))
    config = config_of(here, {"kind": "tiny", "tokenizer": None, "add_tokens": ["<new>"]})
    with pytest.raises(ConfigError, match="has another tokenizer than the model"):
        settled(here, config)
    bare = make_llama(tmp_path / "bare")
    for file in bare.glob("*token*"):
        file.unlink()
    with pytest.raises(ConfigError, match="no tokenizer can be loaded") as caught:
        settled(here, config_of(here, teacher=str(bare)))
    assert caught.value.problems[0].where == "objective.teacher"


def test_more_tokens_than_there_are_cannot_be_kept(here):
    count = settled(here, config_of(here)).facts.tokens
    settled(here, config_of(here, top_k=count))
    with pytest.raises(ConfigError, match=f"{count + 1} of {count} tokens") as caught:
        settled(here, config_of(here, top_k=count + 1))
    assert "objective.top_k=null" in caught.value.problems[0].hint


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda folder: make_llama(folder, vocab_size=200), "has logits for 200 tokens"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"cut off"), "cannot load"),
    ],
)
def test_a_teacher_that_cannot_be_asked_is_refused(here, tmp_path, change, found):
    folder = make_llama(tmp_path / "other")
    change(folder)
    config = config_of(here, teacher=str(folder))
    made, student = settled(here, config), AutoModelForCausalLM.from_pretrained(here / "student")
    with pytest.raises(ConfigError, match=found) as caught:
        made.head(student)
    assert caught.value.problems[0].where == "objective.teacher"


def test_the_teacher_is_frozen_and_computes_as_the_student_does(here):
    student = AutoModelForCausalLM.from_pretrained(here / "student", dtype=torch.bfloat16)
    made = settled(here, config_of(here))
    made.head(student)
    ((head, model),) = made.companions(torch.device("cpu"))
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert head.head is not None


def test_what_is_kept_is_the_teachers_likeliest_tokens(here):
    made = settled(here, config_of(here, top_k=4, temperature=2.0))
    tokens, log_probs = made.reference
    assert (tokens.width, log_probs.width) == (4, 5)
    student = AutoModelForCausalLM.from_pretrained(here / "student")
    assert made.companions(torch.device("cpu")) == ()
    head, model = made.referent(student, torch.device("cpu"))
    row = make_row(TokenCache.open(here / "cache"), [0])
    kept = made.refer(head, model, row)
    with torch.no_grad():
        logits = model(row.input_ids[None]).logits[0][row.target_index][:, : made.facts.tokens]
    chances = (logits / 2).log_softmax(-1)
    likeliest = chances.topk(4)
    assert torch.equal(kept[TOKENS], likeliest.indices.int())
    torch.testing.assert_close(kept[LOG_PROBS][:, :4], likeliest.values)
    rest = chances.exp().scatter(1, likeliest.indices, 0.0).sum(-1).log()
    torch.testing.assert_close(kept[LOG_PROBS][:, 4], rest)


def test_its_identity_tells_what_the_kept_values_depend_on(here):
    def identity(**objective: Any):
        return settled(here, config_of(here, **objective)).referent_identity

    assert identity() is None
    known = identity(top_k=4)
    assert identity(top_k=4, alpha=0.1, divergence="reverse") == known
    assert identity(top_k=4, temperature=3.0) != known


def test_divergences_are_compared_of_one_measure_alone(here):
    known = settled(here, config_of(here))
    assert known.apart(settled(here, config_of(here, alpha=0.9))) == ()
    for other in (config_of(here, temperature=2.0), config_of(here, divergence="reverse")):
        assert known.apart(settled(here, other)) == ("divergence",)
    assert known.apart(SimpleNamespace()) == ("divergence",)


def test_what_is_wrong_with_a_model_is_said_of_the_teacher():
    with pytest.raises(ConfigError) as caught, teacher.blamed():
        raise ConfigError("no", where="model.name", hint="give another model.name")
    (problem,) = caught.value.problems
    assert (problem.where, problem.hint) == ("objective.teacher", "give another objective.teacher")
