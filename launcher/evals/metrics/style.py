"""Distance of the answers' style to that of the references."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from launcher.evals.metric import Floats, Metric
from launcher.evals.records import Generation

#: A word, contractions in one piece.
WORD = re.compile(r"\w+(?:['\u2019]\w+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|\Z)|\n+")
_CONTRACTION = re.compile(
    r"(?:n't|'(?:re|ve|ll|d|m)|(?:it|that|he|she|what|who|here|there|where|how|let)'s)\Z"
)
#: Marks that are counted each for itself, or those of one kind together.
_MARKS = (".", ",", ";", ":", "!", "?", "-\u2013\u2014", '"\u201c\u201d', "()", "*#_`", "\u2026")

_FUNCTION_WORDS = (
    "a about after all also am an and any are as at be because been before but by can could did do "
    "does for from had has have he her here his how i if in into is it its just me more my no not "
    "now of on only or our out over she should so some than that the their them then there these "
    "they this to too up us very was we were what when where which who will with would"
)
_HEDGE_WORDS = (
    "about apparently appear appears approximately could generally likely may maybe might often "
    "perhaps possibly presumably probably rather roughly seem seems somewhat sometimes suggest "
    "suggests usually"
)
FUNCTION_WORDS, _HEDGES = _FUNCTION_WORDS.split(), frozenset(_HEDGE_WORDS.split())
_SECOND_PERSON = frozenset(("you", "your", "yours", "yourself", "yourselves"))
_COURTESIES = frozenset(("glad", "happy", "please", "sorry", "thank", "thanks", "welcome"))
#: Group of features -> how many it has; all groups weigh the same.
_GROUPS = {
    "length": 2,
    "punctuation": len(_MARKS),
    "formality": 4,
    "vocabulary": 2,
    "function words": len(FUNCTION_WORDS),
}
_WEIGHTS = np.concatenate([np.full(size, 1 / size / len(_GROUPS)) for size in _GROUPS.values()])


class StyleDistance(Metric[Generation]):
    """How far the mean answer's style lies from the mean reference's, in deviations; 0 is the same.

    Features are standardised by mean and deviation over the references; the score is the mean
    absolute difference over them, by groups. For function words that is Burrows' Delta (2002,
    Literary and Linguistic Computing 17:3). The references stay as they are when records are
    resampled. Word lists are English.
    """

    name = "style_distance"
    higher_is_better = False

    def statistics(self, records: Sequence[Generation]) -> Floats:
        """1 and the standardised features of each answer, [records, 1 + features]; zeros where
        there is no reference."""
        own = [words(record.reference) for record in records]
        seen = Counter(word for reference in own for word in set(reference))
        wanted = [
            features(record.reference, found, found, seen)
            for record, found in zip(records, own, strict=True)
            if found
        ]
        if not wanted:
            return np.zeros((len(records), 1 + len(_WEIGHTS)))
        target = np.array(wanted)
        # What references hardly vary in is measured in single words of a reference.
        least = np.full(len(_WEIGHTS), 1 / target[:, 0].mean())
        least[:2] = 1
        rows = [
            features(record.answer, words(record.answer), reference, seen)
            for record, reference in zip(records, own, strict=True)
        ]
        standardised = (np.array(rows) - target.mean(0)) / np.maximum(target.std(0), least)
        return np.concatenate([np.ones((len(records), 1)), standardised], axis=1)

    def scores(self, sums: Floats) -> Floats:
        """Weighted mean of the absolute mean features; NaN without a record that counts."""
        counts = np.where(sums[:, :1] > 0, sums[:, :1], np.nan)
        distances: Floats = np.abs(sums[:, 1:] / counts) @ _WEIGHTS
        return distances

    def counts(self, statistics: Floats) -> npt.NDArray[np.bool_]:
        """All records, if there is a reference at all."""
        return np.asarray(statistics[:, 0] > 0)


def words(text: str) -> list[str]:
    """Lower-case words, contractions whole, with straight apostrophes."""
    return WORD.findall(text.lower().replace("\u2019", "'"))


def features(
    text: str, found: Sequence[str], own: Sequence[str], seen: Counter[str]
) -> list[float]:
    """The features of a text with the words `found`; rates are per word.

    Length: words, words a sentence. Punctuation: each of the marks. Formality: contractions,
    second person, hedges, courtesies. Vocabulary: share of different words, share of words that are
    in the reference of another record (`seen` says in how many; `own` are those of its own, which
    say what it is about). Function words: each.
    """
    counts, total, about = Counter(found), max(1, len(found)), set(own)
    sentences = sum(1 for part in _SENTENCE_END.split(text) if part.strip())
    amounts = [
        *(sum(map(text.count, marks)) for marks in _MARKS),
        sum(n for word, n in counts.items() if _CONTRACTION.search(word)),
        *(sum(counts[word] for word in kind) for kind in (_SECOND_PERSON, _HEDGES, _COURTESIES)),
        len(counts),
        sum(n for word, n in counts.items() if seen[word] > (word in about)),
        *(counts[word] for word in FUNCTION_WORDS),
    ]
    return [len(found), len(found) / max(1, sentences), *(amount / total for amount in amounts)]
