"""Options of `objective=grpo`: learning from the scores of answers that the model itself gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, ClassVar

from launcher.config.schema import Config, ObjectiveConfig
from launcher.config.schema.data import Overlong
from launcher.config.schema.distill import Divergence
from launcher.config.schema.ranges import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    ShareAboveZero,
)
from launcher.config.schema.train import MicroBatch
from launcher.core.errors import Problem


class PolicyLoss(Enum):
    """What `objective=grpo` makes of answers and their advantages."""

    grpo = "grpo"
    dr_grpo = "dr_grpo"
    dapo = "dapo"
    gspo = "gspo"
    cispo = "cispo"
    rloo = "rloo"
    reinforce = "reinforce"


class Advantage(Enum):
    """What the distance of a reward from its baseline is divided by."""

    group = "group"
    batch = "batch"
    none = "none"


class KlEstimator(Enum):
    """Estimators of the divergence from the reference (Schulman 2020)."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"


class CutAnswers(Enum):
    """What happens to answers that have not ended at `max_new_tokens`."""

    keep = "keep"
    filter = "filter"


@dataclass(frozen=True, slots=True)
class _Usual:
    """What a loss takes where nothing else is said."""

    advantage: Advantage
    clip: tuple[float | None, float | None]


_USUAL = {
    PolicyLoss.grpo: _Usual(Advantage.group, (0.2, 0.2)),
    PolicyLoss.dr_grpo: _Usual(Advantage.none, (0.2, 0.2)),
    PolicyLoss.dapo: _Usual(Advantage.group, (0.2, 0.28)),
    PolicyLoss.gspo: _Usual(Advantage.group, (3e-4, 4e-4)),
    PolicyLoss.cispo: _Usual(Advantage.group, (None, 4.0)),
    PolicyLoss.rloo: _Usual(Advantage.none, (0.2, 0.2)),
    PolicyLoss.reinforce: _Usual(Advantage.batch, (None, None)),
}


@dataclass(kw_only=True, slots=True)
class GrpoConfig(ObjectiveConfig):
    """Reinforcement learning: the model answers each prompt several times, a grader scores the
    answers, and those become likelier that score better than the others."""

    samples: ClassVar[bool] = True
    held_out_loss: ClassVar[str] = "cross entropy of targets"
    name: str = "grpo"
    """Name of the objective."""
    loss: PolicyLoss = PolicyLoss.grpo
    """Loss of the answers: docs/reinforce.md says which to take when."""
    grader: Any = None
    """What scores an answer: a YAML file, or the wire form of a grader itself. null: the
    environment, or the teacher alone says what is learned."""
    environment: str | None = None
    """Python file with a class Environment that answers the model, for answers of several turns;
    null: an answer has one turn."""
    max_turns: PositiveInt = 8
    """Most turns of the model's with an environment, each of up to `max_new_tokens`."""
    turn_s: PositiveFloat = 30.0
    """Longest time that an environment takes to say something, in seconds."""
    teacher: str | None = None
    """Folder or hub name of a model that is learned from, token by token of what was drawn; it has
    the tokenizer of the model in training."""
    teacher_revision: str | None = None
    """Branch, tag or commit of a teacher from the hub."""
    teacher_weight: PositiveFloat = 1.0
    """Weight of the teacher's log-probability less the model's own in the advantage of a token, or
    of the divergence from the teacher in its loss."""
    teacher_divergence: Divergence | None = None
    """What is learned of the teacher at each token: the divergence over the whole vocabulary, of
    the kinds that the objective distill has. null: its log-probability of the token that was drawn,
    in the advantage."""
    teacher_beta: Annotated[float, Range(0, 1, open_low=True, open_high=True)] | None = None
    """Weight of the teacher in the mixture that jsd compares both with; null: 0.5."""
    group_size: PositiveInt = 8
    """Answers to each prompt. `batch.sequences` counts answers."""
    max_new_tokens: PositiveInt = 256
    """Longest answer in tokens."""
    temperature: PositiveFloat = 1.0
    """Temperature at which answers are drawn, and at which probabilities are learned."""
    top_p: ShareAboveZero = 1.0
    """Draw among the fewest likeliest tokens that hold this share."""
    advantage: Advantage | None = None
    """What rewards less their baseline are divided by: the standard deviation of the `group`, or of
    the `batch`, or `none`. null: that of the loss's paper."""
    clip_low: Annotated[float, Range(0, 1, open_low=True)] | None = None
    """How far below 1 a ratio of probabilities still counts. null: the usual one of the loss."""
    clip_high: PositiveFloat | None = None
    """How far above 1 a ratio of probabilities still counts. null: the usual one of the loss."""
    beta: NonNegativeFloat = 0.0
    """Weight of the divergence from the model before training (the reference); 0: there is none."""
    kl: KlEstimator = KlEstimator.k3
    """Estimator of that divergence."""
    entropy_bonus: NonNegativeFloat = 0.0
    """Weight of the entropy of the next token, which is to stay high."""
    updates_per_rollout: PositiveInt = 1
    """Optimizer steps on the answers of one rollout, each on other ones of them."""
    passes_per_rollout: PositiveInt = 1
    """How often each answer is learned from, by as many passes over its rollout."""
    cut_answers: CutAnswers = CutAnswers.keep
    """Answers that have not ended at `max_new_tokens`, or with their last turn: learned like
    others, or left out (DAPO)."""
    soft_penalty: PositiveInt | None = None
    """Length of the zone before `max_new_tokens` in which the reward falls by up to 1 (DAPO)."""
    max_redraws: NonNegativeInt = 0
    """How often groups whose answers all score the same are replaced by groups of other prompts
    (DAPO's dynamic sampling); what is left of them then is kept."""
    error_score: Annotated[float, Range(-1e6, 1e6)] | None = None
    """Score of an answer for which the grader has none; null leaves the answer out."""
    grader_wait_s: NonNegativeFloat = 600.0
    """How long a rollout waits, in seconds, for a model that grades and answers nothing; it is
    asked again with growing pauses, and then the run fails."""
    sampler_cap: PositiveFloat | None = 2.0
    """Largest weight by which the trainer's and the sampler's probability of an answer are
    reconciled (truncated importance sampling); null: none are."""
    max_sampler_gap: PositiveFloat = 0.3
    """Largest mean difference of both log-probabilities, in nats a token; beyond it a run stops."""
    constant_rollouts: PositiveInt | None = 10
    """Rollouts in a row whose answers all score the same after which a run stops; null: never."""

    @property
    def is_scored(self) -> bool:
        """Whether a grader or an environment scores answers."""
        return self.grader is not None or self.environment is not None

    @property
    def logit_copies(self) -> int:  # type: ignore[override]
        """Both distributions and the divergence, beside what entropies need."""
        return 1 if self.teacher_divergence is None else 4

    @property
    def asks_of_drawn(self) -> bool:
        """Whether the teacher is asked for its log-probabilities of what was drawn."""
        return self.teacher is not None and self.teacher_divergence is None

    @property
    def models(self) -> Mapping[str, tuple[str, str | None]]:
        """The teacher, if there is one."""
        return {"teacher": (self.teacher, self.teacher_revision)} if self.teacher else {}

    @property
    def beside(self) -> Mapping[str, tuple[str, str | None]]:
        """The same."""
        return self.models

    @property
    def answers_per_record(self) -> int:  # type: ignore[override]
        """The group, as often as it is learned from."""
        return self.group_size * self.passes_per_rollout

    @property
    def steps_per_rollout(self) -> int:
        """Optimizer steps on the answers of one rollout."""
        return self.updates_per_rollout * self.passes_per_rollout

    @property
    def learns_by_advantage(self) -> bool:
        """Whether an answer of advantage 0 changes nothing."""
        return not (self.beta or self.entropy_bonus or self.teacher)

    @property
    def most_tokens(self) -> int:
        """Most tokens of an answer that are drawn."""
        return self.max_new_tokens * (1 if self.environment is None else self.max_turns)

    @property
    def normalization(self) -> Advantage:
        """`advantage` with null resolved."""
        return self.advantage or _USUAL[self.loss].advantage

    @property
    def clip(self) -> tuple[float | None, float | None]:
        """`clip_low` and `clip_high` with null resolved; None where the loss has no such end."""
        low, high = _USUAL[self.loss].clip
        return self.clip_low or low, self.clip_high or high

    def copies_model(self, config: Config) -> bool:
        """The reference, where there are no adapters to be taken off."""
        return self.beta > 0 and config.peft.name == "none"

    def asks_start(self, config: Config) -> bool:
        """For the reference, which no adapters taken off would be."""
        return self.beta > 0 and getattr(config.peft, "adapter", None) is not None

    def problems(self, config: Config) -> Iterator[Problem]:
        """Options that cannot be honoured together."""
        if self.environment is not None and not self.environment.endswith(".py"):
            found = f"{self.environment} is no Python file"
            yield Problem("objective.environment", found, "objective.environment=FILE.py")
        if not self.is_scored and self.teacher is None:
            hint = (
                "objective.grader=FILE.yaml, or objective.grader='{type: numeric_match, name: sum,"
            )
            hint += ' reference: "{{item.completion}}"}\''
            found = "nothing scores the answers, and no teacher is given"
            yield Problem("objective.grader", found, hint)
        yield from self._of_teacher()
        yield from self._of_loss()
        yield from self._of_batch(config)
        if self.max_new_tokens >= config.data.max_length:
            found = f"{self.max_new_tokens} with data.max_length={config.data.max_length}"
            hint = f"prompt and answer have to fit: data.max_length={2 * self.max_new_tokens}"
            yield Problem("objective.max_new_tokens", found, hint)
        if self.soft_penalty is not None and self.soft_penalty > self.max_new_tokens:
            found = f"{self.soft_penalty} with objective.max_new_tokens={self.max_new_tokens}"
            hint = f"objective.soft_penalty={max(1, self.max_new_tokens // 4)}"
            yield Problem("objective.soft_penalty", found, hint)
        if config.data.overlong is Overlong.split:
            hint = "a prompt is asked whole: data.overlong=cut_prompt, truncate or drop"
            yield Problem("data.overlong", f"split with objective={self.name}", hint)
        if config.data.format == "text":
            hint = "plain text asks nothing: use objective=text"
            yield Problem("objective.name", f"{self.name} with data.format=text", hint)
        if self.copies_model(config) and config.model.add_tokens:
            hint = "the model before training does not know them: objective.beta=0, or peft=lora"
            yield Problem("objective.beta", f"{self.beta} with model.add_tokens", hint)

    def _of_teacher(self) -> Iterator[Problem]:
        loss = self.loss.name
        if self.asks_of_drawn and self.loss in (PolicyLoss.gspo, PolicyLoss.rloo):
            found = f"{loss} with objective.teacher: its ratio is that of a whole answer, and a"
            hint = "objective.loss=dapo, or objective.teacher_divergence=reverse"
            yield Problem("objective.loss", f"{found} teacher speaks of each token", hint)
        if self.teacher_divergence is not None and self.teacher is None:
            found = f"{self.teacher_divergence.name} without objective.teacher"
            hint = "objective.teacher_divergence=null, or objective.teacher=FOLDER"
            yield Problem("objective.teacher_divergence", found, hint)
        if self.teacher_beta is not None and self.teacher_divergence is not Divergence.jsd:
            kind = "null" if self.teacher_divergence is None else self.teacher_divergence.name
            found = f"{self.teacher_beta} with objective.teacher_divergence={kind}"
            hint = "objective.teacher_beta=null, or objective.teacher_divergence=jsd"
            yield Problem("objective.teacher_beta", found, hint)
        if not self.is_scored and self.max_redraws:
            hint = "without a grader no groups are drawn again: objective.max_redraws=0"
            found = f"{self.max_redraws} without objective.grader"
            yield Problem("objective.max_redraws", found, hint)

    def _of_loss(self) -> Iterator[Problem]:
        loss, takes = self.loss.name, _USUAL[self.loss].clip
        for key, given, usual in zip(
            ("clip_low", "clip_high"), (self.clip_low, self.clip_high), takes, strict=True
        ):
            if given is not None and usual is None:
                found = f"{given} with objective.loss={loss}, which has no such end"
                hint = f"objective.{key}=null, or objective.loss=grpo"
                yield Problem(f"objective.{key}", found, hint)
        if self.loss is PolicyLoss.reinforce:
            if self.advantage is Advantage.group:
                hint = "it compares with no group: objective.advantage=batch, or"
                found = f"group with objective.loss={loss}"
                yield Problem("objective.advantage", found, f"{hint} objective.loss=grpo")
            for key in ("updates_per_rollout", "passes_per_rollout"):
                if (given := getattr(self, key)) > 1:
                    found = f"{given} with objective.loss={loss}"
                    hint = f"it knows no other policy than its own: objective.{key}=1, or"
                    yield Problem(f"objective.{key}", found, f"{hint} objective.loss=grpo")
        elif self.group_size == 1 and self.is_scored:
            found = f"1 with objective.loss={loss}, which compares the answers of a group"
            hint = "objective.group_size=8, or objective.loss=reinforce"
            yield Problem("objective.group_size", found, hint)

    def _of_batch(self, config: Config) -> Iterator[Problem]:
        batch, size = config.batch, self.group_size
        total, key, unit = batch.sequences, "batch.sequences", 1
        if total is None and batch.tokens is not None:
            key, unit = "batch.tokens", config.data.max_length
            total = batch.tokens // unit
        if total is not None and total % size:
            near = [n * size * unit for n in (total // size, total // size + 1) if n]
            ways = " or ".join(f"{key}={number}" for number in near)
            found = f"{total} answers cannot be cut into groups of {size}"
            yield Problem(key, found, f"nearest that can: {ways}")
        if batch.micro is MicroBatch.auto:
            hint = "set batch.micro=null, or a number"
            yield Problem("batch.micro", f"auto with objective={self.name}", hint)
        if self.max_redraws and size == 1:
            hint = "one answer has no spread: objective.max_redraws=0"
            yield Problem("objective.max_redraws", f"{self.max_redraws} with groups of 1", hint)
