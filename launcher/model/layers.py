"""The decoder layers of a model: what ZeRO-3 gathers as one, and what is compiled as one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from launcher.core.errors import ConfigError
from launcher.model import attention
from launcher.model.adapter import inner_model


def layer_kinds(model: nn.Module) -> set[str]:
    """Names of the classes that transformers says not to split; none if a model names none."""
    names: set[str] = set()
    for module in model.modules():
        names.update(getattr(module, "_no_split_modules", None) or ())
    return names


def compile_layers(model: nn.Module) -> int:
    """Compile each decoder layer, for training; returns how many.

    Layers of one kind share one graph, for rows of any length. It holds the layer's `forward`
    alone: hooks on the layer (ZeRO-3's gathers) and the checkpointing of its activations stay
    around it. In evaluation, and with a cache of keys, layers run as they did.
    Raises `ConfigError` for a model that names no layers; a layer that cannot be compiled does so
    when it first runs.
    """
    layers = decoder_layers(model)
    if not layers:
        raise ConfigError(
            f"{type(inner_model(model)).__name__} does not say what its layers are",
            where="model.compile",
            hint="set model.compile=false",
        )
    attention.prepare_compiled(model)
    for layer in layers:
        plain, checkpoints = _plain_forward(layer)
        compiled = torch.compile(plain, dynamic=True)
        vars(layer)["forward"] = MethodType(
            partial(_forward, own=layer.forward, compiled=compiled, checkpoints=checkpoints), layer
        )
    return len(layers)


def checkpointed(model: nn.Module) -> list[Any]:
    """The layers that each recompute their activations by themselves, from the first on."""
    found = decoder_layers(model)
    return [layer for layer in found if isinstance(layer, GradientCheckpointingLayer)]


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers from the first on; none if a model does not name them."""
    return _outermost(model, layer_kinds(model))


def _outermost(module: nn.Module, kinds: set[str]) -> list[nn.Module]:
    """Modules of these classes that lie in no other such one."""
    if type(module).__name__ in kinds:
        return [module]
    return [layer for child in module.children() for layer in _outermost(child, kinds)]


def _plain_forward(layer: nn.Module) -> tuple[Callable[..., Any], bool]:
    """What a layer computes; and whether its own forward checkpoints activations around that."""
    own = type(layer).forward
    if "forward" in vars(layer):
        return layer.forward, False
    if isinstance(layer, GradientCheckpointingLayer) and hasattr(own, "__wrapped__"):
        return MethodType(own.__wrapped__, layer), True
    return layer.forward, False


def _forward(
    layer: Any,
    *args: Any,
    own: Callable[..., Any],
    compiled: Callable[..., Any],
    checkpoints: bool,
    **kwargs: Any,
) -> Any:
    if not layer.training or kwargs.get("past_key_values") is not None:
        return own(*args, **kwargs)
    try:
        if checkpoints and layer.gradient_checkpointing:
            return layer._gradient_checkpointing_func(partial(compiled, **kwargs), *args)
        return compiled(*args, **kwargs)
    except torch._dynamo.exc.TorchDynamoException as error:
        why = " ".join(str(error).split("\n")[:2])
        raise ConfigError(
            f"{type(layer).__name__} cannot be compiled: {why}",
            where="model.compile",
            hint="set model.compile=false",
        ) from error
