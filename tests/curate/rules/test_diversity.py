"""Effective numbers, topics and novelty say what was put in."""

import json
import random
import subprocess
import sys

import pytest
import threadpoolctl
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.errors import ConfigError
from launcher.curate.records.sketch import Sketcher
from launcher.curate.rules import diversity

THEMES = {
    "cooking": "oven bake flour butter sugar recipe dough pan whisk simmer",
    "sailing": "sail mast harbour tide anchor rudder deck knot wind hull",
    "banking": "account transfer balance loan interest deposit card branch fee credit",
    "gardens": "soil seed compost rake hedge lawn prune tulip shrub bulb",
    "music": "chord melody tempo violin rhythm bass octave drum flute scale",
}


def themed(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    fill = [f"fill{i}" for i in range(20_000)]
    return [
        " ".join(["the", *rng.sample(words.split(), 4), "of", *rng.choices(fill, k=2)])
        for words in THEMES.values()
        for _ in range(count)
    ]


@given(st.lists(st.integers(0, 50), max_size=9))
def test_effective_number_lies_between_one_and_the_number_of_groups(counts):
    groups = [count for count in counts if count]
    number = diversity.effective(counts)
    assert number == 0 if not groups else 0.999 <= number <= len(groups) + 1e-9


def test_effective_number_of_equal_and_of_unequal_groups():
    assert diversity.effective([7, 7, 7, 7]) == pytest.approx(4)
    assert diversity.effective([1000, 1]) == pytest.approx(1.008, abs=1e-3)


def test_topics_are_the_themes_that_texts_were_made_of():
    texts = themed(200)
    found = diversity.topics(texts)
    assert found == diversity.topics(texts)
    assert sum(item["count"] for item in found["items"]) == found["sampled"] == len(texts)
    assert [item["count"] for item in found["items"]] == sorted(
        (item["count"] for item in found["items"]), reverse=True
    )
    of_theme = {word: name for name, words in THEMES.items() for word in words.split()}
    for item in found["items"]:
        # The words that a topic is named by are of one theme.
        assert len({of_theme[word] for word in item["words"][:3]}) == 1
        assert item["example"] in texts
    met = {of_theme[item["words"][0]] for item in found["items"]}
    assert met == set(THEMES)


def test_topics_are_no_more_than_the_kinds_of_texts(recwarn):
    texts = [THEMES[name] for name in ("cooking", "sailing", "banking")] * 40
    texts += [f"alone{i}" for i in range(400)]
    found = diversity.topics(texts)
    of_theme = {word: name for name, words in THEMES.items() for word in words.split()}
    assert {
        tuple({of_theme[word] for word in item["words"]}): item["count"] for item in found["items"]
    } == {("cooking",): 40, ("sailing",): 40, ("banking",): 40}
    assert (found["sampled"], found["effective"]) == (520, 3)
    assert not [str(warning.message) for warning in recwarn]


def test_topics_do_not_depend_on_the_number_of_threads():
    texts = themed(300)
    with threadpoolctl.threadpool_limits(limits=1):
        alone = diversity.topics(texts)
    with threadpoolctl.threadpool_limits(limits=4):
        assert diversity.topics(texts) == alone


@pytest.mark.slow
def test_topics_are_found_where_torch_is_hidden():
    code = (
        "import json, sys; from launcher.data.tokenizer import hide_torch; hide_torch()\n"
        "from launcher.curate.rules import diversity\n"
        "print(json.dumps(diversity.topics(json.load(sys.stdin))))\n"
        "assert sys.modules['torch'] is None"
    )
    texts = themed(20)
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(texts), text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == diversity.topics(texts)


def test_topics_say_what_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    for name in [name for name in sys.modules if name.startswith("sklearn.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ConfigError, match="the report needs sklearn, which is not") as caught:
        diversity.topics(themed(40))
    assert "pip install 'scikit-learn" in str(caught.value)


def test_topics_of_text_without_spaces():
    texts = ["我想订一张去北京的机票", "银行账户余额查询服务"] * 60
    texts = [f"{text}{'春夏秋冬东南西北'[i % 8]}" for i, text in enumerate(texts)]
    found = diversity.topics(texts)
    assert found is None or all(len(word) <= 2 for item in found["items"] for word in item["words"])


@pytest.mark.parametrize("texts", [[], [""], ["one text"], ["", " "] * 100, ["same words"] * 100])
def test_too_little_for_topics(texts):
    assert diversity.topics(texts) is None


def test_novelty_tells_copies_from_what_is_new():
    rng = random.Random(2)
    new = [" ".join(f"w{rng.randrange(9999)}" for _ in range(60)) for _ in range(80)]
    copies = [new[0]] * 40
    found = diversity.novelty(Sketcher()(new + copies))
    counts, edges = found["histogram"]["counts"], found["histogram"]["edges"]
    assert len(edges) == len(counts) + 1
    assert sum(counts) == 120
    assert counts[0] == 41
    assert counts[-1] == 79
    assert found["median"] > 0.95


@pytest.mark.parametrize("texts", [[], ["one"], ["one", "", ""]])
def test_novelty_needs_two_records(texts):
    assert diversity.novelty(Sketcher()(texts)) is None


def test_topics_tell_nothing_personal():
    rng = random.Random(4)
    key = "AKIA" + "Q3ZK7PLM2XWV5TRB"
    texts = [f"anna.lind@fjordbank.no {key} {text}" for text in themed(60)]
    rng.shuffle(texts)
    found = diversity.topics(texts)
    said = str(found).lower()
    assert found["items"]
    assert not {word for word in ("fjordbank", "lind", key.lower()) if word in said}
