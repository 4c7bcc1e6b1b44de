"""The rules of what draws answers: places that are not there, what vLLM cannot do."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

from launcher.config.schema import Config, variants
from launcher.config.schema.rollout import VllmRolloutConfig
from launcher.core import registry, runtime
from launcher.core.errors import Problem


def check(config: Config, has_gpu: bool) -> Iterator[Problem]:
    """Problems of `rollout` with the rest of the config."""
    rollout, objective = config.rollout, config.objective
    if not isinstance(rollout, VllmRolloutConfig):
        return
    if not objective.samples:
        found = f"vllm with objective={objective.name}, which draws no answers"
        yield Problem("rollout.name", found, "rollout=local")
    top_p, temperature = getattr(objective, "top_p", 1), getattr(objective, "temperature", 1)
    if top_p < 1 and temperature != 1:
        hint = "vLLM does not tell by which probabilities it draws then: objective.top_p=1, or"
        found = f"{top_p} with objective.temperature={temperature}"
        yield Problem("objective.top_p", found, f"{hint} objective.temperature=1")
    yield from _of_places(config, rollout)
    yield from _of_gpus(config, rollout, has_gpu)
    yield from _of_adapters(config)
    if not config.launch.has_queue:
        yield from _of_python(rollout.python)


def _of_places(config: Config, rollout: VllmRolloutConfig) -> Iterator[Problem]:
    if rollout.nodes and not config.launch.keeps_nodes_for_rollouts:
        able = [
            f"launch={name}"
            for name, options in variants.OPTIONS["launch"].items()
            if options.keeps_nodes_for_rollouts  # type: ignore[attr-defined]
        ]
        found = f"{rollout.nodes} with launch={config.launch.name}"
        hint = f"nodes of their own come with {' or '.join(able)}; else rollout.nodes=0"
        yield Problem("rollout.nodes", found, hint)
    for key in ("nodes", "ahead"):
        if rollout.sleep and (given := getattr(rollout, key)):
            hint = "what shares the ranks' GPUs works between their steps: rollout.sleep=false"
            yield Problem(f"rollout.{key}", f"{given} with rollout.sleep=true", hint)


def _of_gpus(config: Config, rollout: VllmRolloutConfig, has_gpu: bool) -> Iterator[Problem]:
    each = config.cluster.gpus_per_node
    if rollout.nodes and each and not rollout.gpus and rollout.servers > each:
        found = f"{rollout.servers} on nodes with cluster.gpus_per_node={each}"
        yield Problem("rollout.servers", found, f"rollout.servers={each}")
    if rollout.gpus and len(rollout.gpus) != rollout.servers:
        found = f"GPUs for {len(rollout.gpus)}, and rollout.servers={rollout.servers}"
        yield Problem("rollout.gpus", found, f"rollout.servers={len(rollout.gpus)}")
    wrong = [text for text in rollout.gpus if not re.fullmatch(r"\d+(,\d+)*", text)]
    if wrong:
        hint = "numbers of a server's GPUs with commas: rollout.gpus=['6,7']"
        yield Problem("rollout.gpus", f"{wrong[0]!r} is no list of GPUs", hint)
        return
    if rollout.nodes or rollout.sleep or not has_gpu:
        return
    taken = config.launch.processes
    named = {int(number) for text in rollout.gpus for number in text.split(",")}
    if taken is None or not named or min(named) < taken:
        hint = "share the ranks' with rollout.sleep=true, or name GPUs that no rank has, e.g."
        whose = "all GPUs are the ranks'" if taken is None else f"the ranks have the first {taken}"
        found = f"{rollout.gpus or 'none'} for servers, and {whose}"
        first = taken or 1
        own = f"launch.processes={first} rollout.gpus=['{first}'] rollout.servers=1"
        yield Problem("rollout.gpus", found, f"{hint} {own}")


def _of_python(python: str | None) -> Iterator[Problem]:
    hint = "python -m venv vllm && vllm/bin/pip install vllm, then"
    hint += " rollout.python=vllm/bin/python"
    if python is None and not registry.installed("vllm"):
        found = "the Python of the ranks has no vLLM, and no other is given"
        yield Problem("rollout.python", found, hint)
    if python is not None and shutil.which(runtime.user_path(python)) is None:
        yield Problem("rollout.python", f"no command {python!r}", hint)


def _of_adapters(config: Config) -> Iterator[Problem]:
    if getattr(config.peft, "dora", False):
        hint = "vLLM has no weight-decomposed adapters: peft.dora=false, or rollout=local"
        yield Problem("peft.dora", "true with rollout=vllm", hint)
    if saved := getattr(config.peft, "modules_to_save", []):
        hint = "vLLM takes low-rank adapters alone: peft.modules_to_save=[], or rollout=local"
        yield Problem("peft.modules_to_save", f"{saved} with rollout=vllm", hint)
