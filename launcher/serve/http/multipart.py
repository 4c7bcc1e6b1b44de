"""Forms with a file, read piece by piece: nothing of the file stays in memory.

Parts come in any order: npm's openai 6 and 7 send the file before what it is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from launcher.core.errors import did_you_mean
from launcher.serve.http.failure import ApiError, unknown_member

_FIELD_BYTES = 64 << 10
_FIELDS = 32
_HEADER_BYTES = 16 << 10
_NAME_LENGTH = 255
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class Form:
    """A form that is being read. Its one file goes to `sink`, the rest is in `fields`."""

    def __init__(self, content_type: str, file: str, sink: Callable[[bytes], None]) -> None:
        """`file` names the part that is the file. Raises `ApiError` 400 for what is no form."""
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise ApiError(400, "Expected a form: Content-Type: multipart/form-data; boundary=...")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        """Base name of the file; None until its part has begun."""
        self.is_whole = False
        self._file, self._sink = file, sink
        self._header, self._value = b"", b""
        self._disposition = b""
        self._name = ""
        self._data = b""
        try:
            self._parser = MultipartParser(
                options[b"boundary"],
                {
                    "on_part_begin": self._begin,
                    "on_header_field": self._header_name,
                    "on_header_value": self._header_value,
                    "on_header_end": self._header_end,
                    "on_headers_finished": self._begin_data,
                    "on_part_data": self._part_data,
                    "on_part_end": self._end,
                    "on_end": self._whole,
                },
            )
        except FormParserError as error:
            raise ApiError(400, f"Invalid form: {error}") from error

    def write(self, piece: bytes) -> None:
        """Read on. `ApiError` 400 for what is no form."""
        try:
            self._parser.write(piece)
        except FormParserError as error:
            raise ApiError(400, f"Invalid form: {error}") from error

    def finish(self) -> None:
        """The body has ended; `ApiError` 400 if the form has not."""
        if not self.is_whole:
            raise ApiError(400, "Invalid form: it ends before its last boundary")

    def require_known(self, *names: str) -> None:
        """`ApiError` 400 for a field that is none of `names`."""
        strange = next((name for name in self.fields if name not in names), None)
        if strange is not None:
            raise unknown_member(strange, did_you_mean(strange, [self._file, *names]))

    def _begin(self) -> None:
        self._disposition = self._data = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]
        self._check_header()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        # Not all releases of the parser have a limit.
        if len(self._header) + len(self._value) > _HEADER_BYTES:
            raise ApiError(400, "Invalid form: the header of a part is too long")

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _begin_data(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name in self.fields or (self._in_file and self.filename is not None):
            raise ApiError(400, f"'{self._name}' is given twice", param=self._name)
        if len(self.fields) >= _FIELDS:
            raise ApiError(400, "Invalid form: too many parts")
        if self._in_file:
            if b"filename" not in options:
                raise ApiError(400, f"'{self._file}' is a required property")
            self.filename = base_name(options[b"filename"].decode("utf-8", "replace"))

    @property
    def _in_file(self) -> bool:
        return self._name == self._file

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._sink(data[start:end])
            return
        self._data += data[start:end]
        if len(self._data) > _FIELD_BYTES:
            raise ApiError(400, f"'{self._name}' is too long", param=self._name)

    def _end(self) -> None:
        if not self._in_file:
            self.fields[self._name] = self._data.decode("utf-8", "replace")

    def _whole(self) -> None:
        self.is_whole = True


def base_name(name: str) -> str:
    """The last part of a file's name as sent, without what cannot be printed; never a path."""
    last = re.split(r"[/\\]", name)[-1]
    shown = _UNPRINTABLE.sub("", last)[-_NAME_LENGTH:]
    return shown if shown not in ("", ".", "..") else "upload"
