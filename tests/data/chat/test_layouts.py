"""Conversations of a shape that is known are learned as if each were the first."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from launcher.data.chat.layouts import Shape
from launcher.data.chat.masking import ChatOptions, ChatRenderer, Rendering
from launcher.data.formats.base import BadRecord, Chat
from support import templates
from support.draws import some
from support.templates import FAMILIES, tokenizer_of

Message = dict[str, Any]

#: What people write, and what templates trim, escape, split at or look for.
TEXTS = (
    *("yes", "a b", " led", "trailed\n", '"quoted" \\ text', "two\nlines", "äöü 🙂", "x", "0"),
    *("<b>", "a </think> b", "<think>\nhm\n</think>\n\nso", "<think>\n\n</think>\n\nso", "[x]"),
    *("7000001", "/no_think", "{'a': 1}", "a<|im_end|>", "<|channel>thought\nhm<channel|>so", ""),
)
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "does it", "parameters": {}}}
    for name in ("find", "tell")
]


class Speaker:
    """Conversations: of which kinds of turns `shape` decides, and of what they say `words`."""

    def __init__(self, shape: int, words: int) -> None:
        self._shape, self._words = random.Random(shape), random.Random(words)

    def talk(self) -> Chat:
        calls = self._shape.random() < 0.5
        messages = [self._says("system")] if self._shape.random() < 0.3 else []
        for _ in range(self._shape.randint(1, 2)):
            messages += [self._says("user"), *self._answer(calls)]
        silent = {len(messages) - 1} if self._words.random() < 0.2 else set()
        return Chat(messages, TOOLS if calls else None, frozenset(silent))

    def _says(self, role: str) -> Message:
        return {"role": role, "content": self._words.choice(TEXTS)}

    def _answer(self, calls: bool) -> list[Message]:
        said = self._says("assistant")
        if self._shape.random() < 0.4:
            said["reasoning_content"] = self._words.choice(TEXTS)
        if not calls:
            return [said]
        words, name = self._words, self._shape.choice(("find", "tell"))
        own = self._shape.choice((f"call{words.randint(10000, 99999)}", f"functions.{name}:0"))
        held = [words.choice(TEXTS), words.randint(-5, 400), words.random(), [{"k": 2}, None, True]]
        arguments = dict(zip("abcd", held[: self._shape.randint(0, 4)], strict=False))
        call = {"id": own, "type": "function", "function": {"name": name, "arguments": arguments}}
        called = {**said, "content": words.choice(("", "x")), "tool_calls": [call]}
        result = {**self._says("tool"), "tool_call_id": own, "name": name}
        return [called, result, self._says("assistant")]


def rendered(renderer: ChatRenderer, chat: Chat) -> Rendering | str:
    try:
        return renderer.render(chat)
    except BadRecord as error:
        return error.found


@pytest.mark.thorough
@pytest.mark.parametrize("family", some(FAMILIES, "qwen3", "gpt_oss"))
def test_what_is_known_of_others_changes_nothing(family: str, tokenizer_folder: Path) -> None:
    tokenizer = tokenizer_of(tokenizer_folder, family)
    known = ChatRenderer(tokenizer, ChatOptions(learn_empty_thoughts=False))
    for shape in range(6):
        for words in range(5):
            chat = Speaker(shape, words).talk()
            alone = ChatRenderer(tokenizer, ChatOptions(learn_empty_thoughts=False))
            assert rendered(known, chat) == rendered(alone, chat)


def test_a_shape_is_known_by_all_but_texts_numbers_and_ids() -> None:
    def key(content: str, *, own: str = "call00001", name: str = "find", **arguments: Any) -> Any:
        call = {"id": own, "function": {"name": name, "arguments": arguments}}
        said = {"role": "assistant", "content": content, "tool_calls": [call]}
        return Shape([{"role": "user", "content": "?"}, said], TOOLS).key

    one = key("so", city="Rome", days=2)
    assert one == key("then", own="call90210", city="Oslo\n", days=365)
    others = [key("", city="Rome", days=2), key("so", town="Rome", days=2), key("so", city="Rome")]
    others += [key("so", city=2, days=2), key("so", city="", days=2), key("so", days=2, city="R")]
    others += [key("so", name="tell", city="Rome", days=2), key("so", city="Rome", days=None)]
    others += [key("<think>\nhm\n</think>\nso", city="Rome", days=2)]
    assert len({one, *others}) == 1 + len(others)


def test_a_conversation_of_a_known_shape_is_rendered_once(make_tokenizer: Any) -> None:
    renderings: list[None] = []
    template = Path(templates.__file__).with_name("qwen3.jinja").read_text("utf-8")
    tokenizer = make_tokenizer("{{ seen(none) or '' }}" + template)
    renderer = ChatRenderer(tokenizer, ChatOptions(variables={"seen": renderings.append}))
    counts = []
    for number, text in enumerate(("a b", "c\nd", '"e"', "f 1 g")):
        function = {"name": "f", "arguments": {"x": text, "y": number}}
        call = {"id": f"call{number}", "type": "function", "function": function}
        said = {"role": "assistant", "content": "", "reasoning_content": text}
        result = {"role": "tool", "content": text}
        turns = [{**said, "tool_calls": [call]}, result, {**said, "content": text}]
        renderings.clear()
        renderer.render(Chat([{"role": "user", "content": text}, *turns], TOOLS))
        counts.append(len(renderings))
    assert counts[0] > 5
    assert counts[2:] == [1, 1]


def test_what_a_template_does_not_look_for_makes_no_shape_unknown(make_tokenizer: Any) -> None:
    renderings: list[None] = []
    renderer = ChatRenderer(
        make_tokenizer(
            "{{ seen(none) or '' }}{% for m in messages %}{{ m['role'] + ':' + m['content'] }}"
            "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant' + ':' }}"
            "{% endif %}"
        ),
        ChatOptions(variables={"seen": renderings.append}),
    )
    for text in ("It's so.", "a < b", "R&D", "isn't > it"):
        renderings.clear()
        said = {"role": "assistant", "content": text}
        renderer.render(Chat([{"role": "user", "content": text}, said]))
    assert len(renderings) == 1
