"""Section on the data report: `data.report`, and the names of its rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.config.schema.ranges import NonNegativeInt, PositiveInt, ShareAboveZero
from launcher.core.errors import Problem, did_you_mean

#: All rules, in the order in which a report tells them.
RULES = (
    "broken",
    "equal_answers",
    "tied_ratings",
    "empty_answers",
    "tiny_answers",
    "overlong",
    "left_out",
    "unbalanced_turns",
    "exact_duplicates",
    "near_duplicates",
    "conflicts",
    "blank_differences",
    "length_bias",
    "one_sided_prompts",
    "verdict_balance",
    "chosen_held_out",
    "label_noise",
    "leakage",
    "mojibake",
    "control_characters",
    "markup",
    "repetition",
    "refusals",
    "pii",
    "secrets",
    "language_mix",
    "class_balance",
    "source_balance",
)
#: Further rules of `launcher data report --profile NAME`.
PROFILES = {
    "openai": (
        "openai_file",
        "openai_json",
        "openai_messages",
        "openai_roles",
        "openai_keys",
        "openai_content",
        "openai_assistant",
        "openai_last",
        "openai_weight",
        "openai_tools",
    )
}
#: What `data.gate=[default]` stands for: damage that no data should have.
DEFAULT_GATE = (
    "broken",
    "equal_answers",
    "tied_ratings",
    "empty_answers",
    "exact_duplicates",
    "conflicts",
    "leakage",
    "mojibake",
    "control_characters",
    "secrets",
)


#: Rules that fail only where the config says from which share on.
NEVER_FAIL = ("length_bias", "one_sided_prompts", "class_balance", "source_balance")


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """What `launcher data report` looks for, and how much of it is too much."""

    benchmarks: Any = None
    """Data that must not be trained on, besides the validation split: same forms as `data.train`,
    of any layout (a record without a known format counts with all its texts)."""
    near_duplicate: ShareAboveZero = 0.8
    """Similarity (share of common word sequences) from which two records are near duplicates."""
    leak_ngram: PositiveInt = 13
    """Words in the sequences by which evaluation records are looked for in the training data."""
    leak_share: ShareAboveZero = 0.5
    """Share of an evaluation record's sequences that must be found for it to count as leaked."""
    sample: NonNegativeInt = 5000
    """Records that languages and topics are estimated from."""
    examples: NonNegativeInt = 5
    """Records shown for each rule."""
    warn: dict[str, float] = field(default_factory=dict)
    """Rule -> share of records above which it warns, where the built-in limit does not fit."""
    fail: dict[str, float] = field(default_factory=dict)
    """Rule -> share of records above which it fails, where the built-in limit does not fit."""


def problems(gate: Sequence[str], report: ReportConfig) -> Iterator[Problem]:
    """Rules that do not exist, cannot stop a run, or have shares that are none."""
    for name in gate:
        if name not in (*RULES, "default", "all"):
            hint = did_you_mean(name, (*RULES, "default", "all"))
            if any(name in rules for rules in PROFILES.values()):
                hint = "a profile is for `launcher data report --profile`; a run takes no harm"
            yield Problem("data.gate", f"there is no rule {name!r}", hint)
        elif name in NEVER_FAIL and name not in report.fail:
            hint = f"say from which share on: data.report.fail={{{name}: 0.5}}"
            yield Problem("data.gate", f"{name} only warns, so it stops nothing", hint)
    for key in ("warn", "fail"):
        yield from _shares(f"data.report.{key}", getattr(report, key))


def _shares(where: str, shares: Mapping[str, float]) -> Iterator[Problem]:
    known = (*RULES, *(rule for rules in PROFILES.values() for rule in rules))
    for name, share in shares.items():
        if name not in known:
            yield Problem(where, f"there is no rule {name!r}", did_you_mean(name, known))
        elif not 0 <= share <= 1:
            yield Problem(f"{where}.{name}", f"{share} is no share", "give a number from 0 to 1")
