"""Which tokens end an assistant's turn: those that the data teaches, or those of a chat template.

A model that was taught to end with `<|im_end|>` goes on for ever if it is stopped at its base's
`<|endoftext|>` alone. What was taught is counted while data is prepared, and read here by all that
asks a model: there can be several (a tool call ends otherwise than an answer in some templates).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.core.files import read_json
from launcher.data.cache import INDEX
from launcher.data.chat.masking import ChatRenderer
from launcher.data.formats.base import BadRecord, Chat

#: A token that also stands inside what is learned, where the model must go on behind it, ends a
#: turn only if that is rarer than so many times: a message may quote it, but the marks between a
#: thought and its answer must not stop an answer.
RARE = 100

Counts = dict[str, list[int]]
"""Of each special token, by its id in decimal: how many learned turns it ends, and how often it
stands inside one."""

_QUESTION = {"role": "user", "content": "a"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    },
}


class TurnEnds:
    """Counts how learned turns end, in batches of tokens and target flags."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        self._special = np.array(sorted(special), np.int64)
        self._blank: dict[int, bool] = {}
        self._ended: Counter[int] = Counter()
        self._inside: Counter[int] = Counter()

    @property
    def counts(self) -> Counts:
        """What has been counted so far, as JSON can hold it."""
        ids = sorted({*self._ended, *self._inside})
        return {str(i): [self._ended[i], self._inside[i]] for i in ids}

    def may_end(self, token: int) -> bool:
        """Whether a token is special, so that generation can stop at it."""
        return token in self._special

    def take_up(self, counts: Counts) -> None:
        """Go on from the counts of an earlier process."""
        self._ended = Counter({int(i): ended for i, (ended, _) in counts.items()})
        self._inside = Counter({int(i): inside for i, (_, inside) in counts.items()})

    def add(
        self,
        tokens: NDArray[np.int32],
        targets: NDArray[np.uint8],
        lengths: NDArray[np.int32],
        is_cut: NDArray[np.bool_],
    ) -> None:
        """Count sequences that lie end to end: tokens and targets [total], lengths [sequences].

        `is_cut` [sequences] tells those that break off, whose last token says nothing.
        """
        if not len(tokens):
            return
        learned = targets.astype(bool)
        last = np.cumsum(lengths) - 1
        goes_on = np.append(learned[1:], False)
        goes_on[last] = False
        broken = last[is_cut]
        ends = learned & ~goes_on
        ends[broken] = False
        at = self._before_blanks(tokens, learned, np.flatnonzero(ends))
        special = np.isin(tokens, self._special)
        self._ended.update(tokens[at[special[at]]].tolist())
        inside = special & learned
        inside[at] = inside[broken] = False
        self._inside.update(tokens[inside].tolist())

    def _before_blanks(
        self, tokens: NDArray[np.int32], learned: NDArray[np.bool_], at: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """The places `at`, moved to before the white space that a template learns at its ends."""
        while True:
            blank = [self._is_blank(token) for token in tokens[at].tolist()]
            moves = np.array(blank, bool) & (at > 0) & learned[at - 1]
            if not moves.any():
                return at
            at = at - moves

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not self._tokenizer.decode([token]).strip()
        return self._blank[token]


def joined(parts: Iterable[Counts | None]) -> Counts | None:
    """The counts of several sources; None if one does not know its own."""
    total: Counts = {}
    for part in parts:
        if part is None:
            return None
        for token, counted in part.items():
            known = total.get(token, [0, 0])
            total[token] = [a + b for a, b in zip(known, counted, strict=True)]
    return total


def settled(counts: Counts) -> list[int]:
    """The tokens that end a turn."""
    return sorted(
        int(token) for token, (ended, inside) in counts.items() if ended and inside * RARE <= ended
    )


def by_template(tokenizer: Any) -> list[int]:
    """The tokens that end an answer, and a call of a tool, in the tokenizer's chat template."""
    if not tokenizer.chat_template:
        return []
    renderer = ChatRenderer(tokenizer)
    found = set()
    for chat in _samples():
        try:
            rendering = renderer.render(chat)
        except BadRecord:
            continue  # a template that knows no tools, or wants their arguments otherwise
        spans = rendering.spans
        turn = rendering.text[slice(*spans[-1])].rstrip() if spans else ""
        if renderer.ends_turn(turn):
            found.add(int(tokenizer(turn, add_special_tokens=False)["input_ids"][-1]))
    return sorted(found)


def _samples() -> Iterable[Chat]:
    yield Chat([_QUESTION, {"role": "assistant", "content": "b"}])
    for arguments in ({"x": "y"}, '{"x": "y"}'):
        call = {"type": "function", "id": "call00001"}
        function = {"name": "f", "arguments": arguments}
        message = {
            "role": "assistant",
            "content": "",
            "tool_calls": [{**call, "function": function}],
        }
        yield Chat([_QUESTION, message], tools=[_TOOL])


def taught(data: Mapping[str, Any] | None, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a turn in the training data of a run; `data` is its data.json.

    Those of the chat template where the prepared data is gone or does not say.
    """
    folder = (data or {}).get("train")
    index = read_json(Path(folder) / INDEX, {}) if folder else {}
    counts = index.get("turn_ends")
    if counts is None:
        return tuple(by_template(tokenizer))
    # Where questions have no answer, the data does not say how one ends.
    beside = by_template(tokenizer) if (index.get("counts") or {}).get("asked") else ()
    return tuple(sorted({*settled(counts), *beside}))
