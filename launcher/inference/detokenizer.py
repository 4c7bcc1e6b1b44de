"""Tokens of an answer as text, piece by piece, none of which has to be taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Pieces:
    """The text that is certain so far: whole characters, and nothing of a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._tokens: list[int] = []
        # Text is what tokens add to those before them: some tokenizers drop a first blank.
        self._before, self._read = 0, 0
        self._held = ""
        self.is_stopped = False
        """A stop string has been found; there is no more text."""

    def add(self, tokens: Sequence[int]) -> str:
        """What can be shown after these tokens, perhaps nothing."""
        self._tokens += tokens
        known, text = self._decode(self._read), self._decode(len(self._tokens))
        # A character of several tokens decodes as U+FFFD until its last token is there.
        if len(text) <= len(known) or text.endswith("\ufffd"):
            return ""
        self._before, self._read = self._read, len(self._tokens)
        return self._pass(text[len(known) :])

    def rest(self) -> str:
        """What was held back, once there are no more tokens."""
        known, text = self._decode(self._read), self._decode(len(self._tokens))
        self._read = len(self._tokens)
        shown = self._pass(text[len(known) :])
        held, self._held = self._held, ""
        return shown + held

    def _decode(self, end: int) -> str:
        text: str = self._tokenizer.decode(
            self._tokens[self._before : end], skip_special_tokens=True
        )
        return text

    def _pass(self, text: str) -> str:
        if self.is_stopped:
            return ""
        text = self._held + text
        self._held = ""
        found = min((place for stop in self._stop if (place := text.find(stop)) >= 0), default=-1)
        if found >= 0:
            self.is_stopped = True
            return text[:found]
        held = max((_begun(text, stop) for stop in self._stop), default=0)
        if held:
            text, self._held = text[:-held], text[-held:]
        return text


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of `text` could be the beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
