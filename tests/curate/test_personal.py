"""Personal data and secrets are found and redacted; numbers, versions and names of code are not."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.curate import personal

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
    assert [(t.kind, text[t.begin : t.end]) for t in personal.traces(text)] == [(kind, shown)]


@pytest.mark.parametrize("text", CLEAN)
def test_what_only_looks_like_it(text):
    assert personal.traces(text) == []


@pytest.mark.parametrize("prefix", ["ghp" + "_", "sk-proj-", "hf_", "glpat-", "sk_live_"])
def test_keys_of_services(prefix):
    drawn = random.Random(prefix)
    key = prefix + "".join(drawn.choices("abcdefghijkLMNOPQRSTUVWXYZ0123456789", k=36))
    assert [trace.rule for trace in personal.traces(f"use {key}!")] == ["secrets"]
    assert personal.traces(f"use {prefix}{'x' * 36}!") == []


def test_private_keys_are_redacted_whole():
    kind = "RSA PRIVATE" + " KEY"
    text = f"a\n-----BEGIN {kind}-----\nMIIE\n-----END {kind}-----\nb"
    assert personal.redact(text, frozenset({"secrets"}))[0] == "a\n[PRIVATE_KEY]\nb"


def test_only_the_named_rules_are_redacted():
    text = "a@web.de AKIA" + "IOSFODNN7EXAMPLE"
    assert personal.redact(text, frozenset({"pii"}))[0] == text.replace("a@web.de", "[EMAIL]")
    assert personal.redact(text, frozenset({"secrets"}))[0] == "a@web.de [KEY]"


@given(st.lists(st.sampled_from([text for text, _, _ in FOUND] + CLEAN), max_size=6))
def test_nothing_is_left_after_redaction(parts):
    rules = frozenset({"pii", "secrets"})
    text, _ = personal.redact("\n".join(parts), rules)
    assert personal.traces(text) == []


@given(st.text())
def test_traces_lie_in_the_text_and_apart(text):
    end = 0
    for trace in personal.traces(text):
        assert end <= trace.begin < trace.end <= len(text)
        end = trace.end


def test_pages_show_only_the_ends():
    assert personal.masked("to anna.smith@web.de.") == "to an•••de."
