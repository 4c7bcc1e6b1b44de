"""`python -m launcher.scoring.criteria RESULTS.json --out PAGE`: the page of a run of an eval.

The file holds what each criterion has said of each item. Of a share that passes the interval is
Wilson's, of a mean score that of resampled items, or of many items the normal one; all at 95 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from launcher.curate.rules.judged import wilson
from launcher.evals.comparison.paired import CONFIDENCE, Resampling
from launcher.report import renderer

#: Items from which on the interval of a mean is the normal one: the resampled one is the same to
#: two digits by then, and takes minutes for fifty criteria.
MANY = 2_000
_TEMPLATE = Path(renderer.__file__).with_name("criteria.html.j2")


def measured(scores: Sequence[float], passed: Sequence[bool]) -> dict[str, Any]:
    """Share that passes and mean score of a criterion, each with its interval; None without items,
    and no interval of the mean of a single one."""
    count = len(scores)
    found: dict[str, Any] = {"items": count, "share": None, "mean": None}
    if not count:
        return {**found, "share_interval": None, "mean_interval": None}
    share = sum(passed) / count
    column = np.asarray(scores, dtype=np.float64)[:, None]
    interval = None
    if count >= MANY:
        half = float(NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * column.std(ddof=1) / count**0.5)
        interval = [float(column.mean()) - half, float(column.mean()) + half]
    elif count > 1:
        tail = 100 * (1 - CONFIDENCE) / 2
        low, high = np.percentile(Resampling().sums(column)[:, 0] / count, [tail, 100 - tail])
        interval = [float(low), float(high)]
    return {
        **found,
        "share": share,
        "share_interval": list(wilson(share, count)),
        "mean": float(column.mean()),
        "mean_interval": interval,
    }


def page(found: Mapping[str, Any]) -> str:
    """The page of a run's results."""
    rows = [{**one, **measured(one["scores"], one["passed"])} for one in found["criteria"]]
    values = {"found": found, "rows": rows, "many": MANY}
    filters: dict[str, Callable[..., str]] = {"percent": _percent, "number": _number, "span": _span}
    return renderer.render(_TEMPLATE, values, filters=filters, visible=renderer.visible)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _span(interval: Sequence[float] | None, is_share: bool = False) -> str:
    if interval is None:
        return "no interval"
    low, high = interval
    if is_share:
        return f"{100 * low:.1f} to {100 * high:.1f} %"
    return f"{low:.3g} to {high:.3g}"


def main(argv: Sequence[str]) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(prog="python -m launcher.scoring.criteria")
    parser.add_argument("results", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parsed = parser.parse_args(argv)
    found = json.loads(parsed.results.read_text(encoding="utf-8"))
    renderer.write(parsed.out, page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
