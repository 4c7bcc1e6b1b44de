"""`rollout=local`: the model in training answers on its own ranks, and notes the log-probability of
each token as it is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from launcher.distributed import collectives, gathered
from launcher.evals import generation, several
from launcher.evals.decoding import Decoding, SeededChoice
from launcher.evals.runner import poll
from launcher.rollouts.answer import Drawn, Question
from launcher.rollouts.engine import RolloutContext

#: Columns whose sum is looked at first when a token is drawn.
_BLOCK = 128
#: So many batches a rank differ little in what they take.
_ENOUGH = 4

_Names: TypeAlias = Sequence[tuple[Decoding, tuple[int, ...]]]
Answered: TypeAlias = Callable[..., tuple[list[list[int]], list[list[float]]]]


class LocalRollouts:
    """Draws with the weights in training: none are copied, but for those that ZeRO-3 gathers."""

    is_ahead = False

    def __init__(self, context: RolloutContext) -> None:
        self._context = context
        self._said: set[str] = set()
        self._asked: tuple[Sequence[Question], int] = ((), 0)

    def refresh(self, step: int) -> None:
        """The weights are those in training."""

    def begin(self, questions: Sequence[Question], step: int) -> None:
        """See `launcher.rollouts.engine.RolloutEngine`."""
        self._asked = questions, step

    def collect(self) -> dict[int, Drawn]:
        """See `launcher.rollouts.engine.RolloutEngine`."""
        context, (questions, step) = self._context, self._asked
        model, ranks = context.model, context.ranks
        with gathered.for_generation(model, context.config, ranks, self._once) as lockstep:
            return draw(
                questions,
                model,
                context.tokenizer,
                context.decoding,
                step,
                stops=context.stops,
                batch_tokens=context.config.eval.batch_tokens,
                rank=ranks.rank,
                world_size=ranks.world_size,
                lockstep=lockstep,
                should_stop=context.should_stop,
            )

    def close(self) -> None:
        """Nothing was started."""

    def _once(self, text: str) -> None:
        """Say how weights are gathered, for the first rollout alone."""
        if not self._said:
            self._context.say(text)
        self._said.add(text)


class RecordedChoice(SeededChoice):
    """Draws tokens, and notes the log-probability of each by the logits that it is drawn by: those
    at the temperature, before `top_p` leaves some out."""

    def __init__(self, rows: Sequence[tuple[Decoding, tuple[int, ...]]], width: int) -> None:
        super().__init__(rows, width)
        self._draws_of_all = all(decoding.top_p >= 1 for decoding, _ in rows)
        self._is_heated = bool((self._temperatures != 1).any())
        self.log_probs: list[Tensor] = []
        """Of each token so far, fp32 [rows that it was picked for]."""

    def pick(self, scores: Tensor, step: int, rows: Tensor | slice = slice(None)) -> Tensor:
        """See `SeededChoice`."""
        heated = scores.float()
        if self._is_heated:
            heated = heated / self._temperatures[rows].to(scores.device, torch.float32)
        top = heated.amax(-1, keepdim=True)
        shares = heated.sub(top).exp_()
        sums = _block_sums(shares)
        if self._draws_of_all:
            found = _of_all(shares, sums, self._draws[rows, step].to(scores.device))
        else:
            found = super().pick(scores, step, rows)
        picked = heated.gather(1, found).sub_(top).double().sub_(sums[:, -1:].log())
        self.log_probs.append(picked.squeeze(1).float())
        return found


def _block_sums(shares: Tensor) -> Tensor:
    """Sums of fp32 [rows, n] up to the end of each block of columns: fp64 [rows, blocks]."""
    rows, count = shares.shape
    whole = count // _BLOCK * _BLOCK
    parts = [shares[:, :whole].view(rows, -1, _BLOCK).sum(-1)] if whole else []
    if whole < count:
        parts.append(shares[:, whole:].sum(-1, keepdim=True))
    return torch.cat(parts, 1).cumsum(-1, dtype=torch.float64)


def _of_all(shares: Tensor, sums: Tensor, draw: Tensor) -> Tensor:
    """As `SeededChoice` draws among all tokens, without putting them in order: int64 [rows, 1].

    Of `shares`, fp32 [rows, n] with `_block_sums` of `sums`, the first token is taken whose sum
    with those before it is above `draw`'s part, fp64 [rows], of the sum of all. Sums are looked at
    by blocks first: one over all of a large vocabulary takes longer than its logits.
    """
    count = shares.shape[-1]
    target = draw.unsqueeze(1) * sums[:, -1:]
    # A block of probability 0 has the sum of the one before it, and is never the first above.
    block = torch.searchsorted(sums, target, right=True).clamp(max=sums.shape[-1] - 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
    columns = block * _BLOCK + torch.arange(_BLOCK, device=shares.device)
    part = shares.gather(1, columns.clamp(max=count - 1)).masked_fill_(columns >= count, 0.0)
    inner = part.cumsum(-1, dtype=torch.float64).add_(before)
    place = torch.searchsorted(inner, target, right=True)
    # The block's own sum may be rounded to just above that of its tokens.
    likely = torch.arange(_BLOCK, device=shares.device).where(part > 0, 0)
    return block * _BLOCK + torch.minimum(place, likely.amax(-1, keepdim=True))


def draw(
    questions: Sequence[Question],
    model: Any,
    tokenizer: Any,
    decoding: Decoding,
    rollout: int,
    *,
    stops: Sequence[int],
    batch_tokens: int,
    rank: int,
    world_size: int,
    lockstep: bool,
    should_stop: Callable[[], bool],
) -> dict[int, Drawn]:
    """This rank's share of the answers, by place among `questions`, which all ranks pass alike.

    `should_stop` is asked before each batch, equally often on every rank; raises
    `launcher.evals.runner.EvaluationStopped`.
    """
    synced = lockstep and world_size > 1
    found: dict[int, Drawn] = {}
    with generation.inference(model):
        answered = _one_by_one
        # All ranks have to cut the questions into the same batches.
        if not synced and collectives.all_agree(several.can_answer(model)):
            answered = _once_a_prompt
        parts = [[place] for place in range(len(questions))]
        if answered is _once_a_prompt:
            parts = _parts(questions, world_size, batch_tokens, decoding.max_new_tokens)
        contexts = [list(questions[part[0]].tokens) for part in parts]
        for batch in generation.batches_of(
            *(contexts, model, decoding.max_new_tokens, batch_tokens // len(parts[0])),
            *(rank, world_size, lockstep),
        ):
            poll(should_stop)
            if not batch.positions:
                continue
            places = [place for position in batch.positions for place in parts[position]]
            asked = [questions[place] for place in places]
            answers = _drawn(
                answered, asked, model, tokenizer, decoding, rollout, list(stops), synced
            )
            if batch.counted:
                found.update(zip(places, answers, strict=True))
    return found


def _parts(
    questions: Sequence[Question], world_size: int, batch_tokens: int, new_tokens: int
) -> list[list[int]]:
    """Places of questions with one prompt that one rank answers together, equally many of each:
    all of them, unless ranks would then have unequally much to do."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, own in enumerate(questions):
        groups.setdefault((own.place, own.draw, *own.tokens), []).append(place)
    size = math.gcd(*map(len, groups.values()))
    width = max(len(own.tokens) for own in questions) + new_tokens
    for count in range(size, 1, -1):
        parts = len(questions) // count
        is_even = parts % world_size == 0 or parts >= _ENOUGH * world_size
        if size % count == 0 and is_even and count * width <= batch_tokens:
            size = count
            break
    else:
        size = 1
    return [own[i : i + size] for own in groups.values() for i in range(0, len(own), size)]


def _drawn(
    answered: Answered,
    asked: Sequence[Question],
    model: Any,
    tokenizer: Any,
    decoding: Decoding,
    rollout: int,
    stops: list[int],
    synced: bool,
) -> list[Drawn]:
    names = [(decoding, (rollout, *q.stream)) for q in asked]
    pad = generation.padding_of(tokenizer, stops)
    pairs = answered(asked, model, decoding.max_new_tokens, names, stops, pad, synced)
    return [_cut(answer, own, stops) for answer, own in zip(*pairs, strict=True)]


def _once_a_prompt(
    asked: Sequence[Question],
    model: Any,
    longest: int,
    names: _Names,
    stops: list[int],
    pad: int,
    synced: bool,
) -> tuple[list[list[int]], list[list[float]]]:
    """Tokens and log-probabilities of answers whose prompts are computed once."""
    choice = RecordedChoice(names, 0)
    noted = torch.zeros(len(asked), longest)

    def choose(logits: Tensor, step: int, rows: Tensor) -> Tensor:
        tokens = choice.pick(logits, step, rows.cpu()).squeeze(1)
        noted[rows.cpu(), step] = choice.log_probs.pop().cpu()
        return tokens

    prompts = list(dict.fromkeys(own.tokens for own in asked))
    owners = [prompts.index(own.tokens) for own in asked]
    answers = several.answer(model, prompts, owners, choose, stops, longest, pad)
    assert answers is not None, "the model has been found to answer so"
    return answers, [own[: len(a)] for own, a in zip(noted.tolist(), answers, strict=True)]


def _one_by_one(
    asked: Sequence[Question],
    model: Any,
    longest: int,
    names: _Names,
    stops: list[int],
    pad: int,
    synced: bool,
) -> tuple[list[list[int]], list[list[float]]]:
    """The same through transformers' `generate`, each answer with a prompt of its own."""
    tokens, mask = generation.pad_left([question.tokens for question in asked], pad)
    width = tokens.shape[1]
    choice = RecordedChoice(names, width)
    device = next(model.parameters()).device
    output: Tensor = model.generate(
        input_ids=tokens.to(device),
        attention_mask=mask.to(device),
        max_new_tokens=longest,
        **generation.PLAIN,
        pad_token_id=pad,
        eos_token_id=stops or None,
        synced_gpus=synced,
        logits_processor=[choice],
    )
    return output[:, width:].tolist(), torch.stack(choice.log_probs, 1).tolist()


def _cut(tokens: list[int], log_probs: list[float], stops: Sequence[int]) -> Drawn:
    """The answer up to the token that ends it."""
    length = len(generation.until(tokens, stops))
    ended = length < len(tokens)
    length += ended
    return Drawn(tokens[:length], log_probs[:length], ended)
