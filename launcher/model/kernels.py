"""Fused kernels of Liger in place of a model's own norms, rotary positions and gated MLPs.

The head is not replaced: `launcher.model.head` computes the loss at target positions alone.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from launcher.core.errors import ConfigError

_ELSE = "or model.kernels=torch"


def use_liger(model: Any) -> int:
    """Let modules of `model`, a bare transformers model, run with Liger's kernels; returns how
    many do.

    Rotary positions are replaced for all models of its class. Experts of a mixture keep their own
    code, as adapters are put on it. Raises `ConfigError` for a model that Liger has no kernels for,
    and for a Liger that does not fit this transformers.
    """
    own = {id(module) for module in model.modules() if "forward" in vars(module)}
    try:
        from liger_kernel.transformers import monkey_patch

        if model.config.model_type in monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN:
            monkey_patch._apply_liger_kernel_to_instance(model=model, **_wishes(model))
    except (ImportError, AttributeError, TypeError) as error:
        import transformers

        raise ConfigError(
            f"liger-kernel {_version()} does not fit transformers {transformers.__version__}:"
            f" {str(error).splitlines()[0]}",
            where="model.kernels",
            hint=f"pip install --upgrade liger-kernel, {_ELSE}",
        ) from error
    changed = [m for m in model.modules() if "forward" in vars(m) and id(m) not in own]
    if not changed:
        raise ConfigError(
            f"liger-kernel {_version()} has no kernels for {type(model).__name__}",
            where="model.kernels",
            hint="set model.kernels=torch",
        )
    return len(changed)


def _wishes(model: Any) -> dict[str, bool]:
    config = model.config.get_text_config()
    counts = ("num_experts", "num_local_experts", "n_routed_experts")
    wishes = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    if any(getattr(config, count, None) for count in counts):
        wishes |= {"swiglu": False, "geglu": False}
    return wishes


def _version() -> str:
    try:
        return importlib.metadata.version("liger-kernel")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
