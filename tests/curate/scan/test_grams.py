"""Evaluation records found again in training by their runs of words."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.curate.scan.grams import COMMON, Grams

TEXTS = st.lists(st.lists(st.sampled_from("abcd"), max_size=8).map(" ".join), max_size=6)


def runs(text: str, n: int) -> set[tuple[str, ...]]:
    words = text.split()
    if len(words) < n:
        return {(*words, "|")} if words else set()
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def sentence(start: int, count: int) -> str:
    return " ".join(f"word{i}" for i in range(start, start + count))


@given(TEXTS, TEXTS)
def test_what_is_met_is_what_both_sides_have(held, train):
    grams = Grams.build(held, n=3)
    assert len(grams) == len(set().union(*(runs(text, 3) for text in held)))
    rows, positions = grams.find(train)
    met = np.zeros(len(grams), bool)
    met[positions] = True
    for i, text in enumerate(train):
        shared = {run for other in held for run in runs(other, 3)} & runs(text, 3)
        assert (rows == i).sum() == len(shared)
    everything = set().union(*(runs(text, 3) for text in train))
    for text, share in zip(held, grams.shares(met), strict=True):
        mine = runs(text, 3)
        assert share == pytest.approx(len(mine & everything) / len(mine) if mine else 0)


def test_a_leak_inside_a_longer_text_is_found_and_named():
    held = [sentence(0, 30), sentence(100, 40), "A short one."]
    grams = pickle.loads(pickle.dumps(Grams.build(held)))  # noqa: S301 - made above
    train = ["nothing of it", f"before {sentence(100, 30)} after", "a short ONE", sentence(0, 12)]
    rows, positions = grams.find(train)
    assert set(rows.tolist()) == {1, 2}
    met = np.zeros(len(grams), bool)
    met[positions] = True
    assert grams.shares(met).tolist() == pytest.approx([0, 18 / 28, 1])


def test_what_most_evaluation_records_say_is_no_leak():
    instruction = sentence(1000, 40)
    held = [f"{instruction} {sentence(50 * i, 20)}" for i in range(COMMON + 1)]
    grams = Grams.build(held)
    rows, _ = grams.find([instruction, f"{instruction} of another kind"])
    assert len(rows) == 0
    met = np.zeros(len(grams), bool)
    met[grams.find([sentence(0, 20)])[1]] = True
    # 8 runs of its own words, 12 more that begin in the instruction.
    assert grams.shares(met)[:2].tolist() == pytest.approx([8 / 20, 0])


def test_no_evaluation_records():
    grams = Grams.build([])
    assert len(grams) == 0
    assert len(grams.find(["anything"])[0]) == 0
    assert len(grams.shares(np.zeros(0, bool))) == 0
