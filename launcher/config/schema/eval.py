"""Section `eval`: evaluation on held-out records."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

from launcher.config.schema.ranges import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    ShareAboveZero,
)

#: What is measured on each held-out record -> the pass that measures it. Further ones, which an
#: objective brings, are passes of their own.
RECORDS = {"loss": "loss", "tokens": "loss", "generation": "generation", "values": "values"}


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A metric, and what must be known of it before its code is imported."""

    path: str
    """`module:attribute` of its class."""
    records: str
    """Which of `RECORDS`, or of the objective's own, it is made of: an objective has some."""
    wants: str = ""
    """Key without which it has no meaning."""
    example: str = ""
    """That key with a value."""
    excludes: str = ""
    """Option that it has no meaning with, if that is true."""
    package: str = ""
    """Package of the extra `eval` that computes it."""
    lower_is_better: bool = False
    """The opposite of what its class says, for who may not import that."""
    needs_base: str = ""
    """What it does with the base's answers, if it has no meaning without them."""
    needs_reference: bool = True
    """Whether it has no meaning where no answer is written."""

    def fits(self, config: Any) -> bool:
        """Whether it has a meaning with a whole `Config`."""
        return self.records in config.objective.records and not self.problem(config)

    def problem(self, config: Any) -> str:
        """What keeps it from having a meaning with the other options; else empty."""
        if self.wants and _option(config, self.wants) is None:
            return f"without {self.wants}"
        if self.excludes and _option(config, self.excludes):
            return f"with {self.excludes}=true"
        return ""


def _option(config: Any, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name, None)


@dataclass(kw_only=True, slots=True)
class JudgeConfig:
    """For the metric judge: a model behind an OpenAI-compatible endpoint."""

    url: str | None = None
    """Address of the service up to /v1, e.g. http://localhost:8000/v1."""
    model: str | None = None
    """Name of the model there."""
    key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key; one that is not set is not sent."""
    prompt: str | None = None
    """Path of a text file with the rubric; {prompt}, {first}, {second} and {reference} are filled
    in, and the reply must end with a line `Verdict: 1`, `Verdict: 2` or `Verdict: tie`."""
    concurrency: Annotated[int, Range(1, 256)] = 8
    """Requests at a time."""
    timeout_s: PositiveFloat = 120.0
    """Longest wait for a reply, in seconds."""
    retries: NonNegativeInt = 4
    """New tries after a timeout, a lost connection, HTTP 429 or 5xx, with growing pauses."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields of the request besides model, messages and temperature 0; null takes one out."""


class SandboxLevel(Enum):
    """How much must stand between this machine and code of graders, or nothing is run."""

    auto = "auto"
    strict = "strict"
    limits = "limits"


@dataclass(kw_only=True, slots=True)
class GradersConfig:
    """Limits of graders that run code, and of environments: each answer's code runs alone within
    them."""

    sandbox: SandboxLevel = SandboxLevel.auto
    """auto: namespaces where this machine has them, else limits alone; strict: namespaces or an
    error; limits: these alone, with network and files. docs/graders.md says what each of them
    holds."""
    timeout_s: PositiveFloat = 10.0
    """Longest time for one answer, in seconds; that of environments is `objective.turn_s`."""
    memory_mb: Annotated[int, Range(64, 1 << 20)] = 512
    """Most memory of one answer's processes together, in MiB."""
    file_mb: Annotated[int, Range(1, 1 << 20)] = 64
    """Most that they may write, in MiB."""
    processes: Annotated[int, Range(1, 4096)] = 32
    """Most processes and threads of one answer."""
    workers: PositiveInt | None = None
    """Answers at a time; null: one a CPU."""


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """Evaluation on held-out records, of the base and of the tuned model."""

    name: str = "default"
    """`none` or `default`."""
    metrics: list[str] | None = None
    """Metrics; null: those of the objective that fit (loss, perplexity and token_accuracy; of a
    classifier loss, accuracy, f1_macro and ece). There are loss, perplexity, token_accuracy; on
    generated answers exact_match, numeric_match, f1, rouge1, rouge2, rougeL, bleu, chrf,
    json_valid, json_schema, convention, length, distinct, repetition, style_distance,
    style_classifier, judge; of a classifier accuracy, f1_macro, f1_micro, ece, auroc, oos_recall,
    in_scope_accuracy."""
    general: Any = None
    """General held-out data, to see what is forgotten: same forms as `data.validation`; its format
    is detected unless a mapping {path, format, columns} names it."""
    new: dict[str, Any] = field(default_factory=dict)
    """Further held-out sets, such as new sources or paraphrases: name -> data, same forms and
    format as `data.validation`."""
    every_steps: PositiveInt | None = None
    """Evaluate the cheap metrics (no generation) every N steps during training. Give this or
    `eval.times`."""
    times: PositiveInt | None = None
    """Evaluate them so many times, evenly spread over the run; the end counts as one."""
    base: bool = True
    """Score the base model too, before training, and compare at the end."""
    draws: PositiveInt | None = None
    """Measure metrics of generated answers during training too, as means over so many answers to
    each held-out prompt; null: at the end alone. Those that compare with the base are left out."""
    limit: PositiveInt | None = None
    """Largest number of validation records for loss metrics."""
    generate_limit: PositiveInt | None = 200
    """Largest number of validation records for metrics that generate text."""
    max_new_tokens: PositiveInt = 256
    """Longest generated answer in tokens."""
    stop: list[str] = field(default_factory=list)
    """Strings before which an answer ends, besides at the model's own end tokens."""
    temperature: NonNegativeFloat = 0.0
    """0: always the likeliest token; else tokens are drawn, by seed and record alone."""
    top_p: ShareAboveZero = 1.0
    """With a temperature: draw among the likeliest tokens that together have this share."""
    gather_weights: bool | None = None
    """ZeRO 3: hold all weights on every rank while answers are made; null: if they fit."""
    answer_pattern: str | None = None
    """Regular expression for exact match: group 1 (or the whole match) of its last match in answer
    and reference is compared, e.g. '#### (-?[0-9.,]+)'; without it the whole text."""
    json_schema: str | None = None
    """For the metric json_schema: path of a JSON file with the schema."""
    convention: str | None = None
    """For the metric convention: regular expression that is to be found in every answer."""
    answer_words: list[int] | None = None
    """For the metric length: fewest and most words of an answer."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """For the metric judge, and the endpoint of graders that ask a model."""
    endpoints: dict[str, Any] = field(default_factory=dict)
    """For graders that ask a model: its name -> {url, model, key_variable, ...} as in `eval.judge`.
    Where there are some, a model that is not among them is refused, and `eval.judge` is for the
    metric judge alone."""
    graders: GradersConfig = field(default_factory=GradersConfig)
    """Limits of graders that run code."""
    batch_tokens: PositiveInt = 16384
    """Tokens of one evaluation batch on a rank."""
    slices: list[str] = field(default_factory=list)
    """Fields of the held-out records by whose values they are compared too, e.g. [category];
    a field inside of others with dots. Files and lengths are always."""
    samples: NonNegativeInt = 20
    """Sample answers on the report page, the first of the held-out records."""

    @property
    def key_variables(self) -> list[str]:
        """Environment variables with the keys of models that judge."""
        named = [JudgeConfig(**members) for members in self.endpoints.values()]
        return sorted({judge.key_variable for judge in (self.judge, *named)})
