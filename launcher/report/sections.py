"""What an objective shows of a comparison: its own sections of the page, of blocks of four kinds.

A section is {"title", "blocks"}. Of a block the keys tell the kind:

- {"text"}: a paragraph;
- {"title", "columns", "rows"}: a table, cells as text; `folded` hides it below its title;
- {"title", "names", "cells", "rows_are", "columns_are"}: counts by pairs of names, `cells` of [name
  of the row, name of the column, count]; the diagonal is right. Few names are a matrix with its
  numbers, more a map.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

#: more names are drawn as a map without them.
NAMED = 25

Cells = Mapping[tuple[str, str], int]


def view(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sections as the template places them; a block of another form is said to be none."""
    return [_section(section) for section in comparison.get("sections", [])]


def _section(section: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"title": section["title"], "blocks": [_shown(each) for each in section["blocks"]]}
    except (KeyError, TypeError) as error:
        return {"title": "Unknown", "blocks": [_unknown(error)]}


def _unknown(error: Exception) -> dict[str, Any]:
    return {"kind": "text", "text": f"This cannot be shown: {type(error).__name__}: {error}"}


def _shown(block: Mapping[str, Any]) -> dict[str, Any]:
    try:
        if "text" in block:
            return {"kind": "text", "text": block["text"]}
        if "cells" in block:
            return _counts(block)
        return _table(block)
    except (KeyError, TypeError, ValueError) as error:
        return _unknown(error)


def _table(block: Mapping[str, Any]) -> dict[str, Any]:
    rows = [[str(cell) for cell in row] for row in block["rows"]]
    names = [str(name) for name in block["columns"]]
    cells = list(zip(*rows, strict=True)) or [()] * len(names)
    columns = [
        (name, "num" if place and all(map(_is_number, column)) else "")
        for place, (name, column) in enumerate(zip(names, cells, strict=True))
    ]
    title, folded = str(block.get("title", "")), bool(block.get("folded"))
    return {"kind": "table", "title": title, "columns": columns, "rows": rows, "folded": folded}


def _is_number(cell: str) -> bool:
    return cell == "-" or cell.lstrip("+-")[:1].isdigit()


def _counts(block: Mapping[str, Any]) -> dict[str, Any]:
    """A matrix, or of many names a map."""
    names = [str(name) for name in block["names"]]
    cells = {(row, column): int(count) for row, column, count in block["cells"]}
    totals = Counter[str]()
    for (row, _), count in cells.items():
        totals[row] += count
    few = len(names) <= NAMED
    rows, columns = block["rows_are"], block["columns_are"]
    if few:
        lead = f"Rows are {rows}, columns {columns}, numbers are records."
    else:
        lead = (
            f"Rows are the {len(names)} {rows} by name, columns {columns}; the diagonal is right."
            " Point at a cell for its names."
        )
    return {
        "kind": "matrix" if few else "map",
        "title": f"{block['title']} {'matrix' if few else 'map'}",
        "lead": lead,
        **(_matrix(names, cells, totals) if few else _map(names, cells, totals)),
    }


def _matrix(names: list[str], cells: Cells, totals: Mapping[str, int]) -> dict[str, Any]:
    """Rows of (name, cells of (count, share of the row, right)); columns in the same order."""

    def cell(row: str, column: str) -> tuple[int, float, bool]:
        return cells.get((row, column), 0), _share((row, column), cells, totals), row == column

    return {"names": names, "rows": [(row, [cell(row, name) for name in names]) for row in names]}


def _map(names: list[str], cells: Cells, totals: Mapping[str, int]) -> dict[str, Any]:
    """Cells that are not empty, by row and column."""
    place = {name: i for i, name in enumerate(names)}
    found = [
        {
            "row": place[row],
            "column": place[column],
            "share": max(_share((row, column), cells, totals), 0.4),
            "right": row == column,
            "said": f"{row}, {column}: {count} of {totals[row]}",
        }
        for (row, column), count in sorted(cells.items())
    ]
    return {"size": len(names), "cells": found}


def _share(pair: tuple[str, str], cells: Cells, totals: Mapping[str, int]) -> float:
    total = totals.get(pair[0], 0)
    return round(cells.get(pair, 0) / total, 3) if total else 0.0
