"""{"instruction": ..., "input": ..., "output": ...}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.data.formats.base import BadRecord, Pair, text_field


class AlpacaFormat:
    """An instruction, an optional input that it is about, and the output to learn."""

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether there is an instruction and an output."""
        return "instruction" in record and "output" in record

    def read(self, record: Mapping[str, Any]) -> Pair:
        """Instruction and input, a blank line between them, as the prompt; the output to
        complete."""
        instruction, output = text_field(record, "instruction"), text_field(record, "output")
        about = text_field(record, "input") if record.get("input") is not None else ""
        if not output.strip():
            raise BadRecord("the output is empty", hint="remove the record, or skip bad ones")
        return Pair(f"{instruction}\n\n{about}" if about.strip() else instruction, output)
