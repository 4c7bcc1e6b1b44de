"""Clusters of equal and of similar records, against comparing everything with everything."""

import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.curate.records.sketch import Sketcher, shingle_set
from launcher.curate.rules import duplicates

WORDS = [a + b + c for a in "bdfgklmn" for b in "aeiou" for c in ("st", "rn", "ll", "ck", "mp")]


def texts_with_copies(seed: int, count: int = 300, words: int = 60) -> list[str]:
    """Texts, of which a third are edited in up to a tenth of their words."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(6, words))) for _ in range(count)]
    for text in rng.sample(texts, count // 3):
        edited = text.split()
        for _ in range(rng.randint(0, len(edited) // 10)):
            edited[rng.randrange(len(edited))] = rng.choice(WORDS)
        texts.append(" ".join(edited))
    return texts


def similar(texts: list[str], threshold: float) -> set[tuple[int, int]]:
    sets = [set(shingle_set(text).tolist()) for text in texts]
    return {
        (i, j)
        for i in range(len(sets))
        for j in range(i + 1, len(sets))
        if len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j])
    }


def dropped_by_hand(pairs: set[tuple[int, int]], count: int) -> set[int]:
    """Going through the records, all that resemble one kept before."""
    kept = set()
    for j in range(count):
        if not any((i, j) in pairs for i in kept):
            kept.add(j)
    return set(range(count)) - kept


def dropped(clusters: list[np.ndarray]) -> set[int]:
    return {int(record) for cluster in clusters for record in cluster[1:]}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_exact_clusters_are_those_of_equal_rows(rows):
    by_row = defaultdict(list)
    for i, row in enumerate(rows):
        by_row[row].append(i)
    wanted = sorted(records for records in by_row.values() if len(records) > 1)
    found = duplicates.exact(np.array(rows, np.uint64).reshape(-1, 2))
    assert [cluster.tolist() for cluster in found] == wanted


@pytest.mark.thorough
@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.9])
def test_with_texts_the_result_is_that_of_comparing_all_pairs(threshold):
    texts = texts_with_copies(int(100 * threshold))
    true = dropped_by_hand(similar(texts, threshold), len(texts))
    asked = []

    def read(rows):
        asked.append(rows)
        return (texts[i] for i in rows)

    found = dropped(duplicates.near(Sketcher()(texts), threshold, read))
    assert len(true) > 20
    assert len(found & true) >= 0.98 * len(true)
    assert len(found - true) <= 0.02 * len(true)
    (rows,) = asked
    assert (np.diff(rows) > 0).all()
    assert len(rows) < len(texts)


@pytest.mark.thorough
def test_without_texts_it_is_close_to_that():
    texts = texts_with_copies(7)
    true = dropped_by_hand(similar(texts, 0.8), len(texts))
    found = dropped(duplicates.near(Sketcher()(texts), 0.8))
    assert len(found & true) >= 0.85 * len(true)
    assert len(found & true) >= 0.85 * len(found)


def test_every_member_resembles_the_first_of_its_cluster():
    texts = texts_with_copies(11)
    signatures = Sketcher()(texts)
    clusters = duplicates.near(signatures, 0.7)
    assert clusters
    for cluster in clusters:
        assert (np.diff(cluster) > 0).all()
        assert ((signatures[cluster] == signatures[cluster[0]]).mean(axis=1) >= 0.7).all()
    members = np.concatenate(clusters)
    assert len(np.unique(members)) == len(members)
    assert [int(cluster[0]) for cluster in clusters] == sorted(int(c[0]) for c in clusters)


def test_a_chain_is_cut_where_records_no_longer_resemble_the_first():
    base = np.arange(128, dtype=np.uint32)
    chain = np.stack([np.where(base < 16 * i, base + 1000, base) for i in range(6)])
    clusters = duplicates.near(chain.astype(np.uint32), 0.8)
    assert [cluster.tolist() for cluster in clusters] == [[0, 1], [2, 3], [4, 5]]


def test_records_without_words_are_no_duplicates_of_each_other():
    signatures = Sketcher()(["", "?", "same words", "Same, words!"])
    assert [cluster.tolist() for cluster in duplicates.near(signatures, 0.8)] == [[2, 3]]


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_records_for_any_cluster(count):
    signatures = Sketcher()(["words"] * count)
    assert duplicates.near(signatures, 0.8) == []
    assert duplicates.exact(np.zeros((count, 2), np.uint64)) == []


def test_a_crowd_of_equal_records_is_one_cluster():
    signatures = np.repeat(
        Sketcher()(["one of very many", "another text altogether"]), 5000, axis=0
    )
    clusters = duplicates.near(signatures, 0.8, lambda rows: ["one of very many"] * len(rows))
    assert [len(cluster) for cluster in clusters] == [5000, 5000]


def test_a_crowd_of_similar_records_is_found_although_not_all_pairs_are_compared():
    rng = random.Random(3)
    body = " ".join(rng.choices(WORDS, k=200))
    texts = [f"{body} {rng.choice(WORDS)} {i}" for i in range(600)]
    clusters = duplicates.near(Sketcher()(texts), 0.8)
    assert [len(cluster) for cluster in clusters] == [600]


@given(st.floats(0.3, 0.95))
def test_bands_find_what_is_at_the_threshold(threshold):
    count, width = duplicates.bands(128, threshold)
    assert count * width <= 128
    assert 1 - (1 - threshold**width) ** count >= duplicates.SOUGHT


def test_across_finds_the_most_similar_training_record():
    rng = random.Random(5)
    train = [" ".join(rng.choices(WORDS, k=50)) for _ in range(200)]
    words = train[17].split()
    train[40] = " ".join([*words[:45], *rng.choices(WORDS, k=5)])
    held = ["quite another text that stands nowhere", train[17] + " end", train[99], ""]
    rows, columns = duplicates.across(Sketcher()(train), Sketcher()(held), 0.8)
    assert (rows.tolist(), columns.tolist()) == ([17, 99], [1, 2])


def test_across_an_empty_side():
    some, none = Sketcher()(["a text"]), Sketcher()([])
    for left, right in ((some, none), (none, some)):
        rows, columns = duplicates.across(left, right, 0.8)
        assert len(rows) == len(columns) == 0


# ---- the same question, different answers

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=40)


def conflicts_by_hand(pairs):
    groups = defaultdict(list)
    for i, (prompt, _) in enumerate(pairs):
        groups[prompt].append(i)
    return sorted(g for g in groups.values() if len({pairs[i][1] for i in g}) > 1)


@given(PAIRS)
def test_conflicts_are_all_records_of_prompts_with_several_answers(pairs):
    prompts, answers = np.array(pairs, np.uint64).reshape(-1, 2).T
    assert [
        group.tolist() for group in duplicates.conflicting(prompts, answers)
    ] == conflicts_by_hand(pairs)


@given(PAIRS)
def test_conflicts_by_hashes_of_several_words_compare_them_whole(pairs):
    prompts, answers = np.array(pairs, np.uint64).reshape(-1, 2).T
    # Equal first words and different second ones.
    wide = [np.stack([np.full_like(column, 9), column], axis=1) for column in (prompts, answers)]
    assert [group.tolist() for group in duplicates.conflicting(*wide)] == conflicts_by_hand(pairs)
