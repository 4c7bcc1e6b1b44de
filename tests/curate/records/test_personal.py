"""Personal data and secrets are found and redacted; numbers, versions and names of code are not."""

from __future__ import annotations

import random
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.curate.records import personal, redaction

FOUND = [
    ("write to anna.smith@web.de today", "e-mail address", "anna.smith@web.de"),
    ("a+b_c@mail.example.co.uk.", "e-mail address", "a+b_c@mail.example.co.uk"),
    ("call 555-123-4567 now", "phone number", "555-123-4567"),
    ("call (212) 555-0143", "phone number", "(212) 555-0143"),
    ("+49 171 1234567", "phone number", "+49 171 1234567"),
    ("phone: 0171 1234567", "phone number", "0171 1234567"),
    ("card 4111 1111 1111 1111", "card number", "4111 1111 1111 1111"),
    ("5500-0000-0000-0004", "card number", "5500-0000-0000-0004"),
    ("IBAN DE89 3704 0044 0532 0130 00", "IBAN", "DE89 3704 0044 0532 0130 00"),
    ("from 84.17.22.91 at noon", "IP address", "84.17.22.91"),
    ("ssn 078-05-1120", "social security number", "078-05-1120"),
    ("AKIA" + "IOSFODNN7EXAMPLE", "key", "AKIA" + "IOSFODNN7EXAMPLE"),
    ('api_key = "9f8a7b6c5d4e3f2a1b0c"', "key", "9f8a7b6c5d4e3f2a1b0c"),
    ("postgres://bob:s3cr3t9@db.host/x", "password", "s3cr3t9"),
]
CLEAN = [
    "order 1234567890123456 of 2024-01-15 10:20:30",
    "3.141592653589793238 and 1,000,000,000,000",
    "version 84.17.22.91, 192.168.0.1, 127.0.0.1, 8.8.8.8",
    "ISBN 978-3-16-148410-0, 4111 1111 1111 1112",
    "240+120+90=450 and 48/2=24, 1-800, 100-200-3000",
    "git@github.com:a/b.git, @name, a@b",
    "token: str = get_token(request); sk-learn-based-approach-for-text",
    "intel 11-18 5000 and call me 3/20 4892",
    "DE88 3704 0044 0532 0130 00",
    "password = os.environ['DATABASE_PASSWORD'], api_key: YOUR_API_KEY_GOES_HERE_1",
]


@pytest.mark.parametrize(("text", "kind", "shown"), FOUND)
def test_what_is_found_and_where(text, kind, shown):
    assert [(t.kind, text[t.begin : t.end]) for t in personal.private_spans(text)] == [
        (kind, shown)
    ]


@pytest.mark.parametrize("text", CLEAN)
def test_what_only_looks_like_it(text):
    assert personal.private_spans(text) == []


@pytest.mark.parametrize("prefix", ["ghp" + "_", "sk-proj-", "hf_", "glpat-", "sk_live_"])
def test_keys_of_services(prefix):
    drawn = random.Random(prefix)
    key = prefix + "".join(drawn.choices("abcdefghijkLMNOPQRSTUVWXYZ0123456789", k=36))
    assert [span.rule for span in personal.private_spans(f"use {key}!")] == ["secrets"]
    assert personal.private_spans(f"use {prefix}{'x' * 36}!") == []


def test_private_keys_are_redacted_whole():
    kind = "RSA PRIVATE" + " KEY"
    text = f"a\n-----BEGIN {kind}-----\nMIIE\n-----END {kind}-----\nb"
    assert redaction.redact(text, frozenset({"secrets"}))[0] == "a\n[PRIVATE_KEY]\nb"


def test_only_the_named_rules_are_redacted():
    text = "a@web.de AKIA" + "IOSFODNN7EXAMPLE"
    assert redaction.redact(text, frozenset({"pii"}))[0] == text.replace("a@web.de", "[EMAIL]")
    assert redaction.redact(text, frozenset({"secrets"}))[0] == "a@web.de [KEY]"


@given(st.lists(st.sampled_from([text for text, _, _ in FOUND] + CLEAN), max_size=6))
def test_nothing_is_left_after_redaction(parts):
    rules = frozenset({"pii", "secrets"})
    text, _ = redaction.redact("\n".join(parts), rules)
    assert personal.private_spans(text) == []


@given(st.text())
def test_spans_lie_in_the_text_and_apart(text):
    end = 0
    for span in personal.private_spans(text):
        assert end <= span.begin < span.end <= len(text)
        end = span.end


def test_pages_show_only_the_ends():
    assert redaction.shown("to anna.smith@web.de.", 99) == "to an•••de."


def test_what_is_cut_is_hidden_as_what_is_whole():
    key = "AKIA" + "Q3ZK7PLM2XWV5TRB"
    text = f"{'x ' * 290}{key} tail"
    for size in range(575, 605):
        assert "AKIAQ" not in redaction.shown(text, size)
        assert "5TRB" not in redaction.shown(text, 30, size)
    assert redaction.shown("plain words", 5) == "plain"
    assert redaction.shown("plain words", 5, 6) == "words"
    assert len(redaction.shown("a" * 3_000_000, 600)) == 600


def test_a_reason_that_was_cut_shows_no_part_of_a_key():
    reason = f"has weight '{'x ' * 190}AKIA" + "Q3ZK7PLM2XWV5TRB'"
    assert "AKIA" not in redaction.reason_shown(f"{reason[:400]} ...")
    assert redaction.reason_shown("weight 'anna.smith@web.de'") == "weight 'an•••de'"


def test_escaped_line_ends_belong_to_no_word():
    text = r'{"text": "Hi,\nanna.lind@web.de\n555-123-4567"}'
    wanted = r'{"text": "Hi,\n[EMAIL]\n[PHONE]"}'
    assert redaction.redact(text, frozenset({"pii"}))[0] == wanted


def test_a_private_key_without_an_end_is_hidden():
    lines = "\n".join("MIIEvQIBADANBgkqhkiG9w0BAQEFAASC" * 2 for _ in range(40))
    text = f"-----BEGIN RSA PRIVATE{' '}KEY-----\n{lines}"
    assert redaction.redact(text, frozenset({"secrets"}))[0] == "[PRIVATE_KEY]"


HOSTILE = [
    *" a<&0@-=.:\n([`~Aé_/+",
    *("phone ", "phone is ", "tel: ", "A ", "eyJaaaaaaaaaa-", "eyJaaaaaaaaaa.", "sk-", "glpat-a-"),
    *("-----BEGIN " + "PRIVATE KEY-----", "-----BEGIN RSA ", "github_pat_a", "password=", "AKIA"),
    *("secret_access_", "http://", "http://a:b", "ab+", "a@", "a@b.", "@a.", "1 ", "1-", "12."),
    *("+1 ", "+1(2", "+1(11111)", "(555) ", "555-", "DE89 ", "AB12", "123-45-", "+" + "1" * 30),
]
BEFORE = ["", "phone", "-----BEGIN " + "PRIVATE KEY-----", "password", "+1", "AKIA eyJ :// @ key"]
#: Seconds of CPU for 50 KB, on a slow machine: what is not linear takes minutes.
CAP_S = 2.0


@pytest.mark.slow
@pytest.mark.parametrize("before", BEFORE)
def test_no_text_takes_long(before):
    for part in HOSTILE:
        text = (before + part * 50_000)[:50_000] + "!"
        begun = time.process_time()
        personal.private_spans(text)
        assert time.process_time() - begun < CAP_S, part


PATTERNS = [name for name, value in vars(personal).items() if isinstance(value, re.Pattern)]


@pytest.mark.thorough
@pytest.mark.parametrize("name", PATTERNS)
def test_no_pattern_takes_long(name):
    pattern = getattr(personal, name)
    for part in HOSTILE:
        for before in ("", "phone", "-----BEGIN " + "PRIVATE KEY-----"):
            text = (before + part * 8000)[:8000] + "!"
            begun = time.process_time()
            for _ in pattern.finditer(text):
                pass
            assert time.process_time() - begun < CAP_S / 10, part
