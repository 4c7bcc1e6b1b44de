"""How varied records are: effective numbers, topics found without a model, novelty.

Topics are clusters of words: the texts' tf-idf vectors, reduced to their main directions, put into
groups by k-means on the sphere. They are a rough map for a person, not a measurement.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.curate import shingles
from launcher.curate.redaction import shown, without
from launcher.curate.sketch import EMPTY, Signatures

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]

#: words that topics are made of: the most common ones that are not everywhere.
VOCABULARY = 2048
#: words in more texts than this share are of no topic, words in fewer than this number of none yet.
EVERYWHERE, RARE = 0.1, 3
#: main directions kept.
DIRECTIONS = 48
MOST_TOPICS = 24
#: texts a topic has on average, at least.
TEXTS_OF_A_TOPIC = 25
ROUNDS = 30
#: words of a topic that are named, and characters of its example.
NAMED, EXAMPLE = 6, 160
#: characters of a text that are looked at.
READ = 4000


def effective(counts: Iterable[float]) -> float:
    """How many equally large groups are as varied as these: exp of the entropy. 0 for none."""
    sizes = [count for count in counts if count > 0]
    total = sum(sizes)
    return math.exp(-sum(n / total * math.log(n / total) for n in sizes)) if sizes else 0.0


def novelty(
    signatures: Signatures, sample: int = 1000, pool: int = 10_000, seed: int = 0
) -> dict[str, Any] | None:
    """How unlike the nearest other record is, 0 (a copy) to 1, over a sample.

    The nearest one is looked for in a `pool` of at most that many records. None for fewer than two
    records with words. Returns {"histogram", "median"}.
    """
    rng = np.random.RandomState(seed)
    rows = np.flatnonzero((signatures != EMPTY).any(axis=1))
    if len(rows) < 2:
        return None
    rows = rng.permutation(rows)[: max(pool, sample)]
    # Eight bits of each number: four times as fast, and chance agreement is taken off below.
    table = signatures[rows].astype(np.uint8)
    size = table.shape[1]
    nearest = np.zeros(min(sample, len(rows)))
    for i in range(len(nearest)):
        agreed = np.count_nonzero(table == table[i], axis=1)
        agreed[i] = 0
        nearest[i] = agreed.max() / size
    alike = np.clip((nearest - 2.0**-8) / (1 - 2.0**-8), 0, 1)
    counts, edges = np.histogram(1 - alike, bins=20, range=(0, 1))
    return {
        "histogram": {"edges": edges.round(2).tolist(), "counts": counts.tolist()},
        "median": round(float(np.median(1 - alike)), 4),
    }


def topics(texts: Sequence[str], seed: int = 0) -> dict[str, Any] | None:
    """Topics of a sample of texts, largest first, as in report.json; None where there are none.

    Their number grows with that of the texts, to `MOST_TOPICS`.
    """
    documents = [Counter(_terms(without(text[:READ]))) for text in texts]
    words = _vocabulary(documents)
    count = min(MOST_TOPICS, len(texts) // TEXTS_OF_A_TOPIC)
    if count < 2 or len(words) < count:
        return None
    weights = _tf_idf(documents, words)
    told = np.flatnonzero(weights.any(axis=1))
    weights = weights[told]
    rng = np.random.RandomState(seed)
    points = _reduced(weights, rng)
    groups, centres = _k_means(points, count, rng)
    mean = weights.mean(axis=0)
    items: list[dict[str, Any]] = []
    for group in range(len(centres)):
        inside = np.flatnonzero(groups == group)
        # What a topic has more of than the whole.
        best = np.argsort(-(weights[inside].mean(axis=0) - mean), kind="stable")[:NAMED]
        typical = inside[np.argmax(points[inside] @ centres[group])]
        items.append(
            {
                "words": [words[i] for i in best],
                "count": len(inside),
                "example": shown(" ".join(texts[told[typical]][:READ].split()), EXAMPLE),
            }
        )
    items.sort(key=lambda item: (-item["count"], item["words"]))
    return {
        "sampled": len(texts),
        "items": items,
        "effective": round(effective(item["count"] for item in items), 2),
    }


def _terms(text: str) -> list[str]:
    """Words of two and more letters; of unspaced scripts every two letters in a row."""
    terms: list[str] = []
    for word in shingles.words(text):
        if "\u0e00" <= word[0] <= "\u9fff" or "\uac00" <= word[0] <= "\ud7af":
            terms += map("".join, pairwise(word))
        elif len(word) > 1 and not word.isdigit():
            terms.append(word)
    return terms


def _vocabulary(documents: Sequence[Counter[str]]) -> list[str]:
    found = Counter(word for document in documents for word in document)
    most = max(RARE, EVERYWHERE * len(documents))
    fitting = [(-n, word) for word, n in found.items() if RARE <= n <= most]
    return [word for _, word in sorted(fitting)[:VOCABULARY]]


def _tf_idf(documents: Sequence[Counter[str]], words: Sequence[str]) -> Floats:
    """Rows of length one, or of zeros where a text has none of the words."""
    places = {word: i for i, word in enumerate(words)}
    weights = np.zeros((len(documents), len(words)), np.float32)
    for row, document in enumerate(documents):
        for word in document.keys() & places.keys():
            weights[row, places[word]] = 1 + math.log(document[word])
    met = np.count_nonzero(weights, axis=0)
    weights *= np.log(len(documents) / met).astype(np.float32)
    return _unit(weights)


def _reduced(weights: Floats, rng: np.random.RandomState) -> Floats:
    """Rows along the main directions (randomised singular value decomposition), of length one."""
    size = min(DIRECTIONS, *weights.shape)
    basis = weights @ rng.standard_normal((weights.shape[1], size)).astype(np.float32)
    for _ in range(3):
        basis, _ = np.linalg.qr(weights @ (weights.T @ basis))
    _, _, directions = np.linalg.svd(basis.T @ weights, full_matrices=False)
    return _unit(weights @ directions.T)


def _k_means(points: Floats, count: int, rng: np.random.RandomState) -> tuple[Integers, Floats]:
    """(group of each point, centres of the groups that have points), by cosine."""
    centres = points[[rng.randint(len(points))]]
    for _ in range(min(count, len(points)) - 1):
        # k-means++: what lies far from all centres so far is likely to be the next.
        far = np.clip(1 - (points @ centres.T).max(axis=1), 0, None).astype(np.float64)
        if not far.sum():
            break
        centres = np.vstack([centres, points[rng.choice(len(points), p=far / far.sum())]])
    groups = np.full(len(points), -1)
    for _ in range(ROUNDS):
        nearest = np.argmax(points @ centres.T, axis=1)
        if (nearest == groups).all():
            break
        groups = nearest
        present, groups = np.unique(groups, return_inverse=True)
        sums = np.zeros((len(present), points.shape[1]), np.float32)
        np.add.at(sums, groups, points)
        centres = _unit(sums)
    return groups, centres


def _unit(rows: Floats) -> Floats:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)
