"""LoRA, DoRA and rsLoRA adapters through peft, also on a base that ZeRO-3 has partitioned."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from launcher.config import schema
from launcher.config.check import checks
from launcher.config.derive import tensors
from launcher.config.derive.tensors import full_shape
from launcher.core.errors import ConfigError, Problem, did_you_mean
from launcher.peft.tensor_names import ROOT, file_names, stored_names

if TYPE_CHECKING:
    from peft import PeftModel

ALL_LINEAR = "all-linear"


def apply(model: Any, config: schema.LoraConfig, head: Sequence[str] | None = None) -> PeftModel:
    """Freeze `model` and put trainable adapters beside the target modules (in place).

    Of a classifier, `head` names the modules that its base lacks: they are trained in full. With
    `config.adapter` the adapters are laid out as that folder says; its weights are loaded after.

    Its `left_out` is a line about linear layers without adapters, or None; `file_names` is what
    tensors are called in the file of an adapter where not by their own name. Raises `ConfigError`
    naming the closest module names if a target or a module to save does not exist, and for what
    peft cannot adapt. Under ZeRO-3 call it on every rank, after the base was loaded and before
    deepspeed.initialize, which takes rank 0's adapters for all ranks and partitions them.
    """
    import peft

    head = None if head is None else _heads(model, head)
    told = None
    if config.adapter is not None:
        options = _options_of(config.adapter)
        whole = list(options.modules_to_save or ())
    else:
        targets = choose(model, config, head)
        told = targets.explain()
        whole = _to_save(model, [*config.modules_to_save, *(head or ())])
        options = peft.LoraConfig(
            task_type=peft.TaskType.CAUSAL_LM if head is None else peft.TaskType.SEQ_CLS,
            r=config.rank,
            lora_alpha=config.alpha,  # peft computes with floats
            lora_dropout=config.dropout,
            target_modules=_shortened(targets.modules, [n for n, _ in model.named_modules()]),
            target_parameters=_shortened(
                targets.parameters, [n for n, _ in model.named_parameters()], parts=2
            )
            or None,
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
        try:
            adapted = peft.get_peft_model(model, options, autocast_adapter_dtype=False)
        except ValueError as error:
            where = "peft.adapter" if config.adapter else "peft.targets"
            raise ConfigError(
                f"peft cannot adapt {type(model).__name__} so: {str(error).splitlines()[0]}",
                where=where,
                hint="name other layers, e.g. peft.targets=[q_proj,v_proj]",
            ) from error
    _share(adapted)
    adapted.left_out = told
    adapted.file_names = file_names(adapted)
    return adapted


def _heads(model: Any, fresh: Sequence[str]) -> list[str]:
    """The modules that hold `fresh` ones: peft saves the whole of what stands beside the body,
    whatever is named of it."""
    body = model.base_model_prefix
    names = (name if name.startswith(f"{body}.") else name.partition(".")[0] for name in fresh)
    return list(dict.fromkeys(names))


def _options_of(folder: str) -> Any:
    import peft

    try:
        found = peft.LoraConfig.from_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"its config cannot be read: {str(error).splitlines()[0]}",
            where=f"peft.adapter={folder}",
            hint="the run needs the folder of the adapter that it goes on from: put it back",
        ) from error
    found.inference_mode = False
    return found


def _other_modalities(model: nn.Module) -> list[str]:
    """Modules of the parts that see or hear, which take no part in learning text."""
    parts = tuple(f"{name}." for name in getattr(model, "other_modalities", ()))
    return [name for name, _ in model.named_modules() if parts and name.startswith(parts)]


# ---- which layers get adapters


@dataclass(slots=True)
class Targets:
    """What is adapted, by full names in the model without adapters."""

    modules: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    """Matrices that are adapted as such: those of fused experts, [experts, ..., ...], and others
    that no module of peft stands beside."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Linear layers that `all-linear` passes over -> the reason."""

    def explain(self) -> str | None:
        """A line that names the kinds of layers that were left out; None if there are none."""
        kinds: dict[str, list[str]] = {}
        for name, reason in self.left_out.items():
            kinds.setdefault(reason, []).append(re.sub(r"\d+", "*", name))
        if not kinds:
            return None
        told = [f"{', '.join(dict.fromkeys(names))} ({reason})" for reason, names in kinds.items()]
        return "without adapters: " + "; ".join(told)


def choose(model: Any, config: schema.LoraConfig, head: Sequence[str] | None = None) -> Targets:
    """The layers that `config` asks to adapt; `head` is never among them.

    Raises `ConfigError` for names that the model does not have, layers that cannot be adapted and
    embeddings that are tied.
    """
    names = _names(config.targets)
    _check_names(model, config, names)
    found = Targets()
    modules = dict(model.named_modules())
    spared = [*config.modules_to_save, *(head or ())]
    for name in names:
        if name == ALL_LINEAR:
            _choose_linear(model, modules, found, spared, config.experts)
        else:
            _choose_named(name, modules, found, spared)
    _refuse_tied(model, found)
    _move_renamed(model, modules, found)
    _drop_unopenable(model, found, names)
    if found.parameters and (config.dora or config.dropout):
        _refuse_on_parameters(config, found)
    if not found.modules and not found.parameters:
        raise ConfigError(
            f"no layer of {type(model).__name__} is adapted",
            where="peft.targets",
            hint="name layers, e.g. peft.targets=[q_proj,v_proj]",
        )
    return found


def _choose_linear(
    model: Any,
    modules: dict[str, nn.Module],
    found: Targets,
    spared: Sequence[str],
    with_experts: bool,
) -> None:
    """Every linear layer of the language model but its head and its routers."""
    output = model.get_output_embeddings()
    experts, text = _count_experts(model), _text_part(model, modules)
    for name, module in modules.items():
        if module is output or not name.startswith(text) or _is_spared(name, spared):
            continue
        if is_linear(module):
            if _is_router(name, module, experts):
                continue
            if reader := _reader_of_weight(name, modules):
                found.left_out[name] = f"{reader} reads their weights, past any adapter"
            else:
                _add(found.modules, name)
        elif isinstance(module, nn.Linear) and not _is_router(name, module, experts):
            found.left_out[name] = "they multiply in a way of their own"
        elif with_experts:
            for parameter in expert_parameters(name, module, experts):
                _add(found.parameters, parameter)


def _choose_named(
    wanted: str, modules: dict[str, nn.Module], found: Targets, spared: Sequence[str]
) -> None:
    for name, module in modules.items():
        if _is_spared(name, spared):
            continue
        if _matches(name, wanted):
            if reader := _reader_of_weight(name, modules):
                raise ConfigError(
                    f"{reader} reads the weight of {name!r}, past any adapter: it would learn"
                    " nothing",
                    where="peft.targets",
                    hint=f"leave {wanted} out; peft.targets=all-linear leaves out what cannot be"
                    " adapted",
                )
            if _is_adaptable(module):
                _add(found.modules, name)
            else:
                inside = [(f"{name}.{key}", p) for key, p in module.named_parameters()]
                for key, parameter in inside:
                    matrix = len(full_shape(parameter)) == 2 and key == f"{name}.weight"
                    if matrix or len(full_shape(parameter)) == 3:
                        _add(found.parameters, key)
        elif not _is_adaptable(module):
            for key, parameter in module.named_parameters(recurse=False):
                if _matches(f"{name}.{key}", wanted) and len(full_shape(parameter)) in (2, 3):
                    _add(found.parameters, f"{name}.{key}")


def _add(names: list[str], name: str) -> None:
    if name not in names:
        names.append(name)


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies its input with a matrix, as nn.Linear does (4-bit ones too)."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return True
    # Subclasses with a forward of their own may return other things, as routers do, or multiply
    # group by group.
    own = type(module).forward is not nn.Linear.forward
    name = type(module).__name__
    return isinstance(module, nn.Linear) and (not own or ("Linear" in name and "Group" not in name))


def _is_adaptable(module: nn.Module) -> bool:
    return is_linear(module) or isinstance(module, nn.Embedding)


def expert_parameters(name: str, module: nn.Module, experts: int | None) -> list[str]:
    """Names of a module's own parameters that hold one matrix for each expert of a layer."""
    if type(module).__module__.startswith("torch."):  # a convolution's weight has 3 dimensions too
        return []
    return [
        f"{name}.{key}"
        for key, parameter in module.named_parameters(recurse=False)
        if len(full_shape(parameter)) == 3
        and (full_shape(parameter)[0] == experts or ".experts" in f".{name}")
    ]


def _count_experts(model: Any) -> int | None:
    config = model.config.get_text_config()
    return next((int(n) for key in tensors.EXPERTS if (n := getattr(config, key, None))), None)


def _is_router(name: str, module: Any, experts: int | None) -> bool:
    parts = name.rsplit(".", 2)[-2:]
    return bool({"router", "gate"} & set(parts)) and full_shape(module.weight)[0] == experts


def _text_part(model: Any, modules: dict[str, nn.Module]) -> str:
    """Where the names of the layers begin that read text: towers for images see none of it."""
    if model.config.get_text_config() is model.config:
        return ""
    decoder = model.get_decoder()
    name = next((name for name, module in modules.items() if module is decoder), "")
    return f"{name}." if name else ""


def _reader_of_weight(name: str, modules: dict[str, nn.Module]) -> str | None:
    """Class of the module around layer `name`, if its code takes the layer's weight directly.

    Mixers hand the weights of some projections to fused kernels, which no adapter beside the
    projection has a part in.
    """
    parent, _, leaf = name.rpartition(".")
    around: Any = type(modules[parent]) if parent in modules else None
    return around.__name__ if around is not None and leaf in _weights_read(around) else None


@functools.cache
def _weights_read(kind: type) -> frozenset[str]:
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):
        return frozenset()
    # Asked about, or cut in slices for the tensor parallelism of old checkpoints.
    about = r"\.(?:dtype|device|shape|size|ndim|is_cuda)\b|\["
    return frozenset(re.findall(rf"self\.(\w+)\.weight\b(?!{about})", source))


def _is_spared(name: str, spared: Sequence[str]) -> bool:
    return any(re.search(rf"(^|\.){re.escape(one)}($|\.)", name) for one in spared)


def _move_renamed(model: Any, modules: dict[str, nn.Module], found: Targets) -> None:
    """Adapt a matrix itself where peft takes the layer's name for that of an expert.

    Models with experts had a linear layer for each once. To open adapters of that time, peft reads
    `gate_proj` and its like as the fused experts wherever they are targets, also when it opens an
    export. Dense layers and shared experts have these names too.
    """
    leaves = {name.rpartition(".")[2] for name in found.modules}
    renamed = {leaf for leaf in leaves if _is_renamed(model, leaf)}
    for name in [n for n in found.modules if n.rpartition(".")[2] in renamed]:
        found.modules.remove(name)
        if hasattr(modules[name].weight, "quant_state"):
            found.left_out[name] = "peft has no adapter for them on 4-bit weights"
        else:
            found.parameters.append(f"{name}.weight")


def _is_renamed(model: Any, leaf: str) -> bool:
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    import peft

    options = peft.LoraConfig(target_modules=[leaf])
    try:
        convert_peft_config_for_transformers(options, model=model, conversions=None)
    except ValueError:  # it wants all of the names that are fused into one parameter
        return True
    return leaf not in (options.target_modules or ())


def _drop_unopenable(model: Any, found: Targets, asked: Sequence[str]) -> None:
    """Leave out the layers whose adapters would not open again, or refuse those asked for by name
    (see `launcher.peft.tensor_names`)."""
    owners = {name: name for name in found.modules}
    owners |= {name: name.rpartition(".")[0] for name in found.parameters}
    keys = {f"{ROOT}{owner}.lora_A.weight" for owner in owners.values()}
    lost = {key for key, stored in stored_names(model, sorted(keys)).items() if stored is None}
    for name in [n for n, owner in owners.items() if f"{ROOT}{owner}.lora_A.weight" in lost]:
        if wanted := [one for one in asked if one != ALL_LINEAR and _matches(name, one)]:
            raise ConfigError(
                f"transformers gives the adapter of {name!r} another name when it is opened",
                where="peft.targets",
                hint=f"leave {wanted[0]} out; peft.targets=all-linear leaves out what cannot be"
                " adapted",
            )
        (found.modules if name in found.modules else found.parameters).remove(name)
        found.left_out[name] = "transformers renames their adapters when it opens them"


def _share(model: Any) -> None:
    """Give layers that share one matrix one adapter, which is folded into the matrix once."""
    from peft.tuners.lora import Linear

    first: dict[int, Any] = {}
    for module in model.modules():
        if not isinstance(module, Linear):
            continue
        one = first.setdefault(id(module.get_base_layer().weight), module)
        if one is not module:
            for name in ("lora_A", "lora_B", "lora_magnitude_vector"):
                setattr(module, name, getattr(one, name))
            module.merge = _nothing


def _nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _refuse_on_parameters(config: schema.LoraConfig, found: Targets) -> None:
    key, off = ("dora", "false") if config.dora else ("dropout", "0")
    names = sorted({re.sub(r"^.*\.(?=[^.]+\.[^.]+$)", "", name) for name in found.parameters})
    hint = f"peft.{key}={off}"
    if plain := sorted({name.rpartition(".")[2] for name in found.modules}):
        hint += f", or adapt the others alone: peft.targets=[{','.join(plain)}]"
    raise ConfigError(
        f"peft adapts {', '.join(names)} as a parameter, and has no {key} there",
        where=f"peft.{key}",
        hint=hint,
    )


def _shortened(names: Sequence[str], known: Iterable[str], parts: int = 1) -> list[str]:
    """`names` by their last `parts` where those mean no other of `known`; adapters then read well
    and open where layers have another prefix."""
    known = set(known)
    short: dict[str, None] = {}
    chosen = set(names)
    for name in names:
        end = ".".join(name.split(".")[-parts:])
        is_plain = all(one in chosen for one in known if _matches(one, end))
        short[end if is_plain else name] = None
    return list(short)


# ---- names that the user gives


def _names(targets: Any) -> list[str]:
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


def _check_names(model: nn.Module, config: schema.LoraConfig, targets: list[str]) -> None:
    """All unknown names at once; peft alone would accept a list in which one name matches."""
    modules = dict(model.named_modules())
    parameters = {
        name: full_shape(p) for name, p in model.named_parameters() if len(full_shape(p)) in (2, 3)
    }
    leaves = [name for name, module in modules.items() if list(module.parameters(recurse=False))]
    linear = {name.rsplit(".", 1)[-1] for name in leaves if hasattr(modules[name], "in_features")}
    fused = {name.rsplit(".", 1)[-1] for name, shape in parameters.items() if len(shape) == 3}
    linear |= fused - {"weight"}
    asked = [("peft.targets", name) for name in targets if name != ALL_LINEAR]
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
        and not (where == "peft.targets" and any(_matches(p, name) for p in parameters))
    ]
    if problems:
        raise ConfigError(problems)


def _matches(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _modules_to_save(model: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    return [
        module
        for name, module in model.named_modules()
        if any(name.endswith(wanted) for wanted in names)  # as peft matches them
    ]


def _to_save(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The names for peft, which takes `norm` for every module whose name ends so: in full where it
    would train others than are asked for."""
    modules = [name for name, _ in model.named_modules()]
    found: list[str] = []
    for wanted in names:
        asked = [name for name in modules if _matches(name, wanted)]
        is_clear = all(name in asked for name in modules if name.endswith(wanted))
        found += [wanted] if is_clear else asked
    return found


def _tied(model: Any) -> list[nn.Module]:
    """The input and output embedding of `model` if they are one matrix; else nothing."""
    if not getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        return []
    both = (model.get_input_embeddings(), model.get_output_embeddings())
    return [module for module in both if module is not None] if both[1] is not None else []


def _refuse_tied(model: Any, found: Targets) -> None:
    tied = _tied(model)
    modules = dict(model.named_modules())
    for name in found.modules:
        if any(modules[name] is one for one in tied):
            raise ConfigError(
                f"{name!r} is tied to the other embedding: an adapter beside one of the two can"
                " never be merged",
                where="peft.targets",
                hint=checks.TIED_HINT,
            )


def _saves_tied_embedding(model: Any, config: schema.LoraConfig) -> bool:
    """Whether peft must train one matrix as both embedding and head.

    Raises `ConfigError` where peft cannot: it knows tied matrices by these two module names only.
    """
    tied = _tied(model)
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
