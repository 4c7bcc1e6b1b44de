"""Checks on the user's own model, before anything is scored and after its first step: that what is
trained learns, and that it can be saved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from launcher.core.errors import ConfigError
from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.pack.loader import make_row
from launcher.distributed.collectives import gather_objects
from launcher.health.isolation import as_refusal
from launcher.model.adapter import inner_model
from launcher.model.fragments import ParameterShard
from launcher.model.head import Head
from launcher.objectives.base import Objective

#: Records that the one of the check is chosen from.
_CHOICE = 100


def require_trainable(
    objective: Objective,
    head: Head,
    model: Any,
    cache: TokenCache | JoinedCache,
    device: torch.device,
) -> None:
    """Raise `ConfigError` for what is trained if no gradient reaches it, or transformers would set
    it to zero whenever the trained model is opened.

    Gradients are those of one short record; nothing is left of them. Under ZeRO-3 they are not
    taken, as parameters are gathered for the engine's own passes.
    """
    inner = inner_model(model)
    _require_kept_rows(model, inner)
    adapters = [p for n, p in model.named_parameters() if p.requires_grad and ".lora_" in n]
    if not adapters or any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        return
    shortest = sorted(range(min(len(cache), _CHOICE)), key=lambda i: int(cache.lengths[i]))
    record = next((i for i in shortest if objective.weight(make_row(cache, [i]))), None)
    if record is None:
        return
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []), as_refusal(inner):
            loss = objective.loss(head, model, make_row(cache, [record]).to(device)).total
            found: tuple[Any, ...] = ()
            if loss.requires_grad:
                found = torch.autograd.grad(loss, adapters, allow_unused=True)
    finally:
        model.train(was_training)
    if all(gradient is None for gradient in found):
        raise ConfigError(
            f"no gradient reaches adapters in {type(inner).__name__}",
            where="peft",
            hint="train all weights: peft=none",
        )


def _require_kept_rows(model: Any, inner: Any) -> None:
    """Some models set the row of the padding token to zero whenever they are opened: one that is
    the head too would have been trained in vain."""
    if not getattr(inner.config.get_text_config(), "tie_word_embeddings", False):
        return
    for name, module in model.named_modules():
        if (
            isinstance(module, nn.Embedding)
            and module.padding_idx is not None
            and module.weight.requires_grad
            and _is_set_to_zero(inner, module)
        ):
            raise ConfigError(
                f"{type(inner).__name__} sets the row of token {module.padding_idx} in {name} to"
                " zero whenever it is opened: what is trained of it could not be kept",
                where="model.name",
                hint="train adapters: peft=lora; or set pad_token_id to null in its config.json",
            )


def _is_set_to_zero(model: nn.Module, module: nn.Module) -> bool:
    """Whether `module`, an embedding that is loaded, loses its row for padding when transformers
    goes on to initialise what was not."""
    parts = (part for part in model.modules() if isinstance(part, PreTrainedModel))
    *_, owner = (part for part in parts if any(one is module for one in part.modules()))
    embedding: Any = nn.Embedding(2, 1, padding_idx=0)
    nn.init.ones_(embedding.weight)
    embedding.weight._is_hf_initialized = True
    with torch.random.fork_rng([]), torch.no_grad():
        owner._initialize_weights(embedding, owner.is_custom_code())
    return not embedding.weight[0].any()


def silent_adapters(pieces: Iterable[ParameterShard]) -> list[str]:
    """Adapters that the first step has left as they began, so that no gradient reaches them.

    The outer matrix of an adapter begins at zero. `pieces` are this rank's; all ranks call it.
    """
    largest: dict[str, float] = {}
    for piece in pieces:
        if ".lora_B." in piece.name:
            size = float(piece.of(piece.flat).abs().max())
            largest[piece.name] = max(size, largest.get(piece.name, 0.0))
    moved: dict[str, bool] = {}
    for found in gather_objects({name: size > 0 for name, size in largest.items()}):
        for name, has_moved in found.items():
            moved[name] = moved.get(name, False) or has_moved
    return sorted(name.rpartition(".lora_B.")[0] for name, has in moved.items() if not has)
