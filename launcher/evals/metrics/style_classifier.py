"""How many answers a classifier takes for answers in the style of the references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from launcher.evals.metric import Floats, Ratio
from launcher.evals.metrics.style import WORD, words
from launcher.evals.records import Generation

#: A record is judged by a classifier that has seen none of its fold.
FOLDS = 5
#: Records that a classifier learns from at least.
MIN_LEARNED = 20
#: Commonest n-grams that are looked at, and their longest length in characters.
NUM_FEATURES, LONGEST = 300, 4
#: Share of the references, or of the base's answers, that have a word which is not masked.
COMMON = 0.1


class StyleClassifier(Ratio[Generation]):
    """Share of answers that a classifier takes for references rather than for the base's answers.

    A logistic regression on character n-grams learns to tell the references from the base's
    answers, and judges both models' answers to records that it has not learned from: five folds by
    record. Numbers and words that few texts have are masked, as in text distortion (Stamatatos
    2017), so that style is told rather than content. The classifiers stay as they are when records
    are resampled. One model alone has no score. Whatever is unlike the base may be taken for a
    reference, so it says something only beside `style_distance`.
    """

    name = "style_classifier"
    higher_is_better = True
    unit = "share"
    binary = True
    pairwise = True
    learns_from_base = True

    def values(self, records: Sequence[Generation]) -> tuple[Floats, Floats]:
        """Zeros: without a base there is nothing to tell the references from."""
        return np.zeros(len(records)), np.zeros(len(records))

    def paired(
        self, base: Sequence[Generation], tuned: Sequence[Generation]
    ) -> tuple[Floats, Floats]:
        """Statistics of the same records' answers; those that were not judged do not count."""
        answers = [[record.answer for record in side] for side in (base, tuned)]
        wanted = [record.reference for record in base]
        kept = _common(wanted) | _common(answers[0])
        references, *sides = ([_ngrams(t, kept) for t in texts] for texts in (wanted, *answers))
        taken, judged = np.zeros((2, len(base))), np.zeros(len(base))
        fold = np.array([record.id % FOLDS for record in base])
        has_reference = np.array([bool(record.reference.strip()) for record in base])
        for k in range(FOLDS):
            learned = np.flatnonzero((fold != k) & has_reference)
            mine = np.flatnonzero(fold == k)
            if len(learned) < MIN_LEARNED or not len(mine):
                continue
            texts = [references[i] for i in learned] + [sides[0][i] for i in learned]
            space = _space(texts)
            labels = np.repeat([1.0, 0.0], len(learned))
            weights = fit(_vectors(texts, space), labels)
            for row, side in zip(taken, sides, strict=True):
                row[mine] = predict(_vectors([side[i] for i in mine], space), weights) > 0.5
            judged[mine] = 1
        return np.stack([taken[0], judged], axis=1), np.stack([taken[1], judged], axis=1)


def fit(features: Floats, labels: npt.NDArray[np.float64], penalty: float = 1.0) -> Floats:
    """Weights [features + 1] of a logistic regression, the intercept last, by Newton's method.

    `features` is [texts, features], `labels` 0 or 1 [texts]; the squared norm of the weights
    without the intercept is penalised by `penalty` / 2.
    """
    inputs = _with_intercept(features)
    ridge = penalty * np.eye(inputs.shape[1])
    ridge[-1, -1] = 0
    weights = np.zeros(inputs.shape[1])
    for _ in range(50):
        chances = predict(features, weights)
        gradient = inputs.T @ (chances - labels) + ridge @ weights
        curvature = (inputs.T * (chances * (1 - chances))) @ inputs + ridge
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    return weights


def predict(features: Floats, weights: Floats) -> Floats:
    """Chance of label 1, [texts]."""
    chances: Floats = 1 / (1 + np.exp(-(_with_intercept(features) @ weights)))
    return chances


def _with_intercept(features: Floats) -> Floats:
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)


def _common(texts: Sequence[str]) -> set[str]:
    """Words that `COMMON` of the texts have, numbers left out."""
    found = Counter(word for text in texts for word in set(words(text)) if not word.isdigit())
    return {word for word, count in found.items() if count >= COMMON * len(texts)}


def _ngrams(text: str, kept: set[str]) -> Counter[str]:
    """Counts of the text's runs of 1 to `LONGEST` characters, all words but `kept` masked."""
    text = text.replace("\u2019", "'")
    masked = f"\n{WORD.sub(lambda word: word[0] if word[0].lower() in kept else '*', text)}\n"
    return Counter(
        masked[i : i + n] for n in range(1, LONGEST + 1) for i in range(len(masked) - n + 1)
    )


def _space(texts: Sequence[Counter[str]]) -> dict[str, int]:
    """The n-grams that most texts have, each with its column."""
    found = Counter(ngram for text in texts for ngram in text)
    commonest = sorted(found, key=lambda ngram: (-found[ngram], ngram))[:NUM_FEATURES]
    return {ngram: column for column, ngram in enumerate(commonest)}


def _vectors(texts: Sequence[Counter[str]], space: dict[str, int]) -> Floats:
    """Logarithms of the counts, each text's of length 1: [texts, features]."""
    rows = np.zeros((len(texts), len(space)))
    for row, text in zip(rows, texts, strict=True):
        for ngram, count in text.items():
            if (column := space.get(ngram)) is not None:
                row[column] = np.log1p(count)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    vectors: Floats = rows / np.where(norms > 0, norms, 1)
    return vectors
