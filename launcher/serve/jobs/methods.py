"""How a job's examples are learned from: one row a method, by the name that clients know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from launcher.serve.files.conversations import CONVERSATIONS
from launcher.serve.files.examples import ExampleKind
from launcher.serve.files.preferences import PREFERENCES

#: A name of a number, in a run's metrics.jsonl or of a validation -> its name for clients.
Names = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Option:
    """A hyperparameter of one method alone."""

    key: str
    """Its key in the run's config."""
    auto: float
    """What `auto` stands for."""


@dataclass(frozen=True, slots=True)
class TrainingMethod:
    """What holds of all jobs of a method."""

    examples: ExampleKind
    """What a line of its files is."""
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
    train={"token_accuracy": "train_mean_token_accuracy"},
    valid={"token_accuracy": "valid_mean_token_accuracy"},
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
        "preference_accuracy": "train_reward_accuracy",
        "reward_margin": "train_reward_margin",
    },
    valid={
        "preference_accuracy": "valid_reward_accuracy",
        "preference_margin": "valid_reward_margin",
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
METHODS = {"supervised": SUPERVISED, "dpo": DPO}
