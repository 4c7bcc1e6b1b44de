"""What a training loop asks of the engine around a model, and what its engines share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from launcher.config.derive.plan import Plan
from launcher.core.errors import ConfigError
from launcher.model.fragments import ParameterShard


@dataclass(frozen=True, slots=True)
class StepResult:
    """What an optimizer step did: gradient norm before clipping, and whether it was applied."""

    grad_norm: float
    applied: bool


class Engine(Protocol):
    """A model with its optimizer, on one rank or sharded over many."""

    plan: Plan
    module: nn.Module
    zero: int
    """ZeRO stage by which the state lies on the ranks; 0: each has all of it."""
    layers: list[nn.Module]
    """Layers that ZeRO-3 gathers as a whole before they run."""

    def __call__(self, **inputs: Any) -> Any:
        """Forward."""
        ...

    def train(self) -> None:
        """Switch dropout and the like on."""
        ...

    def eval(self) -> None:
        """Switch dropout and the like off."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Accumulate a micro-batch's gradients; `loss` is divided by the global weight, and
        multiplied by the ranks, over which gradients are averaged.

        Raises `ConfigError` for a loss that nothing trained has part in.
        """
        ...

    def last_micro_batch(self, is_last: bool) -> None:
        """Say before a forward whether the optimizer steps after its backward."""
        ...

    def micro_step(self) -> None:
        """Tell that a micro-batch inside the accumulation window is done."""
        ...

    def step(self, lr_factor: float) -> StepResult:
        """Clip and apply the accumulated gradients at `lr_factor` times each group's rate; a
        non-finite gradient is discarded."""
        ...

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group."""
        ...

    # ---- state, laid out by parameter so that any number of ranks and any stage can read it back

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that holds the state."""
        ...

    def held(self) -> dict[str, int]:
        """Bytes of this rank's tensors that outlast a step, each storage counted once: `weights`
        (buffers too), `optimizer` (fp32 copies, moments) and ZeRO-3's `gradients`."""
        ...

    def flat_parameters(self) -> list[Tensor]:
        """What the optimizer works on, in its order: whole parameters, or ZeRO's flat ones."""
        ...

    def pieces(self) -> Iterator[ParameterShard]:
        """This rank's share of every trained parameter; under stage 0 each rank has everything."""
        ...

    def scaler_state(self) -> dict[str, Any]:
        """The fp16 loss scaler's counters; empty otherwise."""
        ...

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Put back what `scaler_state` gave."""
        ...


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters; with weight decay, biases and norms (1-D) go to a group without it."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ConfigError("no parameter is trainable", where="peft", hint="check peft.targets")
    if not weight_decay:
        return [{"params": trainable}]
    decay = [p for p in trainable if _dimensions(p) >= 2]
    rest = [p for p in trainable if _dimensions(p) < 2]
    groups: list[dict[str, Any]] = [{"params": decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _dimensions(parameter: nn.Parameter) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))


def require_gradient(loss: Tensor) -> None:
    """`ConfigError` for a loss that nothing trained has part in."""
    if not loss.requires_grad:
        raise ConfigError(
            "no gradient reaches what is trained: the model cuts its graph before it",
            where="peft",
            hint="train all weights with peft=none",
        )


def clip(parameters: list[nn.Parameter], most: float) -> tuple[float, bool]:
    """Scale the gradients of `parameters`, each of which has one, down to an L2 norm of `most` (0:
    leave them); returns the norm before, and whether it is finite: else they are left.

    The norm is summed in fp64: in fp32 a million elements lose the fifth digit.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    is_finite = bool(torch.isfinite(norm))
    if is_finite and most:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)
    return float(norm), is_finite


def storage_bytes(uses: Mapping[str, Iterable[Any]]) -> dict[str, int]:
    """Bytes of what tensors lie in, by use; each storage counts once, where it comes first. What is
    no tensor counts nothing."""
    seen: set[int] = set()
    found = dict.fromkeys(uses, 0)
    for use, tensors in uses.items():
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.numel():
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in seen:
                    seen.add(storage.data_ptr())
                    found[use] += storage.nbytes()
    return found
