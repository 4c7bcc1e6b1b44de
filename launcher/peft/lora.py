"""LoRA, DoRA and rsLoRA adapters through peft, also on a base that ZeRO-3 has partitioned."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from launcher.config import schema
from launcher.errors import ConfigError, Problem, did_you_mean

if TYPE_CHECKING:
    from peft import PeftModel

ALL_LINEAR = "all-linear"


def apply(model: Any, config: schema.LoraConfig, head: Sequence[str] | None = None) -> PeftModel:
    """Freeze `model` and put trainable adapters beside the target modules (in place).

    Of a classifier, `head` names the modules that its base lacks: they are trained in full.

    Raises `ConfigError` naming the closest module names if a target or a module to save does not
    exist. Under ZeRO-3 call it on every rank, after the base was loaded and before
    deepspeed.initialize, which takes rank 0's adapters for all ranks and partitions them.
    """
    import peft

    targets = _targets(config.targets)
    _check_names(model, config, targets)
    whole = [*config.modules_to_save, *(head or ())]
    options = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM if head is None else peft.TaskType.SEQ_CLS,
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft computes with floats
        lora_dropout=config.dropout,
        target_modules=targets,
        modules_to_save=whole or None,
        exclude_modules=[*(head or ()), *_other_modalities(model)] or None,
        use_dora=config.dora,
        use_rslora=config.rslora,
        ensure_weight_tying=_saves_tied_embedding(model, config),
    )
    # PEFT still asks by a name that transformers 5.23 has renamed.
    renamed = ".*is_gradient_checkpointing.* is deprecated"
    warnings.filterwarnings("ignore", renamed, FutureWarning)
    with _as_zero3(model), _gathered(_modules_to_save(model, whole)):
        # autocast_adapter_dtype=False: adapters take the dtype of the base. DeepSpeed keeps the
        # fp32 master copies of what is trained and computes in one dtype; fp32 adapters in a bf16
        # model would be cast down by it anyway, and under ZeRO-3 would mix dtypes in one
        # all-gather.
        return peft.get_peft_model(model, options, autocast_adapter_dtype=False)


def _other_modalities(model: nn.Module) -> list[str]:
    """Modules of the parts that see or hear, which take no part in learning text."""
    parts = tuple(f"{name}." for name in getattr(model, "other_modalities", ()))
    return [name for name, _ in model.named_modules() if parts and name.startswith(parts)]


def describe(model: nn.Module) -> tuple[int, int]:
    """Numbers of (trainable, all) parameters; whole sizes under ZeRO-3 and for 4-bit weights."""
    sizes = [(parameter.requires_grad, _numel(parameter)) for parameter in model.parameters()]
    return sum(size for trainable, size in sizes if trainable), sum(size for _, size in sizes)


def _numel(parameter: Any) -> int:
    state = getattr(parameter, "quant_state", None)
    if state is not None:
        return math.prod(state.shape)
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _targets(targets: Any) -> str | list[str]:
    if targets == ALL_LINEAR:
        return ALL_LINEAR
    names = [targets] if isinstance(targets, str) else targets
    if (
        not isinstance(names, list | tuple)
        or not names
        or not all(isinstance(n, str) for n in names)
    ):
        raise ConfigError(
            f"found {targets!r}",
            where="peft.targets",
            hint=f"give {ALL_LINEAR} or a list of module names such as [q_proj, v_proj]",
        )
    return list(names)


def _check_names(model: nn.Module, config: schema.LoraConfig, targets: str | list[str]) -> None:
    """All unknown names at once; peft alone would accept a list in which one name matches."""
    modules = dict(model.named_modules())
    leaves = [name for name, module in modules.items() if list(module.parameters(recurse=False))]
    linear = {name.rsplit(".", 1)[-1] for name in leaves if hasattr(modules[name], "in_features")}
    asked = [] if isinstance(targets, str) else [("peft.targets", name) for name in targets]
    asked += [("peft.modules_to_save", name) for name in config.modules_to_save]
    problems = [
        Problem(
            where,
            f"the model has no module named {name!r}",
            did_you_mean(
                name,
                sorted(
                    linear if where == "peft.targets" else {n.rsplit(".", 1)[-1] for n in leaves}
                ),
            ),
        )
        for where, name in asked
        if not any(_matches(module, name) for module in modules)
    ]
    if problems:
        raise ConfigError(problems)


def _matches(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _modules_to_save(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    return [
        module
        for name, module in model.named_modules()
        if any(_matches(name, wanted) for wanted in names)
    ]


def _saves_tied_embedding(model: Any, config: schema.LoraConfig) -> bool:
    """Whether peft must train one matrix as both embedding and head.

    Raises `ConfigError` where peft cannot: it knows tied matrices by these two module names only.
    """
    if not model.config.get_text_config().tie_word_embeddings:
        return False
    tied = (model.get_input_embeddings(), model.get_output_embeddings())
    named = [
        name
        for name, module in model.named_modules()
        if any(module is one for one in tied)
        and any(_matches(name, wanted) for wanted in config.modules_to_save)
    ]
    for name in named:
        if name.rsplit(".", 1)[-1] not in ("embed_tokens", "lm_head"):
            raise ConfigError(
                f"{name!r} is tied to another matrix under a name that peft cannot tie",
                where="peft.modules_to_save",
                hint="leave it out, or train all weights with peft=none",
            )
    return bool(named)


@contextlib.contextmanager
def _as_zero3(model: nn.Module) -> Iterator[None]:
    """Let peft see that the base is partitioned, so that DoRA gathers each weight for its norm.

    peft asks transformers, which knows only while an HfDeepSpeedConfig object is alive.
    """
    if not any(hasattr(parameter, "ds_numel") for parameter in model.parameters()):
        yield
        return
    from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

    alive = None
    if not is_deepspeed_zero3_enabled():
        alive = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    yield
    del alive


@contextlib.contextmanager
def _gathered(modules: list[nn.Module]) -> Iterator[None]:
    """Hold the whole weights of modules that peft copies, as a partition has an empty shape."""
    partitioned = [p for module in modules for p in module.parameters() if hasattr(p, "ds_numel")]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=None):
        yield
