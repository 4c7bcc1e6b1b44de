"""Sections that an objective brings to the page."""

import json

import pytest

from launcher.report import build, build_comparison, compared, sections
from support.html import Page

CELLS = [["oos", "pay", 1], ["order", "order", 3], ["pay", "order", 2], ["pay", "pay", 8]]


def counts(cells: list) -> dict:
    names = sorted({name for *pair, _ in cells for name in pair})
    said = {"rows_are": "true classes", "columns_are": "what is named"}
    return {"title": "Confusion", "names": names, "cells": cells, **said}


def shown(*blocks: dict) -> list[dict]:
    (section,) = sections.view({"sections": [{"title": "Own", "blocks": blocks}]})
    return section["blocks"]


OWN = {
    "title": "Classes & more",
    "blocks": [
        {"text": "Always naming 'oos': 25.0 %."},
        counts(CELLS),
        {"title": "Most", "columns": ["Is", "Named", "Share"], "rows": [["pay", "oos", "9 %"]]},
        {"title": "All", "folded": True, "columns": ["Name"], "rows": [["pay"], ["oos"]]},
    ],
}


def test_the_page_of_a_run_has_them_and_leads_to_them(finished_run):
    path = finished_run.eval / "comparison.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "sections": [OWN, OWN]}))
    html = build(finished_run).read_text()
    page = Page(html)
    assert {"objective-1", "objective-2"} <= set(page.ids)
    assert '<a href="#objective-2">Classes &amp; more</a>' in html
    assert "Classes & more Always naming 'oos': 25.0 %. Confusion matrix" in page.text
    assert "Most Is Named Share pay oos 9 % All 2 Name pay oos" in page.text


def test_the_page_of_comparisons_has_them_too(comparison, tmp_path):
    build_comparison([{**comparison, "sections": [OWN]}], tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert "Classes & more Always naming" in page.text
    assert "Confusion matrix" in page.text


def test_few_names_are_a_matrix():
    (made,) = shown(counts(CELLS))
    assert made["kind"] == "matrix"
    assert dict(made["rows"])["pay"] == [(0, 0.0, False), (2, 0.2, False), (8, 0.8, True)]


def test_many_names_are_a_map_of_the_cells_that_there_are():
    (made,) = shown(counts([[f"c{i:03}", f"c{i + i % 2:03}", 1] for i in range(150)]))
    assert (made["kind"], made["title"], made["size"]) == ("map", "Confusion map", 151)
    assert "the 151 true classes" in made["lead"]
    assert len(made["cells"]) == 150
    assert sum(cell["right"] for cell in made["cells"]) == 75
    assert made["cells"][1]["said"] == "c001, c002: 1 of 1"


def test_numbers_of_a_table_stand_in_line():
    (made,) = shown(
        {"columns": ["Is", "Named", "F1"], "rows": [["1", "a", "5 %"], ["2", "b", "-"]]}
    )
    assert made["columns"] == [("Is", ""), ("Named", ""), ("F1", "num")]
    (empty,) = shown({"columns": ["Is"], "rows": []})
    assert empty["rows"] == []


@pytest.mark.parametrize(
    "block",
    [
        {},
        {"columns": ["a"]},
        {"columns": ["a"], "rows": [["b", "c"]]},
        {"columns": ["a", "b"], "rows": [["b", "c"], ["d"]]},
        {**counts(CELLS), "cells": [["a", "b"]]},
        {**counts([[f"c{i}", f"c{i}", 1] for i in range(30)]), "names": ["c"] * 30},
        None,
    ],
)
def test_a_block_of_another_form_is_said_to_be_none_and_the_rest_is_shown(block):
    first, last = shown(block, {"text": "more"})
    assert first["text"].startswith("This cannot be shown: ")
    assert last["text"] == "more"


def test_a_section_without_blocks_is_said_to_have_none(comparison, tmp_path):
    build_comparison([{**comparison, "sections": [{"title": "Own"}]}], tmp_path / "page.html")
    assert "This cannot be shown: KeyError: 'blocks'" in (
        Page((tmp_path / "page.html").read_text()).text
    )


def test_other_runs_have_none():
    assert sections.view({}) == []


def test_a_slice_without_the_headline_metric_is_not_called_small(comparison):
    loss, match = (comparison["metrics"][name] for name in ("loss", "exact_match"))
    parts = {"a": {"loss": loss, "exact_match": match}, "oos": {"loss": loss}, "few": {}}
    comparison["slices"] = [
        {"by": "label", "value": value, "records": 1000, "metrics": metrics}
        for value, metrics in parts.items()
    ]
    (table,) = compared.slices(comparison)
    assert [row["name"] for row in table["rows"]] == ["a"]
    assert [part["name"] for part in table["others"]] == ["a", "oos"]
    assert table["small"] == [("few", 1000)]
