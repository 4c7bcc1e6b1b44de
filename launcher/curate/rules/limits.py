"""The rules of a report: how much of each is too much, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from launcher.config.check import checks
from launcher.config.schema import Config, data_report
from launcher.config.schema.data_report import ReportConfig
from launcher.core.errors import ConfigError, did_you_mean
from launcher.curate.records.profiles import FIXES, PROFILES

NEVER = 1.0


@dataclass(frozen=True, slots=True)
class Limit:
    """Shares above which a rule warns and fails, and the fix."""

    warn: float
    fail: float
    fix: str


RULES: dict[str, Limit] = {
    "broken": Limit(0, 0, "mend the lines, or drop them: launcher data clean --drop broken"),
    "equal_answers": Limit(0, 0, "drop them, there is nothing to prefer: --drop equal_answers"),
    "tied_ratings": Limit(0, 0, "drop them, or leave the ratings aside: --drop tied_ratings"),
    "empty_answers": Limit(0, 0.01, "write answers, or drop them: --drop empty_answers"),
    "tiny_answers": Limit(0.01, 0.2, "look whether these answers were cut off"),
    "overlong": Limit(0.01, 0.2, "raise data.max_length, or choose data.overlong"),
    "left_out": Limit(
        0, 0.01, "set model.chat_template or data.template_options; or data.thoughts"
    ),
    "unbalanced_turns": Limit(0, 0.05, "let user and assistant take turns, the assistant last"),
    "exact_duplicates": Limit(0, 0.01, "keep one of each: --drop duplicates"),
    "near_duplicates": Limit(0.01, 0.1, "keep one of each cluster: --drop near_duplicates"),
    "conflicts": Limit(0, 0.01, "decide which answer is right, or: --drop conflicts"),
    "blank_differences": Limit(0, 0.01, "drop them: --drop blank_differences"),
    "length_bias": Limit(
        0.65, NEVER, "what is learned may be length alone: add pairs whose better answer is shorter"
    ),
    "one_sided_prompts": Limit(NEVER, NEVER, "add answers of the other kind to the same prompts"),
    "verdict_balance": Limit(
        0.9, 0.99, "add answers of the other kind; good ones alone are learned with objective=sft"
    ),
    "chosen_held_out": Limit(0, 0.001, "take them out of training: --drop chosen_held_out"),
    "label_noise": Limit(0.005, 0.1, "look at these labels: their texts speak for another one"),
    "leakage": Limit(0, 0.001, "take them out of training: --drop leaks"),
    "mojibake": Limit(0, 0.01, "read the source in its true encoding again, or: --drop mojibake"),
    "control_characters": Limit(0, 0.01, "remove them, or: --drop control_characters"),
    "markup": Limit(0.005, 0.05, "turn the HTML into text, close blocks of code"),
    "repetition": Limit(0.005, 0.05, "write these answers anew, or: --drop repetition"),
    "refusals": Limit(0.005, 0.05, "answer them, or: --drop refusals"),
    "pii": Limit(0, 0.05, "replace personal data: --redact pii"),
    "secrets": Limit(0, 0, "revoke the keys, and replace them: --redact secrets"),
    "language_mix": Limit(0.01, 0.1, "take records in other languages out, or add more of them"),
    "class_balance": Limit(0.3, NEVER, "add records to small classes, or: --cap label=N"),
    "source_balance": Limit(0.9, NEVER, "set weights or data.temperature, or: --cap source=N"),
}


def limits(settings: ReportConfig, profile: str | None = None) -> dict[str, Limit]:
    """The rules that apply, with the limits that the config sets."""
    known = dict(RULES)
    for name, fix in FIXES.get(profile or "", {}).items():
        known[name] = Limit(0, NEVER if name == "openai_last" else 0, fix)
    return {
        name: Limit(
            min(settings.warn.get(name, limit.warn), settings.fail.get(name, limit.fail)),
            settings.fail.get(name, limit.fail),
            limit.fix,
        )
        for name, limit in known.items()
    }


def require(config: Config) -> None:
    """`ConfigError` for rules that do not exist and numbers that cannot be."""
    if found := checks.report_problems(config):
        raise ConfigError(found)


def gated(gate: Iterable[str]) -> list[str]:
    """The rules that a gate names."""
    groups = {"default": data_report.DEFAULT_GATE, "all": data_report.RULES}
    return list(dict.fromkeys(rule for name in gate for rule in groups.get(name, (name,))))


def require_profile(name: str | None) -> None:
    """`ConfigError` if there is no such profile."""
    if name is not None and name not in PROFILES:
        hint = did_you_mean(name, PROFILES)
        raise ConfigError(f"there is no profile {name!r}", where="--profile", hint=hint)
