"""The DeepSpeed config, a pure function of config and plan: no "auto", nothing read from a GPU."""

from __future__ import annotations

from typing import Any

from launcher.config.derive import peak
from launcher.config.derive.plan import Plan
from launcher.config.schema import Adamw8bitConfig, AdamwConfig, Config, MuonConfig


def build(config: Config, plan: Plan) -> dict[str, Any]:
    """The dict handed to `deepspeed.initialize`; `engine.extra` is merged over it last."""
    engine = config.engine
    result: dict[str, Any] = {
        # As if no ranks shared sequences: of this number DeepSpeed does no more than check it.
        "train_batch_size": plan.micro_batch * plan.accumulation * plan.world_size,
        "train_micro_batch_size_per_gpu": plan.micro_batch,
        "gradient_accumulation_steps": plan.accumulation,
        # At stage 0 in fp32 the launcher's engine clips: DeepSpeed applies non-finite gradients.
        "gradient_clipping": 0.0 if clips_itself(config, plan) else config.optim.clip_norm,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        # Its clock waits for the device twice a micro-batch; the meters of steps do without.
        "timers": {"throughput": {"enabled": "steps_per_print" in engine.extra}},
        "zero_allow_untested_optimizer": True,
        # On a CPU device torch's fused AdamW does what CPUAdam does, and needs no compiler.
        "zero_force_ds_cpu_optimizer": plan.device == "cuda",
        "zero_optimization": _zero(config, plan),
        "fp16": {"enabled": plan.precision == "fp16", "initial_scale_power": 16},
        # Without this check a non-finite gradient is applied to bf16 weights.
        "bf16": {"enabled": plan.precision == "bf16", "check_grad_overflow": True},
    }
    if plan.precision == "bf16" and engine.zero and not engine.offload_optimizer:
        # Sums over micro-batches and ranks keep their bits: the cut of the batch does not matter.
        result["data_types"] = {"grad_accum_dtype": "fp32"}
        result["communication_data_type"] = "fp32"
    optimizer = _optimizer(config, plan)
    if optimizer is not None:
        result["optimizer"] = optimizer
    return merge(result, engine.extra)


def clips_itself(config: Config, plan: Plan) -> bool:
    """Whether the launcher itself clips: at stage 0 in fp32, where DeepSpeed has no wrapper."""
    return config.engine.zero == 0 and plan.precision == "fp32"


def merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`base` with `extra` laid over it, section by section; neither is changed."""
    merged = dict(base)
    for key, value in extra.items():
        below = merged.get(key)
        merged[key] = (
            merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
        )
    return merged


def _zero(config: Config, plan: Plan) -> dict[str, Any]:
    engine = config.engine
    bucket = peak.bucket(plan.trainable)
    zero: dict[str, Any] = {"stage": engine.zero}
    if engine.zero in (1, 2):
        zero |= {
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            "overlap_comm": bool(engine.overlap_comm),
            "contiguous_gradients": True,
            "round_robin_gradients": False,
        }
    if engine.zero == 3:
        zero |= {
            "reduce_bucket_size": bucket,
            # No buffer; frozen weights count too. The engine makes it hold one layer at least.
            "stage3_prefetch_bucket_size": peak.BUCKET_ELEMENTS,
            "stage3_param_persistence_threshold": peak.PERSISTENT,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            # On a GPU gathers run beside the computation; on CPU both want the same cores.
            "overlap_comm": plan.device == "cuda"
            if engine.overlap_comm is None
            else engine.overlap_comm,
            "contiguous_gradients": True,
        }
        if engine.secondary_partition is not None:
            zero["zero_hpz_partition_size"] = engine.secondary_partition
    if isinstance(config.optim, MuonConfig):
        zero["reduce_scatter"] = False  # Muon needs whole matrices of gradients
    if engine.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if engine.offload_params:
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return zero


def _optimizer(config: Config, plan: Plan) -> dict[str, Any] | None:
    optim = config.optim
    if isinstance(optim, Adamw8bitConfig):
        return None  # bitsandbytes is not an optimizer that DeepSpeed knows by name
    if isinstance(optim, AdamwConfig):
        params: dict[str, Any] = {
            "lr": optim.lr,
            "betas": [optim.beta1, optim.beta2],
            "eps": optim.eps,
            "weight_decay": optim.weight_decay,
        }
        if plan.device == "cuda" and config.engine.offload_optimizer:
            return {"type": "AdamW", "params": params}
        return {"type": "AdamW", "params": {**params, "torch_adam": True, "fused": True}}
    assert isinstance(optim, MuonConfig)
    return {
        "type": "Muon",
        "params": {
            "lr": optim.lr,
            "muon_lr": optim.lr,
            "adam_lr": optim.adam_lr,
            "momentum": optim.momentum,
            "betas": [optim.beta1, optim.beta2],
            "eps": optim.eps,
            "weight_decay": optim.weight_decay,
            "torch_adam": True,
        },
    }
