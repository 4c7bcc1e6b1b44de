"""The page of a data report: complete, self-contained, and harmless whatever the data says."""

import copy
import re

import pytest

from launcher.curate.page import page
from launcher.report import renderer
from support.html import Page
from support.reports import example, report, rule

SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7 * 7 }}"
SECTIONS = {"rules", "lengths", "duplicates", "conflicts", "leakage", "topics", "balance", "inputs"}


def bare() -> dict:
    """A report of no record, as of an empty file without a tokenizer."""
    none = {"edges": [], "counts": []}
    return {
        **report(),
        "tokenizer": None,
        "counts": {
            **dict.fromkeys(("records", "bytes", "chars", "turns"), 0),
            **{"tokens": None, "target_tokens": None, "roles": {}, "formats": {}},
        },
        "lengths": {
            **{"unit": "characters", "histogram": none, "percentiles": {}, "max_length": 512},
            **{"over": 0, "packing": []},
        },
        "answers": {"histogram": none, "empty": 0, "tiny": 0},
        "turns": {"histogram": none},
        "languages": {"sampled": 0, "counts": {}},
        "labels": None,
        "sources": {"counts": {}, "effective": 0.0},
        "topics": None,
        "novelty": None,
        "duplicates": {
            "exact": {"records": 0, "clusters": 0},
            "near": {"records": 0, "clusters": 0, "threshold": 0.8},
            "examples": [],
        },
        "conflicts": {"groups": 0, "records": 0, "examples": []},
        "leakage": {"against": [], "examples": []},
        "rules": [],
        "verdict": "pass",
    }


def test_a_full_report_has_every_section_once():
    found = Page(page.render(report()))
    assert {*SECTIONS, "config", "state", "verdict"} <= set(found.ids)
    assert len(set(found.ids)) == len(found.ids)
    anchors = [a["href"][1:] for tag, a in found.tags if tag == "a"]
    assert set(anchors) == SECTIONS


def test_nothing_is_loaded_and_nothing_runs():
    html = page.render(report())
    found = Page(html)
    assert "script" not in {tag for tag, _ in found.tags}
    addresses = [
        value
        for _, attributes in found.tags
        for name, value in attributes.items()
        if name in ("src", "href", "action", "srcset", "data")
    ]
    assert addresses
    assert all(address.startswith("#") or address == "data:," for address in addresses)
    assert not re.search(r"@import|url\(", html)
    policy = next(a["content"] for _, a in found.tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_the_verdict_comes_first():
    text = Page(page.render(report())).text
    verdict = "2 of 9 rules fail: near_duplicates (131), leakage (9). 2 more want a look."
    assert verdict in text
    assert text.index(verdict) < text.index("Length of a record")
    assert text.index("leakage (9)") < text.index("mojibake")


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ([], "No rule was checked."),
        ([rule("a"), rule("b", "skipped")], "All 1 rules pass."),
        ([rule("a", "warn", 3), rule("b")], "No rule fails; 1 of 2 wants a look: a (3)."),
        ([rule("a", "fail", 3)], "1 of 1 rules fails: a (3)."),
        (
            [rule(name, "warn", n) for n, name in enumerate("abcdef")],
            "No rule fails; 6 of 6 want a look: f (5), e (4), d (3), c (2) and 2 more.",
        ),
    ],
)
def test_the_verdict_in_words(rules, wanted):
    assert page.sentence({"rules": rules}) == wanted


def test_a_report_of_nothing_has_a_page():
    found = Page(page.render(bare()))
    assert set(found.ids) & SECTIONS == {"rules", "inputs"}
    assert "no tokenizer" in found.text


def test_every_example_names_its_record():
    made = report()
    text = Page(page.render(made)).text
    places = [e["where"] for each in made["rules"] for e in each["examples"]]
    places += [e["train"] for e in made["leakage"]["examples"]]
    assert places
    assert all(place in text for place in places)


def _texts(value, key=""):
    """Places of all texts that come from data or its names."""
    if isinstance(value, dict):
        for name, inside in value.items():
            if isinstance(inside, str) and name not in ("verdict", "unit", "split", "created"):
                yield value, name
            else:
                yield from _texts(inside, name)
    elif isinstance(value, list):
        for i, inside in enumerate(value):
            if isinstance(inside, str):
                yield value, i
            else:
                yield from _texts(inside)


def test_hostile_text_anywhere_is_only_text():
    made = copy.deepcopy(report())
    places = list(_texts(made))
    assert len(places) > 60
    for holder, key in places:
        holder[key] = SCRIPT
    for holder in (made["counts"]["roles"], made["sources"]["counts"], made["labels"]["counts"]):
        holder[SCRIPT] = 5
    html = page.render(made)
    found = Page(html)
    assert {"script", "img"} & {tag for tag, _ in found.tags} == set()
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert "{{ 7 * 7 }}" in found.text
    assert "49" not in re.findall(r"alert\(2\)>\S*", html)


def test_what_has_no_shape_is_spelt_out():
    shown = renderer.visible("a\x00b\u202ec\u200bd\ud800e\n\tf 👩\u200d🔬 ü\r\n")
    assert shown == "a⟨U+0000⟩b⟨U+202E⟩c⟨U+200B⟩d⟨U+D800⟩e\n\tf 👩\u200d🔬 ü\n"
    made = report()
    made["rules"] = [rule("control", "fail", 1, examples=[example(1, "x\x00\ud800", "NUL")])]
    html = page.render(made)
    html.encode()
    assert "x⟨U+0000⟩⟨U+D800⟩" in html


@pytest.mark.parametrize(
    ("part", "wanted"),
    [(0, "0 %"), (1, "100 %"), (1e-9, "< 0.01 %"), (1 - 1e-9, "> 99.99 %"), (0.99711, "99.71 %")],
)
def test_a_share_is_never_rounded_to_none_or_all(part, wanted):
    assert page.share(part) == wanted


def test_the_folder_that_all_files_share_is_said_once():
    made = report()
    for entry in made["inputs"]:
        entry["name"] = f"/data/chats/{entry['name']}"
    place = f"{made['inputs'][0]['name']}:7"
    text = "cd /data/chats/train.jsonl"
    made["rules"][0]["examples"] = [{"where": place, "text": text, "why": f"the same as {place}"}]
    short = page.shortened(made)
    name = place.removeprefix("/data/chats/")
    assert short["rules"][0]["examples"] == [
        {"where": name, "text": text, "why": f"the same as {name}"}
    ]
    assert short["inputs"] == made["inputs"]
    assert page.shortened(report()) == report()
