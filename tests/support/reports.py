"""A data report as report.json has it, made by hand: what the page and the gate read."""

import random
from typing import Any

from launcher.curate.page import plots
from launcher.curate.rules import diversity


def report(seed: int = 0) -> dict[str, Any]:
    """A report on 7,473 chats with a few things wrong; a new one at each call."""
    rng = random.Random(seed)
    lengths = [int(rng.lognormvariate(5.1, 0.45)) for _ in range(7470)] + [2400, 3100, 5200]
    labels = {"transfer": 410, "balance": 400, "freeze": 395, "greeting": 90, "goodbye": 12}
    topics = [("apples oranges fruit baskets", 1900), ("miles speed hour drive", 1400)]
    topics += [("dollars spent cost price", 1200), ("students class boys girls", 500)]
    return {
        "version": 1,
        "created": "2031-05-06T07:08:09+00:00",
        "inputs": [
            {"split": "train", "name": "chats.jsonl", "records": 7473, "bytes": 4_166_206},
            {"split": "validation", "name": "held.jsonl", "records": 1319, "bytes": 749_738},
            {"split": "benchmark", "name": "bench.jsonl", "records": 200, "bytes": 99_000},
        ],
        "profile": None,
        "tokenizer": "tiny",
        "config": {"near_duplicate": 0.8, "leak_ngram": 13, "warn": {"pii": 0.0}, "fail": {}},
        "counts": {
            "records": 7473,
            "bytes": 4_166_206,
            "chars": 3_900_000,
            "tokens": 1_480_000,
            "target_tokens": 790_000,
            "turns": 15_300,
            "roles": {"user": 7500, "assistant": 7500, "system": 300},
            "formats": {"chat": 7473},
        },
        "lengths": {
            "unit": "tokens",
            "histogram": plots.histogram(lengths),
            "percentiles": {"50": 163, "90": 291, "99": 471, "max": 5200},
            "max_length": 512,
            "over": sum(length > 512 for length in lengths),
            "packing": [
                {"max_length": 256, "fill": 0.913, "packs": 6100, "truncated": 1171},
                {"max_length": 512, "fill": 0.9971, "packs": 2904, "truncated": 43},
                {"max_length": 1024, "fill": 0.9986, "packs": 1449, "truncated": 3},
            ],
        },
        "answers": {
            "histogram": plots.histogram([length * 2 for length in lengths]),
            "empty": 2,
            "tiny": 11,
        },
        "turns": {
            "histogram": {"edges": [1, 2, 3, 4, 5, 6, 9], "counts": [0, 7200, 0, 240, 0, 33]}
        },
        "languages": {"sampled": 5000, "counts": {"en": 4911, "de": 61, "zh": 28}},
        "labels": {"counts": labels, "effective": diversity.effective(labels.values())},
        "sources": {"counts": {"gsm": 7000, "web": 473}, "effective": 1.26},
        "topics": {
            "sampled": 5000,
            "items": [
                {"words": words.split(), "count": count, "example": f"How many {words}?"}
                for words, count in topics
            ],
            "effective": 3.64,
        },
        "novelty": {
            "histogram": {
                "edges": [i / 20 for i in range(21)],
                "counts": [31] + [9] * 10 + [87] * 9,
            },
            "median": 0.93,
        },
        "duplicates": {
            "exact": {"records": 46, "clusters": 20},
            "near": {"records": 131, "clusters": 60, "threshold": 0.8},
            "examples": [
                {
                    "kind": "near",
                    "size": 7,
                    "records": [
                        {"where": f"chats.jsonl:{line}", "text": _question(count)}
                        for line, count in ((12, 40), (800, 41), (6021, 40), (6022, 47), (6023, 48))
                    ],
                },
                {
                    "kind": "exact",
                    "size": 2,
                    "records": [
                        {"where": f"chats.jsonl:{line}", "text": _question(9)} for line in (90, 91)
                    ],
                },
            ],
        },
        "conflicts": {
            "groups": 3,
            "records": 7,
            "examples": [
                {
                    "prompt": _question(22),
                    "answers": [
                        {"where": "chats.jsonl:17", "text": "22 + 22 + 17 = 61\n#### 61"},
                        {"where": "chats.jsonl:99", "text": "22 + 22 + 15 = 59\n#### 59"},
                    ],
                }
            ],
        },
        "leakage": {
            "against": [
                {
                    "name": "held.jsonl",
                    "records": 1319,
                    "exact": 3,
                    "grams": 9,
                    "near": 7,
                    "leaked": 9,
                },
                {
                    "name": "bench.jsonl",
                    "records": 200,
                    "exact": 0,
                    "grams": 0,
                    "near": 0,
                    "leaked": 0,
                },
            ],
            "examples": [
                {
                    "train": "chats.jsonl:5",
                    "eval": "held.jsonl:77",
                    "evalset": "held.jsonl",
                    "kind": "exact",
                    "text": _question(5),
                }
            ],
        },
        "rules": _rules(),
        "verdict": "fail",
        "seconds": 8.4,
    }


def rule(name: str, verdict: str = "pass", count: int = 0, **fields: Any) -> dict[str, Any]:
    """One row of a report's rules."""
    return {
        "name": name,
        "verdict": verdict,
        "count": count,
        "share": count / 7473,
        "limit": "none allowed",
        "found": f"{count} of 7,473 records" if count else "none",
        "fix": "",
        "examples": [],
        **fields,
    }


def example(line: int, text: str, why: str) -> dict[str, str]:
    """One example of a rule."""
    return {"where": f"chats.jsonl:{line}", "text": text, "why": why}


def _rules() -> list[dict[str, Any]]:
    clean = ["mojibake", "markup", "repetition", "refusals", "unbalanced_turns"]
    return [
        *(rule(name) for name in clean),
        rule("class_balance", "skipped", found="no labels", limit=""),
        rule(
            "pii",
            "warn",
            14,
            limit="warn above 0",
            fix="`launcher data clean --redact pii` replaces them",
            examples=[
                example(31, "Please write to anna@example.org about it.", "e-mail"),
                example(32, "Call +44 20 7946 0958 at noon.", "phone number"),
            ],
        ),
        rule("overlong", "warn", 43, limit="1 %", fix="raise `data.max_length` or split them"),
        rule(
            "leakage",
            "fail",
            9,
            fix="drop them with `launcher data clean --drop leaks`, or hold out other records",
            examples=[example(5, _question(5), "all of held.jsonl:77")],
        ),
        rule(
            "near_duplicates",
            "fail",
            131,
            limit="1 %",
            fix="`launcher data clean --drop near_duplicates` keeps the first of each cluster",
            examples=[example(12, _question(40), "like chats.jsonl:800 and 5 more")],
        ),
    ]


def _question(count: int) -> str:
    return (
        f"A ferry carries {count} cars on each of two trips. On the third one it takes five fewer. "
        "How many cars cross the river in all?"
    )
