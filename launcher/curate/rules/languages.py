"""Languages of a sample of records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from launcher.curate.records.record import Record
from launcher.curate.records.texts import optional

#: Letters that a text needs for its language to be told, and the least certainty that counts.
MIN_LETTERS, CERTAIN = 40, 0.9
#: A language that more than this share speaks is no accident.
USUAL = 0.1
_READ = 2000


@dataclass(slots=True)
class Languages:
    """What a sample speaks; `odd` are (row, language) of the records in unusual ones."""

    sampled: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    odd: list[tuple[int, str]] = field(default_factory=list)


@cache
def _identifier() -> Any:
    langid = optional("py3langid.langid")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def tell(records: Mapping[int, Record]) -> Languages:
    """The languages of records by row, ISO 639 codes; short and mixed texts are left out."""
    told: dict[int, str] = {}
    for row, record in records.items():
        text = record.text[:_READ]
        if sum(map(str.isalpha, text)) < MIN_LETTERS:
            continue
        language, certainty = _identifier().classify(text)
        if certainty >= CERTAIN:
            told[row] = str(language)
    counts = Counter(told.values())
    usual = {name for name, count in counts.items() if count > USUAL * len(told)}
    odd = [(row, name) for row, name in sorted(told.items()) if name not in usual]
    return Languages(len(told), counts, odd)
