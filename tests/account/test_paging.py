"""Lists are read to their end, each object once, whatever the pages are like."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.account import paging


class Server:
    """A list of objects, newest first, to which others are added while it is read."""

    def __init__(self, names: list[int], sizes: list[int], births: list[int], repeats: bool):
        self.names, self.sizes, self.births = names, sizes, births
        self.repeats = repeats
        self.reads = 0

    def page(self, after: str | None) -> Any:
        size = self.sizes[self.reads % len(self.sizes)]
        for _ in range(self.births[self.reads % len(self.births)] if after else 0):
            self.names.insert(0, max(self.names, default=0) + 1)
        self.reads += 1
        start = self.names.index(int(after)) + 1 if after else 0
        if self.repeats and start:
            start -= 1  # the last one of the page before comes again
            size += 1
        data = [{"id": str(name)} for name in self.names[start : start + size]]
        return {"data": data, "has_more": start + size < len(self.names)}


@given(
    count=st.integers(0, 40),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    births=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    repeats=st.booleans(),
)
def test_each_object_comes_once_in_order(count, sizes, births, repeats):
    there = list(range(count, 0, -1))
    found = [int(one["id"]) for one in paging.items(Server([*there], sizes, births, repeats).page)]
    assert len(set(found)) == len(found)
    assert [name for name in found if name <= count] == there


@given(pages=st.lists(st.lists(st.integers(0, 6), max_size=4), max_size=12))
def test_no_server_makes_it_read_for_ever(pages):
    """There is always said to be more, and pages come again and again."""
    reads = 0

    def page(after: str | None) -> Any:
        nonlocal reads
        reads += 1
        names = pages[reads % len(pages)] if pages else []
        return {"data": [{"id": str(name)} for name in names], "has_more": True}

    found = []
    with pytest.raises(paging.BrokenList):
        found += [one["id"] for one in paging.items(page)]
    assert reads <= 8  # seven names: each page but the last has brought a new one
    assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    "page",
    [
        None,
        [],
        "text",
        {},
        {"data": 3},
        {"data": [{"name": "x"}]},
        {"data": [7]},
        {"data": [{"id": ""}]},
    ],
)
def test_what_is_no_page_is_said(page):
    with pytest.raises(paging.BrokenList):
        list(paging.items(lambda after: page))
