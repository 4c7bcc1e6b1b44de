"""Matrix products of the decoder layers in FP8, by torchao.

A linear layer stays what it is, and so do the names, formats and gradients of its parameters: only
what it computes in training goes through a twin of it, torchao's, that holds the same parameters.
Input, weight and the gradient of the output are rounded to 8 bits, each tensor with one scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from launcher.core import registry
from launcher.core.errors import ConfigError
from launcher.model.layers import decoder_layers

#: Attribute of a layer that holds its twin; no child of it, which would be saved once more.
_TWIN = "float8_twin"
#: Sides of a matrix that the GPU multiplies are multiples of this.
_MULTIPLE = 16
#: Layers that choose among experts: a rounded score is another expert.
_ROUTERS = ("gate", "router")


def use_float8(model: nn.Module) -> int:
    """Let the linear layers in the decoder layers of `model` train with products in FP8; returns
    how many do.

    Left out are frozen layers, routers, and layers with sides that are no multiples of 16.
    Evaluation computes as ever. Raises `ConfigError` for a model that has no such layer, and for a
    torchao that does not fit this torch.
    """
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training

        # Tokens are an inner side of the weight's gradient, and rows have any number of them.
        settings = Float8LinearConfig(pad_inner_dim=True)
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"torchao {registry.version('torchao') or '(not installed)'} does not fit torch"
            f" {torch.__version__}: {str(error).splitlines()[0]}",
            where="model.fp8",
            hint="pip install --upgrade torchao, or model.fp8=false",
        ) from error
    found = list(_fitting(model))
    if not found:
        raise ConfigError(
            f"no layer of {type(model).__name__} can compute in FP8: what its decoder layers are is"
            f" not known, or none has a trained linear layer with sides that {_MULTIPLE} divides",
            where="model.fp8",
            hint="set model.fp8=false",
        )
    for module in found:
        vars(module)[_TWIN] = convert_to_float8_training(module, config=settings)
        # Bound to the module, so that a deep copy of it computes with its own parameters.
        vars(module)["forward"] = MethodType(_forward, module)
    return len(found)


def _fitting(model: nn.Module) -> Iterator[nn.Linear]:
    for layer in decoder_layers(model):
        for name, module in layer.named_modules():
            if (
                type(module) is nn.Linear
                and module.weight.requires_grad
                and not (module.in_features % _MULTIPLE or module.out_features % _MULTIPLE)
                and name.rpartition(".")[2] not in _ROUTERS
            ):
                yield module


def _forward(module: Any, input: Tensor) -> Tensor:
    if not module.training:
        return nn.Linear.forward(module, input)
    result: Tensor = getattr(module, _TWIN)(input)
    return result
