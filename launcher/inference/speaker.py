"""An opened model at work: messages into tokens, and its answer as a stream."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from launcher.config.schema import SpecialTokens, Thoughts
from launcher.core.errors import ConfigError
from launcher.data.chat.calls import CallForm
from launcher.data.chat.masking import ChatOptions
from launcher.data.prepare.encoding import ExampleEncoder
from launcher.evals.generation import find_stop_tokens, padding_of
from launcher.inference.constraints import Grammars
from launcher.inference.detokenizer import Pieces

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; temperature 0 always takes the likeliest."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True)
class Speaker:
    """A model ready to answer.

    system: the system message that the run trained with, if any.
    pairs: whether the run trained on prompts and completions, not on documents.
    taught: tokens that end a turn in the run's data or the chat template.
    template_options: variables of the chat template that the run trained with.
    thoughts, special_tokens: as in the run's `data`.
    room: tokens that there is memory for, where that is settled elsewhere.
    """

    model: Any
    tokenizer: Any
    system: str | None
    pairs: bool
    taught: Sequence[int] = ()
    template_options: Mapping[str, Any] = field(default_factory=dict)
    thoughts: Thoughts = Thoughts.template
    special_tokens: SpecialTokens = SpecialTokens.auto
    room: int | None = None

    @functools.cached_property
    def _encoder(self) -> ExampleEncoder:
        """What the run's records were encoded with."""
        options = ChatOptions(
            self.system, self.template_options, self.thoughts, special_tokens=self.special_tokens
        )
        return ExampleEncoder(self.tokenizer, chat=options)

    @functools.cached_property
    def call_form(self) -> CallForm | None:
        """How the chat template writes calls of tools, if answers with them can be read."""
        return CallForm.of(self.tokenizer)

    @functools.cached_property
    def grammars(self) -> Grammars:
        """Constraints for its answers."""
        return Grammars(self.tokenizer, self.width, self.stop_tokens)

    @property
    def width(self) -> int:
        """How many tokens the model has, those that no text has included."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def stop_tokens(self) -> list[int]:
        """The tokens at which an answer ends."""
        return find_stop_tokens(self.model, self.tokenizer, self.taught)

    def tokens(
        self,
        messages: list[Message],
        options: Mapping[str, Any] | None = None,
        tools: list[dict[str, Any]] | None = None,
        *,
        whole: bool = False,
    ) -> list[int]:
        """Token ids of a conversation, as training lays it out, ready for the assistant to speak.

        `options` are variables of the template for it alone, over those of the run. Raises
        `BadRecord` if the template refuses it, or (`whole`) leaves something of it out.
        """
        return self._encoder.prompt(messages, tools, options, whole=whole)

    def plain_tokens(self, prompt: str, system: str | None = None) -> list[int]:
        """Token ids of a prompt without chat template, laid out as training laid it out."""
        if not self.pairs:
            return self.raw_tokens(prompt)
        system = system or self.system
        text = f"{system}\n\n{prompt}" if system else prompt
        return self.raw_tokens(text if text[-1:].isspace() else f"{text}\n")

    def raw_tokens(self, text: str) -> list[int]:
        """Token ids of text to be continued as it stands."""
        return self._encoder.continued(text)

    @property
    def positions(self) -> int | None:
        """Tokens that prompt and answer may have together; None if there is no limit."""
        config = self.model.config.get_text_config()
        limits = (getattr(config, "max_position_embeddings", None), self.room)
        return min((limit for limit in limits if limit is not None), default=None)

    def answer(
        self, tokens: list[int], sampling: Sampling, show: Callable[[str], None] | None = None
    ) -> str:
        """The model's continuation of `tokens`; `show` gets it piece by piece as it comes.

        Raises `ConfigError` if prompt and answer exceed the model's positions.
        """
        positions = self.positions
        room = positions - len(tokens) if positions else sampling.max_new_tokens
        if room < 1:
            raise ConfigError(
                f"the prompt has {len(tokens)} tokens, the model takes {positions}",
                where="prompt",
                hint="shorten the prompt (in a chat: /reset)",
            )
        batch = torch.tensor([tokens], device=self.model.device)
        stops = self.stop_tokens
        options: dict[str, Any] = {
            "do_sample": False,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 50,
        }
        if sampling.temperature > 0:
            options = {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            }
        with torch.inference_mode():
            output = self.model.generate(
                input_ids=batch,
                attention_mask=torch.ones_like(batch),
                max_new_tokens=min(sampling.max_new_tokens, room),
                pad_token_id=padding_of(self.tokenizer, stops),
                eos_token_id=stops or None,
                streamer=_Streamer(self.tokenizer, show) if show else None,
                **options,
            )
        text: str = self.tokenizer.decode(output[0, len(tokens) :], skip_special_tokens=True)
        return text


class _Streamer:
    """Shows tokens as `generate` makes them."""

    def __init__(self, tokenizer: Any, show: Callable[[str], None]) -> None:
        self._pieces = Pieces(tokenizer)
        self._show = show
        self._in_prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt first, then with each new token."""
        if self._in_prompt:
            self._in_prompt = False
            return
        self._show(self._pieces.add(value.reshape(-1).tolist()))

    def end(self) -> None:
        """Called after the last token."""
        self._show(self._pieces.rest())


def quiet() -> None:
    """Keep transformers' bars and remarks out of the terminal."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    # Notes of libraries to each other's developers.
    warnings.simplefilter("ignore", FutureWarning)
