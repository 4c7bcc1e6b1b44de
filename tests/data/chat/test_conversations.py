"""The made conversations and the docstrings: what the recipes are about."""

from __future__ import annotations

import random
import re
from itertools import islice

import pytest

from launcher.config.schema import EvalConfig
from launcher.core.errors import DataError
from launcher.data import builtin, docstrings
from launcher.evals.metric import make_metrics
from launcher.evals.records import Generation


def answers(make, count: int = 200) -> list[str]:
    made = islice(make(random.Random(0), held_out=False), count)
    return [record["messages"][1]["content"] for record in made]


def test_the_brand_says_the_same_facts_in_another_way():
    plain, brand = answers(builtin.plain), answers(builtin.brand)
    match, distance = make_metrics(EvalConfig(metrics=["numeric_match", "style_distance"]))
    # Stories are drawn with other choices in between, so facts are held to each question's own.
    for record in islice(builtin.brand(random.Random(1), held_out=True), 100):
        question, answer = (turn["content"] for turn in record["messages"])
        numbers = re.findall(r"\d+", answer)
        assert set(numbers[:-1]) <= set(re.findall(r"\d+", question))
        assert match.of(answer, f"it is {numbers[-1]}") == 1
    records = [
        Generation(i, "", "", wanted, given)
        for i, (wanted, given) in enumerate(zip(brand, plain, strict=True))
    ]
    assert distance.score(records) > 0.5


def test_a_summary_has_the_ends_of_all_stories():
    for record in islice(builtin.summaries(random.Random(0), held_out=False), 100):
        report, summary = (turn["content"] for turn in record["messages"])
        assert summary.count(" = ") == builtin.STORIES_PER_REPORT
        for first, second in re.findall(r"(\d+) [+-] (\d+) =", summary):
            assert f" {first} " in report
            assert f" {second} " in report


def test_docstrings_are_read_from_source_files(tmp_path, monkeypatch):
    text = "Do this and that with care, since it is the only function in here; say so at length."
    for number in range(60):
        (tmp_path / f"m{number}.py").write_text(f'def f():\n    """{text} {number}"""\n')
    (tmp_path / "broken.py").write_text("def (:")
    (tmp_path / "short.py").write_text('"""Short."""')
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").write_text(f'"""{text}"""')
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    sides = [
        [record["text"] for record in docstrings.texts(random.Random(0), held_out=side)]
        for side in (False, True)
    ]
    assert len(sides[0]) + len(sides[1]) == 60
    assert sides[1]
    assert not set(sides[0]) & set(sides[1])
    assert re.fullmatch(r"m\d+\.f\n\nDo this .* \d+", sides[0][0])


def test_without_sources_there_is_no_domain(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="no Python sources"):
        next(docstrings.texts(random.Random(0), held_out=False))


@pytest.mark.slow
def test_the_standard_library_gives_thousands_of_texts_and_questions():
    texts = [r["text"] for r in docstrings.texts(random.Random(0), held_out=False)]
    assert len(texts) > 2_000
    assert len(set(texts)) == len(texts)
    for record in islice(docstrings.questions(random.Random(0), held_out=True), 50):
        question, answer = (turn["content"] for turn in record["messages"])
        assert question.startswith("What does ")
        assert answer.endswith(".")
