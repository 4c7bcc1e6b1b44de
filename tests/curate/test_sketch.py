"""MinHash signatures: the same everywhere, blind to form, and true to the overlap of texts."""

import pickle
import random
import subprocess
import sys

import numpy as np
import pytest
import rensa
from hypothesis import given
from hypothesis import strategies as st

from launcher.curate import shingles
from launcher.curate.sketch import EMPTY, FEW_WORDS, Sketcher, shingle_set, similarity

LONG = " ".join(f"word{i}" for i in range(60))
GOLDEN = [[462008242, 80140556, 486456639, 105227687], [101372438, 40844554, 40367792, 5805195]]


def overlap(left: str, right: str) -> float:
    one, other = (set(shingle_set(text).tolist()) for text in (left, right))
    return len(one & other) / len(one | other)


@given(st.lists(st.text(max_size=80), max_size=12))
def test_a_signature_does_not_depend_on_the_texts_beside_it(texts):
    together = Sketcher(num_perm=16)(texts)
    assert together.shape == (len(texts), 16)
    for text, row in zip(texts, together, strict=True):
        assert (Sketcher(num_perm=16)([text])[0] == row).all()


def test_signatures_are_the_same_in_another_process():
    texts = [LONG, "a few words", "日本語の短い文です", ""]
    code = (
        "import sys, pickle; from launcher.curate.sketch import Sketcher;"
        "sys.stdout.buffer.write(Sketcher()(pickle.loads(sys.stdin.buffer.read())).tobytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(texts), capture_output=True, check=True
    )
    assert done.stdout == Sketcher()(texts).tobytes()


def test_signatures_do_not_change_between_versions():
    signature = Sketcher(num_perm=4)(["The quick brown fox", LONG])
    assert signature.tolist() == GOLDEN


def test_case_punctuation_space_and_compatibility_forms_do_not_count():
    plain, dressed = Sketcher()(
        ["the ﬁne cafe number 1 is open", "The FINE,  Cafe:\nnumber ① is open!"]
    )
    assert (plain == dressed).all()


@pytest.mark.parametrize("text", ["", "  \n", "?!… —"])
def test_a_text_without_words_is_empty(text):
    assert (Sketcher()([text, LONG])[0] == EMPTY).all()


@pytest.mark.parametrize(
    "text", ["\ud800 half a pair", "nul \x00 byte", "x" * 3_000_000, "数" * 500]
)
def test_strange_texts_have_a_signature(text):
    assert (Sketcher()([text]) != EMPTY).any()


def test_kinds_of_units_follow_the_text():
    few = " ".join(["word"] * (FEW_WORDS - 1))
    assert len(shingle_set(few)) == 5
    assert len(shingle_set(f"{few} word")) == 1
    unspaced = "，".join(["这是一个没有空格的很长的中文句子里面的词"] * 50)
    assert len(shingle_set(unspaced)) == 21


@pytest.mark.parametrize("words", [12, 25, 80, 400])
def test_estimates_are_without_bias_and_as_exact_as_theory_says(words):
    rng = np.random.default_rng(words)
    vocabulary = [f"w{i}x{i * 7 % 13}" for i in range(5000)]
    errors, deviations = [], []
    for _ in range(150):
        text = rng.choice(vocabulary, words)
        other = text.copy()
        other[rng.integers(0, words, rng.integers(0, words // 4 + 1))] = rng.choice(vocabulary)
        left, right = " ".join(text), " ".join(other)
        true = overlap(left, right)
        errors.append(float(similarity(*Sketcher()([left, right]))) - true)
        deviations.append(true * (1 - true) / 128)
    theory = np.sqrt(np.mean(deviations))
    assert abs(np.mean(errors)) < 4 * theory / np.sqrt(150)
    assert np.sqrt(np.mean(np.square(errors))) < 1.25 * theory


@given(st.lists(st.lists(st.integers(0, 9), max_size=9), max_size=6), st.integers(1, 5))
def test_grams_are_the_runs_of_each_text(texts, n):
    arrays = [np.array(text, np.uint64) for text in texts]
    hashes, offsets = shingles.grams(arrays, n)
    runs = {}
    for i, text in enumerate(texts):
        mine = [tuple(text[k : k + n]) for k in range(len(text) - n + 1)]
        mine = mine or [tuple(text + [0] * (n - len(text)))] * bool(text)
        found = hashes[offsets[i] : offsets[i + 1]].tolist()
        assert len(found) == len(mine)
        for run, value in zip(mine, found, strict=True):
            assert runs.setdefault(run, value) == value
    assert len(set(runs.values())) == len(runs)


def test_a_library_estimates_the_same_from_the_same_shingles():
    """Both hit the true overlap within the standard error of 128 numbers, and so each other (the
    library's own kind of MinHash errs less than that)."""
    rng = random.Random(5)
    texts, ours_off, theirs_off = [], [], []
    for _ in range(300):
        words = [f"w{rng.randrange(3000)}" for _ in range(rng.randint(45, 120))]
        other = [rng.choice(words) if rng.random() < 0.03 else word for word in words]
        texts.append((" ".join(words), " ".join(other)))
    for left, right in texts:
        true = overlap(left, right)
        one, another = Sketcher()([left, right])
        ours_off.append((similarity(one, another) - true) / error(true))
        sets = [shingle_set(text).tolist() for text in (left, right)]
        made = rensa.RMinHash.digest_matrix_from_token_hash_sets(sets, 128, 1).to_rows()
        theirs = np.mean(np.array(made[0]) == np.array(made[1]))
        theirs_off.append((theirs - true) / error(true))
    for off in (np.array(ours_off), np.array(theirs_off)):
        assert abs(off.mean()) < 3 / len(off) ** 0.5
        assert 0.5 < off.std() < 1.2
        assert (abs(off) > 3).mean() < 0.02


def error(true: float) -> float:
    """Standard error of an estimate from 128 numbers."""
    return (max(true * (1 - true), 1e-4) / 128) ** 0.5
