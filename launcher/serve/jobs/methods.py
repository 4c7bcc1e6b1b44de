"""How a job's examples are learned from: one row a method, by the name that clients know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from launcher.serve.files.conversations import CONVERSATIONS
from launcher.serve.files.examples import ExampleKind
from launcher.serve.files.preferences import PREFERENCES

#: A number's name for clients -> its name in a run's metrics.jsonl, or that of a metric of its
#: validation; where it ends with a colon, any that begins so.
Names = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Option:
    """A hyperparameter of one method alone."""

    key: str
    """Its key in the run's config; empty if it is no value of one."""
    auto: float | None
    """What `auto` stands for; None: the steps of an epoch."""
    is_whole: bool = False
    """Whether it is a whole number."""


@dataclass(frozen=True, slots=True)
class TrainingMethod:
    """What holds of all jobs of a method."""

    examples: ExampleKind | None
    """What a line of its files is; None: what the job's grader wants of it."""
    words: tuple[str, ...]
    """Overrides of its runs, whatever the site says."""
    metrics: tuple[str, ...]
    """What is measured on a validation file."""
    rate: float
    """Its share of the learning rate that the site has set."""
    epochs: tuple[int, int]
    """What `auto` is at least and at most."""
    train: Names
    """Numbers of a step beside its loss."""
    valid: Names
    """Those of a validation."""
    columns: Names
    """Of the result file, behind the step -> the number in them, by its name for clients."""
    batch: int = 1
    """What `auto` is at least."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Hyperparameters of its own."""
    first: tuple[str, ...] = ()
    """Overrides that the site's may replace."""


SUPERVISED = TrainingMethod(
    examples=CONVERSATIONS,
    first=("data=chat",),
    words=("train.token_accuracy=true",),
    metrics=("loss", "token_accuracy"),
    rate=1.0,
    epochs=(3, 50),
    train={"train_mean_token_accuracy": "token_accuracy"},
    valid={"valid_mean_token_accuracy": "token_accuracy"},
    columns={
        "train_loss": "train_loss",
        "train_accuracy": "train_mean_token_accuracy",
        "valid_loss": "valid_loss",
        "valid_mean_token_accuracy": "valid_mean_token_accuracy",
    },
)
#: Of two answers the better one gains. A model that can answer is moved a little: with a tenth of
#: the rate that taught it to answer, 160 steps on 32 pairs made a small one babble.
DPO = TrainingMethod(
    examples=PREFERENCES,
    words=("objective=dpo", "data=preference", "train.token_accuracy=false"),
    metrics=(
        *("loss", "preference_accuracy", "preference_margin"),
        *("chosen_change", "rejected_change", "reference_kl"),
    ),
    rate=0.025,
    epochs=(1, 10),
    train={
        "train_reward_accuracy": "preference_accuracy",
        "train_reward_margin": "reward_margin",
    },
    valid={
        "valid_reward_accuracy": "preference_accuracy",
        "valid_reward_margin": "preference_margin",
    },
    columns={
        name: name
        for name in (
            *("train_loss", "train_reward_accuracy", "train_reward_margin"),
            *("valid_loss", "valid_reward_accuracy", "valid_reward_margin"),
        )
    },
    options={"beta": Option("objective.beta", 0.1)},
)
#: A tenth of the rate, since what is learned from are the model's own answers. `beta` and others
#: of `objective` are the site's.
REINFORCEMENT = TrainingMethod(
    examples=None,
    # A site may have other limits of its own; all of the validation file is answered.
    first=("eval.generate_limit=null",),
    # The grader's file and its metric get their places with the other paths.
    words=(
        *("objective=grpo", "data=question", "train.token_accuracy=false"),
        "objective.grader=grader.yaml",
    ),
    metrics=("grader:grader.yaml",),
    rate=0.1,
    epochs=(1, 10),
    batch=8,
    train={
        "train_reward_mean": "score",
        "train_mean_reward": "score",
        "train_grader_errors_mean": "grader_errors",
        "completion_tokens_mean": "answer_tokens",
    },
    valid={"valid_reward_mean": "grader:", "full_valid_mean_reward": "grader:"},
    columns={
        name: name
        for name in (
            *("train_loss", "train_reward_mean", "valid_reward_mean"),
            *("train_grader_errors_mean", "completion_tokens_mean"),
        )
    },
    options={
        "compute_multiplier": Option("", 1.0),
        "eval_interval": Option("checkpoint.every_steps", None, is_whole=True),
        "eval_samples": Option("", 1, is_whole=True),
    },
)
METHODS = {"supervised": SUPERVISED, "dpo": DPO, "reinforcement": REINFORCEMENT}
