"""The page of `launcher compare --html`."""

import copy

from launcher.report import build_comparison
from support.html import Page


def test_every_model_has_its_verdict_table_and_answers(comparison, tmp_path):
    second = copy.deepcopy(comparison)
    second.update(tuned_name="run-c", answers=[])
    for row in second["metrics"].values():
        row["verdict"] = "no evidence"
    build_comparison([comparison, second], tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert "run-b is better than run-a: exact_match went from 3.5 % to 71.5 %" in page.text
    assert "There is no evidence that run-c differs from run-a" in page.text
    assert {"model-1", "model-2", "answers-1"} <= set(page.ids)
    assert "answers-2" not in page.ids
    assert len(page.ids) == len(set(page.ids))
    for _, attributes in page.tags:
        target = attributes.get("href", "#top")
        assert target == "data:," or target[1:] in page.ids


def test_names_of_models_stay_text(comparison, tmp_path):
    comparison["base_name"] = comparison["tuned_name"] = "<script>alert(1)</script>"
    build_comparison([comparison], tmp_path / "page.html")
    page = Page((tmp_path / "page.html").read_text())
    assert [tag for tag, _ in page.tags].count("script") == 1
