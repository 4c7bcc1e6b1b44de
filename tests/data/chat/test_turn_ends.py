"""Where answers end: counted from what is learned, or read off the chat template."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from launcher.config.schema import Config
from launcher.data.cache import INDEX, TokenCache, read_index
from launcher.data.chat.masking import ChatRenderer
from launcher.data.chat.turn_ends import TurnEnds, by_template, joined, settled, taught
from launcher.data.formats.base import Chat
from launcher.data.prepare.preparation import prepare
from support.chats import CHATML, CHATML_TAGGED, LLAMA3, MISTRAL, chat

Configure = Callable[..., Config]
MakeData = Callable[..., Path]
MakeTokenizer = Callable[..., Any]

#: Calls of tools end otherwise than answers; `</s>` parts a thought from what follows it.
CALLS = (
    "{% for m in messages %}{{ '<|header|>' + m.role + '<|/header|>' }}"
    "{% if m.tool_calls %}{{ m.tool_calls[0].function.name + '<|eot|>' }}"
    "{% else %}{% if m.thinking %}{{ m.thinking + '</s>' }}{% endif %}"
    "{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|header|>assistant<|/header|>' }}{% endif %}"
)
CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}
WITH_TOOLS = {
    "messages": [
        {"role": "user", "content": "how is it?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "fine"},
        {"role": "assistant", "content": "it is fine", "thinking": "so it is"},
    ]
}


@pytest.fixture
def ends_of(
    configure: Configure, make_data: MakeData, tmp_path: Path, make_tokenizer: MakeTokenizer
) -> Callable[..., set[str]]:
    """Tokens that end a turn once such records are prepared, all but `eos` learned anew."""

    def made(
        records: list[Any], template: str = CHATML, objective: str = "sft", **data: Any
    ) -> set[str]:
        path = tmp_path / "template.jinja"
        path.write_text(template)
        model = {"chat_template": str(path)}
        config = configure(model, objective, **{"train": make_data(records), **data})
        tokenizer = make_tokenizer(template, "</s>")
        folders = prepare(config, tokenizer)
        return set(tokenizer.convert_ids_to_tokens(taught(folders, tokenizer)))

    return made


TALKS = [chat("what is it?", "it is one"), chat("and then?", "it is two", "so?", "yes")]


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (CHATML_TAGGED, "<|im_end|>"),
        (CHATML_TAGGED.replace("'<|im_end|>' }}{% endg", "'<|im_end|>\n' }}{% endg"), "<|im_end|>"),
        (LLAMA3, "<|eot|>"),
        (MISTRAL, "</s>"),
    ],
)
def test_the_end_of_the_template_is_what_the_data_teaches(
    ends_of: Callable[..., set[str]], template: str, end: str
) -> None:
    assert ends_of(TALKS, template) == {end}


def test_calls_may_end_otherwise_and_marks_inside_a_turn_are_no_end(
    ends_of: Callable[..., set[str]],
) -> None:
    assert ends_of([WITH_TOOLS, *TALKS], CALLS) == {"<|eot|>", "<|im_end|>"}
    assert ends_of([*TALKS], CALLS) == {"<|im_end|>"}


def test_a_text_that_is_learned_as_a_whole_ends_with_the_end_of_sequence(
    ends_of: Callable[..., set[str]],
) -> None:
    texts = [{"text": "a text"}, {"text": "another <|im_end|> text"}]
    assert ends_of(texts, objective="text") == {"</s>"}


def test_conversations_learned_as_a_whole_end_as_their_template_ends_them(
    ends_of: Callable[..., set[str]],
) -> None:
    assert ends_of(TALKS, objective="text") == {"<|im_end|>"}


def test_a_mixture_ends_as_its_sources_do(
    ends_of: Callable[..., set[str]], make_data: MakeData
) -> None:
    sources = [{"path": str(make_data(TALKS, "a.jsonl"))}]
    sources += [{"path": str(make_data([WITH_TOOLS], "b.jsonl"))}]
    assert ends_of([], CALLS, train=sources) == {"<|eot|>", "<|im_end|>"}


def test_what_breaks_off_teaches_no_end(ends_of: Callable[..., set[str]]) -> None:
    # Cut behind the mark inside the turn, which then is the last token that is learned.
    thought = [{"role": "user", "content": "a"}]
    thought += [{"role": "assistant", "content": "it is " * 20, "thinking": "b"}]
    assert ends_of([{"messages": thought}], CALLS, max_length=23) == set()


def test_counts_are_of_turns_by_their_last_token_and_of_marks_inside(
    make_tokenizer: MakeTokenizer,
) -> None:
    tokenizer = make_tokenizer()
    end, mark, line = tokenizer("<|im_end|><|eot|>\n")["input_ids"]
    ends = TurnEnds(tokenizer)
    tokens = [99, mark, 99, end, line, 99, end, 99, mark, end, 99, 99]
    flags = [0, 1, 1, 1, 1, 0, 1, 0, 1, 1, 0, 1]
    ends.add(*map(np.array, (tokens, flags, [9, 3], [True, False])))
    # The first sequence is cut behind `mark`; of its turns one ends with a learned line break.
    assert ends.counts == {str(mark): [0, 1], str(end): [3, 0]}
    other = TurnEnds(tokenizer)
    other.take_up(json.loads(json.dumps(ends.counts)))
    other.add(*map(np.array, ([99, end], [0, 1], [2], [False])))
    assert other.counts[str(end)] == [4, 0]
    assert joined([ends.counts, other.counts]) == {str(mark): [0, 2], str(end): [7, 0]}
    assert joined([ends.counts, None]) is None


def test_an_end_may_be_quoted_now_and_then(make_tokenizer: MakeTokenizer) -> None:
    assert settled({"4": [1000, 3], "7": [50, 50], "8": [0, 9]}) == [4]


def test_the_template_tells_of_answers_and_calls(make_tokenizer: MakeTokenizer) -> None:
    def found(template: str | None) -> set[str]:
        tokenizer = make_tokenizer(template)
        return set(tokenizer.convert_ids_to_tokens(by_template(tokenizer)))

    assert found(None) == set()
    assert found(CALLS) == {"<|eot|>", "<|im_end|>"}
    assert found(LLAMA3) == {"<|eot|>"}
    # Turns without an end of their own end with what opens the next one.
    assert found(
        "{% for m in messages %}<|header|>{{ m.role + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<|header|>assistant{% endif %}"
    ) == {"<|header|>"}


def test_where_nothing_was_counted_the_template_tells(
    configure: Configure, make_data: MakeData, make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer(CHATML, "</s>")
    expected = (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert taught(None, tokenizer) == taught({"train": "/gone"}, tokenizer) == expected
    folders = prepare(configure(train=make_data(TALKS)), tokenizer)
    folder = Path(folders["train"] or "")
    index = json.loads((folder / INDEX).read_text())
    index["turn_ends"] = {"3": [5, 0]}
    (folder / INDEX).write_text(json.dumps(index))
    assert taught(folders, tokenizer) == (3,)
    del index["turn_ends"]  # as older versions wrote it
    (folder / INDEX).write_text(json.dumps(index))
    assert read_index(folder).turn_ends is None
    assert len(TokenCache.open(folder)) == 2
    assert taught(folders, tokenizer) == expected


def test_calls_end_with_what_opens_the_result(make_tokenizer: MakeTokenizer) -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ '<|observation|>' + m.content }}"
        "{% elif m.role == 'user' %}{{ '<|user|>' + m.content }}{% else %}{{ '<|assistant|>' }}"
        "{% if m.reasoning_content and loop.last %}{{ m.reasoning_content + '</think>' }}"
        "{% endif %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
        "{{ '<call>' + c.function.name + '</call>' }}{% endfor %}{% endif %}{% endfor %}PROMPT"
    )
    asked, unasked = "{% if add_generation_prompt %}<|assistant|>{% endif %}", "<|assistant|>"
    for prompt in (asked, unasked):
        tokenizer = copy.deepcopy(make_tokenizer(template.replace("PROMPT", prompt)))
        marks = ["<|user|>", "<|assistant|>", "<|observation|>", "</call>", "</think>"]
        tokenizer.add_tokens(marks, special_tokens=True)
        stops = tokenizer.convert_ids_to_tokens(by_template(tokenizer))
        assert set(stops) == {"<|user|>", "<|observation|>"}
        question, renderer = {"role": "user", "content": "how?"}, ChatRenderer(tokenizer)

        def said(
            *turns: dict[str, Any], before: Any = question, renderer: Any = renderer
        ) -> list[str]:
            found = renderer.render(Chat([before, *turns]))
            return [found.text[a:b] for a, b in found.spans]

        call = {"role": "assistant", "content": "", "tool_calls": [CALL]}
        bare = {"role": "assistant", "tool_calls": [CALL]}
        result = {"role": "tool", "content": "fine"}
        for _ in range(3):  # the same of later ones
            assert said(call) == said(bare) == ["<call>look</call><|observation|>"]
            assert said(call, result)[0] == "<call>look</call><|observation|>"
            thought = {"role": "assistant", "content": "", "reasoning_content": "so"}
            assert said(thought) == ["so</think><|user|>"]
            assert said({**call, **thought}) == ["so</think><call>look</call><|observation|>"]
            assert said({"role": "assistant", "content": ""}) == ["<|user|>"]
            assert said({"role": "assistant", "content": "fine"}) == ["fine<|user|>"]


def test_what_a_template_writes_unasked_stops_nothing(
    ends_of: Callable[..., set[str]], make_tokenizer: MakeTokenizer
) -> None:
    template = CHATML.replace("add_generation_prompt", "true")
    assert ends_of(TALKS, template) == {"<|im_end|>"}
    tokenizer = make_tokenizer(template)
    assert tokenizer.convert_ids_to_tokens(by_template(tokenizer)) == ["<|im_end|>"]
