"""Overlap of words between answer and reference."""

from __future__ import annotations

import re
import string
from collections import Counter

from launcher.evals.metric import Mean

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def words(text: str) -> list[str]:
    """Lower-case words without punctuation and articles, as SQuAD compares them."""
    return _ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split()


class F1(Mean):
    """Mean over answers of the F1 of their words with the reference's, each as often as it occurs.

    Source: Rajpurkar et al. 2016, "SQuAD: 100,000+ questions", section 6.1.
    """

    name = "f1"

    def of(self, answer: str, reference: str) -> float | None:
        """F1 in 0..1; of two texts without a word 1."""
        given, wanted = words(answer), words(reference)
        if not given or not wanted:
            return float(given == wanted)
        shared = sum((Counter(given) & Counter(wanted)).values())
        return 2 * shared / (len(given) + len(wanted))
