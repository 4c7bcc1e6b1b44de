"""What stands between an answer as it was drawn and the model's next turn, as tokens.

The chat template writes a conversation of our own, a question and an answer, with the environment's
messages behind it; what it writes behind the answer's words is what follows the drawn tokens, which
stay as they are. That holds where a longer conversation begins as the shorter one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launcher.config.schema import DataConfig
from launcher.core.errors import ConfigError
from launcher.data.chat.calls import CallForm, as_messages_have
from launcher.data.chat.literals import Literals
from launcher.data.chat.masking import ChatOptions, ChatRenderer, Rendering
from launcher.data.formats.base import BadRecord

Message = dict[str, Any]

_ASKED, _SAID = "What was asked?", "What-was-said."
_BEFORE: list[Message] = [
    {"role": "user", "content": _ASKED},
    {"role": "assistant", "content": _SAID},
]


class Continuation:
    """Tokens of beginnings and continuations by a tokenizer's chat template.

    Raises `ConfigError` where it has none, or one by which turns cannot be strung together.
    """

    def __init__(self, tokenizer: Any, data: DataConfig, stops: Sequence[int]) -> None:
        """`stops`: tokens that end an answer."""
        self._literals = Literals(tokenizer)
        self._renderer = ChatRenderer(tokenizer, ChatOptions.of(data), self._literals)
        self._backend = tokenizer.backend_tokenizer
        self._calls = CallForm.of(tokenizer)
        self.require_extending(None)
        if self._behind(_BEFORE[:1])[0] not in stops:
            raise _refusal("it ends an answer with no token at which generation stops")

    def require_extending(self, tools: list[Message] | None) -> None:
        """`ConfigError` unless the template writes what was said before as it wrote it then."""
        try:
            prompt = self._renderer.prompt(_BEFORE[:1], tools).text
            longer = self._renderer.prompt([*_BEFORE, *_BEFORE[:1]], tools).text
        except BadRecord as error:
            raise _refusal(error.found) from error
        if not longer.startswith(prompt):
            raise _refusal(
                "it writes earlier turns otherwise than they stood when they were drawn"
                + (", where there are tools" if tools else "")
            )

    def beginning(self, messages: list[Message], tools: list[Message] | None) -> list[int]:
        """Token ids of a conversation up to where the model is to speak; raises `BadRecord`."""
        made = self._renderer.prompt(messages, tools, whole=True)
        return self._ids(made, 0)

    def behind(self, messages: list[Message]) -> list[int]:
        """Token ids of what follows the token that has ended an answer: the environment's messages,
        and what opens the model's turn.

        Raises `BadRecord` for messages that the template refuses or leaves out.
        """
        return self._behind(messages)[1:]

    def _behind(self, messages: list[Message]) -> list[int]:
        """The same behind the last word of an answer."""
        made = self._renderer.prompt([*_BEFORE, *messages], None, whole=True)
        return self._ids(made, made.text.index(_SAID) + len(_SAID))

    def said(self, text: str, tools: list[Message] | None, turn: int) -> Message:
        """An answer as a message, with its calls of `tools` where they can be read."""
        message: Message = {"role": "assistant", "content": text}
        names = [tool["function"]["name"] for tool in tools or ()]
        if self._calls is None or not names:
            return message
        content, calls = self._calls.read(text, names)
        if calls:
            message["content"] = content
            message["tool_calls"] = as_messages_have(calls, turn)
        return message

    def _ids(self, made: Rendering, begin: int) -> list[int]:
        """Token ids of a text from a place on; what only spells control tokens stays text."""
        if made.named is not None:
            return self._literals.encode([made.named[begin:]])[1][0]
        ids: list[int] = self._backend.encode(made.text[begin:], add_special_tokens=False).ids
        return ids


def _refusal(found: str) -> ConfigError:
    return ConfigError(
        f"the chat template cannot be continued turn by turn: {found}",
        where="objective.environment",
        hint="give a Jinja template that writes every turn in one way, wherever it stands:"
        " model.chat_template=FILE",
    )
