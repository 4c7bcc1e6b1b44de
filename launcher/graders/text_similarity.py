"""How alike two texts are, by the libraries that define the measures."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from launcher.core.registry import need
from launcher.graders.grader import Grader, Setting
from launcher.graders.members import Members
from launcher.graders.sample import Sample

#: Input and reference -> similarity in 0 to 1.
_Measure = Callable[[str, str], float]

_ROUGE = {f"rouge_{n}": f"rouge{n.upper()}" for n in "12345l"}
METRICS = ("fuzzy_match", "bleu", "gleu", "meteor", "cosine", *_ROUGE)


class TextSimilarityGrader(Grader):
    """The similarity of input and reference, 0 to 1."""

    def __init__(self, members: Members, setting: Setting) -> None:
        """Read both texts and the measure; `ConfigError` if its library is not installed."""
        super().__init__(members, setting)
        self._input = members.template("input")
        self._reference = members.template("reference")
        name = members.choice("evaluation_metric", METRICS)

        def library(module: str) -> Any:
            where = members.at("evaluation_metric")
            return need(module, f"{name} needs", where=where, extra="eval")

        self._measure = _rouge(name, library) if name in _ROUGE else _MEASURES[name](library)

    def score(self, item: Mapping[str, Any], sample: Sample) -> float:
        """The similarity."""
        found = self._measure(self._input.fill(item, sample), self._reference.fill(item, sample))
        return min(1.0, max(0.0, found))  # floats end a last digit beyond


def _fuzzy(library: Callable[[str], Any]) -> _Measure:
    """rapidfuzz's ratio: of the characters, the share that is common to both in order."""
    fuzz = library("rapidfuzz.fuzz")
    return lambda text, reference: fuzz.ratio(text, reference) / 100


def _bleu(library: Callable[[str], Any]) -> _Measure:
    """sacrebleu's sentence BLEU with its defaults: 13a tokens, exponential smoothing, and no longer
    n-grams than the sentence has."""
    bleu = library("sacrebleu.metrics.bleu").BLEU(effective_order=True)
    return lambda text, reference: bleu.sentence_score(text, [reference]).score / 100


def _gleu(library: Callable[[str], Any]) -> _Measure:
    """NLTK's sentence GLEU of words between white space."""
    gleu = library("nltk.translate.gleu_score").sentence_gleu
    return lambda text, reference: gleu([reference.split()], text.split()) if text.split() else 0.0


def _meteor(library: Callable[[str], Any]) -> _Measure:
    """NLTK's METEOR of words between white space: equal words, then equal stems. WordNet's
    synonyms, its third step, are data that would have to be fetched: there are none."""
    meteor = library("nltk.translate.meteor_score").single_meteor_score
    words = _NoSynonyms()
    return lambda text, reference: meteor(reference.split(), text.split(), wordnet=words)


class _NoSynonyms:
    """A WordNet that knows no word."""

    def synsets(self, word: str) -> list[Any]:
        return []


def _cosine(library: Callable[[str], Any]) -> _Measure:
    """The cosine of the counts of words, in lower case. (OpenAI takes that of embeddings.)"""

    def cosine(text: str, reference: str) -> float:
        one, other = (Counter(re.findall(r"\w+", side.lower())) for side in (text, reference))
        lengths = math.prod(math.sqrt(sum(n * n for n in side.values())) for side in (one, other))
        common = sum(count * other[word] for word, count in one.items())
        return common / lengths if lengths else float(one == other)

    return cosine


def _rouge(name: str, library: Callable[[str], Any]) -> _Measure:
    """rouge-score's F-measure, words stemmed, as the metrics rouge1 to rougeL have it."""
    kind = _ROUGE[name]
    scorer = library("rouge_score.rouge_scorer").RougeScorer([kind], use_stemmer=True)
    return lambda text, reference: scorer.score(reference, text)[kind].fmeasure


_MEASURES: dict[str, Callable[[Callable[[str], Any]], _Measure]] = {
    "fuzzy_match": _fuzzy,
    "bleu": _bleu,
    "gleu": _gleu,
    "meteor": _meteor,
    "cosine": _cosine,
}
