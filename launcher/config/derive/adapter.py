"""Adapters that a run starts from: a folder of one as the model, and what its config says.

Standard library only. `model.name=FOLDER` of an adapter becomes `peft.adapter` (it is trained
further) or, where all weights are trained, `model.adapter` (it is merged into its base first).
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.config.schema import AdapterConfig, Config, ModelConfig, TinyModelConfig
from launcher.core import runtime
from launcher.core.errors import Problem

FILE = "adapter_config.json"

#: Option of `peft` -> its key in an adapter's config.
_KEYS = {
    "rank": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "dora": "use_dora",
    "rslora": "use_rslora",
    "modules_to_save": "modules_to_save",
}
#: What changes more than low-rank updates can, or the base itself.
_REFUSED = (
    "trainable_token_indices",
    "layer_replication",
    "lora_bias",
    "use_qalora",
    "kasa_config",
    "velora_config",
    "arrow_config",
    "corda_config",
    "lora_ga_config",
    "monteclora_config",
    "alora_invocation_tokens",
)
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva", None)


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    path = runtime.user_path(folder)
    return (path / FILE).is_file() and not (path / "config.json").is_file()


def settle(config: Config, given: Container[str] = ()) -> list[Problem]:
    """Write into `config` what follows from an adapter that it starts from: base, tokenizer, peft.

    `given` are the keys that the user has typed; one that the adapter says otherwise is a problem.
    """
    model, peft = config.model, config.peft
    if isinstance(model, TinyModelConfig):
        if model.adapter is None:
            return []
        hint = "the adapter names its base: model.adapter=FOLDER without model=tiny"
        return [Problem("model.adapter", f"{model.adapter!r} with model=tiny", hint)]
    if model.name and is_adapter(model.name):
        if isinstance(peft, AdapterConfig) and model.adapter is None:
            peft.adapter = peft.adapter or model.name
        else:
            model.adapter = model.adapter or model.name
        model.name = None
    problems: list[Problem] = []
    if model.adapter is not None:
        model.adapter, found = _take(model, model.adapter, "model.adapter")
        problems += found
    if isinstance(peft, AdapterConfig) and peft.adapter is not None:
        if model.adapter is not None:
            hint = "give one of them; a merged base gets a new adapter"
            return [Problem("peft.adapter", "given with model.adapter", hint)]
        peft.adapter, found = _take(model, peft.adapter, "peft.adapter")
        problems += found or _options(peft, given)
    return problems


def _take(model: ModelConfig, folder: str, where: str) -> tuple[str, list[Problem]]:
    """The adapter's absolute folder; base and tokenizer go into `model` where none is given."""
    path = runtime.user_path(folder).absolute()
    content = read(path)
    if content is None:
        hint = f"give a folder with {FILE}, as an export or peft's save_pretrained writes it"
        return str(path), [Problem(where, f"{folder} holds no adapter", hint)]
    problems = list(_unusable(content, where))
    if model.name is None:
        model.name = content.get("base_model_name_or_path")
        model.revision = model.revision or content.get("revision")
        problems += _base_problems(model.name, where, folder)
    if model.tokenizer is None and (path / "tokenizer_config.json").is_file():
        model.tokenizer = str(path)
    return str(path), problems


def read(folder: str | Path) -> dict[str, Any] | None:
    """An adapter's config; None if there is none that can be read."""
    try:
        content = json.loads((runtime.user_path(folder) / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _unusable(content: Mapping[str, Any], where: str) -> Iterator[Problem]:
    method = content.get("peft_type")
    merged = "merge it into its base with the tool that made it, and give that folder as model.name"
    if method != "LORA":
        yield Problem(where, f"an adapter of the method {method}, not LoRA", merged)
        return
    if content.get("task_type") == "SEQ_CLS":
        hint = "`launcher export RUN --merge` writes a folder to give as model.name"
        yield Problem(where, "an adapter of a classifier, whose head is in no base", hint)
    for key in _REFUSED:
        if content.get(key):
            yield Problem(where, f"an adapter with {key}", merged)
    if content.get("bias", "none") != "none":
        yield Problem(where, f"an adapter with bias={content['bias']}", merged)
    start = content.get("init_lora_weights", True)
    if start not in _PLAIN_STARTS:
        yield Problem(where, f"an adapter begun by {start}, which changes the base", merged)


def _base_problems(base: str | None, where: str, folder: str) -> Iterator[Problem]:
    hint = f"name it: model.name=BASE {where}={folder}"
    if not base:
        yield Problem(where, "the adapter does not name its base", hint)
    elif is_adapter(base):
        yield Problem(where, f"its base {base} is an adapter too", "merge that one first")
    elif base.startswith(("/", "./", "../", "~")) and not runtime.user_path(base).is_dir():
        yield Problem(where, f"its base {base} is not there", hint)


def _options(peft: AdapterConfig, given: Container[str]) -> Iterator[Problem]:
    """Take the adapter's own options; the user's may only repeat them."""
    content = read(str(peft.adapter)) or {}
    modules, parameters = content.get("target_modules"), content.get("target_parameters")
    named = [modules] if isinstance(modules, str) else sorted(modules or ())
    values = {"targets": [*named, *sorted(parameters or ())]}
    for option, key in _KEYS.items():
        if not hasattr(peft, option):
            continue  # an option of another method
        default = [] if option == "modules_to_save" else getattr(type(peft)(), option)
        value = content.get(key, default)
        values[option] = default if value is None else value
    for option, value in values.items():
        asked = getattr(peft, option)
        if f"peft.{option}" in given and asked != value:
            hint = f"leave it out; or merge first and train a new one: model.adapter={peft.adapter}"
            yield Problem(f"peft.{option}", f"{asked!r}, but the adapter has {value!r}", hint)
        setattr(peft, option, value)
