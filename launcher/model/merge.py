"""Folding LoRA and DoRA adapters into base weights, one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from launcher.model.adapter import AdapterReader
from launcher.model.fragments import FragmentReader

_ROOT = "base_model.model."


@dataclass(frozen=True, slots=True)
class _Layer:
    """Names of one adapted matrix's trained tensors. `magnitude` is DoRA's, if used.

    Of fused experts there is a matrix for each, [experts, out, in] or with `inputs_first` [experts,
    in, out]; then A is [experts * rank, in] and B [out, rank * experts].
    """

    a: str
    b: str
    magnitude: str | None
    scale: float
    experts: int = 1
    inputs_first: bool = False

    def update(self, trained: Callable[[str], torch.Tensor]) -> torch.Tensor:
        """What is added to the base's tensor."""
        a, b = trained(self.a), trained(self.b)
        if self.experts == 1:
            return self.scale * (b @ a)
        a = a.view(self.experts, -1, a.shape[1])
        b = b.view(b.shape[0], -1, self.experts).permute(2, 0, 1)
        product = torch.bmm(b, a)
        return self.scale * (product.mT if self.inputs_first else product)


class Merger:
    """Knows for each parameter of the plain model what training made of it."""

    def __init__(
        self, layers: dict[str, _Layer], replaced: dict[str, str], dtype: torch.dtype
    ) -> None:
        self._layers = layers
        self._replaced = replaced
        self._dtype = dtype

    @classmethod
    def of(
        cls, model: Any, weights: FragmentReader | AdapterReader, dtype: torch.dtype
    ) -> Merger | None:
        """The merger of a trained model's structure (meta device will do), plain or with adapters.

        `dtype` is that in which training held the base. None where the adapters are not all on
        plain linear layers or fused experts, so that only peft itself can fold them.
        """
        saved = set(weights.keys())
        if not hasattr(model, "peft_config"):
            return cls({}, {name: name for name in saved}, dtype)
        layers = _layers(model)
        used = {n for layer in layers.values() for n in (layer.a, layer.b, layer.magnitude) if n}
        rest = saved - used
        if not all(".modules_to_save.default." in name for name in rest):
            return None
        replaced = {
            name.removeprefix(_ROOT).replace(".modules_to_save.default", ""): name for name in rest
        }
        return cls(layers, replaced, dtype)

    def replacement(self, name: str) -> str | None:
        """Name of the trained tensor that takes the place of parameter `name`, if there is one."""
        return self._replaced.get(name)

    def merge(
        self, name: str, base: torch.Tensor, trained: Callable[[str], torch.Tensor]
    ) -> torch.Tensor:
        """Base tensor `name` with its adapter folded in (fp32), or as it is if it has none."""
        layer = self._layers.get(name)
        if layer is None:
            return base
        # Training started from the base in its own dtype, so the adapter corrects that rounding.
        weight = base.to(self._dtype).float()
        weight += layer.update(trained)
        if layer.magnitude is not None:
            norm = torch.linalg.norm(weight, dim=1)
            weight *= (trained(layer.magnitude) / norm)[:, None]
        return weight


def _layers(model: Any) -> dict[str, _Layer]:
    """Adapted matrices by their name in the model without adapters."""
    from peft.tuners.lora import Linear
    from peft.tuners.lora.layer import ParamWrapper

    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, ParamWrapper):
            # Those of one module lie around each other.
            around = name.removeprefix(_ROOT).replace(".base_layer", "")
            layers[f"{around}.{module.parameter_name}"] = _Layer(
                a=f"{name}.lora_A.default.weight",
                b=f"{name}.lora_B.default.weight",
                magnitude=None,
                scale=float(module.scaling["default"]),
                experts=module.num_experts,
                inputs_first=not module._did_swap_in_out_features,
            )
            continue
        if not isinstance(module, Linear) or module.fan_in_fan_out:
            continue
        magnitude = f"{name}.lora_magnitude_vector.default.weight"
        layers[f"{name.removeprefix(_ROOT)}.weight"] = _Layer(
            a=f"{name}.lora_A.default.weight",
            b=f"{name}.lora_B.default.weight",
            magnitude=magnitude if "default" in module.lora_magnitude_vector else None,
            scale=float(module.scaling["default"]),
        )
    return layers
