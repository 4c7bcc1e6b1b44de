"""From examples to tokens and target flags, in batches; long records are cut to size."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, chain
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from launcher.config.schema import Overlong, SpecialTokens, Thoughts
from launcher.data.chat.literals import Literals
from launcher.data.chat.masking import ChatOptions, ChatRenderer, LeftOut, exchanges
from launcher.data.chat.provenance import THOUGHTS
from launcher.data.chat.targets import ByteMap, mark, mark_by_offsets
from launcher.data.chat.template import Span
from launcher.data.chat.turn_ends import by_template
from launcher.data.formats.base import BadRecord, Chat, Example, OpenQuestion, Pair, Text
from launcher.data.tokenizer import Frame
from launcher.data.words import Words

#: So many sets of a template's variables are kept ready.
_RENDERERS = 64


class Piece(NamedTuple):
    """A document, or several that stay together, one behind the other."""

    tokens: NDArray[np.int32]
    """[length]"""
    targets: NDArray[np.uint8]
    """[length]: 1 where the token itself is to be learned."""
    lengths: tuple[int, ...] = ()
    """Of the documents, if there are several."""
    columns: Mapping[str, Sequence[Any] | NDArray[Any]] = MappingProxyType({})
    """What the objective has declared: of each a value for each document, or for each target (of
    those that have a token before them in their document)."""

    @property
    def starts(self) -> list[int]:
        """Where the documents begin."""
        return list(accumulate(self.lengths[:-1], initial=0)) if self.lengths else [0]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A record as text. `spans` None means that all of it is learned."""

    text: str
    spans: list[Span] | None
    is_chat: bool
    left_out: tuple[LeftOut, ...] = ()
    """What the assistant says and the chat template does not write."""
    named: str | None = None
    """Where the record spells control tokens: the text as `Literals.encode` takes it."""
    stand_in: int | None = None
    """Of a question without an answer the token that stands for it, behind the text."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A record as tokens: one sequence, or several where `data.thoughts` asks for them."""

    pieces: list[Piece]
    left_out: tuple[LeftOut, ...] = ()
    has_literals: bool = False
    """Whether its texts spell control tokens, and are kept as text."""
    trains: bool = True
    """Whether it may be learned from; a record that may not is left out of training data."""
    is_asked: bool = False
    """Whether it is a question without an answer."""


class ExampleEncoder:
    """Renders and tokenises examples with one tokenizer."""

    def __init__(
        self, tokenizer: Any, *, chat: ChatOptions | None = None, all_targets: bool = False
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._words = Words.make(self._backend)
        self._bytes = ByteMap(self._backend)
        self._frame = Frame(tokenizer)
        self._eos: int | None = tokenizer.eos_token_id
        self._options = chat or ChatOptions()
        self._all_targets = all_targets
        self._tokenizer = tokenizer
        self._literals = Literals(tokenizer)
        self._chat = None
        if tokenizer.chat_template:
            self._chat = ChatRenderer(tokenizer, chat, self._literals)
        self._others: dict[str, ChatRenderer] = {}

    def cut(
        self, piece: Piece, max_length: int, overlong: Overlong
    ) -> tuple[list[Piece], Overlong | None]:
        """`cut`, of this module."""
        if overlong is Overlong.cut_prompt:
            return cut_prompt(piece, max_length, self._tokenizer.bos_token_id)
        return cut(piece, max_length, overlong)

    def encode(self, examples: Sequence[Example]) -> list[Encoded | BadRecord]:
        """Tokens and targets of each example, or why it cannot be used.

        Raises `ConfigError` for conversations when the tokenizer has no chat template.
        """
        rendered = [self._sequences(example) for example in examples]
        flat = [item for items in rendered if isinstance(items, list) for item in items]
        pieces = iter(self._pieces(flat))
        found: list[Encoded | BadRecord] = []
        for items in rendered:
            if isinstance(items, BadRecord):
                found.append(items)
                continue
            made = [next(pieces) for _ in items]
            bad = next((piece for piece in made if isinstance(piece, BadRecord)), None)
            whole = [piece for piece in made if not isinstance(piece, BadRecord)]
            missing = dict.fromkeys(entry for item in items for entry in item.left_out)
            has_literals = any(item.named is not None for item in items)
            asks = any(item.stand_in is not None for item in items)
            found.append(bad or Encoded(whole, tuple(missing), has_literals, is_asked=asks))
        return found

    def _sequences(self, example: Example) -> list[Rendered] | BadRecord:
        """The texts of a record: several if thoughts of earlier turns are to be learned, and the
        template shows those after the last question only."""
        item = self.render(example)
        if isinstance(item, BadRecord):
            return item
        hides = any(kind == THOUGHTS for _, kind in item.left_out)
        if self._options.thoughts is not Thoughts.all or not hides or self._all_targets:
            return [item]
        assert isinstance(example, Chat)
        items = [self.render(part) for part in exchanges(example)]
        bad = next((part for part in items if isinstance(part, BadRecord)), None)
        return bad or [part for part in items if isinstance(part, Rendered)]

    def render(self, example: Example) -> Rendered | BadRecord:
        """The text of an example, or why there is none."""
        try:
            item = self._as_text(example)
            item.text.encode()
        except BadRecord as error:
            return error
        except UnicodeEncodeError as error:
            invalid = 0xDC80 <= ord(error.object[error.start]) <= 0xDCFF
            return BadRecord(
                "invalid UTF-8" if invalid else "half of a surrogate pair, which is no character",
                hint="convert the file to UTF-8" if invalid else "write the character as UTF-8",
            )
        return item

    def _as_text(self, example: Example) -> Rendered:
        if isinstance(example, Text):
            return Rendered(example.text, None, False, (), self._kept(example.text))
        if isinstance(example, OpenQuestion):
            return self._asked(example)
        if isinstance(example, Pair):
            if not self._chat:
                return self._plain(example)
            turns = (("user", example.prompt), ("assistant", example.completion))
            example = Chat([{"role": role, "content": content} for role, content in turns])
        if not isinstance(example, Chat):
            raise TypeError(f"an encoder of its own is needed for {type(example).__name__}")
        made = self._renderer(example.template_options).render(example)
        spans = None if self._all_targets else made.spans
        return Rendered(made.text, spans, True, made.left_out, made.named)

    def _kept(self, text: str) -> str | None:
        """A text that no template has written, if what it spells is to stay text; `BadRecord` if
        it cannot."""
        if self._options.special_tokens is not SpecialTokens.text or not self._literals.are_in(
            text
        ):
            return None
        self._literals.require_told(text)
        return text

    def prompt(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        own: Mapping[str, Any] | None = None,
        *,
        whole: bool = False,
    ) -> list[int]:
        """Token ids of a conversation up to where the assistant is to speak; `own` are variables of
        the template for it alone.

        Raises `BadRecord` if the template refuses it, or (`whole`) leaves something of it out;
        `ConfigError` if there is none.
        """
        made = self._renderer(own or {}).prompt(messages, tools, whole=whole)
        return self._ids_of(made.text, made.named)

    def continued(self, text: str) -> list[int]:
        """Token ids of a text to be continued as it stands."""
        ids = self._ids_of(text, self._kept(text))
        # Only what begins a text: some tokenizers end it too, and none can be continued then.
        ids = [*self._frame.around(text, ids)[0], *ids]
        return ids[:-1] if ids[-1:] == [self._eos] else ids

    def _ids_of(self, text: str, named: str | None) -> list[int]:
        if named is not None:
            return self._literals.encode([named])[1][0]
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def _renderer(self, own: Mapping[str, Any]) -> ChatRenderer:
        """What renders conversations that set these variables of the template."""
        if self._options.special_tokens is not SpecialTokens.parse and self._literals.are_said(own):
            raise BadRecord(
                "a variable of the chat template spells a control token",
                hint="write it otherwise, or read control tokens in texts as such:"
                " data.special_tokens=parse",
            )
        if not own:
            return self._chat or ChatRenderer(self._tokenizer, self._options, self._literals)
        key = json.dumps(own, sort_keys=True, default=repr)
        if key not in self._others:
            if len(self._others) >= _RENDERERS:
                self._others.clear()
            variables = {**self._options.variables, **own}
            options = replace(self._options, variables=variables)
            self._others[key] = ChatRenderer(self._tokenizer, options, self._literals)
        return self._others[key]

    def _asked(self, example: OpenQuestion) -> Rendered:
        """A question as it stands before answers, and the token that ends one in their place."""
        prompt, ends = example.prompt, [*self._ends]
        if self._eos is not None and self._eos not in ends:
            ends.append(self._eos)
        if not ends:
            raise BadRecord(
                "there is no answer, and the tokenizer has no token that ends one",
                hint="give the tokenizer an eos_token, e.g. in its tokenizer_config.json",
            )
        if isinstance(prompt, str) and not prompt.strip():
            raise BadRecord("nothing is asked", hint="remove the record, or skip bad ones")
        if isinstance(prompt, str) and not self._chat:
            text = self._opening(prompt, "")
            return Rendered(text, [], False, (), self._kept(text), stand_in=ends[-1])
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        made = self._renderer(example.template_options).prompt(messages, example.tools)
        return Rendered(made.text, [], True, made.left_out, made.named, stand_in=ends[0])

    @cached_property
    def _ends(self) -> list[int]:
        """Tokens that end an answer in the chat template."""
        return by_template(self._tokenizer)

    def _opening(self, prompt: str, completion: str) -> str:
        """A prompt as it stands before a completion, without a chat template."""
        system = self._options.system
        prompt = f"{system}\n\n{prompt}" if system else prompt
        if prompt and not prompt[-1].isspace() and not completion[:1].isspace():
            prompt += "\n"
        return prompt

    def _plain(self, pair: Pair) -> Rendered:
        """Prompt and completion without a chat template, on lines of their own."""
        prompt = self._opening(pair.prompt, pair.completion)
        text = prompt + pair.completion
        spans = None if self._all_targets else [(len(prompt), len(text))]
        return Rendered(text, spans, False, (), self._kept(text))

    def _pieces(self, items: Sequence[Rendered]) -> Iterator[Piece | BadRecord]:
        """Of all at once: an array for each record would take longer than its numbers do."""
        ids, encodings = self._ids(items)
        framed = [self._put_around(item, own) for item, own in zip(items, ids, strict=True)]
        starts = [0, *accumulate(map(len, ids))]
        tokens = np.fromiter(chain.from_iterable(ids), np.int32, starts[-1])
        targets = np.zeros(len(tokens), np.uint8)
        ends = np.zeros(len(tokens) + 1, np.int64)
        np.cumsum(self._bytes.lengths(tokens), out=ends[1:])
        # Where the tokens of each text begin and end: what is put around it is not of the text.
        opened, closed = np.array(framed, np.int64).reshape(-1, 2).T
        firsts, lasts = np.array(starts[:-1]) + opened, np.array(starts[1:]) - closed
        bounds = zip(ends[firsts].tolist(), ends[lasts].tolist(), strict=True)
        spans: list[Span] = []
        for i, (item, (base, end)) in enumerate(zip(items, bounds, strict=True)):
            if item.spans is None:
                targets[starts[i] : starts[i + 1]] = 1
                continue
            targets[lasts[i] : starts[i + 1]] = 1
            found = self._bytes.spans(item.text, item.spans, end - base)
            if found is not None:
                spans += [(base + first, base + last) for first, last in found]
                continue
            encoding = encodings.get(i) or self._ask([item.text])[0]
            mark_by_offsets(targets[firsts[i] : lasts[i]], encoding, item.spans)
        mark(targets, ends, spans)
        for i, item in enumerate(items):
            part = slice(starts[i], starts[i + 1])
            yield _checked(item, tokens[part], targets[part])

    def _ids(self, items: Sequence[Rendered]) -> tuple[list[list[int]], dict[int, Any]]:
        """Token ids of each text, and the encodings of those that the library was asked about."""
        found: list[list[int] | None] = [None] * len(items)
        encodings: dict[int, Any] = {}
        if self._words:
            found = [None if item.named else self._words.ids(item.text) for item in items]
        spelled = [i for i, item in enumerate(items) if item.named]
        if spelled:
            made, ids = self._literals.encode([items[i].named or "" for i in spelled])
            for i, encoding, own in zip(spelled, made, ids, strict=True):
                encodings[i], found[i] = encoding, own
        chosen = [i for i, own in enumerate(found) if own is None]
        asked = self._ask([items[i].text for i in chosen])
        for i, encoding in zip(chosen, asked, strict=True):
            encodings[i], found[i] = encoding, encoding.ids
        return [own for own in found if own is not None], encodings

    def _ask(self, texts: list[str]) -> list[Any]:
        encodings: list[Any] = self._backend.encode_batch(texts, add_special_tokens=False)
        return encodings

    def _put_around(self, item: Rendered, ids: list[int]) -> tuple[int, int]:
        """Put around plain text what the tokenizer puts there, and end it; how many tokens it took.

        A chat template writes all special tokens itself, and none that a text has already comes
        again.
        """
        if item.is_chat and item.stand_in is None:
            return 0, 0
        before, after = self._frame.around(item.text, ids)
        if item.stand_in is not None:
            before = () if item.is_chat else before
            ids[:] = [*before, *ids, item.stand_in]
            return len(before), 1
        if (
            self._eos is not None
            and after[-1:] != (self._eos,)
            and not self._frame.is_ended(item.text, ids)
        ):
            after = (*after, self._eos)
        ids[:0] = before
        ids += after
        return len(before), len(after)


def _checked(
    item: Rendered, tokens: NDArray[np.int32], targets: NDArray[np.uint8]
) -> Piece | BadRecord:
    if len(tokens) < 2:
        return BadRecord("fewer than two tokens", hint="there is nothing to predict: remove it")
    if not targets[1:].any():
        return BadRecord(
            f"no token of the record is a target: {item.text[:200]!r}",
            hint="the assistant's turn is empty, or the chat template leaves it out;"
            " data.bad_records=skip leaves such records out",
        )
    return Piece(tokens, targets)


def cut(piece: Piece, max_length: int, overlong: Overlong) -> tuple[list[Piece], Overlong | None]:
    """The record within `max_length`, in pieces that each hold a target, and what was done to it.

    Pieces without a target would be computed for nothing; a record that has none left is dropped.
    """
    if len(piece.tokens) <= max_length:
        return [piece], None
    if overlong is Overlong.drop:
        return [], Overlong.drop
    if piece.lengths or piece.columns:
        raise TypeError(
            "an encoder of documents that belong together, or with columns, has a `cut`"
        )
    last = max_length if overlong is Overlong.truncate else len(piece.tokens)
    bounds = [(begin, begin + max_length) for begin in range(0, last, max_length)]
    pieces = [Piece(piece.tokens[slice(*part)], piece.targets[slice(*part)]) for part in bounds]
    pieces = [part for part in pieces if part.targets[1:].any()]
    return pieces, overlong if pieces else Overlong.drop


def shorten(piece: Piece, max_length: int, per_target: Collection[str] = ()) -> Piece | None:
    """The documents of a piece within `max_length` together, the longest cut at their ends; None
    if one of them has no target left. `per_target` names the columns with a value a target."""
    lengths = piece.lengths or (len(piece.tokens),)
    most = bisect_right(
        range(1, max(lengths) + 1),
        max_length,
        key=lambda limit: sum(min(length, limit) for length in lengths),
    )
    spans = [
        slice(start, start + min(length, most))
        for start, length in zip(piece.starts, lengths, strict=True)
    ]
    targets = [piece.targets[span] for span in spans]
    if not all(own[1:].any() for own in targets):
        return None
    had = [
        int(piece.targets[start + 1 : start + length].sum())
        for start, length in zip(piece.starts, lengths, strict=True)
    ]
    firsts = accumulate(had[:-1], initial=0)
    kept = [slice(f, f + int(own[1:].sum())) for f, own in zip(firsts, targets, strict=True)]
    return Piece(
        np.concatenate([piece.tokens[span] for span in spans]),
        np.concatenate(targets),
        tuple(map(len, targets)) if piece.lengths else (),
        {
            name: np.concatenate([values[part] for part in kept]) if name in per_target else values
            for name, values in piece.columns.items()
        },
    )


def cut_prompt(
    piece: Piece, max_length: int, opening: int | None = None
) -> tuple[list[Piece], Overlong | None]:
    """The documents of a piece within `max_length` together, the beginnings of the longest prompts
    taken away, and what was done; [] where the answers alone are too long.

    A prompt is what stands before a document's first target: one token of it stays at least, and
    the token `opening` if the document begins with it. Columns stay as they are.
    """
    if len(piece.tokens) <= max_length:
        return [piece], None
    lengths = piece.lengths or (len(piece.tokens),)
    spans = [slice(s, s + length) for s, length in zip(piece.starts, lengths, strict=True)]
    targets = [piece.targets[span] for span in spans]
    # The first token of a document is predicted by none, so it belongs to the prompt.
    prompts = [1 + int(np.argmax(own[1:] > 0)) for own in targets]
    answers = sum(lengths) - sum(prompts)
    most = bisect_right(
        range(1, max(prompts) + 1),
        max_length - answers,
        key=lambda limit: sum(min(prompt, limit) for prompt in prompts),
    )
    if not most:
        return [], Overlong.drop
    kept = []
    for span, prompt in zip(spans, prompts, strict=True):
        opens = int(prompt > most and piece.tokens[span.start] == opening)
        first = span.start + prompt - min(prompt, most) + opens
        kept.append(np.r_[span.start : span.start + opens, first : span.stop])
    where = np.concatenate(kept)
    cut_piece = piece._replace(
        tokens=piece.tokens[where],
        targets=piece.targets[where],
        lengths=tuple(map(len, kept)) if piece.lengths else (),
    )
    return [cut_piece], Overlong.cut_prompt
