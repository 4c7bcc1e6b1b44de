"""What the model before training, or another one that is learned from, makes of the records of a
run, worked out once for all runs that ask it the same: by all ranks, before the first step. The
model before training is no second one; another is loaded if something is missing, and goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from launcher import fingerprint
from launcher.config.compose import compose
from launcher.config.derive.plan import Plan
from launcher.config.schema import AdapterConfig, Config
from launcher.core.errors import ConfigError
from launcher.core.files import write_json
from launcher.core.rundir import RunDir
from launcher.core.runtime import Ranks
from launcher.data.cache import Column, JoinedCache, Per, TokenCache
from launcher.data.pack.loader import Row
from launcher.data.reference import References, ReferenceStore, Values
from launcher.distributed import collectives
from launcher.evals import runner
from launcher.health.isolation import isolate, share
from launcher.model.head import Head
from launcher.objectives.base import Objective
from launcher.scoring.evaluator import rows_to_score

#: Batches of every rank after which what is there is kept.
_ROUND = 64
#: Seconds between two lines of progress.
_EVERY_S = 10.0


def open_references(
    run: RunDir,
    config: Config,
    plan: Plan,
    ranks: Ranks,
    objective: Objective,
    origin: dict[str, str],
) -> References:
    """Where the columns of `objective.reference` are kept for the model that the run began with;
    the run folder says which that is. All ranks call this."""
    known = ranks.is_main and run.reference.is_file()
    identity = [] if known else _identity(config, plan, objective, origin)
    if ranks.is_main and not known:
        write_json(run.reference, {"model": identity})
    collectives.barrier()
    return references_of(run, config, objective)


def references_of(run: RunDir, config: Config, objective: Objective) -> References:
    """The same of a run that has begun; `DataError` for another one."""
    return References.of_run(run, config, objective.reference, objective.held_out_reference)


def _identity(
    config: Config, plan: Plan, objective: Objective, origin: dict[str, str]
) -> list[Any]:
    """What decides the values: the question, the model and how it computes."""
    refer, other = type(objective).refer, objective.referent_identity
    question = f"{refer.__module__}.{refer.__qualname__}"
    if other is not None:
        keys = config.objective.models
        return [question, {key: origin[key] for key in keys}, plan.dtype, plan.precision, *other]
    parts: list[Any] = [question, origin]
    parts += [plan.dtype, plan.precision, config.model.quantization.name]
    parts.append(config.model.add_tokens)
    if not origin["base"]:  # made from its config and the seed
        parts.append([compose.to_dict(config)["model"], config.seed])
    if isinstance(config.peft, AdapterConfig) and config.peft.adapter:
        folder = Path(config.peft.adapter)
        parts += [fingerprint.file_digest(path) for path in sorted(folder.glob("adapter_model.*"))]
    return parts


class Referee:
    """Fills the columns of `objective.reference`; every rank calls the same methods."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        ranks: Ranks,
        device: torch.device,
        objective: Objective,
        head: Head,
        student: Any,
        *,
        should_stop: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        self._config, self._plan, self._ranks, self._device = config, plan, ranks, device
        self._objective, self._head, self._student = objective, head, student
        self._should_stop, self._say = should_stop, say
        self._other: tuple[Head, Any] | None = None

    def fill(
        self,
        store: ReferenceStore,
        caller: Any,
        cache: TokenCache | JoinedCache,
        records: Sequence[int],
        what: str,
    ) -> None:
        """Work out what `store` misses for `records` of `cache`, with a line of progress now and
        then.

        What is there is kept when this is cut short: raises
        `launcher.evals.runner.EvaluationStopped`.
        """
        # Of one rank: another run may be filling the columns.
        mine = store.missing(cache, records) if self._ranks.is_main else []
        missing = collectives.gather_objects(mine)[0]
        if not missing:
            return
        head, caller = self._asked(cache, caller)
        started = said = time.monotonic()
        count = 0
        for part in self._rounds(store, cache, missing):
            values = self._values(store, head, caller, cache, part)
            gathered = collectives.gather_objects(values)
            if self._ranks.is_main:
                store.add(cache, {i: own for found in gathered for i, own in found.items()})
            count += len(part)
            if time.monotonic() - said > _EVERY_S and count < len(missing):
                said = time.monotonic()
                self._say(f"reference: {count:,} of {len(missing):,} {what}")
        collectives.barrier()
        store.attach(cache)  # what other hosts have mapped before need not show what is there now
        seconds = time.monotonic() - started
        self._say(f"reference: {self._objective.asks} on {count:,} {what}, {seconds:.1f} s")

    def _asked(self, cache: TokenCache | JoinedCache, caller: Any) -> tuple[Head, Any]:
        """Whom to ask: a head, and what is called for a forward."""
        if self._objective.referent_identity is None:
            self._require_adapter()
            return self._head, caller
        if self._other is None:
            self._other = self._objective.referent(self._student, self._device)
            head, model = self._other
            for note in isolate(head, model, model, cache, self._device, collectives.all_agree):
                self._say(f"attention of {self._objective.asks}: {note}")
            if (group := self._head.sequence) is not None:
                share(head, model, model, cache, self._device, group, collectives.all_agree)
        return self._other

    def _require_adapter(self) -> None:
        """Raises `ConfigError` where the model before training can no longer be made."""
        peft = self._config.peft
        if isinstance(peft, AdapterConfig) and peft.adapter and not Path(peft.adapter).is_dir():
            raise ConfigError(
                f"the adapter that the run began with is gone: {peft.adapter}",
                where="peft.adapter",
                hint="put it back: what the model before training makes of further records is"
                " needed",
            )

    def _rounds(
        self, store: ReferenceStore, cache: TokenCache | JoinedCache, records: Sequence[int]
    ) -> Iterator[Sequence[int]]:
        """The records in parts, each of some batches a rank."""
        # Many numbers a token are kept more often.
        batches = max(1, 8 * _ROUND // max(8, sum(column.width for column in store.columns)))
        most = batches * self._ranks.world_size * self._config.eval.batch_tokens
        filled = np.cumsum([int(cache.lengths[i]) for i in records]) // most
        bounds = np.flatnonzero(np.diff(filled)) + 1
        for begin, end in zip([0, *bounds], [*bounds, len(records)], strict=True):
            yield records[int(begin) : int(end)]

    @torch.no_grad()
    def _values(
        self,
        store: ReferenceStore,
        head: Head,
        caller: Any,
        cache: TokenCache | JoinedCache,
        records: Sequence[int],
    ) -> dict[int, Values]:
        """Of this rank's share."""
        found: dict[int, Values] = {}
        references, objective = self._objective.references, self._objective
        assert references is not None
        refer = objective.refer if store is references.train else objective.refer_held_out
        rows = rows_to_score(
            cache, records, head, self._config, self._plan, self._ranks, self._device
        )
        for row, ids in runner.computed(rows, self._should_stop):
            columns = refer(head, caller, row)
            if ids:
                made = {name: values.cpu().numpy() for name, values in columns.items()}
                found |= _split(store.columns, row, ids, made)
        return found


def _split(
    columns: Sequence[Column], row: Row, ids: Sequence[int], made: Values
) -> dict[int, Values]:
    """The values of each record of a row."""
    documents = np.cumsum([0, *row.sizes])
    starts = row.document_starts.cpu().numpy()[documents]
    targets = np.searchsorted(row.target_index.cpu().numpy(), starts)
    bounds = {column.name: targets if column.per is Per.target else documents for column in columns}
    return {
        record: {
            name: values[bounds[name][i] : bounds[name][i + 1]] for name, values in made.items()
        }
        for i, record in enumerate(ids)
    }
