"""What people prefer: the counts of a study or a router's file, and the verdict on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean, median
from typing import Any

from launcher.ab import database, statistics
from launcher.ab.study import FILE

#: What may be asked of the second model -> verdicts that fail it.
REQUIRED = {"better": ("worse", "no evidence"), "not-worse": ("worse",)}


def result(path: Path) -> dict[str, Any]:
    """The result of a study's folder or a router's file, as plain JSON.

    Both have: kind, a, b, verdict (of b against a), win_rate, interval, p_value, confidence, wins,
    losses, equal, needed, comments. Raises what `database.check` raises.
    """
    file = path / FILE if path.is_dir() else path
    make = {"study": _of_study, "traffic": _of_traffic}[database.check(file)]
    with database.opened(file) as db, database.snapshot(db):
        return make(db, database.meta(db))


def judged(wins: float, losses: float) -> dict[str, Any]:
    """Win rate, its interval and the verdict; rate and `needed` are None where there is none."""
    total, p = wins + losses, statistics.p_value(wins, losses)
    verdict = "no evidence"
    if p < 1 - statistics.CONFIDENCE:
        verdict = "better" if wins > losses else "worse"
    return {
        "verdict": verdict,
        "wins": wins,
        "losses": losses,
        "win_rate": wins / total if total else None,
        "interval": statistics.confidence_sequence(wins, losses),
        "confidence": statistics.CONFIDENCE,
        "p_value": p,
        "needed": statistics.needed(wins, losses) if verdict == "no evidence" else None,
    }


def preferences(values: Iterable[Iterable[float]]) -> tuple[float, float, int]:
    """(wins, losses, equal) of things that were judged several times.

    A value above 0 is a vote for the second model, below 0 one for the first. A thing counts once,
    divided as its votes are, because votes on the same thing are not independent.
    """
    wins = losses = 0.0
    equal = 0
    for votes in values:
        decided = [vote > 0 for vote in votes if vote]
        if decided:
            wins += fmean(decided)
            losses += 1 - fmean(decided)
        else:
            equal += 1
    return wins, losses, equal


def pairs(feedback: Iterable[tuple[str, str, float]]) -> list[float]:
    """Differences of paired users, the second model's minus the first's.

    `feedback` is (user, side, value) by time. A user counts once, with the mean of all values. Each
    new user is paired with the newest of the other side who still waits for a partner, so that both
    have lived at the same time even if one side has few users: without a difference between the
    models, one of a pair is then as likely to be the happier one as the other (Wald, Sequential
    Analysis, 1947, on double dichotomies), whatever changes with time for all. Pairs never change.
    """
    side_of: dict[str, str] = {}
    values: dict[str, list[float]] = defaultdict(list)
    for user, side, value in feedback:
        side_of.setdefault(user, side)
        values[user].append(value)
    waiting: list[str] = []  # all of one side
    paired: list[dict[str, str]] = []
    for user, side in side_of.items():
        if waiting and side_of[waiting[-1]] != side:
            other = waiting.pop()
            paired.append({side: user, side_of[other]: other})
        else:
            waiting.append(user)
    return [fmean(values[pair["b"]]) - fmean(values[pair["a"]]) for pair in paired]


def _of_study(db: Any, meta: Mapping[str, Any]) -> dict[str, Any]:
    votes = db.execute(
        "SELECT votes.*, name, prompt FROM votes JOIN items ON items.id = item"
        " JOIN judges ON judges.id = judge ORDER BY time"
    ).fetchall()
    by_item: dict[int, list[str]] = defaultdict(list)
    by_judge: dict[str, list[Any]] = {
        row["name"]: [] for row in db.execute("SELECT name FROM judges ORDER BY id")
    }
    for vote in votes:
        by_item[vote["item"]].append(vote["choice"])
        by_judge[vote["name"]].append(vote)
    values = {"a": -1.0, "b": 1.0}
    wins, losses, equal = preferences(
        [values.get(choice, 0.0) for choice in choices] for choices in by_item.values()
    )
    decided = [vote for vote in votes if vote["choice"] in values]
    left = sum(vote["choice"] == vote["left_side"] for vote in decided)
    several = [choices for choices in by_item.values() if len(choices) > 1]
    return {
        "kind": "study",
        "a": meta["a"],
        "b": meta["b"],
        **judged(wins, losses),
        "equal": equal,
        "prompts": db.execute("SELECT count(*) FROM items").fetchone()[0],
        "prompts_judged": len(by_item),
        "votes": _counts(votes),
        "position": {
            "left": left,
            "right": len(decided) - left,
            "p_value": statistics.p_value(left, len(decided) - left),
        },
        "agreement": {
            "alpha": statistics.krippendorff_alpha(several),
            "prompts": len(several),
        },
        "judges": [
            {"name": name, **_counts(theirs), "median_s": _median(v["seconds"] for v in theirs)}
            for name, theirs in by_judge.items()
        ],
        "comments": [
            {key: vote[key] for key in ("name", "prompt", "choice", "comment")}
            for vote in votes
            if vote["comment"]
        ],
    }


def _counts(votes: Iterable[Any]) -> dict[str, int]:
    choices = [vote["choice"] for vote in votes]
    return {choice: choices.count(choice) for choice in ("a", "b", "tie", "bad")}


def _of_traffic(db: Any, meta: Mapping[str, Any]) -> dict[str, Any]:
    said = db.execute(
        "SELECT user, side, value, comment FROM feedback JOIN requests ON requests.id = request"
        " ORDER BY feedback.time"
    ).fetchall()
    differences = pairs((row["user"], row["side"], row["value"]) for row in said)
    wins, losses, equal = preferences([difference] for difference in differences)
    sides = {side: _side(db, side, said) for side in ("a", "b")}
    users = {side: row["users"] for side, row in sides.items()}
    return {
        "kind": "traffic",
        "a": meta["a"],
        "b": meta["b"],
        **judged(wins, losses),
        "equal": equal,
        "share": meta["share"],
        "sides": sides,
        "split": {"p_value": statistics.p_value(users["b"], users["a"], meta["share"])},
        "comments": [
            {"choice": row["side"], "value": row["value"], "comment": row["comment"]}
            for row in said
            if row["comment"]
        ],
    }


def _side(db: Any, side: str, said: Iterable[Any]) -> dict[str, Any]:
    rows = db.execute("SELECT * FROM requests WHERE side = ?", (side,)).fetchall()
    values = [row["value"] for row in said if row["side"] == side]
    good = [row for row in rows if row["status"] is not None and row["status"] < 400]
    return {
        "users": len({row["user"] for row in rows}),
        "requests": len(rows),
        "errors": sum(row["status"] is not None and row["status"] >= 400 for row in rows),
        "unfinished": sum(row["status"] is None for row in rows),
        "median_first_s": _median(row["first_s"] for row in good),
        "median_total_s": _median(row["total_s"] for row in good),
        "feedback": len(values),
        "mean_feedback": fmean(values) if values else None,
    }


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
