"""Evaluation of the model in training on held-out records, spread over the ranks."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from launcher.config.plan import Plan
from launcher.config.schema import Config
from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.loader import make_row
from launcher.evals import generation, runner, store
from launcher.evals.further import TRAIN
from launcher.evals.metric import make_metrics, score_all
from launcher.evals.records import LossRecord, Prompt, Results
from launcher.model.head import TargetHead
from launcher.model.load import model_source
from launcher.rundir import RunDir
from launcher.runtime import Ranks
from launcher.train import distributed
from launcher.train.held_out import evenly

Cache = TokenCache | JoinedCache


@dataclass(slots=True)
class RecordSet:
    """Records to be scored: ids in a cache, and those of them that ask for an answer."""

    cache: Cache
    ids: list[int]
    prompts: list[Prompt] = field(default_factory=list)


class Evaluator:
    """Scores a model on the splits in `caches`; every rank calls the same methods.

    `validation` is what the verdict rests on. Of `train` as many records are scored as there are
    held out, without answers, to see the gap between the two.

    `should_stop` is asked between batches, on all ranks equally often; it makes a method raise
    `launcher.evals.runner.EvaluationStopped`.
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        ranks: Ranks,
        caches: Mapping[str, Cache],
        tokenizer: Any,
        head: TargetHead,
        device: torch.device,
        should_stop: Callable[[], bool],
    ) -> None:
        self.config, self.plan, self.ranks = config, plan, ranks
        self.tokenizer, self.head, self.device = tokenizer, head, device
        self.should_stop = should_stop
        self.metrics = make_metrics(config.eval)
        self.held_out, self.further = self._sets(caches)

    def quick(self, engine: Any) -> dict[str, float]:
        """Scores of the metrics that need no generation."""
        return score_all(self.metrics, Results(losses=self._losses(self.held_out, engine)))

    def full(self, engine: Any, model: Any) -> Results:
        """Per-record results of all metrics, complete on every rank. `model` is the bare model."""
        results = self._score(self.held_out, engine, model)
        for name, part in self.further.items():
            results.further[name] = self._score(part, engine, model)
        return results

    def _score(self, part: RecordSet, engine: Any, model: Any) -> Results:
        losses = self._losses(part, engine)
        if not part.prompts:
            return Results(losses=losses)
        mine = generation.generate_records(
            part.prompts,
            model,
            self.tokenizer,
            max_new_tokens=self.config.eval.max_new_tokens,
            batch_tokens=self.config.eval.batch_tokens,
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            lockstep=self.config.engine.zero == 3,
            stop_tokens=self._stop_tokens(model, part),
            should_stop=self.should_stop,
        )
        return Results(losses, runner.gather(mine, expected=len(part.prompts)))

    def _losses(self, part: RecordSet, engine: Any) -> list[LossRecord]:
        lengths = [int(part.cache.lengths[i]) for i in part.ids]
        batches = runner.plan_batches(
            lengths,
            batch_tokens=min(self.config.eval.batch_tokens, self._batch_cap()),
            rank=self.ranks.rank,
            world_size=self.ranks.world_size,
            lockstep=self.config.engine.zero == 3,
        )
        rows = runner.rows_of(
            batches, part.ids, lambda ids: make_row(part.cache, ids).to(self.device)
        )
        mine = runner.loss_records(rows, lambda row: self.head.score(engine, row), self.should_stop)
        return runner.gather(mine, expected=len(part.ids))

    def _batch_cap(self) -> int:
        """Evaluation keeps no activations, so twice a training row fits where training fits."""
        return max(self.plan.max_length, 2 * self.plan.micro_batch * self.plan.max_length)

    def _sets(self, caches: Mapping[str, Cache]) -> tuple[RecordSet, dict[str, RecordSet]]:
        """The held-out records, and further sets by name."""
        generates = any(metric.needs == "generation" for metric in self.metrics)
        found: dict[str, RecordSet] = {}
        for name, cache in caches.items():
            if name != TRAIN:
                ids = list(range(len(cache))[: self.config.eval.limit])
                found[name] = RecordSet(cache, ids, self._prompts(cache, ids) if generates else [])
        held_out = found.pop("validation")
        if TRAIN in caches:
            ids = evenly(len(caches[TRAIN]), len(held_out.ids))
            found[TRAIN] = RecordSet(caches[TRAIN], ids)
        return held_out, found

    def _prompts(self, cache: Cache, ids: Sequence[int]) -> list[Prompt]:
        """The records that ask for an answer, at most `eval.generate_limit`."""
        found: list[Prompt] = []
        for record in ids:
            if len(found) == self.config.eval.generate_limit:
                break
            split = _split(cache, record)
            if split is not None:
                reference = self.tokenizer.decode(split[1], skip_special_tokens=True)
                found.append(Prompt(record, split[0], reference, cache.where(record)))
        return found

    def _stop_tokens(self, model: Any, part: RecordSet) -> list[int]:
        splits = [_split(part.cache, prompt.id) for prompt in part.prompts[:50]]
        references = [split[1] for split in splits if split is not None]
        return generation.find_stop_tokens(model, self.tokenizer, references)

    # ---- the base model's results, made once

    def base_key(self) -> str:
        """What the base's results depend on: model, data, options of evaluation, precision."""
        options = self.config.eval
        parts = [
            store.VERSION,
            model_identity(self.config),
            str(self.held_out.cache.folder),
            [[name, str(part.cache.folder), len(part.ids)] for name, part in self.further.items()],
            self.plan.precision,
            self.plan.dtype,
            sorted(options.metrics),
            [options.limit, options.generate_limit, options.max_new_tokens, options.answer_pattern],
            options.batch_tokens,
        ]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def _split(cache: Cache, record: int) -> tuple[list[int], list[int]] | None:
    tokens, targets = cache.record(record)
    return runner.prompt_and_reference(tokens.tolist(), targets.tolist())


def model_identity(config: Config) -> list[Any]:
    """Names a base model: source, revision, and size and time of every file if it is a folder."""
    source = model_source(config.model)
    folder = Path(source)
    files = []
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            info = path.stat()
            files.append([path.name, info.st_size, info.st_mtime_ns])
    return [source, config.model.revision, config.model.add_tokens, files]


def score_base(
    evaluator: Evaluator,
    run: RunDir,
    engine: Any,
    model: Any,
    say: Callable[[str], None],
) -> None:
    """Write eval/base.json from the cache, or by scoring the model, which still is the base."""
    target = run.eval / "base.json"
    cached = store.cache_path(evaluator.base_key())
    known = store.read_results(target) or store.read_results(cached)
    if not _agreed(known is not None):
        started = time.monotonic()
        results = evaluator.full(engine, model)
        if evaluator.ranks.is_main:
            for path in (cached, target):
                path.parent.mkdir(parents=True, exist_ok=True)
                store.write_results(
                    path, results, evaluator.metrics, seconds=round(time.monotonic() - started, 3)
                )
        say(f"base model scored on {len(results.losses)} held-out records")
    elif evaluator.ranks.is_main and not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(cached.read_bytes())
        say("base model's scores come from the cache")


def _agreed(mine: bool) -> bool:
    """Rank 0's answer, on every rank."""
    return bool(distributed.gather_objects(mine)[0])
