"""Items of runs, out of files and requests: what is wrong with them is told by line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

from launcher.serve.files.examples import ExampleKind
from launcher.serve.files.validation import MOST_FAULTS, fault_of
from launcher.serve.grading.workers import Grading

#: Items of one run.
MOST_ITEMS = 50_000
#: Lines that are looked at, and kept, at a time, and their bytes.
_CHUNK, _CHUNK_BYTES = 200, 4 << 20
_MEMBERS = ("item", "sample")


@dataclass(frozen=True, slots=True)
class Read:
    """A line that could be read: where it stands, its item, and the answer beside it."""

    where: str
    item: dict[str, Any]
    sample: dict[str, Any] | None


class ItemFaults:
    """What is wrong with items: the first few are told."""

    def __init__(self) -> None:
        self._told: list[str] = []
        self._count = 0

    def add(self, where: str, fault: str) -> None:
        """One more."""
        self._count += 1
        if len(self._told) < MOST_FAULTS:
            self._told.append(f"{where} {fault}")

    @property
    def text(self) -> str:
        """All of it; empty if there is none."""
        more = self._count - len(self._told)
        return " ".join(self._told) + (f" And {more:,} more." if more else "")


def chunks(
    content: IO[bytes], line_bytes: int, *, bare: bool, faults: ItemFaults
) -> Iterator[list[Read]]:
    """The items of a file, some at a time. `bare`: a line without `item` is the item itself."""

    def fault(record: Mapping[str, Any]) -> str:
        return _fault_of(record, bare=bare)

    kind = ExampleKind(fault, lambda _: iter(()), lambda _: ())
    number, size, found = 0, 0, list[Read]()
    while line := content.readline(line_bytes + 1):
        number += 1
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not line.strip():
            continue
        where = f"Line {number}"
        if len(line) > line_bytes:
            faults.add(where, f"is longer than {line_bytes:,} bytes.")
            break
        wrong = fault_of(line, kind)
        if wrong:
            faults.add(where, wrong)
            continue
        found.append(_read(json.loads(line), where))
        size += len(line)
        if len(found) == _CHUNK or size > _CHUNK_BYTES:
            yield found
            size, found = 0, []
    yield found


def of_request(content: Sequence[Mapping[str, Any]], faults: ItemFaults) -> list[Read]:
    """The items of `file_content`."""
    found = []
    for number, line in enumerate(content):
        where = f"content[{number}]"
        if wrong := _fault_of(line, bare=False):
            faults.add(where, wrong)
        else:
            found.append(_read(line, where))
    return found


def parts(read: Sequence[Read]) -> Iterator[Sequence[Read]]:
    """Of many lines as many as are looked at at a time."""
    for start in range(0, len(read), _CHUNK):
        yield read[start : start + _CHUNK]


async def check(
    grading: Grading, turn: str, schema: dict[str, Any], read: Sequence[Read], faults: ItemFaults
) -> None:
    """Note which items do not fit the schema."""
    for part in parts(read):
        items = [one.item for one in part]
        where = "data_source_config.item_schema"
        misfits = await grading.misfits(turn, schema, items, where)
        for one, misfit in zip(part, misfits, strict=True):
            if misfit:
                faults.add(one.where, f"does not fit item_schema: {misfit}.")


def require_samples(read: Sequence[Read], faults: ItemFaults) -> None:
    """Note which lines have no answer, where criteria read one and nobody is asked."""
    for one in read:
        if one.sample is None:
            faults.add(
                one.where, 'has no "sample", which the eval includes: the answer goes there.'
            )


def _read(line: Mapping[str, Any], where: str) -> Read:
    if _is_bare(line):
        return Read(where, dict(line), None)
    return Read(where, line["item"], line.get("sample"))


def _is_bare(line: Mapping[str, Any]) -> bool:
    return "item" not in line or any(name not in _MEMBERS for name in line)


def _fault_of(line: Mapping[str, Any], *, bare: bool) -> str:
    """What is wrong with a line, to be read after where it stands; empty if nothing is."""
    if _is_bare(line):
        if bare:
            return ""
        others = [name for name in line if name not in _MEMBERS]
        if "item" not in line:
            return 'has no "item": write {"item": {...}}.'
        return f'has the member "{others[0][:100]}" beside "item": an item has it inside.'
    if not isinstance(line["item"], Mapping):
        return 'has an "item" that is no object.'
    sample = line.get("sample")
    if sample is None:
        return ""
    if not isinstance(sample, Mapping) or not isinstance(sample.get("output_text"), str):
        return 'has a "sample" without "output_text", the text of the answer.'
    if not isinstance(sample.get("output_tools") or [], list):
        return 'has a "sample" whose "output_tools" are no list.'
    return ""
