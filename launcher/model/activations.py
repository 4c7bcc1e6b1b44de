"""Training that keeps fewer activations: norms, gated MLPs and the linear layers behind them.

Autograd's way through transformers' formulas keeps, per decoder layer, two or three copies of
every norm's input and four tensors of the MLP's inner width. Here a norm keeps its input, a gated
MLP its gate and up projection, and a linear layer fed by either keeps nothing: in backward, the
node that made its input makes it again from what it keeps itself.

Modules are known by their structure and by a proof, not by name: on random numbers the module's
own forward and the lean one must give the same values and gradients, or it is left alone.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from launcher.model import layers, products

_NORMED = (torch.float32, torch.bfloat16, torch.float16)

Forward = Callable[..., Tensor]


def save_less(model: nn.Module) -> int:
    """Give the modules of `model` that are proven equal their lean forward; returns how many.

    Call it when adapters are in place, and with parameters sharded or whole. Layers that recompute
    their activations are left as they are, and have nothing to keep. Not for models that are
    compiled, which makes its own choice of what to keep.
    """
    recomputing = {
        id(module)
        for layer in layers.checkpointed(model)
        if layer.gradient_checkpointing
        for module in layer.modules()
    }
    changed = 0
    for module in model.modules():
        # Someone else has put a forward of his own here, or would look for what is not kept.
        if "forward" in vars(module) or id(module) in recomputing:
            continue
        forward = _linear if type(module) is nn.Linear else _proven(module)
        if forward is not None:
            # Bound to the module, so that a deep copy of it computes with its own parameters.
            module.forward = MethodType(forward, module)
            changed += 1
    return changed


# ---- what runs in place of the modules' own forward


def _norm(module: Any, *args: Any, late: bool, offset: float, eps: str, **named: Any) -> Tensor:
    (x,) = (*args, *named.values())
    weight = module.weight
    if x.dtype not in _NORMED or weight.dtype != x.dtype:
        own: Tensor = type(module).forward(module, x)
        return own
    scale = weight.float() + offset if offset else weight
    if not torch.is_grad_enabled():
        return _normalised(x, _inverse_rms(x, getattr(module, eps)), scale, late)
    result: Tensor = _RmsNorm.apply(x, scale, getattr(module, eps), late)
    return result


def _mlp(module: Any, *args: Any, activation: _Activation, **named: Any) -> Tensor:
    (x,) = (*args, *named.values())
    gate, up = module.gate_proj(x), module.up_proj(x)
    if torch.is_grad_enabled():
        result: Tensor = module.down_proj(_Gated.apply(gate, up, activation))
    else:
        result = module.down_proj(activation.value(gate).mul_(up))
    return result


def _linear(module: Any, input: Tensor) -> Tensor:
    if input.dtype != module.weight.dtype:
        return nn.Linear.forward(module, input)
    if not torch.is_grad_enabled():
        return products.linear(input, module.weight, module.bias)
    source = input.grad_fn if hasattr(input.grad_fn, "remake") else None
    if source is None and not products.is_fast(input, module.weight, module.bias):
        return nn.Linear.forward(module, input)
    result: Tensor = _Linear.apply(input, module.weight, module.bias, source)
    return result


class _RmsNorm(torch.autograd.Function):
    """x [..., width] over its root mean square, times weight [width]; statistics in fp32.

    `late` rounds to x's dtype after the multiplication with the weight, not before.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, late: bool) -> Tensor:
        scale = _inverse_rms(x, eps)
        ctx.save_for_backward(x, scale, weight)
        ctx.late, ctx.made, ctx.remake = late, None, _RmsNorm.remake
        return _normalised(x, scale, weight, late)

    @staticmethod
    def remake(ctx: Any) -> Tensor:
        # Kept until backward gets here: query, key and value projection all ask for it.
        if ctx.made is None:
            x, scale, weight = ctx.saved_tensors
            ctx.made = _normalised(x, scale, weight, ctx.late)
        made: Tensor = ctx.made
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.made = None
        x, scale, weight = ctx.saved_tensors
        grad, wide = grads[0].float(), weight.float()
        width = x.shape[-1]
        # One buffer for all: it holds grad * x first, whose sums over either side are all needed.
        buffer = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        table = torch.mul(grad, x, out=buffer).view(-1, width)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (scale.view(-1) @ table).to(weight.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None, None
        along = (table @ wide).view(scale.shape).mul_(scale).mul_(scale).mul_(scale).div_(-width)
        torch.mul(grad, wide, out=buffer).mul_(scale).addcmul_(x, along)
        return buffer.to(x.dtype), grad_weight, None, None


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _normalised(x: Tensor, scale: Tensor, weight: Tensor, late: bool) -> Tensor:
    unit = x * scale
    return unit.mul_(weight).to(x.dtype) if late else unit.to(x.dtype).mul_(weight)


@dataclass(frozen=True, slots=True)
class _Activation:
    value: Callable[[Tensor], Tensor]
    #: (gradient of the output, input) -> gradient of the input, in the first one's memory
    slope_: Callable[[Tensor, Tensor], Tensor]


def _silu_slope_(grad: Tensor, x: Tensor) -> Tensor:
    result: Tensor = torch.ops.aten.silu_backward.grad_input(grad, x, grad_input=grad)
    return result


def _gelu_slope_(grad: Tensor, x: Tensor, approximate: str) -> Tensor:
    result: Tensor = torch.ops.aten.gelu_backward.grad_input(
        grad, x, approximate=approximate, grad_input=grad
    )
    return result


_ACTIVATIONS = (
    _Activation(functional.silu, _silu_slope_),
    *(
        _Activation(partial(functional.gelu, approximate=a), partial(_gelu_slope_, approximate=a))
        for a in ("tanh", "none")
    ),
)


class _Gated(torch.autograd.Function):
    """activation(gate) * up, all of one shape."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: _Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation, ctx.active, ctx.remake = activation, None, _Gated.remake
        return activation.value(gate).mul_(up)

    @staticmethod
    def remake(ctx: Any) -> Tensor:
        gate, up = ctx.saved_tensors
        if ctx.active is None:
            ctx.active = ctx.activation.value(gate)  # until backward, which needs it too
        made: Tensor = ctx.active * up
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        active, ctx.active = ctx.active, None
        if active is None:
            active = ctx.activation.value(gate)
        return ctx.activation.slope_(grads[0] * up, gate), active.mul_(grads[0]), None


class _Linear(torch.autograd.Function):
    """A linear layer whose input the node `source` makes again for backward; without one it is
    kept where the weight learns."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, source: Any) -> Tensor:
        is_kept = source is None and ctx.needs_input_grad[1]
        ctx.save_for_backward(weight, x if is_kept else None)
        ctx.source = source
        return products.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, x = ctx.saved_tensors
        flat = grads[0].reshape(-1, weight.shape[0])
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            x = ctx.source.remake(ctx.source) if x is None else x
            grad_weight = flat.t() @ x.reshape(-1, weight.shape[1])
            del x  # before the next large tensor is made
        if ctx.needs_input_grad[0]:
            grad_x = products.product(flat, weight).view(*grads[0].shape[:-1], weight.shape[1])
        return grad_x, grad_weight, flat.sum(0) if ctx.needs_input_grad[2] else None, None


# ---- proofs


def _proven(module: nn.Module) -> Forward | None:
    """The lean forward that does what the module's own does, or None."""
    candidates: list[Forward] = []
    inside, own = dict(module.named_children()), dict(module.named_parameters(recurse=False))
    if list(module.buffers(recurse=False)) or _arguments(module) != 1:
        return None
    if not inside and own.keys() == {"weight"}:
        stand_in, width = _norm_stand_in(module)
        for eps in ("variance_epsilon", "eps"):
            if isinstance(getattr(module, eps, None), float):
                candidates += [
                    partial(_norm, late=late, offset=offset, eps=eps)
                    for late, offset in ((False, 0.0), (True, 0.0), (True, 1.0))
                ]
    elif not own and _PROJECTIONS <= inside.keys() <= _PROJECTIONS | {"act_fn"}:
        stand_in, width = _mlp_stand_in(module), _WIDTH
        candidates = [partial(_mlp, activation=known) for known in _ACTIVATIONS]
    return next((c for c in candidates if _agree(stand_in, c, width)), None)


_PROJECTIONS = {"gate_proj", "up_proj", "down_proj"}
_WIDTH, _INNER, _TOKENS = 24, 40, 32


def _arguments(module: nn.Module) -> int:
    return len(inspect.signature(type(module).forward).parameters) - 1


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _norm_stand_in(module: nn.Module) -> tuple[nn.Module, int]:
    """The module with a weight of its own, as the real one may be sharded or on a GPU."""
    weight: Any = module.weight
    shape = getattr(weight, "ds_shape", weight.shape)
    stand_in = copy.copy(module)
    vars(stand_in)["_parameters"] = {"weight": nn.Parameter(1 + _random(0, *shape) / 2)}
    return stand_in, shape[-1]


def _mlp_stand_in(module: Any) -> nn.Module:
    """The module with small projections."""
    stand_in, parts = copy.copy(module), {}
    for seed, name in enumerate(sorted(_PROJECTIONS)):
        shape = (_WIDTH, _INNER) if name == "down_proj" else (_INNER, _WIDTH)
        parts[name] = nn.Linear(1, 1, bias=False, device="meta")  # draws no random numbers
        parts[name].weight = nn.Parameter(_random(seed, *shape) / _WIDTH**0.5)
    vars(stand_in)["_modules"] = {**module._modules, **parts}
    return stand_in


def _agree(stand_in: nn.Module, lean: Forward, width: int) -> bool:
    """Whether both forwards have the same values and gradients, in fp32 and rounded alike."""
    own = type(stand_in).forward
    for dtype, rounds in ((torch.float32, False), (torch.bfloat16, True)):
        stand_in.to(dtype)
        try:
            expected = _results(partial(own, stand_in), stand_in, width, dtype)
        except Exception:  # foreign code that small numbers or sizes do not suit: leave it alone
            return False
        found = _results(partial(lean, stand_in), stand_in, width, dtype)
        if found[0].dtype != expected[0].dtype:
            return False
        if rounds and (found[0] != expected[0]).float().mean() > _ROUNDED_OTHERWISE:
            return False
        tolerance = 2e-2 if rounds else 1e-5
        for one, other in zip(found, expected, strict=True):
            limit = tolerance * float(other.abs().max())
            if not torch.allclose(one, other, rtol=tolerance, atol=limit):
                return False
    return True


#: Share of values that may fall to the other side of a rounding, as sums differ in their last bit.
_ROUNDED_OTHERWISE = 0.01


def _results(
    forward: Forward, stand_in: nn.Module, width: int, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Output, gradient of the input, gradients of the parameters."""
    # From far below to far above the epsilon of norms.
    x = (_random(3, _TOKENS, width) * torch.logspace(-5, 1, _TOKENS).unsqueeze(1)).to(dtype)
    x.requires_grad_()
    out = forward(x)
    upstream = _random(4, *out.shape).to(out.dtype)
    return out.detach(), *torch.autograd.grad(out, (x, *stand_in.parameters()), upstream)
