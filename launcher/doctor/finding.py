"""What a check says, what it may look at, and how findings are shown."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from launcher.config.schema import Config


class Severity(Enum):
    """How bad it is."""

    ok = "pass"
    warn = "warn"
    fail = "fail"


_COLOR = {Severity.ok: "32", Severity.warn: "33", Severity.fail: "31;1"}


@dataclass(frozen=True, slots=True)
class CheckFinding:
    """One line of the table: what was looked at, the verdict, what was found, what to do."""

    check: str
    verdict: Severity
    found: str
    hint: str = ""
    hosts: tuple[str, ...] = ()
    """Hosts that it holds for; () where it is not about hosts."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """Measured values, for programs."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "check": self.check,
            "verdict": self.verdict.value,
            "found": self.found,
            "hint": self.hint,
            "hosts": list(self.hosts),
            "numbers": dict(self.numbers),
        }


@dataclass(frozen=True, slots=True)
class Seen:
    """All that the checks judge. Pure data: a check reads it and has no effect."""

    config: Config
    here: Mapping[str, Any]
    """Facts of this host: `host.machine.facts`, and `folders` as of `host.storage.facts`."""
    services: Mapping[str, Any] = field(default_factory=dict)
    """What `services.ask` heard."""
    asked: int = 0
    """Ranks that were started; 0 if none were."""
    ranks: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Rank -> what it reported."""
    trouble: str = ""
    """Why the ranks did not end well, as far as the launch knows."""

    @property
    def hosts(self) -> list[Mapping[str, Any]]:
        """Facts of each host with ranks, in the order of ranks; of this host if there is none."""
        found: dict[str, Mapping[str, Any]] = {}
        for report in self.ranks.values():
            if report.get("machine"):
                found.setdefault(report["host"], report["machine"])
        return list(found.values()) or [self.here]


#: A check: one function, one row in `checks.CHECKS`.
Check = Callable[[Seen], Iterator[CheckFinding]]
#: A check of one host's facts; `checks.each_host` makes a `Check` of it.
HostCheck = Callable[[Config, Mapping[str, Any]], Iterator[CheckFinding]]


def passed(check: str, found: str, **numbers: float) -> CheckFinding:
    """A pass."""
    return CheckFinding(check, Severity.ok, found, numbers=numbers)


def warned(check: str, found: str, hint: str, **numbers: float) -> CheckFinding:
    """A warning: it works, but not as it should."""
    return CheckFinding(check, Severity.warn, found, hint, numbers=numbers)


def failed(check: str, found: str, hint: str, **numbers: float) -> CheckFinding:
    """A failure: a run would break."""
    return CheckFinding(check, Severity.fail, found, hint, numbers=numbers)


# ---- the table of findings


def text(findings: Sequence[CheckFinding], *, color: bool) -> str:
    """An aligned table, what to do under each line that is no pass, and a summary."""
    several = len({host for finding in findings for host in finding.hosts}) > 1
    width = max((len(finding.check) for finding in findings), default=0)
    indent = " " * (width + 8)
    lines = []
    for finding in findings:
        verdict = finding.verdict.value.ljust(4)
        if color:
            verdict = f"\033[{_COLOR[finding.verdict]}m{verdict}\033[0m"
        found = finding.found
        if several and finding.hosts:
            found += f" [{', '.join(finding.hosts)}]"
        head, *more = found.splitlines() or [""]
        lines.append(f"{finding.check:<{width}}  {verdict}  {head}")
        lines += [f"{indent}{line}" for line in more]
        if finding.hint:
            lines.append(textwrap.indent(f"-> {finding.hint}", indent))
    return "\n".join([*lines, "", summary(findings)])


def as_dict(findings: Sequence[CheckFinding]) -> dict[str, Any]:
    """All findings and the worst verdict, for programs."""
    given = [finding.verdict for finding in findings]
    worst = max(given, key=list(Severity).index, default=Severity.ok)
    return {"verdict": worst.value, "findings": [finding.to_json() for finding in findings]}


def summary(findings: Sequence[CheckFinding]) -> str:
    """`18 pass, 2 warn, 0 fail`."""
    count = Counter(finding.verdict for finding in findings)
    return ", ".join(f"{count[verdict]} {verdict.value}" for verdict in Severity)
