"""What an answer may be: JSON of a schema, calls of tools, or either, as a grammar that decoding
keeps to token by token (llguidance).

A request says it by `format`, `{schema}` of the JSON that the answer is, and `call`, `{is_forced,
names}`: whether one of its tools has to be called, and which may be.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from launcher.data.chat.calls import CallText
from launcher.data.chat.template import CALL_ID
from launcher.inference.grammar_check import Checker

#: White space between JSON's tokens, as programs write it: none, a blank, or a new line and what
#: stands before the next. Without a bound a model may write nothing else for ever. Calls are
#: written on one line.
_BLANKS, _CALL_BLANKS = r"( |\n( {0,24}|\t{0,8}))?", r"[ ]?"
#: A name that is written with `\u` would be none of those that a schema describes.
_OPTIONS = {"lenient": False, "coerce_one_of": False, "json_allowed_escapes": r"nrbtf\""}
#: Control characters without an escape of their own.
_UNWRITTEN = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")
#: Blanks of JSON on one line, as the library's versions all keep to them.
_ONE_LINE = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}
#: Arguments of a function that says nothing of them: there are none.
_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


class Unsatisfiable(Exception):
    """There is no such constraint for this model; `param` of the request is at fault."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


def is_demanded(request: Mapping[str, Any]) -> bool:
    """Whether a request demands anything of the form of its answers."""
    tools, call = request.get("tools") or [], request.get("call") or {}
    is_chosen = bool(call.get("is_forced")) or call.get("names") is not None
    return request.get("format") is not None or bool(
        tools and (is_chosen or any(map(_is_strict, tools)))
    )


class Constraint:
    """One answer that keeps to a grammar."""

    def __init__(self, matcher: Any, stops: Sequence[int], rules: Grammar) -> None:
        self._matcher, self._stops, self._rules = matcher, list(stops), rules

    def fresh(self) -> Constraint:
        """The same for another answer."""
        return Constraint(self._matcher.deep_copy(), self._stops, self._rules)

    @property
    def for_others(self) -> str:
        """The grammar for a decoder that does not know which tokens end the answer, and whose
        library cannot bound white space but by having none: JSON is on one line."""
        return self._rules.text(self._stops, on_one_line=True)

    def allowed(self, width: int) -> Tensor:
        """Which of `width` tokens may come next, bool [width]; those that end an answer where it
        may end. Raises `RuntimeError` where the library gives up."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        found = torch.zeros(width, dtype=torch.bool)
        known = torch.from_numpy(np.unpackbits(bits, bitorder="little")[:width]).bool()
        found[: len(known)] = known
        found[self._stops] = bool(self._matcher.is_accepting())
        return found

    def take(self, token: int) -> None:
        """The answer goes on with `token`, which is none of those that end it."""
        self._matcher.consume_token(token)
        self._check()

    @property
    def is_over(self) -> bool:
        """Whether nothing may follow."""
        return bool(self._matcher.is_stopped()) and bool(self._matcher.is_accepting())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RuntimeError(self._matcher.get_error())


@dataclass(frozen=True, slots=True)
class JsonRule:
    """What is JSON of a schema, behind a `head`."""

    head: str
    schema: Any
    blanks: str

    def text(self, *, on_one_line: bool) -> str:
        """The rule, with one blank at most behind commas and colons, or where `blanks` may be."""
        options = _ONE_LINE if on_one_line else {"whitespace_pattern": self.blanks}
        return f"{self.head} {_json(self.schema, options)}"


@dataclass(frozen=True, slots=True)
class Grammar:
    """Rules of llguidance, one of `starts` being the whole."""

    starts: Sequence[str]
    rules: Sequence[str | JsonRule]

    def text(self, ends: Sequence[int] = (), *, on_one_line: bool = False) -> str:
        """In Lark's form; `ends` are tokens one of which may follow."""
        whole = " | ".join(self.starts)
        if ends:
            whole = f"({whole}) ({' | '.join(map(_symbol, ends))})?"
        rules = (
            rule if isinstance(rule, str) else rule.text(on_one_line=on_one_line)
            for rule in self.rules
        )
        return "\n".join(["%llguidance {}", f"start: {whole}", *rules])


class Grammars:
    """Constraints for answers of one model."""

    def __init__(self, tokenizer: Any, width: int, stops: Sequence[int]) -> None:
        """`width`: tokens that the model knows; `stops`: those that end its answers."""
        self.tokenizer, self._width, self.stops = tokenizer, width, stops

    def constraint(self, request: Mapping[str, Any]) -> Constraint | None:
        """What a request that `is_demanded` demands of its answers; None if all it demands is that
        calls are strict, and calls of this model's cannot be read. Takes seconds for the first of
        large schemas. Raises `Unsatisfiable`, and `OSError` if nothing can be checked."""
        try:
            return self._constraint(request)
        except RecursionError as error:
            param = "tools" if request.get("format") is None else "response_format"
            raise Unsatisfiable(param, "Invalid schema: it is nested too deeply.") from error

    def _constraint(self, request: Mapping[str, Any]) -> Constraint | None:
        tools, call = request.get("tools") or [], request.get("call") or {}
        wanted = request.get("format")
        is_forced, names = bool(call.get("is_forced")), call.get("names")
        is_chosen = bool(tools) and (is_forced or names is not None)
        param = "tool_choice" if is_forced or wanted is None else "response_format"
        library, known = self._library(param)
        text = self._call_text if tools else None
        if text is None and is_chosen:
            raise Unsatisfiable(
                "tool_choice",
                "This model's chat template writes calls of tools in a form that is not known:"
                " whether it calls one, and which, can only be left to it.",
            )
        rules: list[str | JsonRule] = []
        starts: list[str] = []
        if wanted is not None and not is_forced:
            # Alone it is the whole grammar, which is tried below.
            if text is not None or _is_unwritable(wanted["schema"]):
                self._require(wanted["schema"], "response_format")
            # Some tokenizers begin a text with a blank, and do not show it.
            rules.append(JsonRule("answer: / ?/", wanted["schema"], _BLANKS))
            starts.append("answer")
        if text is not None:
            rules += self._calls(text, tools, names, request.get("max_calls"))
            if wanted is None and not is_forced:
                rules += self._free(text)
                starts += ["free", "lead calls_rest"]
            else:
                starts.append("calls")
        if not starts:
            return None
        found = Grammar(starts, rules)
        grammar = found.text()
        problem = self._checker.problem(grammar)
        if problem:
            param = "response_format" if "answer" in starts else "tools"
            raise Unsatisfiable(param, f"Invalid schema: {_first_line(problem)}")
        matcher = library.LLMatcher(
            known, library.LLMatcher.grammar_from_lark(grammar), log_level=0
        )
        if matcher.is_error():
            raise Unsatisfiable(param, _first_line(matcher.get_error()))
        return Constraint(matcher, self.stops, found)

    def close(self) -> None:
        """End the process that checks schemas; it begins again where one is needed."""
        if "_checker" in self.__dict__:
            self._checker.close()

    @functools.cached_property
    def _call_text(self) -> CallText | None:
        return CallText.of(self.tokenizer)

    @functools.cached_property
    def _known(self) -> Any:
        from llguidance.hf import from_tokenizer

        return from_tokenizer(self.tokenizer, n_vocab=max(self._width, len(self.tokenizer)))

    @functools.cached_property
    def _checker(self) -> Checker:
        tokenizer = copy.copy(self.tokenizer.backend_tokenizer)
        tokenizer.no_padding()
        tokenizer.no_truncation()
        width = max(self._width, len(self.tokenizer))
        return Checker(tokenizer.to_str(), width, self.tokenizer.eos_token_id)

    def _library(self, param: str) -> tuple[Any, Any]:
        try:
            import llguidance
        except ImportError as error:
            message = "This server cannot do that: the package llguidance is not installed."
            raise Unsatisfiable(param, message) from error
        try:
            return llguidance, self._known
        except (ValueError, TypeError) as error:  # a tokenizer of a kind of its own
            message = f"This model's tokenizer cannot be constrained: {_first_line(str(error))}"
            raise Unsatisfiable(param, message) from error

    def _problem(self, schema: Any, blanks: str = _BLANKS) -> str | None:
        """Why answers cannot be kept to a schema."""
        if _is_unwritable(schema):
            return "A value or name in it has a control character, which is not written here."
        rule = JsonRule("start:", schema, blanks).text(on_one_line=False)
        found = self._checker.problem(f"%llguidance {{}}\n{rule}")
        return _first_line(found) if found else None

    def _require(self, schema: Any, param: str, where: str = "", blanks: str = _BLANKS) -> None:
        problem = self._problem(schema, blanks)
        if problem:
            raise Unsatisfiable(param, f"Invalid schema{where}: {problem}")

    def _calls(
        self,
        text: CallText,
        tools: Sequence[Mapping[str, Any]],
        names: Sequence[str] | None,
        most: int | None,
    ) -> list[str | JsonRule]:
        """Rules of calls of tools, one or several."""
        one: list[str] = []
        rules: list[str | JsonRule] = []
        end = self._literal(text.end)
        if CALL_ID[:-1] in text.end:
            begin, _, rest = text.end.partition(CALL_ID[:-1])
            end = f"{self._literal(begin)} /[a-zA-Z0-9]{{9}}/ {self._literal(rest[1:])}"
        for number, tool in enumerate(tools):
            function = tool.get("function", tool)
            if names is not None and function["name"] not in names:
                continue
            schema = _of_object(function)
            if _is_strict(tool):
                where = f" for function '{function['name']}'"
                self._require(schema, "tools", where, _CALL_BLANKS)
            elif self._problem(schema, _CALL_BLANKS):
                schema = {"type": "object"}
            head = self._literal(text.begin + json.dumps(function["name"]) + text.middle)
            rules += [f"call_{number}: {head} arguments_{number} {end}"]
            rules += [JsonRule(f"arguments_{number}:", schema, _CALL_BLANKS)]
            one.append(f"call_{number}")
        several = most != 1 and text.between is not None
        more = f"({self._literal(text.between or '')} call)*" if several else ""
        return [
            f"calls: {self._literal(text.opened)} calls_rest",
            f"calls_rest: call {more} {self._literal(text.closed)}",
            f"call: {' | '.join(one)}",
            *rules,
        ]

    def _free(self, text: CallText) -> list[str]:
        """Rules of text without calls, and of text that leads to one."""
        opened = text.opened.strip()
        parts = self._parts(opened)
        if not opened:  # a call is what begins as one
            return [r"free: /([^{\s](?s:.*))?/", r"lead: /[ \n]{0,4}/"]
        rest = self._literal(text.opened[text.opened.index(opened) + len(opened) :])
        if isinstance(parts[0], int):
            return [
                r"free: /(?s:.*)/",
                f"lead: /(?s:.*)/ {self._literal(opened)} {rest}",
            ]
        trigger = re.escape(parts[0]).replace("/", r"\/").replace("\n", r"\n")
        return [
            "free: FREE",
            rf"FREE: /(?s:.*)/ & ~/(?s:.*){trigger}(?s:.*)/",
            f"lead: trigger {' '.join(map(_symbol, parts[1:]))} {rest}",
            f"trigger[lazy]: ANY {_symbol(parts[0])}",
            r"ANY: /(?s:.*)/",
        ]

    def _literal(self, text: str) -> str:
        """A text in a rule, control tokens as such."""
        return " ".join(map(_symbol, self._parts(text)))

    def _parts(self, text: str) -> list[str | int]:
        added = self.tokenizer.added_tokens_decoder.items()
        special: dict[str, str | int] = {token.content: i for i, token in added if token.special}
        if not special:
            return [text] if text else []
        longest = sorted(special, key=len, reverse=True)
        cut = re.split(f"({'|'.join(map(re.escape, longest))})", text)
        return [special.get(part, part) for part in cut if part]


def _is_unwritable(part: Any, is_value: bool = False) -> bool:
    """Whether a name or value that a schema demands can only be written with `\\u`, which the
    grammar has not: the library would leave the character out."""
    if isinstance(part, str):
        return is_value and _UNWRITTEN.search(part) is not None
    if isinstance(part, list):
        return any(_is_unwritable(own, is_value) for own in part)
    if not isinstance(part, dict):
        return False
    for name, own in part.items():
        if name == "properties" and isinstance(own, dict) and not is_value:
            if any(map(_UNWRITTEN.search, own)) or any(map(_is_unwritable, own.values())):
                return True
        elif (is_value and _UNWRITTEN.search(name)) or _is_unwritable(
            own, is_value or name in ("enum", "const")
        ):
            return True
    return False


def _of_object(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object. Raises `Unsatisfiable`."""
    schema = function.get("parameters") or _NOTHING
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        message = f"Invalid schema for function '{function['name']}': its type is not 'object'."
        raise Unsatisfiable("tools", message)
    return {**schema, "type": "object"}


def _symbol(part: str | int) -> str:
    return f"<[{part}]>" if isinstance(part, int) else json.dumps(part, ensure_ascii=False)


def _json(schema: Any, options: Mapping[str, Any]) -> str:
    """A schema with our options of the library, whatever it says of them itself."""
    if schema is True:
        schema = {}
    if isinstance(schema, dict):
        schema = {**schema, "x-guidance": {**_OPTIONS, **options}}
    return f"%json {json.dumps(schema)}"


def _is_strict(tool: Mapping[str, Any]) -> bool:
    return bool(tool.get("function", tool).get("strict"))


def _first_line(text: str) -> str:
    return " ".join(text.split())[:500]
