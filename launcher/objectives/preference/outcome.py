"""What training has made of held-out pairs: numbers, warnings and a section for the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from launcher.evals.records import Results
from launcher.objectives.preference import drift
from launcher.objectives.preference.records import PairRecord, Rewarded, pair_records

#: Nats a token by which chosen answers may become less likely before it is warned of.
FALL = 0.05


def reward_means(records: Sequence[Rewarded]) -> dict[str, float]:
    """Mean rewards and margin of the pairs."""
    if not records:
        return {}
    return {
        "reward_chosen": float(np.mean([r.reward_chosen for r in records])),
        "reward_rejected": float(np.mean([r.reward_rejected for r in records])),
        "margin": float(np.mean([r.margin for r in records])),
    }


def means(records: Sequence[PairRecord]) -> dict[str, float]:
    """Mean rewards and margin of the pairs, and for each answer the log-probability of a token and
    its change on the reference, in nats; without a reference no changes."""
    found = reward_means(records)
    if not records:
        return found
    for side, name in enumerate(("chosen", "rejected")):
        tokens = sum(r.tokens[side] for r in records)
        found[f"log_prob_{name}"] = sum((r.chosen, r.rejected)[side] for r in records) / tokens
        before = [r.reference[side] for r in records if r.reference is not None]
        if len(before) == len(records):
            found[f"{name}_change"] = found[f"log_prob_{name}"] - sum(before) / tokens
    return found


def warnings(records: Sequence[PairRecord]) -> list[str]:
    """Sentences on what goes wrong in silence: a margin that grows while both answers become less
    likely, which moves the model to answers that nobody has chosen."""
    found = means(records)
    change = found.get("chosen_change")
    if change is None or change > -FALL:
        return []
    rejected = found["rejected_change"]
    return [
        f"chosen answers have become less likely: {change:+.3f} nats a token (rejected ones"
        f" {rejected:+.3f}): the model moves away from both. HINT: objective.sft_weight=1 holds"
        " chosen answers up; a lower optim.lr or a higher objective.beta moves the model less"
    ]


def section(records: Sequence[PairRecord]) -> dict[str, Any]:
    """A section of the report: what became of both answers, and whether length decides."""
    found = means(records)
    rows = []
    for name in ("chosen", "rejected"):
        change = found.get(f"{name}_change")
        rows.append(
            [
                name.capitalize(),
                f"{found[f'reward_{name}']:.3f}",
                f"{found[f'log_prob_{name}']:.3f}",
                "" if change is None else f"{change:+.3f}",
            ]
        )
    columns = ["Answer", "Mean reward", "Log-probability a token", "Change on the reference"]
    return _section(records, {"columns": columns, "rows": rows}, drift.sentence(records))


def reward_section(records: Sequence[Rewarded]) -> dict[str, Any]:
    """A section of the report: how both answers are rewarded, and whether length decides."""
    rows = []
    for name in ("chosen", "rejected"):
        own = [getattr(record, f"reward_{name}") for record in records]
        rows.append([name.capitalize(), f"{np.mean(own):.3f}", f"{np.std(own):.3f}"])
    columns = ["Answer", "Mean reward", "Standard deviation"]
    return _section(records, {"columns": columns, "rows": rows})


def _section(
    records: Sequence[Rewarded], answers: dict[str, Any], more: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """That section around the table of both answers."""
    margin = np.mean([r.margin for r in records])
    quantiles = [
        [f"{q:.0%}", f"{np.quantile([r.margin for r in records], q):.3f}"]
        for q in (0.05, 0.25, 0.5, 0.75, 0.95)
    ]
    return {
        "title": "Preferences",
        "blocks": [
            {"text": f"The mean margin of {len(records)} held-out pairs is {margin:.3f}."},
            *more,
            answers,
            {"columns": ["Quantile", "Margin"], "rows": quantiles},
            {"columns": ["Chosen answer", "Pairs", "Preferred"], "rows": _by_length(records)},
        ],
    }


def _by_length(records: Sequence[Rewarded]) -> list[list[str]]:
    """How often chosen answers are preferred where they are longer, equally long and shorter."""
    rows = []
    for name, sign in (("longer", 1), ("as long", 0), ("shorter", -1)):
        own = [r for r in records if np.sign(r.tokens[0] - r.tokens[1]) == sign]
        share = f"{np.mean([(1 + np.sign(r.margin)) / 2 for r in own]):.1%}" if own else ""
        rows.append([name, str(len(own)), share])
    return rows


def lines(
    base: Results | None,
    tuned: Results,
    where: Callable[[int], str],
    text: Callable[[int], str],
) -> list[dict[str, Any]]:
    """Each pair as a line of predictions.jsonl."""
    before = {record.id: record.margin for record in pair_records(base)} if base else {}
    made = []
    for record in pair_records(tuned):
        was = before.get(record.id)
        made.append(
            {
                "id": record.id,
                "where": where(record.id),
                "prompt": text(record.id),
                "base": "" if was is None else f"margin {was:.3f}",
                "tuned": f"margin {record.margin:.3f}",
            }
        )
    return made
