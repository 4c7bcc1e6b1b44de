"""Group relative policy optimisation and its kin: answers of the model itself, made likelier by as
much as a grader scores them better than others (`launcher.objectives.grpo.loss` has the formulas).

A row's documents are prompts with an answer each, those of one prompt perhaps one record; its
targets are the tokens of the answers as they were drawn. A prepared record, whose answer nobody has
drawn, is an answer of advantage 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from launcher.config.schema import Config, ModelConfig, variants
from launcher.config.schema.reinforce import GrpoConfig, PolicyLoss
from launcher.core.errors import ConfigError, DataError
from launcher.data.cache import Column, JoinedCache, Per, TokenCache, is_asked
from launcher.evals.records import prompt_and_reference
from launcher.graders.grader import Grader
from launcher.objectives.base import LossSum, Objective
from launcher.objectives.grpo.grading import grader_of
from launcher.objectives.grpo.items import Items
from launcher.objectives.teacher import Taught

if TYPE_CHECKING:
    import torch

    from launcher.data.pack.loader import Row
    from launcher.model.divergence import Teacher
    from launcher.model.former import FormerWeights
    from launcher.model.head import Head, TargetHead
    from launcher.model.target_logits import Distributions
    from launcher.objectives.grpo.loss import AnswerTokens

#: Columns of a row of answers.
ADVANTAGE, SAMPLER, OLD, REFERENCE = "advantage", "sampler", "old", "reference_log_probs"
TEACHER = "teacher_log_probs"
COLUMNS = {
    column.name: column
    for column in (Column(ADVANTAGE), *(Column(n, Per.target) for n in (SAMPLER, OLD, TEACHER)))
}
#: Records that are shown of those that lack what the grader reads.
_SHOWN = 5
#: Losses that are a mean over the tokens of the batch.
_OVER_TOKENS = (PolicyLoss.dapo, PolicyLoss.cispo)
#: What is logged of the distance between trainer and sampler.
GAP = "sampler_gap"


class _Base(NamedTuple):
    """What is needed to load the model before training."""

    model: ModelConfig
    max_length: int


class Grpo(Taught):
    """Loss of sampled answers by their advantages."""

    options: GrpoConfig

    def __init__(self, options: GrpoConfig) -> None:
        super().__init__(options)
        self._grader: Grader | None = None
        self._items: Items | None = None
        self._base: _Base | None = None
        self._reference: TargetHead | None = None
        self._goes_on = False
        """Whether the reference has the adapter that the run goes on from."""
        self._former: FormerWeights | None = None
        self._learns = False
        """Whether it is to train, and not to judge a run alone."""

    @property
    def grader(self) -> Grader | None:
        """What scores answers, once the data is settled; None where the environment does, or
        nothing."""
        return self._grader

    @property
    def items(self) -> Items:
        """The records of the training data as the grader reads them, once the data is settled."""
        assert self._items is not None
        return self._items

    # ---- what is known once the data is

    def settle(
        self,
        config: Config,
        train: TokenCache | JoinedCache,
        held_out: TokenCache | JoinedCache | None,
    ) -> None:
        """The grader, and what it reads of the data. `ConfigError` for a grader that cannot be had,
        `DataError` for records that lack what it reads, and for prompts that leave no room for an
        answer, or ask nothing."""
        self._learns = True
        if self.options.is_scored:
            self._items = Items(config, train)
        if self.options.grader is not None:
            self._grader = grader_of(config)
            if lacking := [*islice(self._grader.check(self.items), _SHOWN)]:
                raise DataError(lacking)
        super().settle(config, train, held_out)
        if held_out is not None and config.eval.name != "none":
            _require_answers(config, held_out)
        if self.options.copies_model(config):
            self._base = _Base(config.model, config.data.max_length)
        self._goes_on = self.options.asks_start(config)
        room = config.data.max_length - self.options.max_new_tokens
        found = [prompt_length(self, train, i) for i in range(len(train))]
        empty = [i for i, length in enumerate(found) if not length]
        if empty:
            raise DataError(
                f"{len(empty):,} of {len(train):,} records ask nothing: there is no text before"
                " their answer",
                where=train.where(empty[0]),
                hint="give each record a prompt, or leave it out",
            )
        longer = [i for i, length in enumerate(found) if length > room]
        if longer:
            longest = max(found)
            raise DataError(
                f"{len(longer):,} of {len(train):,} prompts have more than the {room} tokens that"
                f" objective.max_new_tokens={self.options.max_new_tokens} leaves of"
                f" data.max_length={config.data.max_length}; the longest has {longest}",
                where=train.where(longer[0]),
                hint=f"data.max_length={longest + self.options.max_new_tokens}, or a smaller"
                " objective.max_new_tokens",
            )

    # ---- the models

    @property
    def is_beside(self) -> bool:
        """A run is judged without its teacher."""
        return self._learns and super().is_beside

    def head(self, model: Any, *, counts_hits: bool = False) -> Head:
        """What computes in the model; where all weights are trained and a reference is asked for,
        a copy of the model before training is loaded beside it, and the teacher if there is
        one. Of an adapter that is trained further `model` has the weights as they were."""
        if self._base is not None and self._reference is None:
            self._reference = _frozen(self._base, model)
        if self._goes_on and self._former is None:
            from launcher.model.former import FormerWeights

            self._former = FormerWeights(model)
        return super().head(model, counts_hits=counts_hits)

    def companions(self, device: torch.device) -> Sequence[tuple[Head, Any]]:
        """The model before training, where it is a second one, and the teacher, on `device`."""
        found = [] if self._reference is None else [self._reference]
        return [*((own, own.model.to(device)) for own in found), *super().companions(device)]

    # ---- learning

    def old_log_probs(self, head: TargetHead, caller: Any, row: Row) -> torch.Tensor:
        """Log-probabilities of the row's targets by the model as it is: fp32 [targets]."""
        return head.distributions(caller, row, self.options.temperature).log_probs

    def teacher_log_probs(self, row: Row) -> torch.Tensor:
        """Log-probabilities of the row's targets by the teacher, at the temperature that they were
        drawn at: fp32 [targets]. A target that is no token of its tokenizer has that of the
        unlikeliest one."""
        import torch

        asked, known = self._teacher, self.facts
        assert asked is not None
        found = row.targets.new_empty(len(row.targets), dtype=torch.float32)

        def see(logits: torch.Tensor, part: slice) -> None:
            targets = row.targets[part]
            log_p = (logits[:, : known.tokens] / self.options.temperature).log_softmax(-1)
            inside = targets.clamp(max=known.tokens - 1).unsqueeze(1)
            own = log_p.gather(1, inside).squeeze(1)
            found[part] = torch.where(targets < known.tokens, own, log_p.min(-1).values)

        asked.see(asked.model, row, see)
        return found

    def weight(self, row: Row) -> float:
        """What the loss is a mean over: answers, their tokens, or the tokens that they may have;
        each counted with the weight of its record, those that are not computed too."""
        if self.options.loss in _OVER_TOKENS:
            return super().weight(row) + row.weight_beside
        weights = _weights(row)
        answers = float(len(row.document_starts) - 1 if weights is None else weights.sum())
        if self.options.loss is PolicyLoss.dr_grpo:
            answers *= self.options.most_tokens
        return answers + row.weight_beside

    def over_batch(self, head: Any, caller: Any, row: Row) -> Mapping[str, tuple[Any, Any]]:
        """Notes in the row what the reference makes of its tokens."""
        if self.options.beta:
            asked, own = head, caller
            before: AbstractContextManager[Any] = nullcontext()
            if self._reference is not None:
                asked, own = self._reference, self._reference.model
            elif self._former is not None:
                before = self._former.restored()
            else:
                before = head.model.disable_adapter()
            with before:
                row.columns[REFERENCE] = self.old_log_probs(asked, own, row)
            row.by_target |= {REFERENCE}
        return {}

    def loss(self, head: Any, caller: Any, row: Row) -> LossSum:
        """Loss sum of the row's answers, and what is logged of them."""
        from launcher.objectives.grpo.loss import is_by_token, judge

        read = self._reader(row)
        heat, teacher = self.options.temperature, self._whole_teacher(row)
        if is_by_token(self.options):

            def judged_part(found: Distributions, part: slice) -> torch.Tensor:
                return judge(read(found, part), self.options).total

            total, found = head.learn_by_token(caller, row, heat, judged_part, teacher)
            judged = judge(read(found), self.options)
        else:
            found = head.distributions(caller, row, heat, teacher)
            judged = judge(read(found), self.options)
            total = judged.total
        sums = {
            "entropy": (judged.entropy, judged.tokens),
            "clip_share": (judged.clipped, judged.tokens),
            GAP: (judged.gap, judged.tokens),
        }
        if REFERENCE in row.columns:
            sums["kl"] = (judged.divergence, judged.tokens)
        if TEACHER in row.columns:
            sums["teacher_kl"] = (judged.behind_teacher, judged.tokens)
        if teacher is not None:
            sums["teacher_divergence"] = (judged.from_teacher, judged.tokens)
        return LossSum(total, sums)

    def _whole_teacher(self, row: Row) -> Teacher | None:
        from launcher.model.divergence import Measure

        options = self.options
        if options.teacher_divergence is None:
            return None
        kind, heat = options.teacher_divergence, options.temperature
        return self.whole_teacher(row, Measure.of(kind, heat, options.teacher_beta))

    def _reader(self, row: Row) -> Callable[..., AnswerTokens]:
        """What makes the answers' tokens of distributions: of all targets, or of a slice."""
        import torch

        from launcher.objectives.grpo.loss import AnswerTokens

        documents = row.document_of_targets()
        count = len(row.document_starts) - 1
        ones, weights = documents.new_ones(count, dtype=torch.float32), _weights(row)
        lengths = torch.bincount(documents, minlength=count).to(torch.float32)
        advantages = row.columns.get(ADVANTAGE, ones)

        def read(found: Distributions, part: slice = slice(None)) -> AnswerTokens:
            def column(name: str) -> torch.Tensor | None:
                return row.columns[name][part] if name in row.columns else None

            old = column(OLD)
            old = found.log_probs.detach() if old is None else old
            sampler = column(SAMPLER)
            return AnswerTokens(
                log_probs=found.log_probs,
                entropies=found.entropies,
                old=old,
                sampler=old if sampler is None else sampler,
                reference=column(REFERENCE),
                teacher=column(TEACHER),
                divergences=found.divergences,
                documents=documents[part],
                lengths=lengths,
                advantages=advantages,
                weights=ones if weights is None else weights,
            )

        return read

    def require_sound(self, sums: Mapping[str, tuple[float, float]]) -> None:
        """`ConfigError` where what trains is too far from what has drawn the answers."""
        gap, tokens = sums.get(GAP, (0.0, 0.0))
        most = self.options.max_sampler_gap
        if tokens and not gap / tokens <= most:
            raise ConfigError(
                f"the sampler's log-probabilities are {gap / tokens:.3g} nats a token from the"
                " trainer's, in the mean: the answers are not those of the model in training",
                where="objective.max_sampler_gap",
                hint="dropout (peft.dropout=0), 16-bit weights (model.dtype=fp32), or an attention"
                f" that differs (model.attention=sdpa); or objective.max_sampler_gap={2 * most:g}",
            )


def _weights(row: Row) -> torch.Tensor | None:
    """Of each answer, those of one record alike: fp32 [documents]; None where all weigh 1."""
    if row.record_weights is None:
        return None
    import torch

    sizes = torch.tensor(row.sizes, device=row.record_weights.device)
    return row.record_weights.repeat_interleave(sizes)


def prompt_length(objective: Objective, cache: TokenCache | JoinedCache, record: int) -> int:
    """Tokens of what a record asks; 0 if it asks nothing."""
    split = prompt_and_reference(*objective.question(cache, record))
    return len(split[0]) if split else 0


def _require_answers(config: Config, held_out: TokenCache | JoinedCache) -> None:
    """`DataError` for held-out records without an answer where a metric compares with it."""
    rows = variants.metric_rows(config)
    needing = [name for name in variants.metrics_of(config) if rows[name].needs_reference]
    asked = [i for i in range(len(held_out)) if is_asked(held_out, i)]
    if not (asked and needing):
        return
    grader = config.objective.grader  # type: ignore[attr-defined]
    metric = f"grader:{grader}" if isinstance(grader, str) else "grader:FILE.yaml"
    raise DataError(
        f"{len(asked):,} of {len(held_out):,} held-out records have no answer, with which"
        f" {', '.join(needing)} compare{'s' if len(needing) == 1 else ''}",
        where=held_out.where(asked[0]),
        hint=f"'eval.metrics=[{metric}]', or give others in data.validation",
    )


def _frozen(base: _Base, student: Any) -> TargetHead:
    """The model before training in the number format and with the attention of `student`."""
    from launcher.model.head import TargetHead
    from launcher.model.load import load_frozen

    return TargetHead(load_frozen(base.model, student, base.max_length))
