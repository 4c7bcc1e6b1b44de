"""A classifier's part of the page."""

import json
from collections import Counter

import pytest

from launcher.report import build, build_comparison, classes, compared
from support.html import Page


def report_of(answers: list[tuple[str, str]]) -> dict:
    """As eval/comparison.json has it, of (true, named) pairs."""
    pairs = Counter(answers)
    names = sorted({name for pair in answers for name in pair})
    rows = []
    for name in names:
        support, named = (sum(pair[side] == name for pair in answers) for side in (0, 1))
        right = pairs[name, name]
        rows.append(
            {
                "name": name,
                "precision": right / named if named else None,
                "recall": right / support if support else None,
                "f1": 2 * right / (support + named),
                "support": support,
            }
        )
    confusion = [[*pair, count] for pair, count in sorted(pairs.items())]
    guess = {"label": names[0], "metrics": {"accuracy": 0.25}}
    return {"class_report": {"classes": rows, "confusion": confusion}, "guessing": guess}


FEW = [("pay", "pay")] * 8 + [("pay", "order")] * 2 + [("order", "order")] * 3 + [("oos", "pay")]


def test_few_classes_are_a_matrix_with_the_worst_first(finished_run):
    path = finished_run.eval / "comparison.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **report_of(FEW)}))
    page = Page(build(finished_run).read_text())
    assert "classes" in page.ids
    assert "Always naming 'oos', the most frequent in training: accuracy 25.0 %." in page.text
    assert "Is Named Records pay order 2 of 10 oos pay 1 of 1" in page.text
    made = classes.view(json.loads(path.read_text()))
    assert [row["name"] for row in made["rows"]] == ["oos", "order", "pay"]
    assert dict(made["matrix"]["rows"])["pay"] == [(0, 0.0, False), (2, 0.2, False), (8, 0.8, True)]
    assert made["map"] is None


def test_the_page_of_comparisons_has_the_matrix_too(comparison, tmp_path):
    build_comparison([{**comparison, **report_of(FEW)}], tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert "Confusion matrix" in page.text


def test_many_classes_are_a_map_of_the_cells_that_there_are():
    answers = [(f"c{i:03}", f"c{i + i % 2:03}") for i in range(150)]
    made = classes.view(report_of(answers))
    assert made["matrix"] is None
    assert made["map"]["size"] == 151
    assert len(made["map"]["cells"]) == 150
    assert sum(cell["right"] for cell in made["map"]["cells"]) == 75
    assert made["num_confused"] == 75
    assert len(made["confused"]) == classes.MOST


def test_many_classes_of_which_several_may_apply_have_no_map():
    made = report_of([(f"c{i:03}", f"c{i:03}") for i in range(60)])
    made["class_report"]["confusion"] = []
    found = classes.view(made)
    assert (found["map"], found["matrix"], len(found["rows"])) == (None, None, 60)


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


@pytest.mark.parametrize("comparison", [{}, {"class_report": {"classes": [], "confusion": []}}])
def test_other_runs_have_no_classes(comparison):
    assert classes.view(comparison) is None
