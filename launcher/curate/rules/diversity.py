"""How varied records are: effective numbers, topics found without a model, novelty.

Topics are clusters of words: the texts' tf-idf vectors, reduced to their main directions, put into
groups by k-means, all by scikit-learn. They are a rough map for a person, not a measurement.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.curate.records import shingles
from launcher.curate.records.redaction import shown, without
from launcher.curate.records.sketch import EMPTY, Signatures
from launcher.curate.records.texts import optional
from launcher.data.tokenizer import torch_unhidden

Floats = npt.NDArray[np.float64]
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

    Their number grows with that of the texts, to `MOST_TOPICS`. Equal texts and seeds give equal
    topics. Raises `ConfigError` if scikit-learn is not installed.
    """
    count = min(MOST_TOPICS, len(texts) // TEXTS_OF_A_TOPIC)
    if count < 2:
        return None
    with torch_unhidden(), _one_thread():
        weights, words = _weights(texts)
        if len(words) < count:
            return None
        told = np.unique(weights.nonzero()[0])
        weights = weights[told]
        groups, likeness = _grouped(weights, count, seed)
    mean = _mean(weights)
    items: list[dict[str, Any]] = []
    for group in np.unique(groups):
        inside = np.flatnonzero(groups == group)
        # What a topic has more of than the whole.
        best = np.argsort(mean - _mean(weights[inside]), kind="stable")[:NAMED]
        typical = inside[np.argmax(likeness[inside])]
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Several threads would add the same numbers in another order each time."""
    optional("sklearn.cluster")  # limited is what is loaded
    with optional("threadpoolctl").threadpool_limits(limits=1):
        yield


def _terms(text: str) -> list[str]:
    """Words of two and more letters; of unspaced scripts every two letters in a row."""
    terms: list[str] = []
    for word in shingles.words(text):
        if "\u0e00" <= word[0] <= "\u9fff" or "\uac00" <= word[0] <= "\ud7af":
            terms += map("".join, pairwise(word))
        elif len(word) > 1 and not word.isdigit():
            terms.append(word)
    return terms


def _weights(texts: Sequence[str]) -> tuple[Any, list[str]]:
    """(tf-idf weights [texts, words], sparse and of length one, or zero where a text has none of
    the words; the words, at most `VOCABULARY`)."""
    most = max(RARE, int(EVERYWHERE * len(texts)))
    vectorizer = optional("sklearn.feature_extraction.text").TfidfVectorizer(
        analyzer=lambda text: _terms(without(text[:READ])),
        min_df=RARE,
        max_df=most,
        max_features=VOCABULARY,
        sublinear_tf=True,
    )
    try:
        weights = vectorizer.fit_transform(texts)
    except ValueError:  # no word is neither everywhere nor rare
        return np.zeros((len(texts), 0)), []
    return weights, vectorizer.get_feature_names_out().tolist()


def _grouped(weights: Any, count: int, seed: int) -> tuple[Integers, Floats]:
    """(group of each of the texts, how like the middle of its group it is), by k-means among the
    main directions of their weights."""
    size = min(DIRECTIONS, *weights.shape)
    svd = optional("sklearn.decomposition").TruncatedSVD(size, random_state=seed)
    points = optional("sklearn.preprocessing").normalize(svd.fit_transform(weights))
    k_means = optional("sklearn.cluster").KMeans(min(count, len(points)), random_state=seed)
    with warnings.catch_warnings():
        # That texts are of fewer kinds than there are groups.
        warnings.simplefilter("ignore", optional("sklearn.exceptions").ConvergenceWarning)
        groups = k_means.fit_predict(points)
    return groups, np.einsum("ij,ij->i", points, k_means.cluster_centers_[groups])


def _mean(weights: Any) -> Floats:
    return np.asarray(weights.mean(axis=0)).ravel()
