"""What is measured on a GPU: rows, ablations, profiles and peers, one line each, by value.

A new option of the config is ablated by one line in `ABLATIONS`, or for once by
`evidence.py --set "NAME: KEY=VALUE ..."`.
"""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

CHECKPOINTING = "model.gradient_checkpointing=true"
NF4 = "model.quantization=nf4"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measurement. `method` is an option of group `peft`, `words` are overrides of the config,
    `variables` are set in the environment, `needs` are modules without which it is left out."""

    name: str
    model: str
    method: str = "none"
    tool: str = "launcher"
    words: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    micro: int | None = None
    """Packs of a forward to begin with, where those of the command line would not fit."""

    @property
    def missing(self) -> list[str]:
        """Modules that it needs and that are not installed."""
        return [name for name in self.needs if not importlib.util.find_spec(name)]


def _case(name: str, model: str, method: str = "none", *words: str, **more: object) -> Case:
    return Case(name=name, model=model, method=method, words=words, **more)  # type: ignore[arg-type]


#: Most telling first: what time does not suffice for is left out from the end.
ROWS = (
    _case("1.7b full", "1.7b"),
    _case("8b LoRA", "8b", "lora"),
    _case("0.6b full", "0.6b"),
    _case("4b full, checkpointing", "4b", "none", CHECKPOINTING),
    _case("8b QLoRA, checkpointing", "8b", "lora", NF4, CHECKPOINTING, needs=("bitsandbytes",)),
    _case("1.7b full, checkpointing", "1.7b", "none", CHECKPOINTING),
    _case("8b LoRA, checkpointing", "8b", "lora", CHECKPOINTING),
    _case("4b full", "4b", micro=2),
    _case("8b QLoRA", "8b", "lora", NF4, needs=("bitsandbytes",)),
    _case("tiny full", "tiny"),
    _case("tiny LoRA, checkpointing", "tiny", "lora", CHECKPOINTING),
)

#: A key that states what holds anyway: any one has DeepSpeed train the only rank.
_DEEPSPEED = "engine.extra={zero_optimization:{contiguous_gradients:true}}"

#: name -> what is changed in the base row: overrides, or NAME=VALUE in capitals for a variable.
ABLATIONS = {
    "DeepSpeed, ZeRO-2": f"engine=zero2 {_DEEPSPEED}",
    "compiled": "model.compile=true",
    "FP8": "model.fp8=true",
    "FP8, compiled": "model.fp8=true model.compile=true",
    "DeepSpeed, ZeRO-3": f"engine=zero3 {_DEEPSPEED}",
    "one SDPA call a document": "model.attention=document",
    "token accuracy": "train.token_accuracy=true",
    "8-bit AdamW": "optim=adamw8bit",
    "half the micro-batch": "batch.micro=2",
    "fixed segments": "PYTORCH_ALLOC_CONF=expandable_segments:False",
}
_NEEDS = {"optim=adamw8bit": ("bitsandbytes",), "model.fp8=true": ("torchao",)}

#: Models of which, with their method, two steps are profiled.
PROFILES = ("1.7b full", "8b LoRA", "tiny full")

#: The same work by others: (name, tool, what it needs).
PEERS = (
    ("hand-written loop", "plain", ()),
    ("TRL", "trl", ("trl", "datasets")),
    ("TRL, Liger kernels", "trl-liger", ("trl", "datasets", "liger_kernel")),
)


def rows(models: Iterable[str]) -> list[Case]:
    """The rows of these models."""
    wanted = set(models)
    return [case for case in ROWS if case.model in wanted]


def base(models: Iterable[str], name: str | None = None) -> Case:
    """The row that ablations change and peers are compared with: the one of this name, or the
    first."""
    return next(case for case in rows(models) if name in (None, case.name))


def ablations(of: Case, names: Iterable[str] | None, more: Iterable[str]) -> list[Case]:
    """`of` with one thing changed each: those of the table by `names` (None: all), then `more`,
    each "KEY=VALUE ..." or "NAME: KEY=VALUE ..."."""
    table = {name: ABLATIONS[name] for name in (ABLATIONS if names is None else names)}
    for text in more:
        name, mark, words = text.partition(": ")
        table[name] = words if mark else text
    return [_changed(of, name, shlex.split(words)) for name, words in table.items()]


def _changed(of: Case, name: str, words: list[str]) -> Case:
    settings = dict(word.split("=", 1) for word in words if word.partition("=")[0].isupper())
    overrides = tuple(word for word in words if not word.partition("=")[0].isupper())
    needs = tuple(need for word in words for need in _NEEDS.get(word, ()))
    return replace(
        of,
        name=name,
        words=(*of.words, *overrides),
        variables={**of.variables, **settings},
        needs=(*of.needs, *needs),
    )


def profiles(models: Iterable[str]) -> list[Case]:
    """The rows that are profiled."""
    return [case for case in rows(models) if case.name in PROFILES]


def peers(of: Case) -> list[Case]:
    """The work of `of` done by others."""
    return [replace(of, name=name, tool=tool, needs=needs) for name, tool, needs in PEERS]
