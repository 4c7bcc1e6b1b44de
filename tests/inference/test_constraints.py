"""Answers that keep to a form: JSON of a schema, calls of tools, whatever the model would say."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, grammar_from
from llguidance.hf import from_tokenizer
from transformers import AutoModelForCausalLM

from launcher.config.schema import TinyModelConfig
from launcher.data.tokenizer import load_tokenizer
from launcher.inference.batching import reply
from launcher.inference.constraints import Grammars, Unsatisfiable
from launcher.inference.requests import asks_of
from launcher.inference.speaker import Speaker
from support.asking import RANDOMLY, ask_all
from support.models import make_llama

TEMPLATES = Path(__file__).resolve().parents[1] / "support" / "templates"
HELLO = [{"role": "user", "content": "How many apples?"}]
POINT = {
    "type": "object",
    "properties": {
        "x": {"type": "integer", "minimum": 0, "maximum": 99},
        "on": {"type": "boolean"},
    },
    "required": ["x", "on"],
    "additionalProperties": False,
}
NAMES = ("move", "stop it")
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": POINT, "strict": True}}
    for name in NAMES
]


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Speaker:
    """A random model with the tiny model's tokenizer, whose template writes calls."""
    folder = make_llama(tmp_path_factory.mktemp("llama"), max_position_embeddings=1024)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return Speaker(model, load_tokenizer(TinyModelConfig(vocab_size=300)), None, pairs=False)


#: Control characters without an escape of their own.
UNWRITTEN = "".join(map(chr, {*range(32), 0x7F} - {*b"\b\t\n\f\r"}))


@st.composite
def _schemas(draw: st.DrawFn, depth: int = 2) -> dict[str, Any]:
    """Schemas whose answers are short."""
    kinds = ["integer", "boolean", "null", "string", "enum", "any"]
    kind = draw(st.sampled_from([*kinds, "object", "array"] if depth else kinds))
    if kind == "integer":
        low = draw(st.integers(-50, 50))
        return {"type": "integer", "minimum": low, "maximum": low + draw(st.integers(0, 100))}
    if kind == "string":
        return {"type": "string", "maxLength": draw(st.integers(0, 5))}
    if kind == "enum":
        letters = st.characters(exclude_categories=["Cs"], exclude_characters=UNWRITTEN)
        texts = st.text(letters, max_size=4)
        values = st.one_of(texts, st.integers(-9, 9), st.booleans(), st.none())
        return {"enum": draw(st.lists(values, min_size=1, max_size=3))}
    if kind == "any":
        return {"anyOf": draw(st.lists(_schemas(depth=0), min_size=1, max_size=2))}
    if kind == "array":
        most = draw(st.integers(0, 2))
        return {"type": "array", "items": draw(_schemas(depth=depth - 1)), "maxItems": most}
    if kind == "object":
        members = draw(
            st.dictionaries(
                st.text('aé "', min_size=1, max_size=3), _schemas(depth=depth - 1), max_size=2
            )
        )
        required = [name for name in members if draw(st.booleans())]
        return {
            "type": "object",
            "properties": members,
            "required": required,
            "additionalProperties": False,
        }
    return {"type": kind}


@pytest.mark.thorough
@settings(RANDOMLY, max_examples=25)
@given(schema=_schemas(), seed=st.integers(0, 1 << 20))
def test_every_answer_is_json_of_its_schema(
    speaker: Speaker, schema: dict[str, Any], seed: int
) -> None:
    request = {"messages": HELLO, "seed": seed, "max_tokens": 160, "format": {"schema": schema}}
    for end in ask_all(speaker, {"id": "a", "n": 3, **request}, longest=160).values():
        assert end["finish_reason"] in ("stop", "length"), end
        if end["finish_reason"] == "stop":
            jsonschema.validate(json.loads(end["text"]), schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": ["a", "^\x1a\x96"]},
        {"const": {"a": ["\x00"]}},
        {"const": {"\x1f": 1}},
        {"type": "object", "properties": {"a\x0b": {}}},
        {"anyOf": [{"type": "object", "properties": {"enum": {"enum": ["\x01"]}}}]},
    ],
)
def test_control_characters_that_are_not_written_are_refused(
    speaker: Speaker, schema: dict[str, Any]
) -> None:
    request = {"id": "a", "messages": HELLO, "max_tokens": 9, "format": {"schema": schema}}
    (end,) = ask_all(speaker, request, longest=9).values()
    assert (end["code"], end["param"]) == ("invalid_value", "response_format")
    assert "control character" in end["error"]


def test_other_characters_are_written_as_they_are(speaker: Speaker) -> None:
    value = '\t\n\b\f\r"\\\x96\U000471c8é'
    schema = {"description": "\x01", "enum": [value]}
    request = {"id": "a", "messages": HELLO, "max_tokens": 160, "format": {"schema": schema}}
    (end,) = ask_all(speaker, request, longest=160).values()
    assert json.loads(end["text"]) == value


@pytest.mark.thorough
@settings(RANDOMLY, max_examples=6)
@given(seed=st.integers(0, 1 << 20), data=st.data())
def test_every_forced_answer_is_calls(speaker: Speaker, seed: int, data: st.DataObject) -> None:
    names = data.draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    most = data.draw(st.sampled_from([1, None]))
    request = {
        **{"id": "a", "messages": HELLO, "seed": seed, "n": 3, "max_tokens": 150},
        **{"tools": TOOLS, "call": {"is_forced": True, "names": names}, "max_calls": most},
    }
    ends = ask_all(speaker, request, longest=150).values()
    for end in ends:
        assert end["finish_reason"] in ("tool_calls", "length"), end
        if end["finish_reason"] == "tool_calls":
            assert not end["text"]
            assert {call["name"] for call in end["calls"]} <= set(names)
            assert most is None or len(end["calls"]) == 1
            for call in end["calls"]:
                jsonschema.validate(json.loads(call["arguments"]), POINT)


def test_most_constrained_answers_come_to_their_end(speaker: Speaker) -> None:
    one = {"messages": HELLO, "seed": 3, "n": 8, "max_tokens": 150}
    asked = [
        {"id": "json", **one, "format": {"schema": POINT}},
        {"id": "call", **one, "tools": TOOLS, "call": {"is_forced": True}, "max_calls": 1},
    ]
    ends = ask_all(speaker, *asked, longest=150)
    reasons = [end["finish_reason"] for end in ends.values()]
    assert reasons.count("stop") >= 6
    assert reasons.count("tool_calls") >= 6


def fits(grammars: Grammars, request: dict[str, Any], text: str) -> bool:
    """Whether an answer may be this text, control tokens in it as such, and end there."""
    with contextlib.closing(grammars):
        held = grammars.constraint(request)
    assert held is not None
    width = len(grammars.tokenizer)
    try:
        for token in grammars.tokenizer(text, add_special_tokens=False)["input_ids"]:
            if not held.allowed(width)[token]:
                return False
            held.take(token)
    except RuntimeError:
        return False
    return bool(held.allowed(width)[grammars.stops].all())


def fits_elsewhere(grammars: Grammars, request: dict[str, Any], text: str) -> bool:
    """Whether a decoder that has the grammar alone takes this text, and then a token that ends."""
    with contextlib.closing(grammars):
        held = grammars.constraint(request)
    assert held is not None
    known = from_tokenizer(grammars.tokenizer, n_vocab=len(grammars.tokenizer))
    matcher = LLMatcher(known, grammar_from("grammar", held.for_others), log_level=0)
    tokens = grammars.tokenizer(text, add_special_tokens=False)["input_ids"]
    return bool(matcher.consume_tokens([*tokens, grammars.stops[0]])) and matcher.is_stopped()


@pytest.mark.parametrize(
    ("text", "here", "elsewhere"),
    [
        ('{"x": 3, "on": true}', True, True),
        ('{"x":3,"on":true}', True, True),
        (' {"x": 3, "on": true}', True, True),
        ('{\n  "x": 3,\n  "on": true\n}', True, False),
        ('{"x": 3, "on": true', False, False),
        ('{"x":\n \n3,"on":true}', False, False),
    ],
)
def test_json_of_another_decoder_is_on_one_line(text: str, here: bool, elsewhere: bool) -> None:
    tokenizer = load_tokenizer(TinyModelConfig(vocab_size=300))
    for stops in ([tokenizer.eos_token_id], [tokenizer.pad_token_id, tokenizer.eos_token_id]):
        grammars = Grammars(tokenizer, len(tokenizer), stops)
        request = {"format": {"schema": POINT}}
        assert fits(grammars, request, text) is here
        assert fits_elsewhere(grammars, request, text) is elsewhere


#: Where calls stand, of one call and of two; "" for families that write one alone.
CALLS = {
    "qwen2_5": ("<tool_call>\n{}\n</tool_call><|im_end|>", "\n</tool_call>\n<tool_call>\n"),
    "mistral": ("[TOOL_CALLS] [{}]", ", "),
    "llama3_1": ("{}<|eot_id|>", ""),
}


@pytest.mark.parametrize(
    ("family", "special"),
    [(None, False), *((name, own) for name in CALLS for own in (False, True))],
)
def test_calls_keep_to_the_form_of_the_template(family: str | None, special: bool) -> None:
    tokenizer = load_tokenizer(TinyModelConfig(vocab_size=300))
    around, between = CALLS.get(family or "", ("Call: {}", "\nCall: "))
    if family is not None:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = (TEMPLATES / f"{family}.jinja").read_text()
        control = re.findall(r"<[^<>\n]+>|\[[A-Z_]+\]", around)
        if special:
            tokenizer.add_special_tokens({"additional_special_tokens": control})
    grammars = Grammars(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    arguments = "parameters" if family == "llama3_1" else "arguments"
    call = f'{{"name": "move", "{arguments}": {{"x": 3, "on": true}}}}'
    if family == "mistral":
        call = call[:-1] + ', "id": "abcd12345"}'
    said = around.replace("{}", call)
    ends = [end for end in ("<|im_end|>", "<|eot_id|>") if special and said.endswith(end)]
    said = said.removesuffix("".join(ends))  # where it is a token, it ends the turn
    two = said.replace(call, f"{call}{between}{call}")
    free = {"tools": TOOLS}
    forced = {"tools": TOOLS, "call": {"is_forced": True}}
    for request in (free, forced):
        assert fits(grammars, request, said)
        assert fits_elsewhere(grammars, request, said)
        assert fits(grammars, request, two) == bool(between)
        assert not fits(grammars, {**request, "max_calls": 1}, two)
        assert not fits(grammars, request, said[: said.index("true")])
        assert not fits(grammars, request, said.replace("3", "300"))
        assert not fits(grammars, request, said.replace("move", "fly"))
    assert fits(grammars, free, "Just text.")
    assert fits(grammars, free, "")
    assert not fits(grammars, forced, "Just text.")
    assert not fits(grammars, forced, "")
    if family != "llama3_1":  # it writes no text beside a call
        assert fits(grammars, free, f"Let me see.\n{said}")
    other = {**forced, "call": {"is_forced": True, "names": ["stop it"]}}
    assert not fits(grammars, other, said)
    assert fits(grammars, other, said.replace("move", "stop it"))
    either = {**free, "format": {"schema": {"type": "integer"}}}
    assert fits(grammars, either, said)
    assert fits(grammars, either, "7")
    assert not fits(grammars, either, "Just text.")


def test_a_form_of_calls_that_is_not_known_can_only_be_left_to_the_model() -> None:
    tokenizer = copy.deepcopy(load_tokenizer(TinyModelConfig(vocab_size=300)))
    tokenizer.chat_template = (TEMPLATES / "qwen3_5.jinja").read_text()
    grammars = Grammars(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    assert grammars.constraint({"tools": TOOLS}) is None
    for call in ({"is_forced": True}, {"is_forced": False, "names": ["move"]}):
        with pytest.raises(Unsatisfiable, match="not known") as refused:
            grammars.constraint({"tools": TOOLS, "call": call})
        assert refused.value.param == "tool_choice"


@pytest.mark.parametrize("kind", ["blanks", "words"])
def test_tokenizers_of_other_kinds(kind: str) -> None:
    """Blanks as characters, and bytes where a character is unknown; or what has no bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    texts = ['{"on": true, "x": 31}', "How many apples?"]
    options = {"vocab_size": 400, "show_progress": False}
    if kind == "blanks":
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        blanks = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        made.normalizer = normalizers.Sequence(blanks)
        shown = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
        made.decoder = decoders.Sequence([*shown, decoders.Strip(" ", 1, 0)])
        special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(special_tokens=special, **options)
    else:
        made = Tokenizer(models.WordPiece(unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(special_tokens=["<unk>", "</s>"], **options)
    made.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")
    grammars = Grammars(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    request = {"format": {"schema": POINT}}
    if kind == "blanks":
        assert fits(grammars, request, '{"x": 31, "on": true}')
        assert not fits(grammars, request, '{"x": 31}')
        return
    with pytest.raises(Unsatisfiable, match="cannot be constrained"):
        grammars.constraint(request)


def test_constrained_and_free_answers_share_a_batch(speaker: Speaker) -> None:
    requests = [
        {"id": "free", "messages": HELLO, "temperature": 0, "max_tokens": 12},
        {"id": "json", "messages": HELLO, "seed": 1, "n": 2, "max_tokens": 90},
        {"id": "other", "prompt": "Apples and pears", "seed": 5, "max_tokens": 30},
    ]
    requests[1]["format"] = {"schema": POINT}
    together = ask_all(speaker, *requests, longest=100)
    alone = {k: v for one in requests for k, v in ask_all(speaker, one, longest=100).items()}
    assert alone == together
    assert set(json.loads(together["json/0"]["text"])) == {"x", "on"}


@pytest.mark.parametrize(
    "options", [{}, {"separators": (",", ":")}, {"indent": 2}, {"indent": "\t"}]
)
def test_json_may_be_laid_out_as_programs_do(speaker: Speaker, options: dict[str, Any]) -> None:
    said = {"a": {"b": [1, 2.5, {"c": None}, []], "é": '\n"'}}
    request = {"format": {"schema": {"type": "object"}}}
    assert fits(speaker.grammars, request, json.dumps(said, ensure_ascii=False, **options))
    assert not fits(speaker.grammars, request, json.dumps([said], **options))


@pytest.mark.parametrize(
    ("changed", "param", "message"),
    [
        ({"format": {"schema": {"type": "strin"}}}, "response_format", "Invalid type: strin"),
        ({"format": {"schema": {"not": {}, "x-guidance": {"lenient": True}}}}, None, "not"),
        ({"format": {"schema": {"$ref": "http://example.org/a"}}}, "response_format", "$ref|fetch"),
        ({"format": {"schema": {"type": "string", "pattern": "("}}}, "response_format", "regex"),
        ({"format": {"schema": False}}, "response_format", "nsatisfiable"),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "strict": True, "parameters": {"not": {}}},
                    }
                ]
            },
            "tools",
            "'f'",
        ),
        ({"logit_bias": {"100000": 1}}, "logit_bias", "no token 100000"),
    ],
)
def test_what_cannot_be_kept_to_is_refused(
    speaker: Speaker, changed: dict[str, Any], param: str | None, message: str
) -> None:
    end = ask_all(speaker, {"id": "a", "messages": HELLO, "max_tokens": 3, **changed})["a"]
    assert end["code"] == "invalid_value"
    assert param is None or end["param"] == param
    assert any(part in end["error"] for part in message.split("|")), end


CHAIN = {
    "$defs": {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(3000)} | {"d3000": {}},
    "$ref": "#/$defs/d0",
}


@pytest.mark.parametrize(
    "schema",
    [
        CHAIN,
        {"type": "integer", "multipleOf": 999983},
        {"$ref": "#"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"type": "object", "properties": {f"p{i}": {"type": "null"} for i in range(2500)}},
        {"const": "x" * 2_000_000},
        functools.reduce(lambda held, _: {"items": held}, range(900), {}),
    ],
    ids=["chain", "slow", "loop", "loops", "members", "long", "deep"],
)
def test_a_schema_that_is_too_much_is_refused_and_ends_nothing(
    speaker: Speaker, schema: dict[str, Any]
) -> None:
    one = {"messages": HELLO, "max_tokens": 2}
    members = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    function = {"name": "f", "parameters": schema if "$ref" in schema else members}
    tool = {"type": "function", "function": {**function, "strict": True}}
    ends = ask_all(
        speaker,
        {"id": "format", **one, "format": {"schema": schema}},
        {"id": "tools", **one, "prompt": "a", "tools": [tool]},
        {"id": "fine", **one, "format": {"schema": POINT}},
    )
    assert (ends["format"]["code"], ends["format"]["param"]) == ("invalid_value", "response_format")
    assert (ends["tools"]["code"], ends["tools"]["param"]) == ("invalid_value", "tools")
    assert ends["fine/0"]["finish_reason"] == "length"


def test_a_slow_schema_holds_up_no_other_answer(speaker: Speaker) -> None:
    slow = {"type": "integer", "multipleOf": 9999991}
    plain = {"id": "plain", "messages": HELLO, "max_tokens": 2}
    ends = ask_all(speaker, {**plain, "id": "slow", "format": {"schema": slow}}, plain)
    assert list(ends) == ["plain/0", "slow"]


@pytest.mark.parametrize("parameters", [{"type": "string"}, {"type": ["array", "null"]}])
def test_arguments_are_an_object(speaker: Speaker, parameters: dict[str, Any]) -> None:
    def forced(schema: dict[str, Any]) -> dict[str, Any]:
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        return {"tools": [tool], "call": {"is_forced": True}}

    end = ask_all(speaker, {"id": "a", "messages": HELLO, **forced(parameters)})["a"]
    assert (end["param"], "'f'" in end["error"]) == ("tools", True)
    said = 'Call: {"name": "f", "arguments": %s}'
    for schema in ({"minimum": 3}, {"$ref": "#/$defs/a", "$defs": {"a": {}}}):
        assert fits(speaker.grammars, forced(schema), said % "{}")
        assert not fits(speaker.grammars, forced(schema), said % "5")


def test_a_name_cannot_be_written_in_another_way(speaker: Speaker) -> None:
    schema = {**POINT, "additionalProperties": True}
    request = {"format": {"schema": schema}}
    assert fits(speaker.grammars, request, '{"x": 1, "on": true, "y": "\\n"}')
    assert not fits(speaker.grammars, request, '{"x": 1, "on": true, "\\u0078": "z"}')


def test_an_answer_that_fails_ends_those_beside_it(speaker: Speaker) -> None:
    class Failing:
        """A constraint that ends at the second answer's third token."""

        def __init__(self, left: int = -1) -> None:
            self.left, self.made = left, 0

        def fresh(self) -> Failing:
            self.made += 1
            return Failing(3 if self.made == 2 else -1)

        def allowed(self, width: int) -> torch.Tensor:
            self.left -= 1
            if not self.left:
                raise RuntimeError("no more")
            return torch.ones(width, dtype=torch.bool)

        def take(self, token: int) -> None:
            pass

        is_over = False

    lines: list[dict[str, Any]] = []
    request = {"id": "a", "messages": HELLO, "n": 3, "seed": 1, "format": {"schema": {}}}
    request |= {"constraint": Failing(), "max_tokens": 60}
    reply(speaker, asks_of(request, speaker, 60, lines.append, lambda: False))
    assert lines[-1]["param"] == "response_format"
    assert not any("finish_reason" in line for line in lines)
    assert len(lines) < 15


def test_an_unchecked_schema_of_a_function_is_left_to_the_model(speaker: Speaker) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}
    request = {"id": "a", "messages": HELLO, "tools": [tool], "call": {"is_forced": True}}
    end = ask_all(speaker, {**request, "seed": 1, "max_tokens": 60, "n": 4})
    assert all(one["finish_reason"] in ("tool_calls", "length") for one in end.values())


def test_likelihoods_are_told_of_the_text_beside_calls_in_short_lines(speaker: Speaker) -> None:
    lines: list[dict[str, Any]] = []
    request = {"id": "a", "messages": HELLO, "tools": TOOLS, "logprobs": 0}
    call = [f'{{"name": "move", "arguments": {json.dumps(list(range(9)))}', "}"]

    def told(*tokens: str) -> list[str]:
        (ask,) = asks_of(request, speaker, 60, lines.append, lambda: False)
        lines.clear()
        for token in tokens:
            ask.show(token, [{"token": token, "bytes": list(token.encode()), "logprob": -1.0}])
        ask.end("stop", len(tokens))
        return [one["token"] for line in lines for one in line.get("logprobs", ())]

    assert told("Let", " me", ".", "\nCall", ": ", *call) == ["Let", " me", "."]
    assert lines[-2]["calls"][0]["name"] == "move"
    assert told("Call", ": ", *call) == []
    assert told("Call", ": ", call[0]) == ["Call", ": ", call[0]]
    assert told(*["Call: "] * 200) == ["Call: "] * 200
    assert max(len(line.get("logprobs", ())) for line in lines) == 64
