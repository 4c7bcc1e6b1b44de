"""Metrics of generated answers: against the reference implementations, and by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.schema import EvalConfig
from launcher.core.errors import ConfigError
from launcher.evals.metric import make_metrics
from launcher.evals.records import Generation

PAIRS = [
    ("The cat sat on the mat.", "The cat is sitting on the mat."),
    ("Natalia sold 72 clips.", "She sold 48+24 = 72 clips altogether in April and May."),
    ("", "something"),
    ("完全一致的句子", "完全一致的句子"),
    ("wholly different words", "nothing shared here at all"),
    ("a", "b"),
]
WORDS = st.lists(
    st.sampled_from(["the", "a", "cat", "dog", "ran,", "sat.", "12", "x"]), max_size=12
).map(" ".join)
RECORDS = st.lists(st.tuples(WORDS, WORDS.filter(bool)), min_size=1, max_size=8)


def metric(name: str, **options):
    return make_metrics(EvalConfig(metrics=[name], **options))[0]


def records(pairs) -> list[Generation]:
    return [Generation(i, "d:1", "q", wanted, given) for i, (given, wanted) in enumerate(pairs)]


def score(name: str, pairs, **options) -> float:
    return metric(name, **options).score(records(pairs))


@given(RECORDS)
def test_bleu_is_that_of_sacrebleu(pairs):
    given_, wanted = zip(*pairs, strict=True)
    assert score("bleu", pairs) == pytest.approx(sacrebleu.corpus_bleu(given_, [wanted]).score)


@given(RECORDS | st.just(PAIRS))
def test_chrf_is_that_of_sacrebleu(pairs):
    given_, wanted = zip(*pairs, strict=True)
    assert score("chrf", pairs) == pytest.approx(sacrebleu.corpus_chrf(given_, [wanted]).score)


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_the_mean_of_googles(kind):
    from rouge_score import rouge_scorer  # takes seconds, of every collection

    scorer = rouge_scorer.RougeScorer([kind], use_stemmer=True)
    single = [scorer.score(wanted, given_)[kind].fmeasure for given_, wanted in PAIRS]
    assert score(kind, PAIRS) == pytest.approx(np.mean(single))


@pytest.mark.parametrize("name", ["bleu", "chrf", "f1", "distinct"])
def test_sums_over_parts_give_the_score_of_the_whole(name):
    made = metric(name)
    parts = [made.statistics(records(PAIRS[begin : begin + 2])) for begin in (0, 2, 4)]
    total = np.concatenate(parts).sum(0, keepdims=True)
    assert made.scores(total)[0] == pytest.approx(made.score(records(PAIRS)))


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("The answer is 72.", "72", 1),
        ("$1,200.50 in all", "1200.5", 1),
        ("so 7 and then 72.0", "#### 72", 1),
        ("-3", "3", 0),
        ("none", "3", 0),
        (".5", "0.50", 1),
        ("100", "1e2 or 100", 1),
    ],
)
def test_numbers_match_by_value(answer, reference, right):
    assert metric("numeric_match").of(answer, reference) == right


def test_a_reference_without_a_number_does_not_count():
    assert metric("numeric_match").of("3", "no idea") is None


def test_numbers_are_looked_for_in_what_the_pattern_finds():
    made = metric("numeric_match", answer_pattern="#### (.+)")
    assert made.of("#### 72.00 clips", "so 5\n#### 72") == 1
    assert made.of("72", "#### 72") == 0


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("The cat!", "a cat", 1.0),
        ("cat sat", "cat ran", 0.5),
        ("cat cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("", "the", 1.0),
        ("", "cat", 0.0),
    ],
)
def test_f1_of_words(answer, reference, value):
    assert metric("f1").of(answer, reference) == pytest.approx(value)


@pytest.mark.parametrize(
    ("answer", "valid"),
    [
        ('{"a": [1, null]}', 1),
        ("null", 1),
        ('{"a": 1} and more', 0),
        ("NaN", 0),
        ("", 0),
        ("[" * 100_000, 0),
    ],
)
def test_json_is_all_of_the_answer(answer, valid):
    assert metric("json_valid").of(answer, "") == valid


def test_answers_are_held_to_the_schema(tmp_path):
    schema = {"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}}}
    (tmp_path / "city.json").write_text(json.dumps(schema))
    made = metric("json_schema", json_schema=str(tmp_path / "city.json"))
    assert [made.of(text, "") for text in ('{"city": "Oslo"}', '{"city": 1}', "Oslo")] == [1, 0, 0]


@pytest.mark.parametrize("content", [None, "{", '{"type": "no such type"}'])
def test_a_schema_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "s.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="s.json"):
        metric("json_schema", json_schema=str(path))


def test_conventions():
    assert metric("convention", convention=r"[.!?]\Z").of("Done.", "") == 1
    assert metric("convention", convention=r"[.!?]\Z").of("Done. And", "") == 0
    assert [
        metric("length", answer_words=[2, 3]).of(text, "") for text in ("a", "a b", "a b c d")
    ] == [
        0,
        1,
        0,
    ]


def test_variety():
    assert metric("distinct").of("a b a b", "") == pytest.approx(2 / 3)
    assert metric("distinct").of("a b", "") is None
    assert metric("repetition").of("a b c d a b c d", "") == pytest.approx(1 / 5)
    assert metric("repetition").of("all words of this answer differ", "") == 0
