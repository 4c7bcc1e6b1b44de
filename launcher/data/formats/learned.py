"""From what a record is to what an objective takes: ranked answers as pairs, pairs as two answers
of which one is good."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.config.schema import ObjectiveConfig, Ranking, variants
from launcher.config.schema.kinds import KINDS, readable
from launcher.data.formats.base import (
    BadRecord,
    Chat,
    Example,
    Messages,
    OpenQuestion,
    Pair,
    Preference,
    Ranked,
    Text,
    Unpaired,
)
from launcher.data.formats.jsonfields import decoded
from launcher.data.formats.preference import how_to_learn_chosen
from launcher.data.formats.unpaired import how_to_learn_good


def examples_for(
    example: Example, options: ObjectiveConfig, ranking: Ranking = Ranking.all
) -> list[Example]:
    """What an objective takes of an example: itself, or what is made of it. `ranking` says which
    pairs are made of ranked answers; as answers that are good or bad, the best and the worst count
    alone."""
    if example.kind in options.learns:
        return [example]
    made: list[Example] = [example]
    takes_pairs = "pairs" in options.learns
    if isinstance(example, Ranked):
        made = [*example.pairs(extremes=ranking is Ranking.extremes or not takes_pairs)]
    if takes_pairs:
        return made
    return [side for pair in made if isinstance(pair, Preference) for side in pair.sides] or made


def texts_of(example: Example, *, has_template: bool) -> list[Chat | Pair | OpenQuestion | Text]:
    """What is learned of an example, as texts and conversations of their own: of a pair one for
    each answer, of ranked answers of the best and the worst."""
    if isinstance(example, Chat | Pair | OpenQuestion | Text):
        return [example]
    if isinstance(example, Preference):
        answers: tuple[Messages, ...] = example.chosen, example.rejected
    elif isinstance(example, Ranked):
        answers = example.answers[0], example.answers[-1]
    else:
        answers = (example.answer,)
    return [side_of(example, answer, has_template=has_template) for answer in answers]


def side_of(
    example: Preference | Ranked | Unpaired, answer: Messages, *, has_template: bool
) -> Chat | Pair:
    """A prompt with one of its answers, which alone is learned; without a chat template, as texts
    where that says it all."""
    whole = [*example.prompt, *answer]
    asked = frozenset(i for i, turn in enumerate(example.prompt) if turn["role"] == "assistant")
    texts = [turn.get("content") for turn in whole]
    roles = [turn["role"] for turn in whole]
    is_plain = roles == ["user", "assistant"] and all(isinstance(text, str) for text in texts)
    if not has_template and is_plain:
        return Pair(str(texts[0]), str(texts[1]))
    return Chat(whole, example.tools, asked, example.template_options)


def refusal(example: Example, options: ObjectiveConfig) -> BadRecord | None:
    """Why an objective does not learn from an example of its kind; None if it does."""
    if example.kind in readable(options.learns):
        return None
    taken = KINDS[options.learns[0]]
    return BadRecord(
        f"{KINDS[example.kind]}, and {options.name} learns from {taken}",
        hint=variants.how_to_learn(example.kind) or "remove the record",
    )


def way_out(options: ObjectiveConfig, kind: str, record: Mapping[str, Any]) -> str:
    """What to type where an objective cannot learn from data of a kind; `record` is one of it."""
    ways = [variants.how_to_learn(kind)]
    if "answers" in options.learns:
        record = decoded(record)
        if kind == "pairs":
            ways.append(how_to_learn_chosen(record))
        elif kind == "unpaired":
            ways.append(how_to_learn_good(record))
    elif options.learns[0] == "labels":
        ways.append("or name the columns: 'data.columns={text: COLUMN, label: COLUMN}'")
    return "; ".join(filter(None, ways)) or variants.other_way(options, kind)
