"""Verdicts with the records that show why: their texts are read again, all at once."""

from __future__ import annotations

from typing import Any

from launcher.curate.records.marks import MARKS
from launcher.curate.records.record import Record
from launcher.curate.records.redaction import reason_shown, shown
from launcher.curate.records.texts import excerpt
from launcher.curate.report import numbers
from launcher.curate.rules.leakage import KINDS
from launcher.curate.rules.limits import NEVER, Limit
from launcher.curate.rules.rules import Evidence, Result, near_only

#: Characters of a record in a cluster, and in an example of a rule.
SHOWN, EXCERPT = 600, 200
#: Characters before and after what was found.
AROUND = 60


class Examples:
    """Rules and clusters with examples: the texts are read again, all at once."""

    def __init__(self, evidence: Evidence, examples: int) -> None:
        self._evidence = evidence
        self._scan = evidence.scan
        self._most = examples
        self._near = [cluster for cluster, _ in near_only(evidence)]
        self._near.sort(key=lambda cluster: -len(cluster))
        self._exact = sorted(evidence.exact, key=lambda cluster: -len(cluster))

    def rules(self, results: dict[str, Result], allowed: dict[str, Limit]) -> dict[str, Any]:
        """The keys `rules`, `duplicates`, `conflicts` and `leakage` of report.json."""
        leaks, most = self._evidence.leaks, self._most
        pairs = list(
            zip(leaks.train[:most].tolist(), leaks.evaluation[:most].tolist(), strict=True)
        )
        rows = {row for result in results.values() for row, _ in result.rows[:most]}
        groups = [*self._exact[:most], *self._near[:most], *self._evidence.conflicts[:most]]
        rows |= {int(i) for group in groups for i in group[:most]}
        rows |= {row for row, _ in pairs}
        self._records = self._scan.fetch(rows)
        held = self._scan.held.table
        self._held_records = self._scan.fetch([row for _, row in pairs], held)
        return {
            "duplicates": self._duplicates(results),
            "conflicts": self._conflicts(),
            "leakage": {
                "against": numbers.against(self._evidence),
                "examples": [
                    self._leak(number, row, other) for number, (row, other) in enumerate(pairs)
                ],
            },
            "rules": [
                self._rule(name, limit, results[name])
                for name, limit in allowed.items()
                if name in results
            ],
        }

    def _rule(self, name: str, limit: Limit, result: Result) -> dict[str, Any]:
        share = result.count / result.total if result.total else 0.0
        share = share if result.share is None else result.share
        verdict = "pass"
        if result.skipped:
            verdict = "skipped"
        elif result.count and share > limit.fail:
            verdict = "fail"
        elif result.count and share > limit.warn:
            verdict = "warn"
        return {
            "name": name,
            "verdict": verdict,
            "count": result.count,
            "share": share,
            "limit": _said(limit),
            "found": reason_shown(result.found),
            "fix": limit.fix,
            "examples": [
                *(
                    {"where": w, "text": shown(t, SHOWN), "why": reason_shown(y)}
                    for w, t, y in result.places[: self._most]
                ),
                *(self._example(name, row, why) for row, why in result.rows[: self._most]),
            ][: self._most]
            if verdict != "skipped"
            else [],
        }

    def _example(self, name: str, row: int, why: str) -> dict[str, str]:
        record = self._records[row]
        text, begin, end = _dialogue(record), 0, EXCERPT + 1
        mark = MARKS[name](record) if name in MARKS else None
        if mark:
            said, finding = mark
            why = finding.why
            if finding.end:
                text, begin = said, max(0, finding.begin - AROUND)
                end = min(finding.end + AROUND, begin + EXCERPT + 1)
        text = excerpt(shown(text, end - begin, begin), EXCERPT)
        return {"where": self._where(row), "text": text, "why": reason_shown(why)}

    def _duplicates(self, results: dict[str, Result]) -> dict[str, Any]:
        clusters = [("exact", c) for c in self._exact] + [("near", c) for c in self._near]
        shown = clusters[: self._most] + [
            ("near", c) for c in self._near[: self._most] if len(self._exact) >= self._most
        ]
        return {
            "exact": {
                "records": results["exact_duplicates"].count,
                "clusters": len(self._exact),
            },
            "near": {
                "records": results["near_duplicates"].count,
                "clusters": len(self._near),
                "threshold": self._scan.config.data.report.near_duplicate,
            },
            "examples": [
                {"kind": kind, "size": len(cluster), "records": self._group(cluster)}
                for kind, cluster in shown
            ],
        }

    def _group(self, cluster: Any) -> list[dict[str, str]]:
        return [
            {"where": self._where(i), "text": shown(_dialogue(self._records[int(i)]), SHOWN)}
            for i in cluster[: self._most]
            if int(i) in self._records
        ]

    def _conflicts(self) -> dict[str, Any]:
        groups = self._evidence.conflicts
        return {
            "groups": len(groups),
            "records": sum(map(len, groups)),
            "examples": [
                {
                    "prompt": shown(self._records[int(group[0])].prompt, SHOWN),
                    "answers": [
                        {
                            "where": self._where(i),
                            "text": shown(self._records[int(i)].answer, SHOWN),
                        }
                        for i in group[: self._most]
                    ],
                }
                for group in groups[: self._most]
            ],
        }

    def _leak(self, number: int, row: int, other: int) -> dict[str, str]:
        held = self._scan.held.table
        return {
            "train": self._where(row),
            "eval": self._scan.where(held, other),
            "evalset": self._scan.inputs[held["file"][other]].name,
            "kind": KINDS[self._evidence.leaks.kind[number]],
            "text": shown(self._held_records[other].text, SHOWN),
        }

    def _where(self, row: Any) -> str:
        return self._scan.where(self._scan.train, int(row))


def _dialogue(record: Record) -> str:
    if not record.prompt:
        return record.text
    answers = (
        f"{record.answer}\n✗ {record.rejected}" if record.rejected is not None else record.answer
    )
    return f"{record.prompt}\n→ {answers}"


def _said(limit: Limit) -> str:
    parts = [f"fails above {100 * limit.fail:.3g} %" if limit.fail else "fails at the first"]
    if limit.fail >= NEVER:
        parts = []
    if limit.warn < limit.fail:
        warns = f"warns above {100 * limit.warn:.3g} %" if limit.warn else "warns at the first"
        parts.insert(0, warns)
    return ", ".join(parts)
