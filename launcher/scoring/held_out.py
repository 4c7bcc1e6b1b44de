"""The held-out records of a run, and the parts of them that are compared on their own."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from launcher.core.errors import DataError
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.data.cache import JoinedCache, TokenCache, shown
from launcher.evals.comparison import slices


def held_out(run: RunDir) -> str:
    """Folder of the run's held-out records; `DataError` if it has none."""
    folder = (read_json(run.data) or {}).get("validation")
    if not folder:
        raise DataError(
            "the run has no held-out records",
            where=str(run),
            hint="give data.validation or data.validation_share when training",
        )
    return str(folder)


def groups(
    run: RunDir, cache: TokenCache | JoinedCache, records: Iterable[int]
) -> dict[str, dict[str, list[int]]]:
    """Slices by file, by what the objective names, by length and by the fields of
    `eval.slices`."""
    ids = list(records)
    sources: dict[str, list[int]] = {}
    for record in ids:
        sources.setdefault(cache.where(record).rpartition(":")[0], []).append(record)
    named: dict[str, dict[str, list[int]]] = {}
    for name in (name for name, column in cache.columns.items() if column.is_json):
        parts = named.setdefault(name, {})
        for record in ids:
            parts.setdefault(shown(cache.value(name, record)), []).append(record)
    lengths = {record: int(cache.lengths[record]) for record in ids}
    found = {"source": sources, **named, "length": slices.by_length(lengths)}
    for field, values in read_json(run.slices, {}).items():
        scored = {value: sorted({*ids} & {*members}) for value, members in values.items()}
        found[field] = {value: members for value, members in scored.items() if members}
    return found


def contamination(run: RunDir) -> list[str]:
    """Sentences on held-out records in the training data: what the report of the gate has found."""
    made = (read_json(run.data) or {}).get("report")
    report = read_json(Path(made["path"])) if made else None
    if not report:
        return ["nobody looked for held-out records in the training data; data.gate=[leakage] does"]
    against = report["leakage"]["against"]
    found = [
        f"{part['leaked']:,} of {part['records']:,} records of {part['name']} are in the training"
        " data too, which flatters the tuned model"
        for part in against
        if part["leaked"]
    ]
    return found or ["no held-out record was found in the training data"]
