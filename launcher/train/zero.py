"""DeepSpeed ZeRO: with `launcher.distributed.gathered` all that drives DeepSpeed."""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections.abc import Iterator
from itertools import dropwhile
from typing import Any

import torch
from torch import Tensor, nn

from launcher.config.derive.deepspeed import clips_itself
from launcher.config.derive.plan import Plan
from launcher.config.schema import Adamw8bitConfig, Config, MuonConfig
from launcher.core import runtime
from launcher.core.errors import ConfigError, DivergedError
from launcher.model.fragments import ParameterShard
from launcher.model.layers import layer_kinds
from launcher.train.engine import (
    StepResult,
    clip,
    parameter_groups,
    require_gradient,
    storage_bytes,
)


def import_deepspeed(device: str) -> Any:
    """Import DeepSpeed quietly, without its shared-memory op: that needs a compiler for no gain."""
    if device == "cpu":
        runtime.choose_cpu_accelerator()
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed still calls collectives by names that torch 2.13 has renamed.
    warnings.filterwarnings("ignore", r".*torch\.distributed\..* is deprecated", FutureWarning)
    # Set as a whole: to read it would probe every op, with compilers, and on CUDA with nvcc.
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}
    # Ranges for NVIDIA's profiler, pushed thousands of times a step, cost 3 % of a small model's.
    deepspeed.utils.nvtx.enable_nvtx = runtime.is_profiled_by_nsight()
    return deepspeed


def _pass_over_muon() -> None:
    """Import DeepSpeed's Muon as plain functions, for a run of another optimizer.

    DeepSpeed imports it to ask whether the optimizer is one; compiled, that loads all of Inductor,
    2 s of a start.
    """
    compiler = torch.compile
    torch.compile = lambda function: function  # type: ignore[assignment]
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        torch.compile = compiler


def connect(device: str) -> None:
    """Hand torch's process group to DeepSpeed; ZeRO-3 needs that before a model is built."""
    import_deepspeed(device).init_distributed(dist_init_required=False, verbose=False)


class ZeroEngine:
    """A model under DeepSpeed ZeRO with its optimizer; a `launcher.train.engine.Engine`."""

    def __init__(
        self, model: nn.Module, config: Config, plan: Plan, settings: dict[str, Any]
    ) -> None:
        """Shard `model` as `settings` (from `launcher.config.derive.deepspeed.build`) say."""
        connect(plan.device)
        deepspeed = import_deepspeed(plan.device)
        if not isinstance(config.optim, MuonConfig):
            _pass_over_muon()
        self.plan = plan
        self.zero = settings["zero_optimization"]["stage"]
        self._clip_norm = config.optim.clip_norm if clips_itself(config, plan) else None
        self._names = {id(p): name for name, p in model.named_parameters()}
        groups = parameter_groups(model, config.optim.weight_decay)
        optimizer = (
            _adamw8bit(groups, config.optim) if isinstance(config.optim, Adamw8bitConfig) else None
        )
        self.module = model
        self.layers = gather_by_layer(model) if self.zero == 3 else []
        """Layers that ZeRO-3 gathers as a whole before they run."""
        if self.layers:
            settings = _with_room_for_layers(settings, self.layers, config.engine.extra)
        if plan.device == "cuda":
            runtime.name_device(torch.cuda.current_device())
        self._engine, _, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            model_parameters=groups,
            config=settings,
            dist_init_required=False,
        )
        if isinstance(config.optim, Adamw8bitConfig):
            _require_countable(self.flat_parameters())
        self._base_lrs = [group["lr"] for group in self._engine.optimizer.param_groups]

    def __call__(self, **inputs: Any) -> Any:
        """Forward."""
        return self._engine(**inputs)

    def train(self) -> None:
        """Switch dropout and the like on."""
        self._engine.train()

    def eval(self) -> None:
        """Switch dropout and the like off."""
        self._engine.eval()

    def backward(self, loss: Tensor) -> None:
        """Accumulate a micro-batch's gradients; `loss` is already divided by the global weight.

        Raises `ConfigError` for a loss that nothing trained has part in.
        """
        require_gradient(loss)
        self._engine.backward(loss, scale_wrt_gas=False)

    def last_micro_batch(self, is_last: bool) -> None:
        """Say before a forward whether the optimizer steps after its backward."""
        self._engine.set_gradient_accumulation_boundary(is_last)

    def micro_step(self) -> None:
        """Tell DeepSpeed that a micro-batch inside the accumulation window is done."""
        self._engine.step()

    def step(self, lr_factor: float) -> StepResult:
        """Clip and apply the accumulated gradients; a non-finite gradient is discarded."""
        for group, base in zip(self._engine.optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * lr_factor
        if self._clip_norm is not None:
            return self._step_unsharded(self._clip_norm)
        try:
            self._engine.step()
        except Exception as error:
            if "loss scale" in str(error):
                raise DivergedError(
                    "fp16 loss scale is at its minimum and gradients still overflow",
                    where="engine.precision",
                    hint="use bf16 or fp32, or a smaller optim.lr",
                ) from error
            raise
        norm = self._engine.get_global_grad_norm()
        applied = not getattr(self._engine.optimizer, "overflow", False)
        return StepResult(math.inf if norm is None else float(norm), applied)

    def _step_unsharded(self, clip_norm: float) -> StepResult:
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        norm, applied = clip(parameters, clip_norm)
        if applied:
            self._engine.step()
        else:
            self._engine.zero_grad()
            self._engine.micro_steps += 1
        return StepResult(norm, applied)

    @property
    def lr(self) -> float:
        """Learning rate of the first parameter group."""
        return float(self._engine.optimizer.param_groups[0]["lr"])

    # ---- state, laid out by parameter so that any number of ranks and any stage can read it back

    @property
    def base_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer that holds the state, below DeepSpeed's wrappers."""
        optimizer = self._engine.optimizer
        inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        return inner

    def held(self) -> dict[str, int]:
        """Bytes of this rank's tensors that outlast a step, each storage counted once: `weights`
        (buffers too), `optimizer` (fp32 copies, moments) and ZeRO-3's `gradients`."""
        wrapper = self._engine.optimizer
        model = [*self.module.parameters(), *self.module.buffers()]
        states = self.base_optimizer.state.values()
        gradients: list[Any] = [getattr(wrapper, "grad_partitions_flat_buffer", None)]
        if self.zero == 3:
            gradients += [bucket.buffer for bucket in wrapper.ipg_buckets.values()]
        return storage_bytes(
            {
                "weights": [*model, *(getattr(tensor, "ds_tensor", None) for tensor in model)],
                "optimizer": [
                    *(piece.flat for piece in self.pieces()),
                    *(value for state in states for value in state.values()),
                ],
                "gradients": gradients,
            }
        )

    def flat_parameters(self) -> list[Tensor]:
        """What the optimizer works on, in its order: whole parameters, or ZeRO's flat ones."""
        if self.zero == 3:  # which takes them out of the optimizer's groups between steps
            return list(self._engine.optimizer.fp32_partitioned_groups_flat)
        return [flat for group in self.base_optimizer.param_groups for flat in group["params"]]

    def pieces(self) -> Iterator[ParameterShard]:
        """This rank's share of every trained parameter; under stage 0 each rank has everything."""
        wrapper = self._engine.optimizer
        if self.zero == 3:
            yield from self._pieces_stage3(wrapper)
        elif self.zero == 0:
            yield from self._pieces_stage0(wrapper)
        else:
            yield from self._pieces_flat(wrapper)

    def _pieces_stage0(self, wrapper: Any) -> Iterator[ParameterShard]:
        if hasattr(wrapper, "fp32_groups"):  # 16 bit: fp32 masters beside the model's weights
            pairs = [
                pair
                for low, high in zip(wrapper.fp16_groups, wrapper.fp32_groups, strict=True)
                for pair in zip(low, high, strict=True)
            ]
        else:
            pairs = [(p, p) for group in wrapper.param_groups for p in group["params"]]
        for param, master in pairs:
            yield ParameterShard(
                self._names[id(param)], tuple(param.shape), 0, param.numel(), master, 0
            )

    def _pieces_flat(self, wrapper: Any) -> Iterator[ParameterShard]:
        flats = getattr(wrapper, "single_partition_of_fp32_groups", None)
        groups = getattr(wrapper, "bit16_groups", None)
        if flats is None:
            flats, groups = wrapper.fp32_groups_flat_partition, wrapper.bf16_groups
        assert groups is not None
        for flat, group in zip(flats, groups, strict=True):
            for param in group:
                mapping = param._hp_mapping
                if mapping is None:  # lies wholly on other ranks
                    continue
                low, high = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield ParameterShard(
                    self._names[id(param)],
                    tuple(param.shape),
                    low.start,
                    high.numel,
                    flat,
                    high.start,
                )

    def _pieces_stage3(self, wrapper: Any) -> Iterator[ParameterShard]:
        param: Any  # DeepSpeed adds the shape and size of the whole to a sharded parameter
        for param in self.module.parameters():
            if not param.requires_grad:
                continue
            group, start, numel = wrapper.grad_position[wrapper.get_param_id(param)]
            offset = numel * wrapper._get_param_partition_rank(param)
            valid = min(numel, param.ds_numel - offset)  # the last ranks' parts are padded
            if valid > 0:
                flat = wrapper.fp32_partitioned_groups_flat[group]
                yield ParameterShard(
                    self._names[id(param)], tuple(param.ds_shape), offset, valid, flat, start
                )

    def scaler_state(self) -> dict[str, Any]:
        """The fp16 loss scaler's counters; empty otherwise."""
        scaler = _scaler(self._engine.optimizer)
        if self.plan.precision != "fp16" or scaler is None:
            return {}
        return {k: v for k, v in vars(scaler).items() if isinstance(v, int | float | bool)}

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        """Put back what `scaler_state` gave."""
        scaler = _scaler(self._engine.optimizer)
        for key, value in state.items():
            setattr(scaler, key, value)


def _with_room_for_layers(
    settings: dict[str, Any], layers: list[nn.Module], extra: dict[str, Any]
) -> dict[str, Any]:
    """`settings` with a prefetch of ZeRO-3 that holds the largest of `layers`, one of which is
    fetched as a whole or not at all; unless `extra` states it."""
    largest = max(sum(getattr(p, "ds_numel", p.numel()) for p in m.parameters()) for m in layers)
    zero = settings["zero_optimization"]
    wanted = {
        "stage3_prefetch_bucket_size": max(zero["stage3_prefetch_bucket_size"], largest),
        # What is computed, what is fetched for the next one, and what else is kept.
        "stage3_max_live_parameters": max(zero["stage3_max_live_parameters"], 3 * largest),
    }
    return {
        **settings,
        "zero_optimization": {**zero, **wanted, **extra.get("zero_optimization", {})},
    }


def gather_by_layer(model: nn.Module) -> list[nn.Module]:
    """Make each decoder layer one unit of ZeRO-3: one gather and one set of hooks, not dozens.

    DeepSpeed's hooks around every submodule cost a small model a quarter of its time. Layers are
    the modules that transformers says not to split; a model that names none keeps finer units.
    Over frozen embeddings nothing would flow back into the input of the first layer, so that
    autograd would tell of the layer's end before its submodules have run: the embeddings' output
    is made to ask for a gradient. Returns the layers.
    """
    from deepspeed.utils import set_z3_leaf_module

    transformer: Any = model
    embeddings = transformer.get_input_embeddings()
    if not any(p.requires_grad for p in embeddings.parameters()):
        transformer.enable_input_require_grads()
    behind = dropwhile(lambda module: module is not embeddings, model.modules())
    kinds = layer_kinds(model)
    layers = [module for module in behind if type(module).__name__ in kinds]
    for layer in layers:
        set_z3_leaf_module(layer, True)
    return layers


def _scaler(optimizer: Any) -> Any:
    return getattr(optimizer, "loss_scaler", None) or getattr(optimizer, "loss_scale_config", None)


#: bitsandbytes hands its kernels the number of elements as a C int, which would wrap.
_MOST_ELEMENTS = 2**31 - 1


def _require_countable(flats: list[Tensor]) -> None:
    """`ConfigError` for more parameters in one piece than bitsandbytes can count."""
    largest = max((flat.numel() for flat in flats), default=0)
    if largest > _MOST_ELEMENTS:
        raise ConfigError(
            f"a rank would update {largest:,} parameters at once; adamw8bit can count"
            f" {_MOST_ELEMENTS:,}",
            where="optim.name",
            hint="optim=adamw, or engine=zero3, which updates them in parts",
        )


def _adamw8bit(groups: list[dict[str, Any]], optim: Adamw8bitConfig) -> torch.optim.Optimizer:
    import bitsandbytes

    optimizer: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
        groups,
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
    )
    return optimizer
