"""A model that adapters are put on, and the weights of adapters that lie in a folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher.config.derive.tensors import full_shape
from launcher.core.errors import ConfigError, LauncherError

WEIGHTS = "adapter_model.safetensors"


def inner_model(model: Any) -> Any:
    """The transformers model, be it inside a peft model or bare."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Numbers of (trainable, all) parameters; whole sizes under ZeRO-3 and for 4-bit weights."""
    sizes = [(p.requires_grad, math.prod(full_shape(p))) for p in model.parameters()]
    return sum(size for trainable, size in sizes if trainable), sum(size for _, size in sizes)


class AdapterReader:
    """Tensors of an adapter by the names that they have in the model it is put on.

    Reads like `launcher.model.fragments.FragmentReader`. Raises `ConfigError` if the folder holds
    other tensors than the model trains.
    """

    def __init__(self, folder: str | Path, model: Any) -> None:
        from peft.utils.transformers_weight_conversion import (
            convert_peft_adapter_state_dict_for_transformers,
        )

        from peft import get_peft_model_state_dict, load_peft_weights

        try:
            state = load_peft_weights(str(folder), device="cpu")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"its weights cannot be read: {str(error).splitlines()[0]}",
                where=str(folder),
                hint=f"the folder of an adapter holds {WEIGHTS}",
            ) from error
        state = convert_peft_adapter_state_dict_for_transformers(
            model, model.peft_config["default"], state
        )
        trained = {
            name: parameter
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if parameter.requires_grad
        }
        # peft decides the names on disk: each parameter stands for itself.
        named = get_peft_model_state_dict(
            model, state_dict={n: _Name(n) for n in trained}, save_embedding_layers=False
        )
        self._tensors: dict[str, torch.Tensor] = {}
        first: dict[int, str] = {}
        missing = [name for name in named if name not in state]
        if missing or len(named) < len(trained):
            raise ConfigError(
                f"it lacks {', '.join(missing[:3]) or 'tensors'} of the model",
                where=str(folder),
                hint="is its base another model, or another version of it?",
            )
        for key, name in named.items():
            shape = tuple(getattr(trained[name.text], "ds_shape", trained[name.text].shape))
            if tuple(state[key].shape) != shape:
                raise ConfigError(
                    f"{key} is {tuple(state[key].shape)}, the model has {shape}",
                    where=str(folder),
                    hint="is its base another model, or has it other tokens?",
                )
            one = first.setdefault(id(trained[name.text]), name.text)
            if not torch.equal(self._tensors.setdefault(one, state[key]), state[key]):
                raise ConfigError(
                    f"{key} differs from that of another layer, which shares its matrix",
                    where=str(folder),
                    hint="adapters of shared layers must be the same: train a new one",
                )

    def keys(self) -> list[str]:
        """Names of the tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return tuple(self._tensors[name].shape)

    def reads(self, name: str, offset: int, place: torch.Tensor) -> Iterator[Callable[[], object]]:
        """What is to be called so that `place` holds the elements from `offset` on."""
        part = self.tensor(name).reshape(-1).narrow(0, offset, place.numel())
        yield partial(place.copy_, part)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor as it was saved."""
        if name not in self._tensors:
            raise LauncherError(f"the adapter has no {name}")
        return self._tensors[name]


class _Name:
    """Stands for a tensor where only its name is followed."""

    def __init__(self, text: str) -> None:
        self.text = text
