"""The classes of a classifier: their names and order, and the number of each record's class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.config.derive.architecture import head_names
from launcher.config.schema import ClassifyConfig, Config
from launcher.core.errors import ConfigError, DataError, did_you_mean
from launcher.data.cache import JoinedCache, TokenCache
from launcher.objectives.classify.classes import Classes

#: Column of prepared data with the names of a text's classes.
COLUMN = "label"


def learned(config: Config, train: TokenCache | JoinedCache) -> Classes:
    """The classes of the training data: see `of_counts`."""
    return of_counts(config, label_counts(train))


def of_counts(config: Config, counts: Counter[tuple[str, ...]]) -> Classes:
    """The classes of training data with so many records of each label: those of `data.labels`, else
    all that occur, sorted.

    A model with a head of its own for just these names gives the order. Raises `DataError` for
    data with one class, `ConfigError` for options that do not fit the classes.
    """
    objective = config.objective
    assert isinstance(objective, ClassifyConfig)
    found = Counter[str]()
    for labels, count in counts.items():
        found.update(dict.fromkeys(labels, count))
    outside = objective.out_of_scope
    found.pop(str(outside), None)
    names = [name for name in config.data.labels if name != outside] or sorted(found, key=_order)
    names = _as_the_model(config, names, objective.new_head)
    if len(names) < (1 if objective.multi_label else 2):
        raise DataError(
            f"nothing to tell apart: all records are {names[0]!r}" if names else "no label at all",
            where="data.train",
            hint="a classifier needs records of two classes (objective.multi_label=true: of one)",
        )
    classes = Classes(
        names=names,
        multi_label=objective.multi_label,
        out_of_scope=outside,
        records=[found[name] for name in names],
        usual=[],
        weights=_weights(objective, names, found, sum(counts.values())),
        seed=config.seed,
        new_head=objective.new_head,
    )
    usual = min(counts, key=lambda labels: (-counts[labels], labels))
    return replace(classes, usual=classes.numbers(usual))


def label_counts(cache: TokenCache | JoinedCache) -> Counter[tuple[str, ...]]:
    """How many records have each label."""
    counts = Counter[tuple[str, ...]]()
    for part in cache.parts:
        for names, size in zip(part.values[COLUMN], part.count(COLUMN), strict=True):
            counts[tuple(names)] += size
    return counts


def number(cache: TokenCache | JoinedCache, classes: Classes) -> None:
    """Give the records of `cache` the numbers of their classes: int64 [documents], or of several
    that may apply 0 and 1, fp32 [documents, classes].

    Raises `DataError`, naming file and line, for a label that is no class.
    """
    for part in cache.parts:
        rows = []
        for i, names in enumerate(part.values[COLUMN]):
            try:
                rows.append(classes.numbers(names))
            except KeyError:
                require_known(names, classes, part.where(part.first(COLUMN, i)))
        part.give(COLUMN, _targets(rows, classes))


def require_known(names: Iterable[str], classes: Classes, where: str) -> None:
    """`DataError` if a label of the record at `where` is no class."""
    for name in names:
        if name not in classes.names and name != classes.out_of_scope:
            raise DataError(
                f"label {name[:100]!r} is no class of the training data",
                where=where,
                hint=did_you_mean(name, classes.names[:200])
                + "; classes are data.labels, or what occurs in data.train",
            )


def require_out_of_scope(
    count: int, labels: Iterable[Collection[str]], classes: Classes, limit: int | None = None
) -> None:
    """`DataError` unless the first `limit` of `count` held-out records, with these labels, can tell
    a threshold for texts out of scope."""
    used = count if limit is None else min(limit, count)
    told = enumerate((classes.out_of_scope in names for names in labels), 1)
    outside = sum(is_outside for _, is_outside in islice(told, used))
    if 2 <= outside < used:
        return
    found = f"{outside} of {'the first ' if used < count else ''}{used} held-out records are"
    least, among = None, outside
    for number, is_outside in told:  # the rest of them
        among += is_outside
        if 2 <= among < number:
            least = number
            break
    raise DataError(
        f"{found} {classes.out_of_scope!r}: no threshold can be chosen",
        where="eval.limit" if used < count else "data.validation",
        hint="give two records at least with that label and some of the classes"
        + (f", eval.limit={least} for one" if least else "")
        + ", or objective.out_of_scope=null",
    )


def _order(name: str) -> tuple[bool, int, str]:
    """Indices by their value, before names."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _as_the_model(config: Config, names: list[str], new_head: bool) -> list[str]:
    own = head_names(config.model)
    if own is None or new_head:
        return names
    if set(own) == set(names) and (not config.data.labels or own == names):
        return own
    missing = [name for name in own if name not in names]
    raise ConfigError(
        f"the model has a head for {len(own)} classes, the data has {len(names)}; of the model's "
        + (f"the data lacks {', '.join(missing[:5])}" if missing else "the order is another"),
        where="model.name",
        hint="objective.new_head=true starts with a new head; to go on with the model's, give"
        " data.labels in its order",
    )


def _weights(
    objective: ClassifyConfig, names: list[str], found: Counter[str], total: int
) -> list[float] | None:
    wanted = objective.class_weights
    if wanted is None:
        return None
    if wanted == "balanced":
        if objective.multi_label:
            return [(total - found[n]) / found[n] if found[n] else 1.0 for n in names]
        total = sum(found[name] for name in names)
        return [total / (len(names) * found[n]) if found[n] else 1.0 for n in names]
    for name in wanted:
        if str(name) not in names:
            hint = did_you_mean(str(name), names[:50])
            raise ConfigError(
                f"no class is called {name!r}", where="objective.class_weights", hint=hint
            )
    given = {str(name): float(weight) for name, weight in wanted.items()}
    return [given.get(name, 1.0) for name in names]


def _targets(rows: list[list[int]], classes: Classes) -> NDArray[Any]:
    """Classes by number of each label; of several that may apply, 0 and 1 for each class."""
    if not classes.multi_label:
        return np.array([row[0] for row in rows], np.int64)
    flags = np.zeros((len(rows), len(classes.names)), np.float32)
    for row, numbers in zip(flags, rows, strict=True):
        row[numbers] = 1
    return flags
