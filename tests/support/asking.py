"""A model that answers requests, in this process."""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, Phase, settings

from launcher.inference.speaker import Speaker
from launcher.inference.worker import Answering

#: For properties of what a model says: to find a smaller example takes longer than to read one.
RANDOMLY = settings(
    deadline=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)


def ask_all(speaker: Speaker, *requests: dict[str, Any], longest: int = 64) -> dict[str, Any]:
    """What became of each answer, by "id/index"; all wait before the first is answered."""
    lines: list[dict[str, Any]] = []
    is_taken, is_over = threading.Event(), threading.Event()

    def feed() -> Iterator[str]:
        yield from map(json.dumps, requests)
        is_taken.set()
        is_over.wait(60)

    def write(line: dict[str, Any]) -> None:
        lines.append(line)
        ends = found(lines)
        if all(is_ended(request, ends) for request in requests):
            is_over.set()

    def is_ended(request: dict[str, Any], ends: dict[str, Any]) -> bool:
        name = request.get("id")
        wanted = {f"{name}/{index}" for index in range(request.get("n", 1))}
        return name is None or name in withdrawn or name in ends or wanted <= ends.keys()

    withdrawn = {request["cancel"] for request in requests if "cancel" in request}
    work = Answering(speaker, longest, write)
    thread = threading.Thread(target=work.listen, args=(feed(),))
    thread.start()
    is_taken.wait()
    work.work()
    thread.join()
    return found(lines)


def found(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The end of each answer, by "id/index" or id, with all that it said."""
    texts: dict[str, str] = defaultdict(str)
    told: dict[str, list[Any]] = defaultdict(list)
    calls: dict[str, list[Any]] = defaultdict(list)
    ends = {}
    for line in lines:
        name = f"{line['id']}/{line['index']}" if "index" in line else line["id"]
        if "begun" in line:
            continue
        if "text" in line:
            assert name not in ends
            texts[name] += line["text"]
            told[name] += line.get("logprobs", [])
        elif "calls" in line:
            calls[name] += line["calls"]
        else:
            ends[name] = line
    return {
        name: {**end, "text": texts[name], "logprobs": told[name], "calls": calls[name]}
        for name, end in ends.items()
    }
