"""From a job to the config of its run.

What the site has settled is composed from its own overrides and words of a fixed form; numbers, and
every text that a client has sent, are set on the typed config: no text of a client is ever parsed
as an override.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.config import create
from launcher.config.compose import compose
from launcher.config.derive import adapter, plan
from launcher.config.schema import (
    Config,
    ModelConfig,
    PeftConfig,
    Quantization,
    WandbMode,
    variants,
)
from launcher.core.errors import ConfigError, Problem
from launcher.runs.slots import Slots
from launcher.serve import judges
from launcher.serve.db.tables import Job
from launcher.serve.jobs.methods import METHODS, REINFORCEMENT, TrainingMethod
from launcher.serve.naming import offer_of
from launcher.serve.site import ProjectSettings, Site

#: Steps that `auto` wants at least, of few examples too.
_LEAST_STEPS = 150
_MOST_BATCH = 256


@dataclass(frozen=True, slots=True)
class Numbers:
    """Hyperparameters as the run uses them."""

    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    options: dict[str, float] = field(default_factory=dict)
    """Those of the method alone."""

    def steps_of_epoch(self, examples: int) -> int:
        """Optimizer steps of one pass over so many examples."""
        return math.ceil(examples / self.batch_size)

    def interval(self, examples: int) -> int:
        """Steps from one checkpoint, and one validation, to the next."""
        return int(self.options.get("eval_interval") or self.steps_of_epoch(examples))

    def as_dict(self) -> dict[str, Any]:
        """By the names that clients know."""
        shared = ("n_epochs", "batch_size", "learning_rate_multiplier")
        return {**{name: getattr(self, name) for name in shared}, **self.options}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a run is made from besides its row."""

    runs: Path
    """Folder of run folders."""
    training: Path
    validation: Path | None
    examples: int
    """Examples of the training file."""
    base: Path | None = None
    """Folder of the model to start from, if it is a fine-tuned one."""
    grader: Path | None = None
    """File of the grader, if the method has one."""


@dataclass(frozen=True, slots=True)
class Translation:
    """The run that a job asks for, checked."""

    config: Config
    plan: plan.Plan
    words: list[str]
    numbers: Numbers


def numbers(method: TrainingMethod, asked: dict[str, Any], examples: int, ranks: int) -> Numbers:
    """Hyperparameters with `auto` resolved for a training file of `examples`.

    Batch: 0.2 % of the examples, at least what the method says. Epochs: as few as the method takes,
    or as many as 150 steps need. The batch is never more than the examples, and a multiple of the
    ranks, which share it evenly.
    """
    batch = asked["batch_size"]
    if batch == "auto":
        batch = min(_MOST_BATCH, max(method.batch, round(examples / 500)))
    batch = math.ceil(min(batch, examples) / ranks) * ranks
    epochs = asked["n_epochs"]
    if epochs == "auto":
        least, most = method.epochs
        epochs = min(most, max(least, math.ceil(_LEAST_STEPS * batch / examples)))
    factor = asked["learning_rate_multiplier"]
    own: dict[str, float] = {}
    for name, option in method.options.items():
        usual = math.ceil(examples / batch) if option.auto is None else option.auto
        value = usual if asked[name] == "auto" else asked[name]
        own[name] = int(value) if option.is_whole else float(value)
    return Numbers(epochs, batch, 1.0 if factor == "auto" else float(factor), own)


def translate(
    site: Site, job: Job, inputs: Inputs, config_dirs: Sequence[Path], project: str = ""
) -> Translation:
    """The config of the job's run, of a project by name; `ConfigError` if what the site has settled
    is wrong or gone, or if it cannot run on this machine or cluster."""
    method = METHODS[job.method]
    words = [*method.first, *_site_words(site, job, project)]
    words += _choice_words(words, job, method, inputs)
    sources = compose.Sources(config_dirs)
    # The final ones follow from the config, which may be made of them.
    first = numbers(method, job.asked, inputs.examples, 1)
    sequences = "${objective.group_size}" if method is REINFORCEMENT else first.batch_size
    before = [f"train.epochs={first.n_epochs}", f"batch.sequences={sequences}"]
    config, problems = compose.try_compose([*words, *before], (), sources)
    if problems:
        raise ConfigError(problems)
    world_size = ranks_of(config, site.queue.parallel)
    used = numbers(method, job.asked, inputs.examples, world_size)
    made_of_others = compose.interpolates(words, sources)
    words += _set_numbers(config, method, used, inputs)
    if made_of_others:  # of the job's numbers, and not of those that the site has in their place
        config, problems = compose.try_compose(words, (), sources)
        if problems:
            raise ConfigError(problems)
    _set_names(config, job, inputs)
    if inputs.grader is not None:
        _set_grader(config, site, job, inputs.grader)
    if inputs.base is not None:
        config.model = _tuned(config.model, inputs.base)
        problems = adapter.settle(config)
    config, made = create.judged(config, problems, world_size)
    return Translation(config, made, words, used)


def ranks_of(config: Config, parallel: int) -> int:
    """Ranks of a run: as the config says, or one for each GPU of its share of this machine."""
    if config.launch.name != "local" or config.launch.processes:
        return create.planned_world(config)
    shared = Slots(config, parallel, where="queue.parallel").world_size
    return shared or create.planned_world(config)


def _site_words(site: Site, job: Job, project: str) -> list[str]:
    name = offer_of(job)
    offer = site.models.get(site.resolve(name) or name)
    if offer is None:
        raise ConfigError(
            f"the model {name} is no longer offered", where="models", hint=", ".join(site.models)
        )
    own = site.projects.get(project) or ProjectSettings()
    account = [] if own.account is None else [f"cluster.account={own.account}"]
    if METHODS[job.method] is not REINFORCEMENT:
        return [*site.overrides, *offer.overrides, *own.overrides, *account]
    limits = [
        f"eval.graders.{name}={getattr(site.graders, name)}"
        for name in ("sandbox", "timeout_s", "memory_mb")
    ]
    of_method = [*offer.overrides, *offer.reinforcement]
    return [*limits, *site.overrides, *of_method, *own.overrides, *account]


def _choice_words(
    site_words: Sequence[str], job: Job, method: TrainingMethod, inputs: Inputs
) -> list[str]:
    """What a job settles whatever the site's config is."""
    words = [
        *method.words,
        f"run.name={job.id}",
        f"seed={job.seed}",
        "train.steps=null",
        "batch.tokens=null",
        "batch.micro=null",
        "data.packing=false",
        "data.validation_share=0",
        "checkpoint.keep_last=3",
        "train.log_every_steps=1",
        "export.at_end=true",
        "eval.times=null",
    ]
    if inputs.validation is None:
        words += ["eval=none", "eval.metrics=[]", "eval.every_steps=null", "eval.base=false"]
    else:
        words += ["eval=default", f"eval.metrics=[{','.join(method.metrics)}]"]
    # Jobs train all their epochs and give the last weights, unless the site itself asks for more.
    keys = ("train.early_stop.patience=", "export.weights=")
    asks = any(word.startswith(keys) for word in site_words)
    if inputs.validation is None or not asks:
        words += ["train.early_stop.patience=null", "export.weights=last"]
    return words


def _set_numbers(
    config: Config, method: TrainingMethod, used: Numbers, inputs: Inputs
) -> list[str]:
    """Set what depends on what the site has settled; returns it as words."""
    every = used.interval(inputs.examples)
    values: dict[str, Any] = {
        "train.epochs": float(used.n_epochs),
        "batch.sequences": used.batch_size,
        "optim.lr": config.optim.lr * method.rate * used.learning_rate_multiplier,
        "checkpoint.every_steps": every,
        **{option.key: used.options[name] for name, option in method.options.items()},
    }
    values.pop("", None)
    if inputs.validation is not None:
        values["eval.every_steps"] = every
    if method is REINFORCEMENT:
        values |= _of_answers(config, used, is_validated=inputs.validation is not None)
    if _merges(config.peft, config.model):
        # A folder that any tool, and a further job, can start from.
        values["export.merge"] = True
    for key, value in values.items():
        section, _, name = key.partition(".")
        setattr(getattr(config, section), name, value)
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def _of_answers(config: Config, used: Numbers, *, is_validated: bool) -> dict[str, Any]:
    """Values of a run whose model answers: a batch is of prompts, and has all their answers; a
    validation draws them as training does."""
    options: Any = config.objective
    group = max(2, round(options.group_size * used.options["compute_multiplier"]))
    found = {"objective.group_size": group, "batch.sequences": used.batch_size * group}
    if is_validated:
        found["eval.draws"] = used.options["eval_samples"]
        found |= {
            f"eval.{name}": getattr(options, name)
            for name in ("temperature", "top_p", "max_new_tokens")
        }
    return found


def _merges(peft: PeftConfig, model: ModelConfig) -> bool:
    return not peft.trains_base and model.quantization is Quantization.none


def _set_names(config: Config, job: Job, inputs: Inputs) -> None:
    """All texts: paths of ours, and what the client calls things."""
    config.run.root = str(inputs.runs)
    config.data.train = str(inputs.training)
    config.data.validation = None if inputs.validation is None else str(inputs.validation)
    for integration in job.integrations or []:
        asked = integration["wandb"]
        wandb = config.track.wandb
        if wandb.mode is WandbMode.disabled:
            wandb.mode = WandbMode.auto
        wandb.project = asked["project"]
        wandb.entity = asked["entity"] or wandb.entity
        wandb.name = asked["name"]
        config.run.tags = [*config.run.tags, *(asked["tags"] or [])]


def _set_grader(config: Config, site: Site, job: Job, file: Path) -> None:
    """What rewards, the endpoints that it asks, and how much the model is to think."""
    options: Any = config.objective
    options.grader = str(file)
    if config.data.validation is not None:
        config.eval.metrics = [f"{variants.GRADER}{file}"]
    known = judges.endpoints(site)
    wanted = judges.models_of(job.asked["grader"])
    if gone := [name for name in wanted if name not in known]:
        found = f"the model {gone[0]}, which the grader asks, is no judge any more"
        raise ConfigError(found, where="judges", hint=", ".join(known))
    config.eval.endpoints = {name: known[name] for name in wanted}
    effort = job.asked.get("reasoning_effort", "default")
    if effort != "default":
        config.data.template_options = {**config.data.template_options, "reasoning_effort": effort}


def _tuned(model: ModelConfig, folder: Path) -> ModelConfig:
    """The same computation on the weights, tokenizer and template of an exported model."""
    if not (folder / "config.json").is_file() and not adapter.is_adapter(folder):
        raise ConfigError(
            [Problem("model", "this fine-tuned model cannot be trained further", "use its base")]
        )
    return ModelConfig(
        name=str(folder),
        dtype=model.dtype,
        attention=model.attention,
        kernels=model.kernels,
        fp8=model.fp8,
        quantization=model.quantization,
        gradient_checkpointing=model.gradient_checkpointing,
        compile=model.compile,
    )
