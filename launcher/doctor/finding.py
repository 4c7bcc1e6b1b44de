"""What a check says, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from launcher.config.schema import Config


class Verdict(Enum):
    """How bad it is."""

    ok = "pass"
    warn = "warn"
    fail = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table: what was looked at, the verdict, what was found, what to do."""

    check: str
    verdict: Verdict
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
Check = Callable[[Seen], Iterator[Finding]]
#: A check of one host's facts; `checks.each_host` makes a `Check` of it.
HostCheck = Callable[[Config, Mapping[str, Any]], Iterator[Finding]]


def passed(check: str, found: str, **numbers: float) -> Finding:
    """A pass."""
    return Finding(check, Verdict.ok, found, numbers=numbers)


def warned(check: str, found: str, hint: str, **numbers: float) -> Finding:
    """A warning: it works, but not as it should."""
    return Finding(check, Verdict.warn, found, hint, numbers=numbers)


def failed(check: str, found: str, hint: str, **numbers: float) -> Finding:
    """A failure: a run would break."""
    return Finding(check, Verdict.fail, found, hint, numbers=numbers)
