"""Counts, histograms and percentiles of a report."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from launcher.curate.page.plots import histogram
from launcher.curate.records.marks import BITS
from launcher.curate.rules import rules
from launcher.curate.rules.diversity import effective, novelty, topics
from launcher.curate.rules.leakage import KINDS
from launcher.curate.rules.rules import Evidence, Result
from launcher.curate.scan.inputs import TRAIN, VALIDATION
from launcher.curate.scan.scan import Scan
from launcher.curate.scan.table import Array, RecordTable
from launcher.data.pack.packing import PackedOrder

#: Lengths at which packing is tried, as multiples of data.max_length.
PACK_AT = (0.5, 1, 2, 4)


def sections(evidence: Evidence, results: dict[str, Result], texts: list[str]) -> dict[str, Any]:
    """Everything of report.json that is a number. `texts` are a sample."""
    scan, train = evidence.scan, evidence.scan.train
    has_tokens = scan.tokenizer is not None
    labels = np.bincount(train.labels[train.labels >= 0], minlength=len(train.label_names))
    named = dict(zip(train.label_names, labels.tolist(), strict=True))
    sources = rules.sources(scan)
    return {
        "inputs": inputs(scan),
        "counts": {
            "records": len(train),
            "bytes": int(train["bytes"].sum()),
            "chars": int(train["chars"].sum()),
            "tokens": int(train["tokens"].sum()) if has_tokens else None,
            "target_tokens": int(train["targets"].sum()) if has_tokens else None,
            "turns": int(train["turns"].sum()),
            "roles": dict(train.roles.most_common()),
            "formats": _formats(train),
        },
        "lengths": _lengths(scan),
        "answers": {
            "histogram": histogram(train["answer"]),
            "empty": int((train["flags"] & BITS["empty_answers"] > 0).sum()),
            "tiny": results["tiny_answers"].count,
        },
        "turns": {"histogram": histogram(train["turns"])},
        "languages": {
            "sampled": evidence.languages.sampled,
            "counts": dict(evidence.languages.counts.most_common()),
        },
        "labels": _ranked(named) if named else None,
        "sources": _ranked(dict(sources)),
        "topics": topics(texts),
        "novelty": novelty(train.signatures),
    }


def _ranked(counts: dict[str, int]) -> dict[str, Any]:
    ranked = dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
    return {"counts": ranked, "effective": round(effective(ranked.values()), 4)}


def inputs(scan: Scan) -> list[dict[str, Any]]:
    """Records and bytes of every file, and of what is held out."""
    found = []
    for table, train in ((scan.train, True), (scan.held.table, False)):
        here = table["aside"] == 0
        rows = np.bincount(table["file"][here], minlength=len(scan.inputs))
        sizes = np.bincount(table["file"][here], table["bytes"][here], minlength=len(scan.inputs))
        for entry in scan.inputs:
            if (entry.split == TRAIN) != train and not rows[entry.file]:
                continue
            held_out = entry.split == TRAIN and not train
            found.append(
                {
                    "split": VALIDATION if held_out else entry.split,
                    "name": f"held out of {entry.name}" if held_out else entry.name,
                    "records": int(rows[entry.file]),
                    "bytes": int(sizes[entry.file]),
                }
            )
    return found


def against(evidence: Evidence) -> list[dict[str, Any]]:
    """Leaked records of every evaluation set."""
    scan, held = evidence.scan, evidence.scan.held.table
    found = []
    leaked = np.unique(evidence.leaks.evaluation)
    for entry in scan.inputs:
        rows = np.flatnonzero(held["file"] == entry.file)
        if not len(rows):
            continue
        counts = {
            kind: int(np.isin(shown, rows).sum())
            for kind, shown in zip(KINDS, evidence.leaks.by_kind, strict=True)
        }
        name = f"held out of {entry.name}" if entry.split == TRAIN else entry.name
        total = int(np.isin(leaked, rows).sum())
        found.append({"name": name, "records": len(rows), **counts, "leaked": total})
    return found


def _formats(train: RecordTable) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for file, number in Counter(train["file"].tolist()).items():
        counts[train.formats[file]] += number
    return dict(counts.most_common())


def _lengths(scan: Scan) -> dict[str, Any]:
    train, most = scan.train, scan.config.data.max_length
    has_tokens = scan.tokenizer is not None
    values = train["tokens"] if has_tokens else train["chars"]
    known = len(values) > 0
    return {
        "unit": "tokens" if has_tokens else "characters",
        "histogram": histogram(values),
        "percentiles": {
            **{str(p): int(np.percentile(values, p)) if known else 0 for p in (50, 90, 99)},
            "max": int(values.max()) if known else 0,
        },
        "max_length": most,
        "over": int((values > most).sum()) if has_tokens else 0,
        "packing": _packing(values, most) if has_tokens and known else [],
    }


def _packing(lengths: Array, most: int) -> list[dict[str, Any]]:
    tried = []
    for factor in PACK_AT:
        size = int(most * factor)
        cut = np.clip(lengths, 1, size)
        order = PackedOrder(cut, size, seed=0)
        over = int((lengths > size).sum())
        row = {"max_length": size, "fill": round(order.fill, 4), "packs": order.num_packs}
        tried.append({**row, "truncated": over})
    return tried
