"""Lists that come page by page, from servers that may repeat a page, or go round in circles."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Page = Mapping[str, Any]


class BrokenList(Exception):
    """A list that cannot be read to its end; what came before is of use."""


def items(read: Callable[[str | None], Any]) -> Iterator[dict[str, Any]]:
    """The objects of a list, each once, in the server's order.

    `read` asks for the page behind an id, or for the first one. What was there at the start is
    found as long as pages follow each other: an object that appears meanwhile may be told of or
    not, none is told of twice. Raises `BrokenList` if a page is no page, or leads nowhere.
    """
    seen: set[str] = set()
    after: str | None = None
    while True:
        data, more = _page(read(after))
        new = 0
        for one in data:
            name = one.get("id") if isinstance(one, dict) else None
            if not isinstance(name, str) or not name:
                raise BrokenList(f"an object without an id: {one!r:.100}")
            if name not in seen:
                seen.add(name)
                new += 1
                yield one
        if not more:
            return
        if not new:
            raise BrokenList("there is said to be more, but the page has nothing new")
        after = data[-1]["id"]


def _page(page: Any) -> tuple[list[Any], bool]:
    data = page.get("data") if isinstance(page, dict) else None
    if not isinstance(data, list):
        raise BrokenList(f"no page of a list: {page!r:.100}")
    return data, page.get("has_more") is True
