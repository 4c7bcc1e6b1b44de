"""OpenAI's published operations and ours: each difference has a reason, and none is stale."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from support import operations


@pytest.fixture
def document(client: TestClient) -> dict[str, Any]:
    """The document that the service gives."""
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def test_each_missing_operation_has_a_reason_and_no_reason_is_stale(
    document: dict[str, Any],
) -> None:
    known, here = set(operations.theirs()), set(operations.ours(document))
    assert known - here == set(operations.ABSENT)
    assert here - known == set(operations.OURS)


def test_members_and_parameters_are_those_of_the_published_document(
    document: dict[str, Any],
) -> None:
    known, here = operations.theirs(), operations.ours(document)
    both = known.keys() & here.keys()
    assert len(both) > 25
    assert {one: known[one].query ^ here[one].query for one in both} == dict.fromkeys(
        both, frozenset()
    )
    assert [one for one in both if known[one].body - here[one].body] == []
    more = {one: here[one].body - known[one].body for one in both}
    assert {one: set(names) for one, names in more.items() if names} == {
        one: set(names) for one, names in operations.MORE.items()
    }


def test_each_member_that_is_refused_has_a_reason() -> None:
    refused = {name for one in operations.theirs() for name in operations.refused(one)}
    assert refused == set(operations.REFUSED)


def test_the_table_of_the_page_is_made_from_both_documents(document: dict[str, Any]) -> None:
    assert operations.shown() == operations.table(document), (
        "write it anew: PYTHONPATH=.:tests python -m support.operations"
    )
