"""Damage is found, and clean texts of many kinds are left in peace."""

from __future__ import annotations

import time
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.curate.records import texts

CLEAN = [
    "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 24",
    "Der Bär läßt grüßen – „natürlich“ kostet's 5 €, d. h. 20 % weniger.",
    "日本語の文章です。句読点も、あります。",
    "Привет, мир! Как дела? Всё хорошо.",
    "می‌خواهم یک کتاب بخوانم",
    "क्‍ष और हिन्दी",
    "👨‍👩‍👧 family, 🏴󠁧󠁢󠁥󠁮󠁧󠁿 flag, 👍🏽 hand",
    "Let f(x) < 3 and y > 4; then a<b and c>d & e.",
    "Use `<br>` here:\n```html\n<div>&nbsp;</div>\n```\ndone",
    "AT&T and R&D; Q&A; x &y; List<String> map = new HashMap<>();",
    "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |\n| 7 | 8 |\n| 9 | 0 |\n",
    "x² ± 3 × 4 ÷ 2 ≤ ½ → ∞ ★ ☆ ░▒▓ ────────────────",
    "Tiếng Việt có dấu. Ærø, Åland, Ångström, São Paulo, ñandú.",
    "I can't wait to see you. Sorry, I'm late, but I can't stop smiling.",
    "He said he was sorry. Unfortunately, it rained. I will not go to school.",
    "<think>Let me see.</think>The answer is 4.",
    "tab\tand\r\nnew line",
]


@pytest.mark.parametrize("text", CLEAN)
def test_clean_texts_are_left_in_peace(text):
    findings = (texts.mojibake, texts.control, texts.markup, texts.fences, texts.repetition)
    assert [find(text) for find in (*findings, texts.refusal)] == [None] * 6


@pytest.mark.parametrize("text", ["café", "don’t", "naïve – so", "Привет мир", "größer"])
@pytest.mark.parametrize("wrong", ["latin-1", "cp1252"])
def test_text_read_in_a_wrong_encoding(text, wrong):
    try:
        damaged = text.encode().decode(wrong)
    except UnicodeDecodeError:
        return
    assert texts.mojibake(damaged)
    assert not texts.mojibake(text)


@pytest.mark.parametrize(
    "text", ["a\x00b", "bell\x07", "los\ufffdt", "hid\u200bden", "x\ufeffy", "a\u202eb", "\ue000"]
)
def test_characters_that_nobody_means(text):
    found = texts.control(text)
    assert found
    assert not text[found.begin : found.end].isalnum()


@pytest.mark.parametrize(
    ("text", "is_damage"),
    [
        ("salt &amp; pepper", True),
        ("5 &lt; 6", True),
        ("one<br/>two", True),
        ('<div class="x">hello</div>', True),
        ("&#8217;tis", True),
        ("`&amp;` is written", False),
        ("In HTML, write &amp; for it.", False),
    ],
)
def test_rests_of_html(text, is_damage):
    assert bool(texts.markup(text)) == is_damage


def test_html_is_no_damage_where_it_is_the_subject():
    answer = "Put <b>bold</b> around it."
    assert texts.markup(answer, "How do I make text bold?")
    assert not texts.markup(answer, "How do I make text bold in HTML?")


@pytest.mark.parametrize(
    ("text", "is_open"),
    [
        ("```py\nx = 1\n", True),
        ("```py\nx = 1\n```", False),
        ("~~~\n```\n~~~", False),
        ("````\n```\n````", False),
        ("- ```js\n  y\n  ```\n```", True),
        ("```one line```", False),
    ],
)
def test_blocks_of_code_that_stay_open(text, is_open):
    assert bool(texts.fences(text)) == is_open


@pytest.mark.parametrize(
    "text",
    [
        "and then we add the numbers again " * 30,
        "ab" * 200,
        "長い文" * 80,
        "z" * 100,
        "Something new is said here.\n" * 20,
    ],
)
def test_answers_that_repeat_themselves(text):
    assert texts.repetition(text)


@given(st.lists(st.integers(0, 10**9), min_size=50, max_size=120, unique=True))
def test_words_that_differ_do_not_repeat(numbers):
    assert not texts.repetition(" ".join(map(str, numbers)))


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but I cannot fulfill this request.",
        "I cannot assist with that request.",
        "Unfortunately, I am unable to browse the web.",
        "As an AI language model, I have no opinion.",
        "Als KI-Sprachmodell kann ich das nicht.",
        "Lorem ipsum dolor sit amet",
        "Dear [insert name here],",
    ],
)
def test_refusals_and_placeholders(answer):
    assert texts.refusal(answer)


def test_answers_that_say_nothing():
    assert all(map(texts.says_nothing, ("", " \n", "N/A", "null", "...", "None.")))
    assert not any(map(texts.says_nothing, ("4", "yes", "A", "nothing", "nano")))


@settings(deadline=None)  # the first text loads a library
@given(st.text(st.characters(), max_size=300))
def test_no_text_is_too_odd(text):
    for find in (texts.mojibake, texts.control, texts.markup, texts.fences, texts.repetition):
        found = find(text)
        assert found is None or 0 <= found.begin <= found.end <= len(text)
    texts.refusal(text)
    assert "\n" not in texts.excerpt(text)
    texts.excerpt(text).encode()


HOSTILE = [
    *" a<&0@-=.:\n([`~é>",
    *(
        "<p ",
        "<p a=b ",
        "<p a='",
        '<p a="b"',
        "&amp;",
        "&amp;a",
        "&#1",
        "``",
        "```",
        "```a\n",
        "`a",
    ),
    *("<``a`", " \t", "> ", "1. ", "sorry ", "I'm sorry I ", "as an ", "as an AI ", "als KI "),
    *("[insert ", "12 / 34  ", "\u200b", "Ã", "Ã©", "ab ", "-\n", "entit", "html"),
]


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", "```\n", "<p", "é", "I'm sorry", "1 / 1", "share [ as an "])
def test_no_text_takes_long(before):
    finds = (texts.mojibake, texts.control, texts.markup, texts.fences, texts.repetition)
    for part in HOSTILE:
        text = (before + part * 50_000)[:50_000] + "!"
        for find in (*finds, texts.refusal, texts.says_nothing):
            begun = time.process_time()
            find(text)
            # What is not linear takes minutes.
            assert time.process_time() - begun < 2.0, (find, part)


def test_indented_lines_take_no_time():
    begun = time.process_time()
    assert not texts.fences(" " * 20_000 + "``\n")
    assert texts.fences("```\n" + " " * 20_000)
    assert time.process_time() - begun < 0.2


@pytest.mark.thorough
def test_repetition_is_looked_for_in_bounded_memory():
    text = "".join(map(str, range(600_000)))
    tracemalloc.start()
    assert not texts.repetition(text)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60 << 20
