"""Similarities are those of the libraries that define them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.gleu_score import sentence_gleu
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_bleu

from launcher.graders.text_similarity import METRICS
from launcher.graders.wire import from_wire

VOCABULARY = ("the", "a", "cat", "cats", "sat,", "on", "mat.", "Running", "run", "ran", "é", "3")
WORDS = st.lists(st.sampled_from(VOCABULARY))
TEXTS = WORDS.map(" ".join) | st.text(max_size=20)


def made(metric: str):
    texts = {"input": "{{ sample.output_text }}", "reference": "{{ item.r }}"}
    form = {"type": "text_similarity", "name": "g", "evaluation_metric": metric, **texts}
    return from_wire(form)


def similarity(metric: str, text: str, reference: str) -> float:
    score = made(metric).grade({"r": reference}, text).score
    assert score is not None
    return score


class _Empty:
    def synsets(self, word):
        return []


@given(TEXTS, TEXTS)
def test_bleu(text, reference):
    expected = sentence_bleu(text, [reference], use_effective_order=True).score / 100
    assert similarity("bleu", text, reference) == pytest.approx(expected, abs=1e-12)


@given(TEXTS.filter(str.split), TEXTS)
def test_gleu(text, reference):
    assert similarity("gleu", text, reference) == sentence_gleu([reference.split()], text.split())


@given(TEXTS, TEXTS)
def test_meteor(text, reference):
    expected = single_meteor_score(reference.split(), text.split(), wordnet=_Empty())
    assert similarity("meteor", text, reference) == expected


@pytest.mark.parametrize("kind", ["1", "2", "3", "4", "5", "l"])
@given(TEXTS, TEXTS)
def test_rouge(kind, text, reference):
    name = f"rouge{kind.upper()}"
    expected = RougeScorer([name], use_stemmer=True).score(reference, text)[name].fmeasure
    assert similarity(f"rouge_{kind}", text, reference) == pytest.approx(expected, abs=1e-12)


@given(TEXTS, TEXTS)
def test_fuzzy_match(text, reference):
    fuzz = pytest.importorskip("rapidfuzz.fuzz")
    assert similarity("fuzzy_match", text, reference) == fuzz.ratio(text, reference) / 100


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("the cat", "The Cat!", 1.0),
        ("a b", "b c", 0.5),
        ("a a b", "a b b", 0.8),
        ("x", "y", 0.0),
        ("", "y", 0.0),
        ("", "", 1.0),
    ],
)
def test_cosine(text, reference, expected):
    assert similarity("cosine", text, reference) == pytest.approx(expected)


@pytest.mark.parametrize("metric", METRICS)
@given(TEXTS)
def test_similarities_are_shares(metric, text):
    if metric == "fuzzy_match":
        pytest.importorskip("rapidfuzz")
    assert 0 <= similarity(metric, text, "the cat sat on the mat") <= 1
