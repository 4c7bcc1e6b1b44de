"""Answers to prompts, batched by length, through transformers' `generate`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import AttentionMaskInterface

from launcher.core.errors import ConfigError
from launcher.evals.decoding import Decoding, SeededChoice, StopStrings
from launcher.evals.records import Generation, TokenizedPrompt
from launcher.evals.runner import PlannedBatch, all_agree, plan_batches, poll


def generate_records(
    prompts: Sequence[TokenizedPrompt],
    model: Any,
    tokenizer: Any,
    decoding: Decoding,
    *,
    batch_tokens: int = 16384,
    rank: int = 0,
    world_size: int = 1,
    lockstep: bool = False,
    stop_tokens: Sequence[int] | None = None,
    should_stop: Callable[[], bool] | None = None,
    done: Callable[[list[Generation]], None] | None = None,
) -> list[Generation]:
    """This rank's share of the answers; every rank passes the same `prompts`, then `gather`s.

    `model` is the unwrapped transformers or PEFT model; it is put in evaluation mode meanwhile.
    Answers end at one of `stop_tokens` (default: `find_stop_tokens`), before a stop string, or
    after `decoding.max_new_tokens`, and are decoded without special tokens. `lockstep` (ZeRO-3):
    all ranks run the same number of forwards. `should_stop` is asked before each batch, equally
    often on every rank; raises `EvaluationStopped`. `done` gets the answers of each batch.
    """
    stops = list(stop_tokens or find_stop_tokens(model, tokenizer))
    contexts = [fit(list(prompt.tokens), model, decoding.max_new_tokens) for prompt in prompts]
    results: list[Generation] = []
    with inference(model):
        for batch in batches_of(
            contexts, model, decoding.max_new_tokens, batch_tokens, rank, world_size, lockstep
        ):
            poll(should_stop)
            if not batch.positions:
                continue
            asked = [(prompts[position], contexts[position]) for position in batch.positions]
            synced = lockstep and world_size > 1
            answers = _generate(asked, model, tokenizer, stops, decoding, synced)
            if not batch.counted:
                continue
            new = [
                read(prompt, context, answer, tokenizer, decoding)
                for (prompt, context), answer in zip(asked, answers, strict=True)
            ]
            results += new
            if done is not None:
                done(new)
    return results


def batches_of(
    contexts: Sequence[list[int]],
    model: Any,
    new_tokens: int,
    batch_tokens: int,
    rank: int,
    world_size: int,
    lockstep: bool,
) -> list[PlannedBatch]:
    """This rank's batches of `contexts`, which all ranks pass alike, of lengths that `model` can
    answer together; ask within `inference`."""
    agree = all_agree if world_size > 1 else bool
    return plan_batches(
        [len(tokens) for tokens in contexts],
        batch_tokens=batch_tokens,
        rank=rank,
        world_size=world_size,
        lockstep=lockstep,
        new_tokens=new_tokens,
        equal=_needs_equal(model, contexts, batch_tokens, new_tokens, agree),
    )


def read(
    prompt: TokenizedPrompt,
    context: list[int],
    answer: list[int],
    tokenizer: Any,
    decoding: Decoding,
) -> Generation:
    """The answer as text, up to the first stop string."""
    text = _decode(tokenizer, answer)
    end = decoding.end(text)
    return Generation(
        id=prompt.id,
        where=prompt.where,
        prompt=_decode(tokenizer, context),
        reference=prompt.reference,
        answer=text if end < 0 else text[:end],
        cut=end < 0 and len(answer) == decoding.max_new_tokens,
    )


def find_stop_tokens(model: Any, tokenizer: Any, taught: Iterable[int] = ()) -> list[int]:
    """Tokens that end an answer: those of the model's generation config and of its tokenizer, and
    `taught`, those that its data or its chat template ends a turn with."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    stops = set(configured) if isinstance(configured, list) else {configured}
    stops |= {tokenizer.eos_token_id, *taught}
    return sorted(int(token) for token in stops if token is not None)


def fit(tokens: list[int], model: Any, max_new_tokens: int) -> list[int]:
    """`tokens` without its beginning where prompt and answer would not fit the model's positions.

    Cut by record, never by batch, so that an answer does not depend on what it is batched with.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None or len(tokens) + max_new_tokens <= positions:
        return tokens
    return tokens[-max(positions - max_new_tokens, 1) :]


def _generate(
    asked: Sequence[tuple[TokenizedPrompt, list[int]]],
    model: Any,
    tokenizer: Any,
    stops: list[int],
    decoding: Decoding,
    synced: bool,
) -> list[list[int]]:
    """New tokens after each context, up to the first stop token, which is left out."""
    pad = padding_of(tokenizer, stops)
    tokens, mask = pad_left([context for _, context in asked], pad)
    width = tokens.shape[1]
    device = next(model.parameters()).device
    extra: dict[str, Any] = {}
    if decoding.temperature > 0:
        rows = [(decoding, prompt.id) for prompt, _ in asked]
        extra["logits_processor"] = [SeededChoice(rows, width)]
    if decoding.stop:
        extra["stopping_criteria"] = [StopStrings(decoding, tokenizer, width)]
    output: Tensor = model.generate(
        input_ids=tokens.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=decoding.max_new_tokens,
        **PLAIN,
        pad_token_id=pad,
        eos_token_id=stops or None,
        synced_gpus=synced,
        **extra,
    )
    return [until(answer, stops) for answer in output[:, width:].tolist()]


#: As `Decoding` says, whatever a model's own generation_config prefers: models are compared.
PLAIN: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "use_cache": True,
}

_READS_PADDING: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
#: Lengths of the shortest and the longest of real prompts that were found to be read alike.
_READ_ALIKE: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()
#: Tokens of the answers of the check: what stands in a cache is read from the second one on.
_STEPS = 8


def reads_padding(model: Any) -> bool:
    """Whether prompts that are padded on the left, to the length of the longest, are answered as
    they are alone: some models count positions from the beginning of the line, carry a state over
    it, choose keys among it, or forget the padding once they go on from a cache.

    Found out on the model itself, once; ask within `inference`, on all ranks. Raises `ConfigError`
    for a model that generates nothing.
    """
    if model not in _READS_PADDING:
        _READS_PADDING[model] = _is_read_alike(model, probes(model, _STEPS), _STEPS)
    return _READS_PADDING[model]


def probes(model: Any, steps: int) -> list[list[int]]:
    """A short and a longer prompt, which leave room for `steps` tokens."""
    text = model.config.get_text_config()
    places = getattr(text, "max_position_embeddings", None) or 70 + steps
    longest = max(min(70, places - steps), 2)
    lengths = (min(7, longest // 2), longest)
    return [[(4 + 3 * i) % text.vocab_size for i in range(n)] for n in lengths]


def _needs_equal(
    model: Any,
    prompts: Sequence[Sequence[int]],
    batch_tokens: int,
    new_tokens: int,
    agree: Callable[[bool], bool],
) -> bool:
    """Whether only prompts of one length may be answered together: by the shortest of `prompts` and
    the longest that a batch has room for twice. `agree` tells of a rank's finding whether it is
    that of all: they have to run equally many batches."""
    both = [tokens for tokens in prompts if 2 * (len(tokens) + new_tokens) <= batch_tokens]
    pair = [min(both, key=len), max(both, key=len)] if both else []
    if len(set(map(len, pair))) < 2:
        return False
    if not agree(reads_padding(model)):
        return True
    shortest, longest = _READ_ALIKE.get(model, (math.inf, 0))
    if shortest <= len(pair[0]) and len(pair[1]) <= longest:
        return False
    if not agree(_is_read_alike(model, pair, min(_STEPS, new_tokens))):
        return True
    _READ_ALIKE[model] = len(pair[0]), len(pair[1])
    return False


def _is_read_alike(model: Any, prompts: Sequence[Sequence[int]], steps: int) -> bool:
    """Whether the first of two prompts, padded to the other's length, is answered as it is alone;
    `ConfigError` if nothing is."""
    try:
        padded = scores(model, prompts, steps)[:, 0]
        return are_alike(scores(model, prompts[:1], steps)[:, 0], padded)
    except torch.OutOfMemoryError:
        raise
    # Code of others fails in its own way on what it was never run with.
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise ConfigError(
            f"{type(model).__name__} generates no answers: {type(error).__name__}: {error}",
            where="model.name",
            hint="see whether plain transformers does; to measure what needs none:"
            " eval.metrics=[loss,perplexity]",
        ) from error


def are_alike(alone: Tensor, padded: Tensor) -> bool:
    """Whether the logits [tokens, vocabulary] of two answers are the same but for rounding, as far
    as both say the same."""
    tolerance = 1e-3 if alone.dtype == torch.float32 else 0.05
    for one, other in zip(alone, padded, strict=True):
        if not float((one - other).abs().max()) <= tolerance * float(one.abs().max()):
            return False
        if one.argmax() != other.argmax():
            break
    return True


def scores(model: Any, prompts: Sequence[Sequence[int]], steps: int) -> Tensor:
    """Logits [tokens, prompts, vocabulary] of the first tokens of each answer."""
    tokens, mask = pad_left(prompts, 0)
    device = next(model.parameters()).device
    made = model.generate(
        input_ids=tokens.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=steps,
        **PLAIN,
        pad_token_id=0,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return torch.stack(made.logits)


def padding_of(tokenizer: Any, stops: Sequence[int]) -> int:
    """The token that fills rows up; masked out, so that any will do where there is none for it."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return stops[0] if stops else 0


def pad_left(contexts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and their mask, both [rows, longest]: every row's next token is at one place."""
    width = max(map(len, contexts))
    tokens = torch.full((len(contexts), width), pad, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, context in enumerate(contexts):
        tokens[row, width - len(context) :] = torch.tensor(context)
        mask[row, width - len(context) :] = 1
    return tokens, mask


def until(tokens: list[int], stops: Sequence[int]) -> list[int]:
    """`tokens` before the first stop token."""
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[:end]


def _decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    text: str = tokenizer.decode(
        list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


@contextlib.contextmanager
def inference(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients, with an attention that understands padding and a cache.

    An attention that registers no mask takes neither, and transformers would drop the padding mask
    unasked.
    """
    training = model.training
    attention = model.config._attn_implementation
    swap = attention not in (None, "eager") and attention not in AttentionMaskInterface()
    model.eval()
    try:
        if swap:
            model.set_attn_implementation("sdpa")
        with torch.no_grad():
            yield
    finally:
        if swap:
            model.set_attn_implementation(attention)
        model.train(training)
