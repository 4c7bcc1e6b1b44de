"""The form's parser: however the bytes are cut, the same comes out."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.serve.http.failure import ApiError
from launcher.serve.http.multipart import Form, base_name

BOUNDARY = b"xYz"
TYPE = "multipart/form-data; boundary=xYz"

#: Content that looks like boundaries and line ends.
CONTENT = st.lists(
    st.sampled_from([b"\r\n", b"--xYz", b"--", b"\r\n--xY", b"\r", b"\n", b"a", b"\0"])
    | st.binary(max_size=8)
).map(b"".join)


def encoded(content: bytes, file_first: bool) -> bytes:
    file = b'Content-Disposition: form-data; name="file"; filename="d.jsonl"\r\n\r\n' + content
    field = b'content-disposition: form-data; name="purpose"\r\n\r\nfine-tune'
    parts = [file, field] if file_first else [field, file]
    opened = b"".join(b"--" + BOUNDARY + b"\r\n" + part + b"\r\n" for part in parts)
    return opened + b"--" + BOUNDARY + b"--\r\n"


def read(pieces: list[bytes], content_type: str = TYPE) -> tuple[Form, bytes]:
    got = bytearray()
    form = Form(content_type, "file", got.extend)
    for piece in pieces:
        form.write(piece)
    form.finish()
    return form, bytes(got)


def cut(body: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({min(place, len(body)) for place in places} | {0, len(body)})
    return [body[start:end] for start, end in zip(ends, ends[1:], strict=False)]


@given(CONTENT, st.booleans(), st.lists(st.integers(0, 400)))
def test_cuts_do_not_matter(content: bytes, file_first: bool, places: list[int]) -> None:
    if b"\r\n--xYz" in b"\r\n" + content:
        return  # a client takes another boundary then
    form, got = read(cut(encoded(content, file_first), places))
    assert got == content
    assert (form.filename, form.fields) == ("d.jsonl", {"purpose": "fine-tune"})


@given(st.binary(max_size=300), st.lists(st.integers(0, 300)))
def test_any_bytes_are_a_form_or_refused(body: bytes, places: list[int]) -> None:
    with contextlib.suppress(ApiError):
        read(cut(b"--xYz\r\n" + body, places))


@given(st.text())
def test_a_base_name_is_no_path(name: str) -> None:
    found = base_name(name)
    assert 0 < len(found) <= 255
    assert not set(found) & set("/\\\0\n")
    assert found not in (".", "..")
    found.encode("utf-8")


@pytest.mark.parametrize(
    "content_type",
    ["", "application/json", "multipart/form-data", "multipart/form-data; boundary=" + "x" * 500],
)
def test_what_is_no_form_is_refused(content_type: str) -> None:
    with pytest.raises(ApiError):
        read([b""], content_type)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (encoded(b"x", True)[:-6], "ends before"),
        (encoded(b"x", True).replace(b'"purpose"', b'"file"; filename="b"'), "given twice"),
        (encoded(b"x", True).replace(b"fine-tune", b"x" * 70_000), "too long"),
        (encoded(b"x", True).replace(b'; filename="d.jsonl"', b""), "'file' is a required"),
        (b'--xYz\r\nContent-Disposition: form-data; name="%d"\r\n\r\n\r\n', "too many"),
    ],
)
def test_bad_forms_are_named(body: bytes, found: str) -> None:
    if b"%d" in body:
        body = b"".join(body % n for n in range(40))
    with pytest.raises(ApiError, match=found):
        read([body])
