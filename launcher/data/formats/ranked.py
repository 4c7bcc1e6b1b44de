"""{"prompt": ..., "completions": [{"response": ..., "overall_score": ...}, ...]}: answers by rank.

Scores or ranks stand in the answers (UltraFeedback, Nectar) or in a list beside them; without
either, answers stand in order, the best first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.data.formats.answers import (
    answer_of,
    behind,
    first_given,
    prompt_of,
    rating,
    require_answer,
)
from launcher.data.formats.base import BadRecord, Messages, Ranked, kind
from launcher.data.formats.messages import Turns, template_options_of, tools_of, with_system
from launcher.record_fields import is_given

#: What lists of answers are called, the text of one of them, and what says how good it is.
LISTS = ("completions", "responses", "answers")
_TEXTS = ("response", "completion", "answer", "content", "text", "output", "messages")
_SCORES: Sequence[str] = ("overall_score", "score", "rating")
_PLACES: Sequence[str] = ("rank",)
#: The same as lists beside the answers.
_SCORE_LISTS = ("scores", "ratings")
_PLACE_LISTS = ("ranks", "ranking")


class RankedFormat:
    """A prompt and several answers of which some are better than others."""

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether there are answers with scores or ranks; what stands in order alone may as well be
        names of one thing, so it has to be said."""
        name = first_given(record, LISTS)
        answers = record.get(name) if name else None
        if not isinstance(answers, list):
            return False
        if first_given(record, (*_SCORE_LISTS, *_PLACE_LISTS)):
            return True
        return all(
            isinstance(answer, dict)
            and first_given(answer, _TEXTS)
            and first_given(answer, (*_SCORES, *_PLACES))
            for answer in answers
        )

    def read(self, record: Mapping[str, Any]) -> Ranked:
        """The answers, best first; `BadRecord` with fewer than two, without scores for all, or
        where none is better than another."""
        name = first_given(record, LISTS) or LISTS[0]
        raw = record.get(name)
        if not isinstance(raw, list):
            raise BadRecord(
                f"field {name!r} is {kind(raw)}, not a list of answers",
                hint='write "completions": [{"response": "...", "score": 1}, ...], or map the '
                f"column with data.columns.{LISTS[0]}=COLUMN",
            )
        if len(raw) < 2:
            raise BadRecord(
                f"{len(raw)} answer{'s' * (not raw)} to a prompt",
                hint="there is nothing to prefer: remove the record, or set data.bad_records=skip",
            )
        prompt = prompt_of({key: value for key, value in record.items() if key != name})
        answers = [behind(prompt, _answer(one, f"answer {i}")) for i, one in enumerate(raw, 1)]
        for number, answer in enumerate(answers, 1):
            require_answer(answer, f"answer {number}")
        scores, is_rated = _scores(record, raw)
        order = sorted(range(len(raw)), key=lambda i: -scores[i])
        made = Ranked(
            with_system(record, Turns(prompt)).messages,
            tuple(answers[i] for i in order),
            tuple(scores[i] for i in order),
            tools_of(record),
            template_options_of(record),
            is_rated,
        )
        if not made.pairs():
            tied = len(set(scores)) == 1
            raise BadRecord(
                f"all {len(raw)} answers are {'rated the same' if tied else 'the same'}",
                hint="nothing is preferred: remove the record, or set data.bad_records=skip",
                rule="tied_ratings" if tied else "equal_answers",
            )
        return made


def _answer(raw: Any, name: str) -> Messages:
    if isinstance(raw, dict) and "role" not in raw and "from" not in raw:
        found = first_given(raw, _TEXTS)
        if found is None:
            raise BadRecord(
                f"{name} has no text: {', '.join(map(repr, raw)) or 'nothing'}",
                hint=f"call it {_TEXTS[0]!r}; or remove the record",
            )
        raw = raw[found]
    return answer_of(raw, name)


def _scores(record: Mapping[str, Any], answers: Sequence[Any]) -> tuple[list[float], bool]:
    """How good each answer is, more is better, and whether that is a rating."""
    for names, sign in ((_SCORE_LISTS, 1), (_PLACE_LISTS, -1)):
        name = first_given(record, names)
        if name is None:
            continue
        values = record[name]
        if not isinstance(values, list) or len(values) != len(answers):
            found = f"{len(values)} numbers" if isinstance(values, list) else kind(values)
            raise BadRecord(
                f"field {name!r} is {found}, beside {len(answers)} answers",
                hint=f"write a number for each answer; to leave it aside: data.columns.{name}=",
            )
        return [sign * _number(value, name, i) for i, value in enumerate(values, 1)], sign > 0
    for keys, sign in ((_SCORES, 1), (_PLACES, -1)):
        inside = [first_given(one, keys) if isinstance(one, dict) else None for one in answers]
        if any(inside):
            return [
                sign * _number(one[name] if name else None, name or keys[0], i)
                for i, (one, name) in enumerate(zip(answers, inside, strict=True), 1)
            ], sign > 0
    return [-float(place) for place in range(len(answers))], False


def _number(value: Any, name: str, place: int) -> float:
    found = rating(value, name)
    if found is None:
        given = is_given(value)
        raise BadRecord(
            f"answer {place} has no {name!r}{f': {value!r}' if given else ''}",
            hint="give every answer a number, or remove the record",
        )
    return found
