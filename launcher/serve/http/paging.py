"""Lists that clients page through: newest first, `after` an id, at most `limit` at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from launcher.serve.http.failure import ApiError

#: What a client asks for beyond this it gets on further pages.
MOST = 1000
Row = TypeVar("Row")


def page(
    session: Session,
    row: type[Row],
    conditions: Sequence[ColumnElement[bool]],
    number: InstrumentedAttribute[int],
    *,
    after: int | None,
    limit: int,
    keep: Callable[[Row], bool] = lambda _: True,
) -> tuple[list[Row], bool]:
    """Rows that meet the conditions, those of highest `number` first, and whether there are more.

    `after` is the number of the last row of the page before; `keep` says which rows count.
    """
    limit = min(limit, MOST)
    query = select(row).where(*conditions)
    if after is not None:
        query = query.where(number < after)
    ordered = query.order_by(number.desc()).execution_options(yield_per=limit + 1)
    found: list[Row] = []
    for candidate in session.scalars(ordered):
        if keep(candidate):
            found.append(candidate)
            if len(found) > limit:
                break
    return found[:limit], len(found) > limit


def unknown_cursor(after: str) -> ApiError:
    """For an `after` that names nothing in the list."""
    return ApiError(400, f"No item of this list has the id '{after}'.", param="after")


def as_list(items: Iterable[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """A page as clients read it, with the ids of its first and last item."""
    data = list(items)
    return {
        "object": "list",
        "data": data,
        "has_more": has_more,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
    }
