"""The rules of further models that an objective learns from: whether they are there, and fit."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.config.derive import adapter, memory, vocabulary
from launcher.config.schema import Config
from launcher.core import runtime
from launcher.core.errors import Problem


def check(config: Config) -> Iterator[Problem]:
    """Problems of each of them, as far as files tell that are here."""
    for key, (name, revision) in config.objective.models.items():
        where = f"objective.{key}"
        problem = _of_folder(name, where)
        folder = None if problem else memory.local_folder(name, revision)
        if problem:
            yield problem
        elif folder:  # else it is at the hub
            theirs, ours = vocabulary.read(folder), own_tokens(config)
            other = theirs and ours and vocabulary.difference(ours, theirs)
            if other:
                yield of_tokenizer(where, name, other)


def of_tokenizer(where: str, name: str, difference: str) -> Problem:
    """What to say of a model whose tokenizer is another than that of the model in training."""
    hint = f"{where}=FOLDER of a model with the same tokenizer, one of the same family; what"
    hint += " another one writes can be learned as data: objective=sft"
    return Problem(where, f"{name} has another tokenizer than the model: {difference}", hint)


def _of_folder(name: str, where: str) -> Problem | None:
    """What keeps a folder from being opened; None for one that is a model, and for a hub name."""
    folder = runtime.user_path(name)
    whole = f"{where}=FOLDER, the folder of a Hugging Face model such as a run's export"
    if adapter.is_adapter(folder):
        hint = f"{where}=FOLDER of a whole model: merge the adapter into its base first"
        return Problem(where, f"{name} is an adapter", hint)
    if folder.is_dir():
        is_model = (folder / "config.json").is_file()
        return None if is_model else Problem(where, f"{name} has no config.json", whole)
    if name.startswith((".", "/", "~")):
        return Problem(where, f"there is no folder {name}", whole)
    return None


def own_tokens(config: Config) -> dict[str, int] | None:
    """The tokens of the model in training; None unless its tokenizer is here."""
    model = config.model
    name = model.tokenizer or model.name
    folder = runtime.user_path(name) if name else None
    if folder and not folder.is_dir():
        revision = None if model.tokenizer else model.revision
        folder = memory.local_folder(str(name), revision)
    tokens = folder and vocabulary.read(folder)
    if not tokens:
        return None
    for token in model.add_tokens:
        tokens.setdefault(token, max(tokens.values()) + 1)
    return tokens
