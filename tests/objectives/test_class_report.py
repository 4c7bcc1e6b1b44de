"""What the report shows of a classifier."""

from __future__ import annotations

from typing import Any

from launcher.objectives.classify import confusion
from launcher.objectives.classify.classes import Classes
from launcher.objectives.classify.records import OUT_OF_SCOPE, ClassRecord

NAMES = {"order": 0, "pay": 1, "oos": OUT_OF_SCOPE}
FEW = [("pay", "pay")] * 8 + [("pay", "order")] * 2 + [("order", "order")] * 3 + [("oos", "pay")]


def classes(names: list[str], *, several: bool = False) -> Classes:
    return Classes(names, several, None if several else "oos", [1] * len(names), [0], None)


def blocks_of(found: Classes, records: list[ClassRecord], **about: Any) -> list[dict[str, Any]]:
    report = confusion.report(records, found)
    (section,) = confusion.sections({"class_report": report, **about})
    assert section["title"] == "Classes"
    return section["blocks"]


def test_classes_are_told_with_the_worst_first():
    records = [
        ClassRecord(i, [NAMES[true]], [NAMES[named]], 0.5) for i, (true, named) in enumerate(FEW)
    ]
    guess = {"label": "oos", "metrics": {"accuracy": 0.25}}
    text, counts, most, every = blocks_of(classes(["order", "pay"]), records, guessing=guess)
    assert text == {"text": "Always naming 'oos', the most frequent in training: accuracy 25.0 %."}
    assert counts["names"] == ["oos", "order", "pay"]
    assert ["pay", "order", 2] in counts["cells"]
    assert most["rows"] == [["pay", "order", "2 of 10"], ["oos", "pay", "1 of 1"]]
    assert [row[0] for row in every["rows"]] == ["oos", "order", "pay"]
    assert every["rows"][2] == ["pay", "88.9 %", "80.0 %", "84.2 %", "10"]
    assert every["folded"]


def test_the_most_frequent_of_many_confusions_are_listed():
    names = [f"c{i:03}" for i in range(151)]
    records = [ClassRecord(i, [i], [i + i % 2], 0.5) for i in range(150)]
    counts, most, every = blocks_of(classes(names), records)
    assert len(counts["cells"]) == 150
    assert len(most["rows"]) == confusion.MOST
    assert len(every["rows"]) == 151


def test_classes_of_which_several_may_apply_are_no_pairs():
    records = [ClassRecord(i, [i], [i], 0.5) for i in range(60)]
    (every,) = blocks_of(classes([f"c{i:03}" for i in range(60)], several=True), records)
    assert len(every["rows"]) == 60


def test_nothing_is_told_without_classes():
    assert confusion.sections({"class_report": {"classes": [], "confusion": []}}) == []
