"""{"instruction": ..., "input": ..., "output": ...}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.data.formats.base import Chat, Pair, text_field
from launcher.data.formats.prompt import answer_of, name_of, pair_of
from launcher.record_fields import is_given

_ABOUT = ("input", "context", "query")
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
        prompt = instruction_of(record)
        return pair_of(record, prompt, answer_of(record, name_of(record, _ANSWERED)))


def instruction_of(record: Mapping[str, Any]) -> str:
    """Instruction and input of a record."""
    instruction = text_field(record, "instruction")
    about = name_of(record, _ABOUT)
    said = text_field(record, about) if is_given(record.get(about)) else ""
    return "\n\n".join(filter(None, [instruction, said]))
