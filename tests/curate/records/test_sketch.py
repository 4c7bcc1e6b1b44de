"""MinHash signatures: the same everywhere, blind to form, and true to the overlap of texts."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.curate.records import shingles
from launcher.curate.records.sketch import EMPTY, FEW_WORDS, Sketcher, shingle_set, similarity

LONG = " ".join(f"word{i}" for i in range(60))


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
        "import sys, pickle; from launcher.curate.records.sketch import Sketcher;"
        "sys.stdout.buffer.write(Sketcher()(pickle.loads(sys.stdin.buffer.read())).tobytes())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(texts), capture_output=True, check=True
    )
    assert done.stdout == Sketcher()(texts).tobytes()


def test_processes_forked_after_the_first_signature_make_signatures_too():
    texts = [f"{i} {LONG}" for i in range(50)]
    code = (
        "import multiprocessing, sys, pickle; from launcher.curate.records.sketch import Sketcher\n"
        "texts = pickle.loads(sys.stdin.buffer.read()); expected = Sketcher()(texts)\n"
        "with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "    assert (pool.apply_async(Sketcher(), [texts]).get(timeout=20) == expected).all()\n"
    )
    command = [sys.executable, "-c", code]
    environment = {name: value for name, value in os.environ.items() if "RAYON" not in name}
    subprocess.run(command, input=pickle.dumps(texts), env=environment, check=True, timeout=60)


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


@pytest.mark.thorough
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
