"""What cannot work, found before anything starts: ranges, missing values, impossible combinations.

Pure apart from looking for installed packages and a compiler. `check` runs every rule and returns
all problems, in the order of the config's sections.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from launcher.config.check import (
    batching,
    deepspeed_keys,
    eval_checks,
    model_checks,
    parallel_checks,
    rollout_checks,
    teacher_checks,
)
from launcher.config.derive import architecture, copies, data_entries, plan
from launcher.config.schema import (
    AdapterConfig,
    Config,
    DataConfig,
    Dtype,
    conversion,
    data_report,
    variants,
)
from launcher.config.schema.kinds import readable
from launcher.config.schema.launch import LaunchConfig
from launcher.core import owncode, runtime
from launcher.core.errors import Problem, did_you_mean
from launcher.record_fields import OF_THE_CALLER

#: Modules of which the embeddings of a model are two that share one matrix.
_EMBEDDINGS = ("embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "embeddings")
TIED_HINT = (
    "leave it out, as peft.targets=all-linear does; the shared matrix itself is trained with"
    " peft.targets=all-linear peft.modules_to_save=[embed_tokens]"
)


def check(config: Config, *, world_size: int | None, has_gpu: bool) -> list[Problem]:
    """All problems of `config` on this kind of machine, in a stable order; [] if it can run.

    `world_size` None leaves out the rules that need the number of ranks.
    """
    problems = [
        *out_of_range(config),
        *model_checks.check(config, has_gpu),
        *_data(config),
        *_code(config),
        *_peft(config),
        *_train(config),
        *_optim(config, has_gpu),
        *config.schedule.problems(config.train.steps),
        *_engine(config, has_gpu),
        *parallel_checks.check(config, world_size),
        *_checkpoint(config),
        *_selection(config),
        *eval_checks.check(config),
        *_kinds(config),
        *config.objective.refused(config),
        *rollout_checks.check(config, has_gpu),
        *teacher_checks.check(config),
        *_launch(config),
    ]
    if not any(problem.where in batching.KEYS for problem in problems):
        problems += batching.check(config, world_size)
    return problems


def beside(found: Sequence[Problem], checked: Sequence[Problem]) -> list[Problem]:
    """`found` (by compose) and those of `checked` that do not merely follow from them.

    A section with a misspelt key or name lacks the value that was meant, so rules on that section
    would blame what is not wrong.
    """
    broken = {problem.where.partition(".")[0] for problem in found}
    meant = r"'(\w+)\.|did you mean (\w+)="  # a key of the section, or an option of the group
    words = {part for p in found for pair in re.findall(meant, p.hint) for part in pair if part}
    skip = broken | words
    kept = [problem for problem in checked if problem.where.partition(".")[0] not in skip]
    return [*found, *kept]


def out_of_range(section: Any, path: str = "") -> Iterator[Problem]:
    """A problem for each number of a section, or of a whole config, outside its field's range."""
    cls: type = type(section)
    limits = conversion.limits(cls)
    for name in conversion.fields(cls):
        key, value = f"{path}.{name}".lstrip("."), getattr(section, name)
        if dataclasses.is_dataclass(value):
            yield from out_of_range(value, key)
        elif isinstance(value, (int, float)) and name in limits and not limits[name].holds(value):
            yield Problem(key, f"{value} is out of range", f"give a number {limits[name]}")


def report_problems(config: Config) -> list[Problem]:
    """What is wrong with the part of `data` that a report itself needs, and every preparation."""
    numbers = out_of_range(config.data.report, "data.report")
    rules = data_report.problems(config.data.gate, config.data.report)
    return [*numbers, *rules, *_template_options(config.data)]


def _template_options(data: DataConfig) -> Iterator[Problem]:
    for name in sorted(OF_THE_CALLER & set(data.template_options)):
        hint = "leave it out; variables of the chat template's own go there, e.g. enable_thinking"
        yield Problem(f"data.template_options.{name}", "is set by the launcher itself", hint)


def _data(config: Config) -> Iterator[Problem]:
    data = config.data
    yield from data_entries.check(config)
    yield from data_report.problems(data.gate, data.report)
    if data.train is None:
        hint = "data.train=<file, glob, folder or hub name>, e.g. data.train=train.jsonl"
        yield Problem("data.train", "no training data is given", hint)
    yield from data_entries.format_problems(data.format, "data.format")
    yield from _template_options(data)
    if data.system is not None and data.format == "text":
        hint = "plain text has no turns: data.system=null"
        yield Problem("data.system", "a system message with data.format=text", hint)


def _kinds(config: Config) -> Iterator[Problem]:
    """A format of which the objective does not learn."""
    own, name = config.objective, config.data.format
    kind = variants.kind_of_format(name)
    if kind is None or kind in readable(own.learns):
        return
    hint = variants.other_way(own, kind)
    yield Problem("objective.name", f"{own.name} with data.format={name}", hint)


def _code(config: Config) -> Iterator[Problem]:
    """What files of the user's own import so that no copy of it could be kept."""
    known = set()
    for slot in copies.slots(config):
        if slot.get() not in known:
            known.add(slot.get())
            yield from owncode.problems(runtime.user_path(slot.get()), slot.where)


def _peft(config: Config) -> Iterator[Problem]:
    if not isinstance(config.peft, AdapterConfig):
        return
    targets = config.peft.targets
    if targets == "all-linear" and architecture.has_experts(config.model):
        yield from _experts(config.peft)
    if isinstance(targets, str) and targets != "all-linear":
        hint = f"write peft.targets=[{targets}], or all-linear"
        yield Problem("peft.targets", f"{targets!r} is not a list of module names", hint)
    elif not isinstance(targets, str):
        names = targets if isinstance(targets, list) else []
        if not names or not all(isinstance(name, str) and name for name in names):
            hint = "write peft.targets=all-linear, or peft.targets=[q_proj,v_proj]"
            yield Problem("peft.targets", f"{targets!r} is not a list of module names", hint)
        elif architecture.ties_embeddings(config.model):
            yield from _tied(names)


def _experts(peft: AdapterConfig) -> Iterator[Problem]:
    """peft adapts fused experts as parameters, and knows less there."""
    for key, off in peft.not_on_experts.items():
        given = getattr(peft, key)
        if given and peft.experts:
            found = f"peft has none on experts that are fused, {given} is given"
            yield Problem(f"peft.{key}", found, f"peft.{key}={off}")


def _tied(names: list[str]) -> Iterator[Problem]:
    for name in names:
        if name.rpartition(".")[2] in _EMBEDDINGS:
            found = f"{name!r} is tied to the other embedding: its adapter could not be merged"
            yield Problem("peft.targets", found, TIED_HINT)


def _train(config: Config) -> Iterator[Problem]:
    steps, epochs = config.train.steps, config.train.epochs
    if (steps is None) == (epochs is None):
        found = "neither is given" if steps is None else f"steps={steps} and epochs={epochs}"
        yield Problem("train", f"give steps or epochs, one of them: {found}", "e.g. train.epochs=1")
    if aux := config.train.router_aux:
        hint = "set train.router_aux=null"
        if architecture.is_dense(config.model):
            yield Problem("train.router_aux", f"{aux} for a model without experts", hint)
        if config.model.compile:
            found = f"{aux} with model.compile=true, whose graphs hold the routers"
            yield Problem("train.router_aux", found, "set model.compile=false")
        if config.engine.precision is Dtype.fp16:
            found = f"{aux} with engine.precision=fp16, whose loss scale does not reach it"
            yield Problem("train.router_aux", found, "set engine.precision=bf16")


def _optim(config: Config, has_gpu: bool) -> Iterator[Problem]:
    optim, name = config.optim, config.optim.name
    if optim.kernels:
        yield from model_checks.kernels(optim.kernels, "optim.name", name, "optim=adamw", has_gpu)
    if config.engine.offload_optimizer and not optim.can_be_offloaded:
        hint = "DeepSpeed offloads its own AdamW only: use optim=adamw"
        yield Problem("optim.name", f"{name} with engine.offload_optimizer=true", hint)
    if optim.needs_compiler and not model_checks.compiler():
        compilers = ", ".join(model_checks.COMPILERS)
        hint = f"its update is compiled: install one of {compilers}, or optim=adamw"
        yield Problem("optim.name", f"{name} needs a C++ compiler; none is found", hint)


def _engine(config: Config, has_gpu: bool) -> Iterator[Problem]:
    engine = config.engine
    if engine.precision is Dtype.fp16 and not has_gpu:
        yield Problem("engine.precision", "fp16 on CPU", "use engine.precision=fp32 or bf16")
    if engine.offload_params and engine.zero != 3:
        hint = "only ZeRO-3 shards parameters: use engine=zero3_offload"
        yield Problem("engine.offload_params", f"true with engine.zero={engine.zero}", hint)
    if engine.offload_optimizer and engine.zero == 0:
        hint = "ZeRO-0 keeps the optimizer with the weights: use engine=zero2_offload"
        yield Problem("engine.offload_optimizer", "true with engine.zero=0", hint)
    builds = has_gpu and engine.offload_optimizer and config.optim.compiled_offloaded
    if builds and not model_checks.compiler():
        hint = f"install one of {', '.join(model_checks.COMPILERS)}, or offload nothing"
        found = "DeepSpeed's CPU Adam needs a C++ compiler; none is found"
        yield Problem("engine.offload_optimizer", found, hint)
    yield from deepspeed_keys.problems(engine.extra)


def _checkpoint(config: Config) -> Iterator[Problem]:
    if config.checkpoint.keep_best <= 0:
        return
    found = f"{config.checkpoint.keep_best} without evaluation during training"
    during = config.eval.every_steps or config.eval.times
    if during is None or "loss" not in variants.metrics_of(config):
        hint = "add eval.every_steps=N with loss among eval.metrics, or checkpoint.keep_best=0"
        yield Problem("checkpoint.keep_best", found, hint)


def _selection(config: Config) -> Iterator[Problem]:
    """What chooses weights, or the end, by scores has to have scores to choose by."""
    stop, options = config.train.early_stop, config.eval
    if stop.metric not in (rows := variants.metric_rows(config)):
        hint = did_you_mean(stop.metric, rows)
        yield Problem("train.early_stop.metric", f"unknown metric {stop.metric!r}", hint)
        return
    if stop.patience is not None:
        key, found, off = "train.early_stop.patience", str(stop.patience), "null"
    elif plan.exports_best(config):
        key, found, off = "export.weights", "best", "last"
    else:
        return
    if options.name == "none" or not variants.metrics_of(config):
        hint = f"evaluate during training, e.g. eval=default eval.times=10; or {key}={off}"
        yield Problem(key, f"{found} with eval={options.name}, which scores nothing", hint)
        return
    if options.every_steps is None and options.times is None:
        hint = f"add eval.times=10, or eval.every_steps=N; or {key}={off}"
        yield Problem(key, f"{found} without evaluation during training", hint)
    yield from _telling(config)


def _telling(config: Config) -> Iterator[Problem]:
    """Whether the metric is one that is measured during training."""
    name, metrics = config.train.early_stop.metric, variants.metrics_of(config)
    rows = variants.metric_rows(config)
    cheap = [name for name, row in rows.items() if row.records != "generation"]
    known = [metric for metric in metrics if metric in cheap]
    instead = f"train.early_stop.metric={known[0]}" if known else "eval.metrics=[loss]"
    if name not in cheap:
        found = f"{name} needs generated answers, which are made at the end alone"
        yield Problem("train.early_stop.metric", found, instead)
    elif name not in metrics:
        fitting = [other for other, row in rows.items() if other in cheap and row.fits(config)]
        measured = [metric for metric in metrics if metric in rows]
        adding = f"eval.metrics=[{','.join([*measured, name])}]"
        hint = f"{adding}, or {instead}" if known and name in fitting else instead
        hint = adding if name in fitting and not known else hint
        found = f"{name} is not among eval.metrics: {', '.join(metrics)}"
        yield Problem("train.early_stop.metric", found, hint)


def _launch(config: Config) -> Iterator[Problem]:
    launch = config.launch
    if launch.nodes > 1 and not launch.spans_nodes:
        able = [name for name, cls in variants.OPTIONS["launch"].items() if _spans_nodes(cls)]
        *others, last = [f"launch={name}" for name in able]
        hint = f"{', '.join(others)} or {last} starts ranks on several nodes"
        yield Problem(
            "launch.nodes", f"{launch.nodes} nodes, but launch={launch.name} is one", hint
        )
    yield from launch.problems()


def _spans_nodes(options: type) -> bool:
    return issubclass(options, LaunchConfig) and options.spans_nodes
