"""Answers that an old model gave, out of the runs of evals that were pulled."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.account.layout import Folder
from launcher.core.errors import ConfigError, DataError, did_you_mean
from launcher.core.files import read_json, write_atomic


def file_of(folder: Folder, named: str) -> Path:
    """The file that `named` is, or the one that is written here of the pulled run of this id.

    Raises `ConfigError` if it is neither, `DataError` for a run without answers.
    """
    path = Path(named)
    if path.is_file():
        return path
    runs = {found.name: found for found in folder.path.glob("evals/*/runs/*") if found.is_dir()}
    if named not in runs:
        hint = did_you_mean(named, runs) if runs else "no run of an eval was pulled: name a file"
        raise ConfigError("no file, and no run that was pulled", where=named, hint=hint)
    run = runs[named]
    made = folder.path / "answers" / f"{named}.jsonl"
    model = (read_json(run / "record.json") or {}).get("model")
    lines = [json.dumps(one) + "\n" for one in _answers(run / "items.jsonl", model)]
    if not lines:
        hint = "choose a run that has answered, or write a file of answers"
        raise DataError("none of its items has an answer", where=named, hint=hint)
    write_atomic(made, "".join(lines))
    return made


def _answers(items: Path, model: Any) -> Iterator[dict[str, Any]]:
    """Lines of a file of answers, oldest first; the fields of an item stand beside, for graders."""
    if not items.is_file():
        return
    found = map(json.loads, items.read_text(encoding="utf-8").splitlines())
    for item in sorted(found, key=_place):  # servers list them in either order
        sample = item.get("sample")
        if not isinstance(sample, dict):
            continue
        messages = [_turn(turn) for turn in sample.get("input") or () if isinstance(turn, dict)]
        said = [turn for turn in sample.get("output") or () if isinstance(turn, dict)]
        answer = _text(said[-1].get("content")) if said else ""
        if messages and answer:
            own = item.get("datasource_item")
            fields = own if isinstance(own, dict) else {}
            about = {"messages": messages, "answer": answer, "model": model}
            yield {**fields, **about, "reference": _reference(fields)}


def _place(item: Mapping[str, Any]) -> tuple[int, ...]:
    said = (item.get(name) for name in ("datasource_item_id", "created_at"))
    return tuple(one if isinstance(one, int) else 0 for one in said)


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": turn.get("role"), "content": _text(turn.get("content"))}


def _text(content: Any) -> str:
    """The text of content, which may come in parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def _reference(fields: Mapping[str, Any]) -> str:
    """What is right, under the names that evals have for it."""
    for name in ("reference", "reference_answer", "ideal", "expected", "correct_label", "label"):
        if isinstance(fields.get(name), str):
            return str(fields[name])
    return ""
