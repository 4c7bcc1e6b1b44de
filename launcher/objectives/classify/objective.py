"""Classification: cross entropy of a text's class, or of each class that may apply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.config.schema import ClassifyConfig, Config
from launcher.core.errors import DataError
from launcher.core.rundir import RunDir
from launcher.data.cache import Column, JoinedCache, TokenCache
from launcher.data.chat.masking import ChatOptions
from launcher.data.formats import Example
from launcher.data.formats.base import BadRecord, Labelled
from launcher.evals.metric import Metric
from launcher.evals.records import LossRecord, Results
from launcher.objectives.base import LossSum, Objective, Records
from launcher.objectives.classify import confusion, export, labels, threshold
from launcher.objectives.classify.classes import Classes
from launcher.objectives.classify.encoder import TextEncoder, refusal
from launcher.objectives.classify.records import OUT_OF_SCOPE, ClassRecord, class_records

if TYPE_CHECKING:
    from torch import Tensor

    from launcher.data.pack.loader import Row
    from launcher.model.sequence_head import SequenceHead

#: Shown of a text out of scope, or without any class.
_NO_CLASS = "(none)"


def _labelled(records: Iterable[tuple[str, Example]]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Places and labels of records that are no others, for those are refused."""
    for place, example in records:
        assert isinstance(example, Labelled)
        yield place, example.labels


class Classify(Objective):
    """Cross entropy per text (softmax), or the mean over classes of their own (sigmoid)."""

    columns = (Column(labels.COLUMN, dtype="json"),)
    expects_context = False
    options: ClassifyConfig

    def __init__(self, options: ClassifyConfig) -> None:
        super().__init__(options)
        if options.out_of_scope is not None:
            self.about_end = f"the threshold for {options.out_of_scope}"
        self._classes: Classes | None = None

    @property
    def classes(self) -> Classes:
        """What is told apart; known once the data is settled, or a run's state restored."""
        assert self._classes is not None
        return self._classes

    @property
    def _is_open(self) -> bool:
        """Whether texts may be out of scope: a threshold is chosen then, whatever the metrics."""
        return self.classes.out_of_scope is not None

    # ---- from example to documents

    def refusal(self, example: Example) -> BadRecord | None:
        """Why a classifier cannot learn an example; None if it can."""
        return refusal(example, self.options.multi_label)

    def encoder(self, tokenizer: Any, chat: ChatOptions) -> TextEncoder:
        """Texts alone, as the tokenizer takes them."""
        return TextEncoder(tokenizer, self.options.multi_label, self.options.out_of_scope)

    def turn_ends(self, format_name: str, tokenizer: Any) -> dict[str, list[int]] | None:
        """Texts have no turns."""
        return {}

    # ---- what is known once the data is

    def settle(
        self,
        config: Config,
        train: TokenCache | JoinedCache,
        held_out: TokenCache | JoinedCache | None,
    ) -> None:
        """The classes of the training data, and their numbers given to the records of both splits.

        Raises `DataError` for data that no classifier can be trained on or judged by, `ConfigError`
        for options that do not fit the classes.
        """
        self._classes = labels.learned(config, train)
        labels.number(train, self.classes)
        if held_out is not None:
            labels.number(held_out, self.classes)
        if self._is_open:
            count = len(held_out) if held_out else 0
            names = (held_out.value(labels.COLUMN, i) for i in range(count)) if held_out else ()
            labels.require_out_of_scope(count, names, self.classes, config.eval.limit)

    def foresee(self, config: Config, records: Records) -> None:
        """What the labels alone tell."""
        outside = self.options.out_of_scope
        train = [names for _, names in _labelled(records("train"))]
        counts = Counter(names for names in train if outside not in names)
        classes = labels.of_counts(config, counts)
        held_out = list(_labelled(records("validation")))
        for place, names in held_out:
            labels.require_known(names, classes, place)
        if outside is not None:
            told = (names for _, names in held_out)
            labels.require_out_of_scope(len(held_out), told, classes, config.eval.limit)

    def prepare(self, cache: TokenCache | JoinedCache) -> None:
        """Give its records the numbers of their classes; `DataError` for a label that is none."""
        labels.number(cache, self.classes)

    @property
    def state(self) -> dict[str, Any] | None:
        """The classes."""
        return self.classes.as_dict()

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the classes of a run."""
        self._classes = Classes(**state)

    def require_same(self, other: Objective) -> None:
        """`DataError` unless both name the same classes in the same order."""
        assert isinstance(other, Classify)
        for key in ("names", "multi_label", "out_of_scope"):
            values = [getattr(one.classes, key) for one in (self, other)]
            if values[0] != values[1]:
                texts = [str(value)[:100] for value in values]
                raise DataError(
                    f"other classes, by their {key}: {texts[0]} and {texts[1]}",
                    where="objective",
                    hint="compare classifiers of the same classes in the same order: give both the"
                    " same data.labels and objective",
                )

    # ---- the model

    def sequence_head(self, padding: int = 0) -> SequenceHead:
        """The head that names the classes."""
        return self.classes.head(padding)

    def describe_export(self, folder: Path, config: Config, run: RunDir | None) -> None:
        """The threshold, the classes of an adapter, and a README with code that applies both."""
        chosen = threshold.of_run(run) if run else None
        export.describe(folder, config, self.classes, chosen)

    def output_line(
        self, run: RunDir, *, base: bool = False, warn: Callable[[str], None] = print
    ) -> Callable[[Tensor], str]:
        """Label and probability, as the run's evaluation judges."""
        limit = threshold.of_run(run, base) if self._is_open else 0.0
        if limit is None:
            file = "base" if base else "tuned"
            warn(
                f"warning: {run.eval / file}.json has no threshold: no text is named"
                f" {self.classes.out_of_scope}"
            )
        return partial(self._named, limit or 0.0)

    def _named(self, limit: float, outputs: Tensor) -> str:
        """The likeliest class and its probability; of several that may apply, all above 1/2 and
        the largest. A text whose probability is below `limit` is out of scope."""
        chances = outputs.sigmoid() if self.classes.multi_label else outputs.softmax(-1)
        highest = float(chances.max())
        if self.classes.multi_label:
            named = (chances > 0.5).nonzero().flatten().tolist()
        else:
            named = [int(chances.argmax()) if highest >= limit else OUT_OF_SCOPE]
        return f"{self.classes.text(named) or _NO_CLASS}\t{highest:.3f}"

    # ---- learning

    def weight(self, row: Row) -> float:
        """Number of texts, each counted with the weight of its record and its class."""
        weights = self._weights_of(row)
        return float(len(row.records) if weights is None else weights.sum())

    def loss(self, head: Any, caller: Any, row: Row) -> LossSum:
        """Sum of the losses of the row's texts, in nats."""
        outputs = head.outputs(caller, row)
        weights = self._weights_of(row)
        losses = self._losses(outputs, row.columns[labels.COLUMN], self._class_weights(outputs))
        return LossSum(losses.sum() if weights is None else losses @ weights)

    def _losses(self, outputs: Tensor, targets: Tensor, positive: Tensor | None) -> Tensor:
        """Loss of each text, fp32 [documents]; `positive` [classes] weighs classes that apply."""
        from torch.nn import functional

        if not self.classes.multi_label:
            return functional.cross_entropy(
                outputs, targets, reduction="none", ignore_index=OUT_OF_SCOPE
            )
        each = functional.binary_cross_entropy_with_logits(
            outputs, targets, reduction="none", pos_weight=positive
        )
        return each.mean(-1)

    def _class_weights(self, like: Tensor) -> Tensor | None:
        """Weights of the classes where several may apply, fp32 [classes]; else they are the
        texts'."""
        if not self.classes.multi_label or self.classes.weights is None:
            return None
        return like.new_tensor(self.classes.weights)

    def _weights_of(self, row: Row) -> Tensor | None:
        """fp32 [documents]: what each text's loss is multiplied by; None where all weigh 1."""
        if self.classes.multi_label or self.classes.weights is None:
            return row.record_weights
        known = row.input_ids.new_tensor([*self.classes.weights, 0.0], dtype=_fp32())
        own = known[row.columns[labels.COLUMN]]  # -1, the last one: out of scope
        return own if row.record_weights is None else own * row.record_weights

    # ---- held-out records

    def score(
        self,
        head: Any,
        caller: Any,
        rows: Iterable[tuple[Row | None, Sequence[int]]],
        should_stop: Callable[[], bool] | None,
    ) -> dict[str, list[Any]]:
        """Losses without class weights, of texts in scope; and classes of all."""
        import torch

        @torch.no_grad()
        def scored(row: Row) -> tuple[Tensor, Tensor, Tensor]:
            outputs = head.outputs(caller, row)
            targets = row.columns[labels.COLUMN]
            chances = outputs.sigmoid() if self.classes.multi_label else outputs.softmax(-1)
            return targets, self._losses(outputs, targets, None), chances

        losses, classes = _scored_classes(rows, scored, should_stop)
        return {"loss": losses, "classes": classes}

    def judge(self, results: Results) -> None:
        """Reject texts by a threshold that is chosen on other held-out ones."""
        if self._is_open:
            results.passes["classes"], _ = threshold.judge(class_records(results))

    def judge_further(self, split: str, own: Results, held_out: Results) -> None:
        """By the threshold of the held-out records."""
        if self._is_open:
            chosen = threshold.choose(class_records(held_out))
            own.passes["classes"] = threshold.reject(class_records(own), chosen)

    def about(self, results: Results) -> dict[str, Any]:
        """What is confused, and the threshold for use."""
        if not class_records(results):
            return {}
        made: dict[str, Any] = {
            "class_report": confusion.report(class_records(results), self.classes)
        }
        if self._is_open:
            made["threshold"] = threshold.choose(class_records(results))
        return made

    def about_comparison(
        self, results: Results, metrics: Sequence[Metric[Any]]
    ) -> tuple[dict[str, Any], list[str]]:
        """The same, and what guessing would reach: the base's head is untrained."""
        guess = confusion.guessing(class_records(results), self.classes, metrics)
        return {**self.about(results), "guessing": guess}, [confusion.told(guess)]

    def sections(self, results: Results, about: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What is confused, and each class; none without records of classes."""
        return confusion.sections(about) if "class_report" in about else []

    def lines(
        self,
        base: Results | None,
        tuned: Results,
        metrics: Sequence[Metric[Any]],
        where: Callable[[int], str],
        text: Callable[[int], str],
    ) -> list[dict[str, Any]]:
        """Each text's labels, and whether they are right; none without a base."""
        if base is None or not (class_records(base) and class_records(tuned)):
            return []
        return confusion.answers(base, tuned, self.classes, where, text)


def _fp32() -> Any:
    import torch

    return torch.float32


def _scored_classes(
    rows: Iterable[tuple[Row | None, Sequence[int]]],
    score: Callable[[Row], tuple[Tensor, Tensor, Tensor]],
    should_stop: Callable[[], bool] | None = None,
) -> tuple[list[LossRecord], list[ClassRecord]]:
    """Score rows of a classifier, as `launcher.evals.runner.loss_records` does.

    `score(row)` gives true classes (int64 [documents], or of several that may apply 0 and 1,
    float32 [documents, classes]), loss in nats (float32 [documents]) and probabilities (float32
    [documents, classes]). Records out of scope have no loss.
    """
    from launcher.evals import runner

    losses: list[LossRecord] = []
    classes: list[ClassRecord] = []
    for row, ids in runner.computed(rows, should_stop):
        targets, nats, chances = (values.cpu() for values in score(row))
        several = targets.dim() > 1
        truths = targets.tolist()
        named = (chances > 0.5).tolist() if several else chances.argmax(-1).tolist()
        highest = chances.max(-1).values.tolist()
        for i, record in enumerate(ids):
            truth = _applying(truths[i]) if several else [truths[i]]
            predicted = _applying(named[i]) if several else [named[i]]
            classes.append(ClassRecord(record, truth, predicted, highest[i]))
            if not classes[-1].is_outside:
                losses.append(LossRecord(record, float(nats[i]), 1, int(truth == predicted)))
    return losses, classes


def _applying(flags: Sequence[float]) -> list[int]:
    return [number for number, flag in enumerate(flags) if flag]
