"""Which keys of `engine.extra` have an effect here. Standard library only.

DeepSpeed takes any key and says nothing of one that it does not know, or that needs a part of it
which this launcher does not use.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.core.errors import Problem


def _because(reason: str, *keys: str) -> dict[str, str]:
    return dict.fromkeys(keys, f"leave it out: {reason}")


#: Key -> what to do about it, for keys that would do nothing, or something else than is meant.
REFUSED = {
    **_because(
        "batch.sequences (of all ranks) and batch.micro state it",
        *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"),
    ),
    **_because("optim.clip_norm states it", "gradient_clipping"),
    **_because("losses are divided for the mean over all ranks", "gradient_allreduce_op"),
    **_because("section schedule states it", "scheduler"),
    **_because("model.gradient_checkpointing does that", "activation_checkpointing"),
    **_because("model.compile does that; DeepCompile is not called here", "compile"),
    **_because("engine.precision states it", "bf16.enabled", "fp16.enabled", "amp"),
    **_because("engine.zero states it", "zero_optimization.stage"),
    **_because(
        "engine.offload_optimizer and engine.offload_params state it",
        *("zero_optimization.cpu_offload", "zero_optimization.cpu_offload_param"),
        *("zero_optimization.offload_optimizer.device", "zero_optimization.offload_param.device"),
    ),
    **_because(
        "checkpoints are the launcher's own, and do not hold its state",
        *("zero_optimization.zenflow", "zero_optimization.offload_optimizer.super_offload"),
        "zero_optimization.offload_optimizer.nvme_path",
        "zero_optimization.offload_param.nvme_path",
    ),
    **_because(
        "checkpoints are the launcher's own (section checkpoint)",
        *("checkpoint", "datastates_ckpt", "nebula", "zero_optimization.elastic_checkpoint"),
        "zero_optimization.load_from_fp32_weights",
        "zero_optimization.pipeline_loading_checkpoint",
        "zero_optimization.stage3_gather_16bit_weights_on_model_save",
    ),
    **_because(
        "each rank has rows and layers of its own",
        *("tensor_parallel", "autotp_size", "expert_parallel", "pipeline"),
        *("sequence_parallel_size", "seq_parallel_communication_data_type"),
        "use_data_before_expert_parallelism",
    ),
    **_because(
        "rows are read by the launcher (section data)",
        *("data_efficiency", "curriculum_learning", "dataloader_drop_last"),
    ),
    **_because(
        "that part of DeepSpeed is not called here",
        *("autotuning", "elasticity", "hybrid_engine", "progressive_layer_drop", "eigenvalue"),
        *("quantize_training", "compression_training", "weight_quantization"),
        "zero_optimization.mics_shard_size",
        *("zero_optimization.mics_hierarchical_params_gather", "zero_optimization.loco_param"),
    ),
}
#: Keys that take effect; those of a mapping that is not listed are DeepSpeed's own affair.
KNOWN = {
    "": (
        *("optimizer", "zero_optimization", "bf16", "fp16", "torch_autocast", "data_types", "aio"),
        *("communication_data_type", "prescale_gradients", "gradient_predivide_factor", "timers"),
        *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "sparse_gradients"),
        *("steps_per_print", "wall_clock_breakdown", "memory_breakdown", "dump_state", "log_level"),
        *("disable_allgather", "disable_python_gc", "comms_logger", "flops_profiler"),
        *("tensorboard", "wandb", "csv_monitor", "comet"),
    ),
    "zero_optimization": (
        *("contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "allgather_partitions"),
        *("allgather_bucket_size", "overlap_comm", "compute_grad_norm", "sub_group_size"),
        *("use_multi_rank_bucket_allreduce", "offload_param", "offload_optimizer", "leaf_module"),
        *("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "legacy_stage1"),
        *("stage3_model_persistence_threshold", "stage3_max_live_parameters"),
        *("stage3_max_reuse_distance", "stage3_module_granularity_threshold"),
        *("stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential"),
        *("ignore_unused_parameters", "round_robin_gradients", "parameter_alignment"),
        *("zero_hpz_partition_size", "zero_quantized_weights", "zero_quantized_gradients"),
        *("zero_quantized_nontrainable_weights", "memory_efficient_linear"),
        *("override_module_apply", "log_trace_cache_warnings", "enable_sanity_checks"),
        "save_muon_momentum_buffer_in_memory",
    ),
}
#: Keys whose kernels DeepSpeed builds with CUDA's compiler.
_BUILT = ("zero_quantized_weights", "zero_quantized_gradients")


def problems(extra: Mapping[str, Any], path: str = "") -> Iterator[Problem]:
    """What of `engine.extra` would silently do nothing, or another thing than it says."""
    known = KNOWN.get(path)
    section = f"engine.extra.{path}".rstrip(".")
    for key, value in extra.items():
        here = f"{path}.{key}" if path else key
        if hint := REFUSED.get(here):
            if value not in (None, False):
                found = f"{value!r} would have no effect, or another one than it says"
                yield Problem(f"{section}.{key}", found, hint)
        elif known is not None and key not in known:
            near = difflib.get_close_matches(key, known, 1)
            where = section if near else f"{section}.{key}"
            hint = f"call it {near[0]!r}" if near else "leave it out"
            yield Problem(where, f"no key {key!r} of DeepSpeed has an effect here", hint)
        elif key in _BUILT and value and not shutil.which("nvcc"):
            hint = "leave it out, or install CUDA's compiler (nvcc), which builds its kernels"
            yield Problem(f"{section}.{key}", f"{value!r} without nvcc", hint)
        elif isinstance(value, Mapping):
            yield from problems(value, here)
