"""Section `data`: training and validation data, and how records become token sequences."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

from launcher.config.schema.data_report import ReportConfig
from launcher.config.schema.ranges import PositiveFloat, PositiveInt, Range, ShareBelowOne


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
    cut_prompt = "cut_prompt"
    split = "split"
    drop = "drop"


class Ranking(Enum):
    """Which pairs are made of several answers to one prompt."""

    all = "all"
    extremes = "extremes"


class OnBadRecord(Enum):
    """What happens to a record that cannot be used."""

    stop = "stop"
    skip = "skip"


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Training and validation data, and how records become token sequences."""

    format: str = "auto"
    """Record format: `auto` detects it; or chat, sharegpt, prompt, alpaca, text, classification,
    preference, ranked, unpaired, or the path of a Python file with a class `Format`."""
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
    each record's content (of answers that are judged: of their prompt): no record changes sides
    when the data grows. 0 = no validation."""
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
    """Records longer than `data.max_length`: truncate at the end; cut_prompt takes the beginning of
    the prompt away, so that answers stay whole; split into pieces; or drop. Both answers of a pair
    count together, each with the prompt."""
    ranked: Ranking = Ranking.all
    """Pairs that are made of answers by rank: `all` of two that are not rated the same, or the best
    against the worst (`extremes`)."""
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
