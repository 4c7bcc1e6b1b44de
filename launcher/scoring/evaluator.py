"""Evaluation of the model in training on held-out records, spread over the ranks."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from launcher.config.derive.plan import Plan
from launcher.config.schema import AdapterConfig, Config
from launcher.config.schema.variants import GRADER, metric_rows, metrics_of
from launcher.core.errors import ConfigError
from launcher.core.files import write_atomic
from launcher.core.rundir import RunDir
from launcher.core.runtime import Ranks
from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.chat.calls import CallReader
from launcher.data.chat.turn_ends import taught
from launcher.data.origins import call_as_now
from launcher.data.pack.loader import Row, make_row
from launcher.data.reference import References, ReferenceStore
from launcher.distributed import collectives, gathered
from launcher.evals import generation, runner, store
from launcher.evals.comparison.record_sets import TRAIN
from launcher.evals.decoding import Decoding
from launcher.evals.journal import Journal
from launcher.evals.metric import Metric, make_metrics, score_all, score_draws
from launcher.evals.metrics.graded import Graded
from launcher.evals.records import (
    Generation,
    Results,
    TokenizedPrompt,
    passes,
    prompt_and_reference,
)
from launcher.fingerprint import objective_identity
from launcher.model.adapter import inner_model
from launcher.model.head import Head
from launcher.model.load import model_source
from launcher.objectives.base import Objective

#: Packages whose versions may change a score.
_COMPUTE = ("launcher", "torch", "transformers", "peft", "tokenizers")


class Evaluator:
    """Scores a model on the validation split; every rank calls the same methods.

    `should_stop` is asked between batches, on all ranks equally often; it makes a method raise
    `launcher.evals.runner.EvaluationStopped`. `generate` makes the answers, as
    `launcher.evals.generation.generate_records` does; they end at one of the tokens `taught` too.
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        ranks: Ranks,
        cache: TokenCache | JoinedCache,
        tokenizer: Any,
        head: Head,
        device: torch.device,
        should_stop: Callable[[], bool],
        objective: Objective,
        generate: Callable[..., list[Generation]] = generation.generate_records,
        taught: Sequence[int] = (),
    ) -> None:
        self.config, self.plan, self.ranks, self.cache = config, plan, ranks, cache
        self.tokenizer, self.head, self.device = tokenizer, head, device
        self.should_stop, self.objective, self._generate = should_stop, objective, generate
        self.taught = list(taught)
        self.metrics = make_metrics(config.eval, config.objective.own_metrics)
        for metric in self.metrics:
            if isinstance(metric, Graded):
                metric.calls = CallReader(tokenizer).calls
        count = len(cache)
        self.ids = list(
            range(count if config.eval.limit is None else min(config.eval.limit, count))
        )
        self._generates = any(metric.needs == "generation" for metric in self.metrics)
        self._prompts: list[TokenizedPrompt] | None = None
        #: evaluators of records beyond the held-out ones, by split.
        self.further: dict[str, Evaluator] = {}

    def quick(self, engine: Any) -> dict[str, float]:
        """Scores of the metrics that need no generation."""
        return score_all(self.metrics, self._scored(engine))

    def during(self, engine: Any, model: Any) -> dict[str, float]:
        """The same, with those of generated answers where `eval.draws` wants them; `model` is the
        bare model."""
        scores = self.quick(engine)
        draws, graded = self.config.eval.draws, self._drawn
        if not draws or not graded:
            return scores
        answers = [self._answers(model, None, lambda text: None, draw) for draw in range(draws)]
        found = collectives.by_main(self.ranks.is_main, lambda: score_draws(graded, answers))
        return scores | found

    @property
    def drawn(self) -> list[str]:
        """Names of the metrics that `during` takes of generated answers."""
        return [metric.name for metric in self._drawn]

    @property
    def _drawn(self) -> list[Metric[Any]]:
        rows = metric_rows(self.config)
        return [
            metric
            for metric in self.metrics
            if metric.needs == "generation" and not rows[metric.name].needs_base
        ]

    def full(
        self,
        engine: Any,
        model: Any,
        journal: Journal | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> Results:
        """Per-record results of all metrics, complete on every rank. `model` is the bare model.

        Finished answers are kept in `journal`, and those that are in it already are taken from it.
        """
        results = self._scored(engine)
        if self._generates:
            results.passes["generation"] = self._answers(model, journal, say)
        return results

    def check(self, model: Any) -> None:
        """`DataError` if a metric could not score answers to these records."""
        for metric in self.metrics:
            if metric.needs == "generation":
                metric.check(self.prompts(model))

    def rehearse(self, model: Any, say: Callable[[str], None]) -> None:
        """Generate a few tokens if answers are measured; `ConfigError` if the model cannot."""
        if self._generates:
            with (
                gathered.for_generation(model, self.config, self.ranks, say),
                generation.inference(model),
            ):
                generation.reads_padding(model)

    def _answers(
        self, model: Any, journal: Journal | None, say: Callable[[str], None], draw: int = 0
    ) -> list[Generation]:
        prompts = self.prompts(model)
        found = journal.read() if journal and self.ranks.is_main else []
        known: list[Generation] = collectives.gather_objects(found)[0]
        if known:
            say(f"{len(known)} of {len(prompts)} answers were finished before")
        answered = {record.id for record in known}
        remaining = [prompt for prompt in prompts if prompt.id not in answered]
        with gathered.for_generation(model, self.config, self.ranks, say) as lockstep:
            mine = self._generate(
                remaining,
                model,
                self.tokenizer,
                Decoding.of(self.config, draw),
                batch_tokens=self.config.eval.batch_tokens,
                rank=self.ranks.rank,
                world_size=self.ranks.world_size,
                lockstep=lockstep,
                stop_tokens=generation.find_stop_tokens(model, self.tokenizer, self.taught),
                should_stop=self.should_stop,
                done=journal.append if journal else None,
            )
        new = runner.gather(mine, expected=len(remaining))
        return sorted([*known, *new], key=lambda record: record.id)

    def everything(
        self,
        engine: Any,
        model: Any,
        journal: Journal | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> Results:
        """`full`, and the results of the further sets; of each the answers are kept apart.

        The objective judges the further sets beside the held-out records; training records have
        losses alone.
        """
        results = self.full(engine, model, journal, say)
        for split, own in self.further.items():
            kept = journal.part(split) if journal else None
            results.further[split] = part = own.full(engine, model, kept, say)
            if split == TRAIN:
                part.passes = {"loss": part.losses}
            else:
                self.objective.judge_further(split, part, results)
        return results

    def _scored(self, engine: Any) -> Results:
        """What needs no generation."""
        mine = self.objective.score(self.head, engine, self._rows(), self.should_stop)
        results = Results({name: runner.gather(records) for name, records in mine.items()})
        scored = len(results.ids())
        assert scored == len(self.ids), f"{scored} of {len(self.ids)} records were scored"
        self.objective.judge(results)
        return results

    def _rows(self) -> Iterator[tuple[Row | None, list[int]]]:
        """This rank's rows, and their record ids."""
        return rows_to_score(
            *(self.cache, self.ids, self.head, self.config, self.plan, self.ranks, self.device)
        )

    def referred(
        self, references: References
    ) -> Iterator[tuple[ReferenceStore, TokenCache | JoinedCache, list[int], str]]:
        """What is scored, further sets too: where its reference is kept, cache, records and what
        to call them."""
        yield references.held_out, self.cache, self.ids, "held-out records"
        for split, own in self.further.items():
            kept = references.train if split == TRAIN else references.held_out
            yield kept, own.cache, own.ids, f"records of {split}"

    def text(self, record: int) -> str:
        """A record as text, without special tokens."""
        tokens, _ = self.cache.record(record)
        decoded: str = self.tokenizer.decode(tokens.tolist(), skip_special_tokens=True)
        return decoded

    def about(self, results: Results) -> dict[str, Any]:
        """What is written beside the results; `ConfigError` for keys that mean something there."""
        return _untaken(self.objective.about(results))

    def about_comparison(
        self, results: Results, metrics: Sequence[Metric[Any]]
    ) -> tuple[dict[str, Any], list[str]]:
        """What is written beside the comparison, sections of the report too, and what to tell."""
        about, told = self.objective.about_comparison(results, metrics)
        return {**_untaken(about), "sections": self.objective.sections(results, about)}, told

    def lines(
        self, base: Results | None, tuned: Results, metrics: Sequence[Metric[Any]]
    ) -> list[dict[str, Any]]:
        """Each record as a line of eval/predictions.jsonl, with null for what nobody knows."""
        found = self.objective.lines(base, tuned, metrics, self.cache.where, self.text)
        return store.filled(found)

    def prompts(self, model: Any) -> list[TokenizedPrompt]:
        """The validation records that ask for an answer, at most `eval.generate_limit`."""
        if self._prompts is None:
            self._prompts = []
            for record in self.ids:
                if len(self._prompts) == self.config.eval.generate_limit:
                    break
                split = self._split(record)
                if split is not None:
                    reference = self.tokenizer.decode(split[1], skip_special_tokens=True)
                    where = self.cache.where(record)
                    self._prompts.append(TokenizedPrompt(record, split[0], reference, where))
        return self._prompts

    def _split(self, record: int) -> tuple[list[int], list[int]] | None:
        tokens, targets = self.objective.question(self.cache, record)
        return prompt_and_reference(tokens, targets)

    # ---- the base model's results, made once

    def base_key(self, data_key: str, commit: str | None = None) -> str:
        """What the base's results depend on: model, data, options of evaluation, precision, and
        the code and the way in which documents are computed.

        `commit` is that of a base from the hub, whose name and revision may come to mean another.
        """
        options, kinds = self.config.eval, passes(self.config.objective)
        parts = [
            store.VERSION,
            [[name, *(one.name for one in fields(kind))] for name, kind in kinds.items()],
            [*model_identity(self.config), commit],
            data_key,
            [[name, str(own.cache.folder), len(own.ids)] for name, own in self.further.items()],
            self.plan.precision,
            self.plan.dtype,
            [self.head.layout, *(version(package) for package in _COMPUTE)],
            sorted([*(options.metrics or ()), *(one.state for one in self.metrics if one.state)]),
            [options.limit, options.generate_limit, options.answer_pattern],
            asdict(Decoding.of(self.config)),
            options.batch_tokens,
            self.taught,
            # A base may have a head that begins at random.
            [*objective_identity(self.config), self.objective.state],
            self.objective.spec and asdict(self.objective.spec),
        ]
        if any(name.startswith(GRADER) for name in options.metrics or ()):
            # A grader reads the records where they stand, and the results say where.
            parts.append([self.cache.where(i) for i in self.ids[:1]])
        return _digest(parts)

    def journal(self, run: RunDir, name: str, *depends: Any) -> Journal:
        """Where the answers of the model `name` are kept until its results are stored."""
        return Journal(run.eval / "journal", name, _digest([name, *depends]), self.ranks.rank)


def rows_to_score(
    cache: TokenCache | JoinedCache,
    ids: Sequence[int],
    head: Head,
    config: Config,
    plan: Plan,
    ranks: Ranks,
    device: torch.device,
) -> Iterator[tuple[Row | None, list[int]]]:
    """This rank's rows of the records `ids`, as the head has documents laid out, and the records
    of each: none of filler, which is computed where ranks have to stay in step."""
    lengths = [int(cache.lengths[i]) for i in ids]
    if not head.isolates:  # each document is a line
        documents = map(cache.documents, ids)
        lengths = [len(own) * max(own) for own in documents]
    shared = 1 if head.sequence is None else head.sequence.size
    # Nothing is kept for a backward pass, so twice a training row fits where training fits.
    most = max(plan.max_length, 2 * plan.micro_batch * plan.max_length)
    batches = runner.plan_batches(
        lengths,
        batch_tokens=min(config.eval.batch_tokens, most),
        rank=ranks.rank // shared,
        world_size=ranks.world_size // shared,
        lockstep=plan.zero == 3,
        new_tokens=None if head.isolates else 0,
        equal=not (head.isolates or head.pads),
    )
    rows = runner.rows_of(batches, ids, lambda chosen: make_row(cache, chosen).to(device))
    if ranks.rank % shared:  # another rank tells what the group makes of them
        return ((row, []) for row, _ in rows)
    return rows


def make_evaluator(
    config: Config,
    plan: Plan,
    ranks: Ranks,
    folders: Mapping[str, Any],
    tokenizer: Any,
    head: Head,
    device: torch.device,
    should_stop: Callable[[], bool],
    objective: Objective,
    generate: Callable[..., list[Generation]] = generation.generate_records,
) -> Evaluator:
    """The evaluator of the held-out records of a run, with those of all further sets.

    `folders` is data.json; the other arguments are those of `Evaluator`. Of the training records
    only the loss is taken, of as many as are held out and evenly spread. Raises `DataError`
    for records that the objective cannot score.
    """

    def make(split: str, of: Config = config) -> Evaluator:
        cache = TokenCache.open(Path(folders[split]))
        call_as_now(cache, config, split)
        objective.prepare(cache)
        if (kept := objective.references) is not None:
            (kept.train if split == TRAIN else kept.held_out).attach(cache)
        common = (tokenizer, head, device, should_stop, objective, generate, ends)
        return Evaluator(of, plan, ranks, cache, *common)

    ends = taught(folders, tokenizer)
    evaluator = make("validation")
    for split, folder in folders.items():
        if isinstance(folder, str) and split not in ("validation", TRAIN):
            evaluator.further[split] = make(split)
    if "loss" in metrics_of(config):
        seen = make(TRAIN, replace(config, eval=replace(config.eval, metrics=["loss"])))
        seen.ids = evenly(len(seen.cache), len(evaluator.ids))
        if not seen.cache.index.counts.asked:  # of what has no answer there is no loss
            evaluator.further[TRAIN] = seen
    return evaluator


def _untaken(about: dict[str, Any]) -> dict[str, Any]:
    """What an objective says, unless the launcher says that itself."""
    if taken := sorted(store.TAKEN & about.keys()):
        raise ConfigError(
            f"the objective says {', '.join(taken)} of its results, which others say",
            where="objective.name",
            hint="give it another name",
        )
    return about


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spaced."""
    most = min(most, count)
    return [i * count // most for i in range(most)]


def _digest(parts: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def model_identity(config: Config) -> list[Any]:
    """Names what a run starts from: source, revision, and size and time of every file of a folder;
    of an adapter that is trained further too."""
    source = model_source(config.model)
    adapter = config.peft.adapter if isinstance(config.peft, AdapterConfig) else None
    files = []
    for folder in (Path(source), *([Path(adapter)] if adapter else [])):
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            info = path.stat()
            files.append([path.name, info.st_size, info.st_mtime_ns])
    quantization = config.model.quantization.name
    return [
        *(source, config.model.tokenizer, config.model.revision),
        *(config.model.add_tokens, quantization, files),
    ]


def score_base(
    evaluator: Evaluator,
    run: RunDir,
    engine: Any,
    model: Any,
    data_key: str,
    say: Callable[[str], None],
) -> None:
    """Write eval/base.json from the cache, or by scoring the model, which still is the base."""
    target = run.eval / "base.json"
    inner = inner_model(model)
    key = evaluator.base_key(data_key, getattr(inner.config, "_commit_hash", None))
    cached, journal = store.cache_path(key), evaluator.journal(run, "base", key)
    kinds = passes(evaluator.config.objective)
    known = store.read_results(target, kinds) or store.read_results(cached, kinds)
    if not _agreed(known is not None):
        started = time.monotonic()
        evaluator.objective.is_base = True
        try:
            results = evaluator.everything(engine, model, journal, say)
        finally:
            evaluator.objective.is_base = False
        if evaluator.ranks.is_main:
            for path in (cached, target):
                path.parent.mkdir(parents=True, exist_ok=True)
                seconds = round(time.monotonic() - started, 3)
                about = evaluator.about(results)
                store.write_results(path, results, evaluator.metrics, seconds=seconds, **about)
            journal.clear()
        number = len(results.ids())
        say(f"base model scored on {number} held-out record{'' if number == 1 else 's'}")
    elif evaluator.ranks.is_main and store.read_results(target, kinds) is None:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, cached.read_text(encoding="utf-8"))
        say("base model's scores come from the cache")


def _agreed(mine: bool) -> bool:
    """Rank 0's answer, on every rank."""
    return bool(collectives.gather_objects(mine)[0])
