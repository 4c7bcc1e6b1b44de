"""What every objective does unless it does it otherwise: cross entropy of an example's targets.

An objective is one task from record to report. The launcher asks it how an example becomes
documents with targets, what it computes of them, and what is scored on held-out records; it owns
the rest: reading, packing, ranks, normalisation, checkpoints, comparison.

To add one: a file with a subclass, its options beside it or in `launcher.config.schema`, a row in
`launcher.config.schema.variants`, a YAML in `conf/objective/`, a test; docs/extend.md has an
example.
Preparation imports it in many processes, so what only training needs is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

from launcher.config.schema import Config, ObjectiveConfig, variants
from launcher.core.errors import ConfigError
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir
from launcher.model.sequence_head import SequenceHead

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from launcher.data.cache import Column, JoinedCache, TokenCache
    from launcher.data.chat.masking import ChatOptions
    from launcher.data.formats import Example
    from launcher.data.formats.base import BadRecord
    from launcher.data.pack.loader import Row, RowSource
    from launcher.data.prepare.worker import Encoder
    from launcher.data.reference import References
    from launcher.evals.metric import Metric
    from launcher.evals.records import Results
    from launcher.model.head import Head


#: Reads the records of a split: "file:line" and example of each.
Records: TypeAlias = "Callable[[str], Iterable[tuple[str, Example]]]"


class LossSum(NamedTuple):
    """What an objective makes of a row."""

    total: Tensor
    """Loss sum: fp32 scalar with gradients, divided by nothing."""
    sums: Mapping[str, tuple[Any, Any]] = {}
    """What is logged beside it, by name: numerator and denominator, numbers or scalars. They are
    added up over rows, ranks and steps before they are divided."""


def of_run(run: RunDir, config: Config) -> Objective:
    """The objective of a run, with what the run has settled.

    Raises `ConfigError` for a run of an earlier version, which kept that otherwise.
    """
    made: Objective = variants.objective(config.objective)
    kept = read_json(run.objective, {})
    if config.objective.has_sequence_head and not kept:
        raise ConfigError(
            f"nothing says which outputs the model has: {run.objective.name} is missing",
            where=str(run),
            hint="the run was made by an earlier version, or has not begun to train:"
            f" {run.command('resume', anywhere=True)}, or train it again",
        )
    if kept.get("state") is not None:
        made.restore(kept["state"])
    if kept.get("head") is not None:
        made.spec = SequenceHead.from_json(kept["head"])
    return made


class Objective:
    """The seam. `options` are those of the config; the same object serves one run."""

    columns: ClassVar[Sequence[Column]] = ()
    """What is kept in prepared data beside tokens and targets."""
    documents: ClassVar[Sequence[str]] = ()
    """What the documents of a record are called, where each has as many."""
    reference: ClassVar[Sequence[Column]] = ()
    """What the model before training makes of each document or target: worked out once, before the
    first step, and in a row like any column from then on (see `refer`)."""
    held_out_reference: ClassVar[Sequence[Column] | None] = None
    """The same of held-out records, where more is asked of them (see `refer_held_out`)."""
    asks: str = "the model before training"
    """Which model the columns of `reference` are of; another one is given by `referent`."""
    about_end: str = ""
    """What `output_line` takes from the run's end, whatever the checkpoint."""
    expects_context: ClassVar[bool] = True
    """Whether data in which every token is a target is a mistake."""

    def __init__(self, options: Any) -> None:
        self.options: ObjectiveConfig = options
        self.spec: SequenceHead | None = None
        """The sequence head of the run's model, once it is made."""
        self.batch: Mapping[str, float] = {}
        """What `over_batch` has found for the global batch whose losses are asked for."""
        self.references: References | None = None
        """Where the columns of `reference` are kept, once the run's base is known."""
        self.is_base = False
        """Whether the model that is scored is the one before training."""

    # ---- from example to documents

    def refusal(self, example: Example) -> BadRecord | None:
        """Why nothing can be learned from an example, as far as it shows; None if it can."""
        from launcher.data.formats.learned import refusal

        return refusal(example, self.options)

    def encoder(self, tokenizer: Any, chat: ChatOptions) -> Encoder:
        """What makes tokens of examples; made in each process."""
        from launcher.data.prepare.encoding import ExampleEncoder

        return ExampleEncoder(tokenizer, chat=chat, all_targets=self.options.learns_every_token)

    def question(
        self, cache: TokenCache | JoinedCache, record: int
    ) -> tuple[Sequence[int], Sequence[int]]:
        """Tokens and target flags of what a held-out record asks the model to write."""
        tokens, targets = cache.record(record)
        return tokens.tolist(), targets.tolist()

    def turn_ends(self, format_name: str, tokenizer: Any) -> dict[str, list[int]] | None:
        """How turns end, as `launcher.data.chat.turn_ends` counts; None where the targets tell."""
        return None

    # ---- what is known once the data is

    def settle(
        self,
        config: Config,
        train: TokenCache | JoinedCache,
        held_out: TokenCache | JoinedCache | None,
    ) -> None:
        """Learn from prepared data what the model has to be; `DataError` or `ConfigError` where it
        cannot be trained on. Called when data has been prepared, and by every rank."""

    def foresee(self, config: Config, records: Records) -> None:
        """Raise what `settle` would raise, as far as records tell that are not tokenised yet.

        `records` reads those of a split, train or validation, whole: an objective to which they
        say nothing leaves them unread.
        """

    def prepare(self, cache: TokenCache | JoinedCache) -> None:
        """Make a further cache of held-out records ready to give rows."""

    @property
    def state(self) -> dict[str, Any] | None:
        """What `settle` has found, as JSON, kept in the run folder; None if there is nothing."""
        return None

    def restore(self, state: dict[str, Any]) -> None:
        """Take up `state`, without data."""

    def save(self, run: RunDir) -> None:
        """Keep in the run folder what `of_run` takes up."""
        if self.state is not None or self.spec is not None:
            head = self.spec and asdict(self.spec)
            write_json(run.objective, {"state": self.state, "head": head})

    def require_same(self, other: Objective) -> None:
        """`DataError` unless results of both can be compared record by record."""

    def apart(self, other: Objective) -> Collection[str]:
        """Names of metrics that mean something else in results of the other."""
        return ()

    # ---- the model

    def sequence_head(self, padding: int = 0) -> SequenceHead | None:
        """The head that takes the place of the LM head, if one does; `padding` is the token that
        fills up batches."""
        return None

    def head(self, model: Any, *, counts_hits: bool = False) -> Head:
        """What computes for this objective in `model`. With `counts_hits` it counts first choices
        that are right, where it has tokens to choose."""
        from launcher.model.head import TargetHead
        from launcher.model.sequence_outputs import SequenceOutputs

        if self.options.has_sequence_head:
            return SequenceOutputs(model)
        return TargetHead(model, counts_hits=counts_hits)

    def companions(self, device: torch.device) -> Sequence[tuple[Head, Any]]:
        """Models that are computed beside the one in training, each under its head, on `device`:
        their documents are kept apart too before any loss is asked for."""
        return ()

    def describe_export(self, folder: Path, config: Config, run: RunDir | None) -> None:
        """Write into an exported folder what a user of it must know beside the model."""

    def tokens_of(self, tokenizer: Any, config: Config, text: str) -> list[int]:
        """Token ids of a text that `launcher generate` is given where the model makes no text."""
        longest = config.data.max_length
        ids: list[int] = tokenizer(text, truncation=True, max_length=longest)["input_ids"]
        return ids

    def output_line(
        self, run: RunDir, *, base: bool = False, warn: Callable[[str], None] = print
    ) -> Callable[[Tensor], str]:
        """What makes of the outputs for a text, fp32 [outputs], the line that `launcher generate`
        prints where the model makes no text. `base`: those of the model before training."""
        return lambda outputs: "\t".join(f"{value:.4g}" for value in outputs.tolist())

    # ---- learning

    def rows(self, prepared: RowSource) -> RowSource:
        """Where the rows of a step come from: prepared data."""
        return prepared

    def refer(self, head: Any, caller: Any, row: Row) -> Mapping[str, Tensor]:
        """The columns of `reference` for the documents or targets of a row, by the model before
        training or the `referent`, without gradients."""
        raise NotImplementedError

    def refer_held_out(self, head: Any, caller: Any, row: Row) -> Mapping[str, Tensor]:
        """The columns of `held_out_reference` where there are others than of `reference`."""
        return self.refer(head, caller, row)

    @property
    def referent_identity(self) -> Sequence[Any] | None:
        """What decides, of a model other than that before training, what `refer` makes of it; None
        where that one is asked. It is JSON."""
        return None

    def referent(self, student: Any, device: torch.device) -> tuple[Head, Any]:
        """That other model, under its head, loaded on `device` for as long as it is asked, in the
        number format of `student`."""
        raise NotImplementedError

    def weight(self, row: Row) -> float:
        """What the loss sum of this row is divided by, summed over the global batch: its target
        tokens, each counted with the weight of its record."""
        return float(len(row.targets) if row.weights is None else row.weights.sum())

    def over_batch(self, head: Any, caller: Any, row: Row) -> Mapping[str, tuple[Any, Any]]:
        """What the loss of a row needs of the whole global batch: numerators and denominators, by
        name, which are added up over its rows and divided, and stand in `batch` before the loss of
        any row is asked for. Without gradients; the model is in evaluation mode."""
        return {}

    def loss(self, head: Any, caller: Any, row: Row) -> LossSum:
        """Loss sum of one row, in nats. `caller` is what to call for a forward."""
        return LossSum(head.loss(caller, row))

    def require_sound(self, sums: Mapping[str, tuple[float, float]]) -> None:
        """Raise for a step that must not be applied, by what its losses have logged, summed over
        the global batch: numerators and denominators by name."""

    # ---- held-out records

    def score(
        self,
        head: Any,
        caller: Any,
        rows: Iterable[tuple[Row | None, Sequence[int]]],
        should_stop: Callable[[], bool] | None,
    ) -> dict[str, list[Any]]:
        """Pass -> its results of this rank's rows, as `launcher.evals.runner.loss_records` makes
        them; those that an objective's metrics need without generating."""
        from launcher.evals import runner

        return {"loss": runner.loss_records(rows, partial(head.score, caller), should_stop)}

    def judge(self, results: Results) -> None:
        """What takes all held-out results together, before metrics are computed."""

    def judge_further(self, split: str, own: Results, held_out: Results) -> None:
        """The same of a further set beside the held-out records."""

    def about(self, results: Results) -> dict[str, Any]:
        """What is kept beside the results of one model, and beside a comparison."""
        return {}

    def about_comparison(
        self, results: Results, metrics: Sequence[Metric[Any]]
    ) -> tuple[dict[str, Any], list[str]]:
        """What is kept beside the comparison with the base, and what to tell of it."""
        return self.about(results), []

    def sections(self, results: Results, about: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What the report shows of the tuned model's results, and of what is kept `about` them:
        sections and blocks as `launcher.report.sections` has them."""
        return []

    def lines(
        self,
        base: Results | None,
        tuned: Results,
        metrics: Sequence[Metric[Any]],
        where: Callable[[int], str],
        text: Callable[[int], str],
    ) -> list[dict[str, Any]]:
        """Each record as a line of predictions.jsonl, with any keys of `launcher.evals.store.LINE`
        (texts, but for `id` and the matches) and others; `where` says a record's file:line, `text`
        the record without special tokens."""
        from launcher.evals import store

        return store.predictions(base, tuned, metrics)
