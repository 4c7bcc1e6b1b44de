"""Lists that clients page through: newest first, `after` an id, at most `limit` at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import InstrumentedAttribute, Session
from sqlalchemy.orm.interfaces import ORMOption

from launcher.serve.http.failure import ApiError

#: What a client asks for beyond this it gets on further pages.
MOST = 1000
#: Bytes of one page of rows that may be large.
MOST_BYTES = 16 << 20
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
    ascends: bool = False,
) -> tuple[list[Row], bool]:
    """Rows that meet the conditions, those of highest `number` first, or of the lowest where the
    list `ascends`, and whether there are more.

    `after` is the number of the last row of the page before; `keep` says which rows count.
    """
    limit = min(limit, MOST)
    query = select(row).where(*conditions)
    if after is not None:
        query = query.where(number > after if ascends else number < after)
    ordered = query.order_by(number if ascends else number.desc()).execution_options(
        yield_per=limit + 1
    )
    found: list[Row] = []
    for candidate in session.scalars(ordered):
        if keep(candidate):
            found.append(candidate)
            if len(found) > limit:
                break
    return found[:limit], len(found) > limit


def sized_page(
    session: Session,
    row: type[Row],
    conditions: Sequence[ColumnElement[bool]],
    number: InstrumentedAttribute[int],
    size: InstrumentedAttribute[int],
    *,
    after: int | None,
    limit: int,
    ascends: bool,
    options: Sequence[ORMOption] = (),
) -> tuple[list[Row], bool]:
    """The same of rows with a `size` in bytes: a page ends before it has more than `MOST_BYTES`,
    but has one row at least. `options` say what of a row is loaded."""
    order = number if ascends else number.desc()
    sizes = select(number, size).where(*conditions)
    if after is not None:
        sizes = sizes.where(number > after if ascends else number < after)
    limit = min(limit, MOST)
    listed = session.execute(sizes.order_by(order).limit(limit + 1)).all()
    numbers, total = list[int](), 0
    for own, bytes_ in listed[:limit]:
        total += bytes_
        if numbers and total > MOST_BYTES:
            break
        numbers.append(own)
    wanted = select(row).where(*conditions, number.in_(numbers)).order_by(order)
    return list(session.scalars(wanted.options(*options))), len(listed) > len(numbers)


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
