"""The engine of one rank: fp32 masters and AdamW, with nothing to shard and nobody to wait for.

ZeRO at one rank copies each gradient into a bucket, divides, flattens and casts it for partners
that are not there; here it is added to its master's and let go.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from launcher.config.derive.plan import Plan
from launcher.config.schema import AdamwConfig, Config
from launcher.model.fragments import ParameterShard
from launcher.train.engine import (
    StepResult,
    clip,
    parameter_groups,
    require_gradient,
    storage_bytes,
)


class SingleEngine:
    """A model with its optimizer on the only rank; a `launcher.train.engine.Engine`.

    Trained weights of 16 bits have masters in fp32, which hold the sum of the gradients in fp32
    and are updated; weights in fp32 are their own.
    """

    zero = 0
    """All state lies whole on this rank, as at stage 0."""

    def __init__(self, model: nn.Module, config: Config, plan: Plan) -> None:
        assert isinstance(config.optim, AdamwConfig)
        _place(model, plan)
        self.plan, self.module = plan, model
        self.layers: list[nn.Module] = []
        self._clip_norm = config.optim.clip_norm
        groups = parameter_groups(model, config.optim.weight_decay)
        self._masters = {p: _master(p) for group in groups for p in group["params"]}
        self._names = {p: name for name, p in model.named_parameters() if p in self._masters}
        self._copies = {p: m for p, m in self._masters.items() if m is not p}
        for parameter in self._copies:
            parameter.register_post_accumulate_grad_hook(self._collect)
        options = config.optim
        self.base_optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            [{**g, "params": [self._masters[p] for p in g["params"]]} for g in groups],
            lr=options.lr,
            betas=(options.beta1, options.beta2),
            eps=options.eps,
            weight_decay=options.weight_decay,
            fused=True,
        )
        self._base_lrs = [group["lr"] for group in self.base_optimizer.param_groups]

    def __call__(self, **inputs: Any) -> Any:
        """Forward."""
        return self.module(**inputs)

    def train(self) -> None:
        """Switch dropout and the like on."""
        self.module.train()

    def eval(self) -> None:
        """Switch dropout and the like off."""
        self.module.eval()

    def backward(self, loss: Tensor) -> None:
        """Accumulate a micro-batch's gradients; `loss` is already divided by the batch's weight.

        Raises `ConfigError` for a loss that nothing trained has part in.
        """
        require_gradient(loss)
        loss.backward()

    def _collect(self, parameter: Tensor) -> None:
        """Add the gradient of 16 bits to its master's, and free it."""
        assert parameter.grad is not None
        master = self._copies[parameter]
        if master.grad is None:
            master.grad = parameter.grad.float()
        else:
            master.grad.add_(parameter.grad)
        parameter.grad = None

    def last_micro_batch(self, is_last: bool) -> None:
        """Nothing waits for the last one."""

    def micro_step(self) -> None:
        """Nothing is due between micro-batches."""

    def step(self, lr_factor: float) -> StepResult:
        """Clip and apply the accumulated gradients; a non-finite gradient is discarded."""
        for group, base in zip(self.base_optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * lr_factor
        masters = [m for m in self._masters.values() if m.grad is not None]
        norm, is_finite = clip(masters, self._clip_norm)
        if is_finite:
            self.base_optimizer.step()
            if self._copies:
                with torch.no_grad():
                    torch._foreach_copy_(list(self._copies), list(self._copies.values()))
        self.base_optimizer.zero_grad(set_to_none=True)
        return StepResult(norm, is_finite)

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group."""
        return float(self.base_optimizer.param_groups[0]["lr"])

    def held(self) -> dict[str, int]:
        """Bytes of the tensors that outlast a step: `weights` (buffers too), `optimizer` (fp32
        copies, moments), and no `gradients`."""
        states = self.base_optimizer.state.values()
        return storage_bytes(
            {
                "weights": [*self.module.parameters(), *self.module.buffers()],
                "optimizer": [
                    *self._copies.values(),
                    *(value for state in states for value in state.values()),
                ],
                "gradients": [],
            }
        )

    def flat_parameters(self) -> list[Tensor]:
        """What the optimizer works on, in its order: the masters."""
        return [m for group in self.base_optimizer.param_groups for m in group["params"]]

    def pieces(self) -> Iterator[ParameterShard]:
        """Every trained parameter as a whole."""
        for parameter, master in self._masters.items():
            name, shape = self._names[parameter], tuple(parameter.shape)
            yield ParameterShard(name, shape, 0, parameter.numel(), master, 0)

    def scaler_state(self) -> dict[str, Any]:
        """Empty: fp16 needs DeepSpeed's loss scaler."""
        return {}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Nothing to put back."""


def _place(model: nn.Module, plan: Plan) -> None:
    """Move the model to this rank's device, with all its parameters in the precision of the run:
    adapters are made in fp32. Buffers keep theirs, as tables of positions need it."""
    if plan.precision == "bf16":
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(torch.bfloat16)
    if plan.device == "cuda":
        model.to(torch.device("cuda", torch.cuda.current_device()))


def _master(parameter: nn.Parameter) -> nn.Parameter:
    if parameter.dtype == torch.float32:
        return parameter
    return nn.Parameter(parameter.detach().float())
