"""The typed config, one dataclass a group. The string under each field is its documentation.

Rules that a test holds: keyword-only, slotted, every field documented, enums with lowercase member
names, and no derived value in here (those live in `launcher.config.derive.plan.Plan`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any, ClassVar

from launcher.config.schema.data_report import ReportConfig
from launcher.config.schema.launch import ClusterConfig, LaunchConfig, WatchdogConfig
from launcher.config.schema.ranges import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    Seed,
    Share,
    ShareAboveZero,
    ShareBelowOne,
)
from launcher.config.schema.sweep import SweepConfig
from launcher.core.errors import Problem
from launcher.core.registry import load


class Dtype(Enum):
    """Number format of weights or of computation."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Attention(Enum):
    """Attention implementation."""

    auto = "auto"
    varlen = "varlen"
    flash = "flash"
    document = "document"
    sdpa = "sdpa"
    eager = "eager"


class Quantization(Enum):
    """Storage format of frozen base weights."""

    none = "none"
    nf4 = "nf4"


class Thoughts(Enum):
    """Which of the assistant's thoughts are handed to the chat template, and learned."""

    template = "template"
    all = "all"
    last = "last"
    none = "none"


class SpecialTokens(Enum):
    """What the spelling of a special token in a record's text is."""

    auto = "auto"
    text = "text"
    parse = "parse"


class Overlong(Enum):
    """What happens to a record longer than `data.max_length`."""

    truncate = "truncate"
    split = "split"
    drop = "drop"


class OnBadRecord(Enum):
    """What happens to a record that cannot be used."""

    stop = "stop"
    skip = "skip"


class OnNonFinite(Enum):
    """What happens when the loss or the gradient norm is NaN or Inf."""

    stop = "stop"
    skip = "skip"


class Weights(Enum):
    """Which weights of a run are its result."""

    best = "best"
    last = "last"


class WandbMode(Enum):
    """How Weights & Biases is used."""

    disabled = "disabled"
    auto = "auto"
    online = "online"
    offline = "offline"


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """Identity of the run and where its folder lies."""

    name: str | None = None
    """Folder name of the run under `run.root`; made from recipe, model and time if not given."""
    root: str = "runs"
    """Folder that holds the run folders; on a cluster it must be on the shared file system."""
    tags: list[str] = field(default_factory=list)
    """Free labels, shown by `launcher status` and handed to the trackers."""


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The base model and how it computes."""

    kind: str = "hf"
    """Loader: `hf` (any Hugging Face causal language model) or `tiny` (made on the spot)."""
    name: str | None = None
    """Hub name or folder of the base model."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    tokenizer: str | None = None
    """Hub name or folder of the tokenizer, if it is not the model's own."""
    chat_template: str | None = None
    """File with a Jinja chat template that replaces the tokenizer's own."""
    add_tokens: list[str] = field(default_factory=list)
    """Special tokens to add; embeddings are resized to fit."""
    adapter: str | None = None
    """Folder of an adapter that is merged into the base before training; it names the base."""
    dtype: Dtype = Dtype.auto
    """Format in which the weights are loaded; `auto` follows `engine.precision`."""
    attention: Attention = Attention.auto
    """`auto` picks what isolates packed documents: varlen on CUDA, per-document SDPA on CPU."""
    quantization: Quantization = Quantization.none
    """Format of frozen base weights: `nf4` is 4-bit NormalFloat (bitsandbytes, CUDA; needs a `peft`
    method)."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more compute."""
    compile: bool = False
    """Compile the model with torch.compile (needs a C++ compiler)."""
    trust_remote_code: bool = False
    """Allow Python code that comes with a hub model."""


@dataclass(kw_only=True, slots=True)
class TinyModelConfig(ModelConfig):
    """A small Llama with a byte-level BPE tokenizer, made and cached at first use, offline."""

    kind: str = "tiny"
    """Loader: always `tiny` here."""
    vocab_size: Annotated[int, Range(264)] = 512
    """Tokens of the byte-level BPE, special tokens included."""
    hidden_size: PositiveInt = 128
    """Width of the residual stream."""
    intermediate_size: PositiveInt = 256
    """Width of the gated MLP."""
    layers: PositiveInt = 3
    """Number of decoder layers."""
    heads: PositiveInt = 4
    """Attention heads."""
    kv_heads: PositiveInt = 4
    """Key and value heads; fewer than `heads` is grouped-query attention."""
    max_positions: Annotated[int, Range(2)] = 1024
    """Longest sequence."""
    tie_embeddings: bool = True
    """Share the input embedding and the LM head."""
    recipe: str | None = None
    """Experiment that pre-trains this model: it runs first, once, and what it exports is cached and
    used as the base; without it the base is randomly initialised."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Training and validation data, and how records become token sequences."""

    format: str = "auto"
    """Record format: `auto` detects it; or chat, sharegpt, prompt, alpaca, text, classification,
    preference, or the path of a Python file with a class `Format`."""
    train: Any = None
    """Training data: path, glob, folder, URL, `datasets` hub name, `builtin:NAME`, or a list of
    these; for a mixture, a list of mappings {path, weight or epochs, name, format, columns,
    limit}."""
    temperature: PositiveFloat | None = None
    """Mixture by size: the share of a source is its tokens to the power 1/temperature (1 = by size,
    larger = more even)."""
    validation: Any = None
    """Held-out data, same forms as `data.train`; if not given, a share of the training data."""
    validation_share: ShareBelowOne = 0.05
    """Share of records held out when `data.validation` is not given, chosen by a seeded hash of
    each record's content: no record changes sides when the data grows. 0 = no validation."""
    revision: str | None = None
    """Branch, tag or commit of a hub data set."""
    columns: dict[str, str] = field(default_factory=dict)
    """Rename columns: field that the format wants -> column in the data, e.g.
    {prompt: question, completion: answer}; an empty name leaves the field aside."""
    labels: list[str] = field(default_factory=list)
    """Names of the classes, for classification data whose labels are indices."""
    system: str | None = None
    """System message put before every record that has none."""
    template_options: dict[str, Any] = field(default_factory=dict)
    """Variables that the chat template reads, by name, in training and when the model is used, e.g.
    {enable_thinking: false}."""
    thoughts: Thoughts = Thoughts.template
    """What the assistant thinks in earlier turns: `template` leaves it to the chat template; `all`
    is learned, each exchange as a sequence of its own where the template hides earlier ones; `last`
    keeps what follows the user's last message; `none` takes all out."""
    learn_empty_thoughts: bool = True
    """Whether the empty thought that a template writes into a turn without one is learned; false
    makes it context."""
    special_tokens: SpecialTokens = SpecialTokens.auto
    """What a special token's spelling in a record's text is, such as <|im_end|>: `text`, which
    controls nothing; or `parse`, the token itself. `auto` is `text` where the chat template writes
    the control tokens, and `parse` where the record has to (data=text, no chat template). The model
    is asked in the same way."""
    max_length: Annotated[int, Range(2)] = 1024
    """Longest sequence in tokens, and the capacity of a pack."""
    packing: bool = True
    """Put several whole records into one sequence of `data.max_length`; none attends to another."""
    overlong: Overlong = Overlong.truncate
    """Records longer than `data.max_length`: truncate at the end, split into pieces, or drop."""
    bad_records: OnBadRecord = OnBadRecord.stop
    """Unusable records (broken JSON, no assistant turn): stop with file:line, or skip and count."""
    limit: PositiveInt | None = None
    """Use only the first N records of each split (for trials)."""
    shuffle: bool = True
    """Shuffle every epoch by `seed` and epoch; false keeps the order of the files."""
    workers: PositiveInt | None = None
    """Processes that tokenise; default all CPUs."""
    cache: str | None = None
    """Folder for prepared data; default is the launcher's cache folder."""
    gate: list[str] = field(default_factory=list)
    """Rules of `launcher data report` that stop a run when they fail: names of rules, `default`
    (all that fail on damage) or `all`. Empty: no report is made."""
    report: ReportConfig = field(default_factory=ReportConfig)
    """What `launcher data report` looks for, and how much of it is too much."""


@dataclass(kw_only=True, slots=True)
class BatchConfig:
    """The global batch of one optimizer step; micro-batch and accumulation are solved from it."""

    tokens: PositiveInt | None = None
    """Global batch in tokens: `data.max_length` times the packs. Give this or `batch.sequences`."""
    sequences: PositiveInt | None = None
    """Global batch in sequences (packs, if packing is on). Give this or `batch.tokens`."""
    micro: PositiveInt | None = None
    """Sequences a rank computes at once; default: the most that divide the batch and have no more
    than 1,024 tokens on CPU, 16,384 on CUDA."""


@dataclass(kw_only=True, slots=True)
class EarlyStopConfig:
    """Ending the training once held-out records show no more progress."""

    patience: PositiveInt | None = None
    """Evaluations in a row without progress after which training ends; null: never early."""
    metric: str = "loss"
    """Which of `eval.metrics` tells, for `export.weights=best` too; one that needs no generated
    answers. Whether less or more is better is known of each."""
    min_change: NonNegativeFloat = 0.0
    """Least change for the better, against the score that counted last, that counts as progress."""


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """How long to train and what to do at each step."""

    steps: PositiveInt | None = None
    """Optimizer steps. Give this or `train.epochs`."""
    epochs: PositiveFloat | None = None
    """Passes over the training data; the last step is filled up from the next pass."""
    log_every_steps: PositiveInt = 10
    """Write a line of metrics every N steps."""
    token_accuracy: bool = False
    """Log the share of target tokens that the model would have chosen; costs a pass over logits."""
    on_nonfinite: OnNonFinite = OnNonFinite.stop
    """NaN or Inf in loss or gradient norm: `stop` (exit 5) or `skip` the step."""
    threads: PositiveInt | None = None
    """Compute threads per rank on CPU; default: CPUs divided by the ranks of this host."""
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)
    """When to end before the last step."""


@dataclass(kw_only=True, slots=True)
class ObjectiveConfig:
    """What is learned from an example; what must be known of it before its code is imported."""

    #: Whether every token is learned, so that data needs no turns or prompts.
    learns_every_token: ClassVar[bool] = False
    #: Whether a head with outputs for a whole sequence takes the place of the LM head.
    has_sequence_head: ClassVar[bool] = False
    #: Whether it learns from two answers of which one is better.
    learns_pairs: ClassVar[bool] = False
    #: Whether an example becomes several documents, which stay in one pack.
    groups_documents: ClassVar[bool] = False
    #: What is measured on each held-out record (`variants.RECORDS`).
    records: ClassVar[tuple[str, ...]] = ("loss", "tokens", "generation")
    #: The metrics that are taken unless others are named.
    metrics: ClassVar[tuple[str, ...]] = ("loss", "perplexity", "token_accuracy")

    name: str = "sft"
    """Objective: see the table in docs/config.md, or the path of a Python file with the classes
    `Objective` and `Options`."""

    def problems(self, config: Config) -> Iterator[Problem]:
        """What is wrong with the rest of the config for this objective: of most, data of pairs."""
        if config.data.format == "preference" and not self.learns_pairs:
            hint = "no objective learns from pairs; to learn chosen texts: data=prompt "
            hint += "'data.columns={completion: chosen}'"
            yield Problem("objective.name", f"{self.name} with data.format=preference", hint)

    def encoding(self, split: str) -> dict[str, Any]:
        """Those options that decide how examples of a split become tokens: part of the name of
        prepared data. Of an objective from elsewhere all count, unless it says which do."""
        return {}

    def label_names(self, labels: list[str]) -> list[str]:
        """What labels that are indices stand for, where `labels` are `data.labels`."""
        return labels

    def num_outputs(self, labels: list[str]) -> int:
        """Outputs of the sequence head as far as the config tells; 0 where it does not."""
        return 0


@dataclass(kw_only=True, slots=True)
class SftConfig(ObjectiveConfig):
    """Supervised fine-tuning: cross entropy on the target tokens (assistant turns, completions)."""

    name: str = "sft"
    """Name of the objective."""
    label_smoothing: ShareBelowOne = 0.0
    """Share of the target's probability spread evenly over the vocabulary."""


@dataclass(kw_only=True, slots=True)
class TextConfig(ObjectiveConfig):
    """Continued pre-training: cross entropy on every token."""

    learns_every_token: ClassVar[bool] = True
    records: ClassVar[tuple[str, ...]] = ("loss", "tokens")

    name: str = "text"
    """Name of the objective."""

    def encoding(self, split: str) -> dict[str, Any]:
        """All tokens are targets."""
        return {"all_targets": True}


@dataclass(kw_only=True, slots=True)
class ClassifyConfig(ObjectiveConfig):
    """Classification: a head on the model names the class of a whole text."""

    has_sequence_head: ClassVar[bool] = True
    records: ClassVar[tuple[str, ...]] = ("loss", "classes")
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "f1_macro", "ece")

    name: str = "classify"
    """Name of the objective."""
    multi_label: bool = False
    """Any number of classes may apply to a text: labels are lists, each class has a sigmoid."""
    out_of_scope: str | None = None
    """Label of texts that belong to no class. It is not learned: a text is out of scope if its
    largest probability is below a threshold, which is chosen on held-out records."""
    class_weights: Any = None
    """What the loss of each class is multiplied by: {name: weight}, or `balanced`: records /
    (classes x records of the class). With `objective.multi_label` it is for records that have the
    class, and `balanced` makes them weigh as much as those without it."""
    new_head: bool = False
    """Start with a new head where the model has one, be it for the same number of classes."""

    def problems(self, config: Config) -> Iterator[Problem]:
        """Data and options that no classifier is trained on."""
        found: Iterator[Problem] = load("launcher.config.check.classify_checks:check")(config, self)
        return found

    def encoding(self, split: str) -> dict[str, Any]:
        """How labels are read; those out of scope are left out of what is learned."""
        outside = [self.out_of_scope, split] if self.out_of_scope is not None else None
        return {"classes": [self.multi_label, outside]}

    def label_names(self, labels: list[str]) -> list[str]:
        """The classes, and the label of texts out of scope behind them."""
        return [*labels, self.out_of_scope] if labels and self.out_of_scope else labels

    def num_outputs(self, labels: list[str]) -> int:
        """One for each class."""
        return len([name for name in labels if name != self.out_of_scope])


@dataclass(kw_only=True, slots=True)
class PeftConfig:
    """Parameter-efficient method; `none` trains all weights."""

    trains_base: ClassVar[bool] = True
    """Whether the weights of the base are what is trained, and not adapters beside them."""

    name: str = "none"
    """Method: none or lora."""


@dataclass(kw_only=True, slots=True)
class AdapterConfig(PeftConfig):
    """A method that freezes the weights of the model and trains something beside its matrices."""

    trains_base: ClassVar[bool] = False

    targets: Any = "all-linear"
    """`all-linear` (all linear layers but the LM head and routers), or names of modules or of fused
    parameters, e.g. [q_proj, v_proj], [all-linear, router]."""
    experts: bool = True
    """Whether `all-linear` has part in the experts that a model keeps fused in one parameter."""
    modules_to_save: list[str] = field(default_factory=list)
    """Modules trained in full beside adapters, e.g. [embed_tokens, lm_head] after adding tokens."""

    def parameters(self, inputs: int, outputs: int, experts: int = 1) -> int:
        """Trained parameters beside a matrix [outputs, inputs], or one for each of `experts`."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class LoraConfig(AdapterConfig):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

    name: str = "lora"
    """Name of the method."""
    rank: PositiveInt = 16
    """Rank of the update."""
    alpha: PositiveFloat = 32.0
    """Scale: the update is multiplied by alpha / rank (alpha / sqrt(rank) with rslora)."""
    dropout: ShareBelowOne = 0.0
    """Dropout on the adapter's input."""
    dora: bool = False
    """Weight-decomposed adapters (Liu et al. 2024, arXiv:2402.09353)."""
    rslora: bool = False
    """Rank-stabilised scale (Kalajdzievski 2023, arXiv:2312.03732)."""
    adapter: str | None = None
    """Folder of an adapter to train further; `model.name=FOLDER` sets it. Its own rank, alpha,
    targets and so on hold."""

    def parameters(self, inputs: int, outputs: int, experts: int = 1) -> int:
        """Two factors of `rank` for each matrix; with `dora` a magnitude for each output."""
        return experts * self.rank * (inputs + outputs) + (outputs if self.dora else 0)


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """Optimizer and gradient clipping."""

    moment_bytes: ClassVar[int]
    """Bytes of the moments that are kept for each trained parameter."""
    needs_compiler: ClassVar[bool] = False
    """Whether its update is compiled by a C++ compiler when the training starts."""

    name: str = "adamw"
    """Optimizer: adamw, adamw8bit or muon."""
    lr: PositiveFloat = 2e-5
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay; not applied to biases and norm weights."""
    clip_norm: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 = no clipping."""


@dataclass(kw_only=True, slots=True)
class AdamwConfig(OptimConfig):
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101): torch's fused kernel, or DeepSpeed's CPU
    kernel if offloaded."""

    moment_bytes: ClassVar[int] = 8

    name: str = "adamw"
    """Name of the optimizer."""
    beta1: ShareBelowOne = 0.9
    """Decay of the first moment."""
    beta2: ShareBelowOne = 0.999
    """Decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""


@dataclass(kw_only=True, slots=True)
class Adamw8bitConfig(AdamwConfig):
    """AdamW of bitsandbytes, 8-bit block-wise moments (Dettmers et al. 2021, arXiv:2110.02861)."""

    moment_bytes: ClassVar[int] = 2

    name: str = "adamw8bit"
    """Name of the optimizer."""


@dataclass(kw_only=True, slots=True)
class MuonConfig(OptimConfig):
    """Muon (Jordan et al. 2024) for hidden matrices, AdamW for the rest, through DeepSpeed."""

    moment_bytes: ClassVar[int] = 4
    needs_compiler: ClassVar[bool] = True

    name: str = "muon"
    """Name of the optimizer."""
    lr: PositiveFloat = 2e-3
    """Peak learning rate of the Muon matrices."""
    momentum: ShareBelowOne = 0.95
    """Momentum of the Muon matrices."""
    adam_lr: PositiveFloat = 2e-5
    """Peak learning rate of embeddings, head, norms and biases."""
    beta1: ShareBelowOne = 0.9
    """Adam's decay of the first moment."""
    beta2: ShareBelowOne = 0.999
    """Adam's decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Adam's epsilon."""


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """Learning rate over the run, as a factor of `optim.lr`."""

    name: str = "cosine"
    """Schedule: constant, linear, cosine or wsd."""
    warmup: NonNegativeFloat = 0.0
    """Linear warm-up: below 1 a share of all steps, from 1 a number of steps."""
    min_ratio: Share = 0.0
    """Factor at the end of the decay (not used by constant)."""


@dataclass(kw_only=True, slots=True)
class WsdConfig(ScheduleConfig):
    """Warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395): constant, then linear decay."""

    name: str = "wsd"
    """Name of the schedule."""
    decay: ShareAboveZero = 0.2
    """Share of all steps at the end that decay."""


@dataclass(kw_only=True, slots=True)
class EngineConfig:
    """DeepSpeed ZeRO."""

    zero: Annotated[int, Range(0, 3)] = 2
    """ZeRO stage: 0 replicates all, 1 shards optimizer state, 2 gradients too, 3 parameters too."""
    precision: Dtype = Dtype.auto
    """Computation: `auto` is bf16 on CUDA and fp32 on CPU."""
    offload_optimizer: bool = False
    """Keep optimizer state and its update on the CPU (stages 1 to 3)."""
    offload_params: bool = False
    """Keep parameters on the CPU and fetch them when needed (stage 3)."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Any DeepSpeed key, merged last over the dict that `launcher config --deepspeed` prints."""


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """Saving and keeping state."""

    every_steps: PositiveInt | None = None
    """Save every N steps; a checkpoint at the end and at a clean stop is always written."""
    keep_last: PositiveInt = 2
    """Newest checkpoints to keep."""
    keep_best: NonNegativeInt = 0
    """Checkpoints with the lowest held-out loss to keep besides (needs evaluation)."""


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """The Hugging Face folder written at the end."""

    at_end: bool = True
    """Write `export/` when training has finished."""
    merge: bool = False
    """Fold adapters into the base weights; false writes the adapter alone."""
    weights: Weights | None = None
    """Which weights are compared with the base and exported: the `last`, or the `best` of all
    evaluations by `train.early_stop.metric`, whose checkpoint is kept. null: the best with
    `train.early_stop.patience`, else the last."""


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
    """For the metric judge."""
    batch_tokens: PositiveInt = 16384
    """Tokens of one evaluation batch on a rank."""
    slices: list[str] = field(default_factory=list)
    """Fields of the held-out records by whose values they are compared too, e.g. [category];
    a field inside of others with dots. Files and lengths are always."""
    samples: NonNegativeInt = 20
    """Sample answers on the report page, the first of the held-out records."""


@dataclass(kw_only=True, slots=True)
class TrackerConfig:
    """A tracker besides metrics.jsonl."""

    package: ClassVar[str | None] = None
    """Package that it imports; of the extra of that name, if not every installation has it."""

    @property
    def is_on(self) -> bool:
        """Whether runs are tracked so."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class WandbConfig(TrackerConfig):
    """Weights & Biases."""

    package: ClassVar[str | None] = "wandb"

    mode: WandbMode = WandbMode.disabled
    """disabled, online, offline, or auto: online if there are credentials, else offline."""
    project: str = "launcher"
    """Project name."""
    entity: str | None = None
    """Team or user."""
    name: str | None = None
    """Name shown there; default: that of the run."""
    group: str | None = None
    """Group of runs."""
    log_export: bool = False
    """Upload the exported model as an artifact."""

    @property
    def is_on(self) -> bool:
        """Unless it is disabled."""
        return self.mode is not WandbMode.disabled


@dataclass(kw_only=True, slots=True)
class TensorboardConfig(TrackerConfig):
    """TensorBoard."""

    package: ClassVar[str | None] = "tensorboard"

    enabled: bool = False
    """Write event files to `tensorboard/` of the run folder."""

    @property
    def is_on(self) -> bool:
        """If it is enabled."""
        return self.enabled


@dataclass(kw_only=True, slots=True)
class TrackConfig:
    """Trackers besides metrics.jsonl, which is always written."""

    name: str = "default"
    """Name of the tracking setup."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Weights & Biases."""
    tensorboard: TensorboardConfig = field(default_factory=TensorboardConfig)
    """TensorBoard."""


@dataclass(kw_only=True, slots=True)
class Config:
    """One run, complete."""

    seed: Seed = 0
    """Seed of everything random: data order, initialisation, dropout, splits."""
    run: RunConfig = field(default_factory=RunConfig)
    """Identity of the run."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Base model."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data."""
    objective: ObjectiveConfig = field(default_factory=SftConfig)
    """Objective."""
    peft: PeftConfig = field(default_factory=PeftConfig)
    """Parameter-efficient method."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    """Global batch."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Length of training and step policies."""
    optim: OptimConfig = field(default_factory=AdamwConfig)
    """Optimizer."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """Learning-rate schedule."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """DeepSpeed."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Checkpoints."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """Export at the end."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Evaluation."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """Trackers."""
    watchdog: WatchdogConfig = field(default_factory=WatchdogConfig)
    """Watching for hung and slow ranks."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    """What is particular to a site."""
    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """Launch."""
    sweep: SweepConfig = field(default_factory=SweepConfig)
    """Sweep."""
