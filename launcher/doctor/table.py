"""The findings as text."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from launcher.doctor.finding import Finding, Verdict

_COLOR = {Verdict.ok: "32", Verdict.warn: "33", Verdict.fail: "31;1"}


def text(findings: Sequence[Finding], *, color: bool) -> str:
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


def as_dict(findings: Sequence[Finding]) -> dict[str, Any]:
    """All findings and the worst verdict, for programs."""
    given = [finding.verdict for finding in findings]
    worst = max(given, key=list(Verdict).index, default=Verdict.ok)
    return {"verdict": worst.value, "findings": [finding.to_json() for finding in findings]}


def summary(findings: Sequence[Finding]) -> str:
    """`18 pass, 2 warn, 0 fail`."""
    count = Counter(finding.verdict for finding in findings)
    return ", ".join(f"{count[verdict]} {verdict.value}" for verdict in Verdict)
