"""{"instruction": ..., "input": ..., "output": ...}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.data.formats.base import BadRecord, Chat, Pair, text_field
from launcher.data.formats.meanings import is_given
from launcher.data.formats.prompt import answer_of, name_of, pair_of

_ABOUT = ("input", "context")
_ANSWERED = ("output", "response")


class AlpacaFormat:
    """An instruction, an optional input that it is about, and the output to learn.

    Dolly's names of the same are context and response.
    """

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether there is an instruction and an output."""
        return "instruction" in record and any(name in record for name in _ANSWERED)

    def read(self, record: Mapping[str, Any]) -> Pair | Chat:
        """Instruction and input, a blank line between them, as the prompt; the output to
        complete."""
        instruction = text_field(record, "instruction")
        about = {
            text
            for name in _ABOUT
            if is_given(record.get(name)) and (text := text_field(record, name))
        }
        if len(about) > 1:
            raise BadRecord(
                "'input' and 'context' say different things",
                hint="to leave one aside: data.columns.context=",
            )
        prompt = "\n\n".join([instruction, *about])
        return pair_of(record, prompt, answer_of(record, name_of(record, _ANSWERED)))
