"""Several answers to each of some prompts, token by token: a prompt is computed once, whatever is
asked of it, keys and values stay where they were written, and answers that have ended leave.

For models that keep keys and values of all tokens or of a window, and nothing else; whether a model
answers so as it does through transformers' `generate` is found out on the model itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from launcher.evals import generation

#: Ended answers leave once they are this share of those under way.
_LEAVING = 1 / 16
#: Tokens of the answers of the check.
_STEPS = 8

_ANSWERS_ALIKE: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


class _Layer(DynamicLayer):
    """Keys and values of a layer, in memory with room for those to come."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity, self._length = capacity, 0
        self._held: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """All keys and values so far, the new ones too: [rows, heads, tokens, width]."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self._length + key_states.shape[-2]
        if self._held is None:
            self._held = key_states, value_states
        elif end > self._held[0].shape[-2]:
            self._move(torch.arange(len(key_states), device=key_states.device), end)
        if self._length:
            for held, new in zip(self._held, (key_states, value_states), strict=True):
                held[:, :, self._length : end] = new
        self._show(end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Go on with these rows, some perhaps several times."""
        self._move(indices, self._length)
        self._show(self._length)

    def _move(self, rows: Tensor, least: int) -> None:
        assert self._held is not None
        moved = []
        for held in self._held:
            _, heads, _, width = held.shape
            room = held.new_empty(len(rows), heads, max(self._capacity, least), width)
            kept = held[:, :, : self._length]
            torch.index_select(kept, 0, rows, out=room[:, :, : self._length])
            moved.append(room)
        self._held = moved[0], moved[1]

    def _show(self, length: int) -> None:
        assert self._held is not None
        self._length = length
        self.keys, self.values = (held[:, :, :length] for held in self._held)


def _cache(model: Any, capacity: int) -> DynamicCache | None:
    """An empty one for `model`; None if it keeps anything but keys and values."""
    made = DynamicCache(config=model.config)
    if any(type(own) not in (DynamicLayer, DynamicSlidingWindowLayer) for own in made.layers):
        return None
    made.layers = [_Layer(capacity) if type(own) is DynamicLayer else own for own in made.layers]
    return made


def can_answer(model: Any) -> bool:
    """Whether `answer` gives the tokens of `model` that `generate` would.

    Found out once; ask within `generation.inference`.
    """
    if model not in _ANSWERS_ALIKE:
        _ANSWERS_ALIKE[model] = _is_alike(model)
    return _ANSWERS_ALIKE[model]


def _is_alike(model: Any) -> bool:
    prompts = generation.probes(model, _STEPS)
    expected = generation.scores(model, prompts, _STEPS)
    found: list[dict[int, Tensor]] = []
    stop = -1

    def choose(logits: Tensor, step: int, rows: Tensor) -> Tensor:
        found.append(dict(zip(rows.tolist(), logits, strict=True)))
        likeliest = logits.argmax(-1)
        if step == _STEPS // 2:  # the second row has ended
            likeliest = torch.where(rows == 1, stop, likeliest)
        return likeliest

    try:
        owners = [0, 0, *range(len(prompts))]
        if answer(model, prompts, owners, choose, [stop], _STEPS, 0) is None:
            return False
    except torch.OutOfMemoryError:
        raise
    # Code of others fails in its own way on what it was never run with.
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
        return False
    return all(
        generation.are_alike(
            expected[:, owner], torch.stack([step[row] for step in found if row in step])
        )
        for row, owner in enumerate(owners)
        if row != 1
    ) and generation.are_alike(expected[: _STEPS // 2, 0], torch.stack([s[1] for s in found[:4]]))


def answer(
    model: Any,
    prompts: Sequence[Sequence[int]],
    owners: Sequence[int],
    choose: Callable[[Tensor, int, Tensor], Tensor],
    stops: Sequence[int],
    max_new_tokens: int,
    padding: int,
) -> list[list[int]] | None:
    """The answers that begin at `prompts[i]` for each i of `owners`, each with the token of `stops`
    that ends it; None for a model that cannot be computed so.

    `choose(logits, step, rows)` gives the next token, int64 [n], of each of the answers `rows`,
    int64 [n], by their logits [n, vocabulary]; `step` counts their tokens so far. `padding` fills
    up shorter prompts. Ask within `generation.inference`.
    """
    device = next(model.parameters()).device
    tokens, mask = (own.to(device) for own in generation.pad_left(prompts, padding))
    width = tokens.shape[1]
    cache = _cache(model, width + max_new_tokens)
    if cache is None:
        return None
    is_padded = not bool(mask.all())
    rows, owner = torch.arange(len(owners), device=device), torch.tensor(owners, device=device)
    places = mask.sum(1)[owner, None]
    attended = torch.nn.functional.pad(mask, (0, max_new_tokens), value=1)
    logits = model(
        input_ids=tokens,
        attention_mask=mask if is_padded else None,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    ).logits[:, -1][owner]
    cache.batch_select_indices(owner)
    attended = attended[owner]
    ends = torch.tensor(list(stops), device=device)
    found = torch.full((len(owners), max_new_tokens), padding, device=device)
    lengths = torch.full((len(owners),), max_new_tokens, device=device)
    under_way = torch.ones(len(owners), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        chosen = choose(logits, step, rows)
        found[rows, step] = chosen
        ended = torch.isin(chosen, ends) & under_way
        lengths[rows[ended]] = step + 1
        under_way &= ~ended
        left = int(under_way.sum())
        if not left or step + 1 == max_new_tokens:
            break
        if len(rows) - left >= max(1, _LEAVING * len(rows)):
            kept = under_way.nonzero().flatten()
            cache.batch_select_indices(kept)
            rows, places, attended = rows[kept], places[kept], attended[kept]
            chosen, under_way = chosen[kept], under_way[kept]
        logits = model(
            input_ids=chosen[:, None],
            attention_mask=attended[:, : width + step + 1] if is_padded else None,
            position_ids=places + step,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
    return [own[:n] for own, n in zip(found.tolist(), lengths.tolist(), strict=True)]
