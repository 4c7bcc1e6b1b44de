"""The process that an environment lives in for one episode: its class, made anew, is asked for the
beginning of a conversation, what it says to each message of the model, and a score at the end.
Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from launcher.core import owncode
from launcher.core.errors import ConfigError
from launcher.graders.sandbox import code

FILE = "environment.py"


def run(job: Mapping[str, Any], limits: Mapping[str, Any], user: int | None) -> NoReturn:
    """Be the environment of the job in this process until nothing more is asked of it."""
    try:
        asked = os.dup(0)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code.give_up(limits, user)
        _serve(job, asked)
    finally:
        os._exit(0)


def _serve(job: Mapping[str, Any], asked: int) -> None:
    """Answer the job, and what comes after it."""
    random.seed(job["seed"])
    environment: Any = None
    found: dict[str, Any]
    ask: Mapping[str, Any] | None = job
    while ask is not None:
        try:
            if environment is None:
                environment = _made(job)
            found = {"turn": _answer(environment, ask)}
            size = len(json.dumps(found))
            if size > code.LARGEST_RESULT:
                raise ValueError(f"{size:,} bytes, more than the {code.LARGEST_RESULT:,} allowed")
        except BaseException as error:
            found = {"error": code.told(error, FILE)}
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        code.tell(found)
        ask = _received(asked)


def _made(job: Mapping[str, Any]) -> Any:
    """A new object of the file's class; the file and its modules lie in the current folder."""
    for name, text in [*job["modules"].items(), (FILE, job["source"])]:
        os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
        with open(name, "w", encoding="utf-8") as file:
            file.write(text)
    try:
        return owncode.load(FILE, "Environment", where=FILE)()
    except ConfigError as error:
        raise error.__cause__ or error from None


def _answer(environment: Any, ask: Mapping[str, Any]) -> dict[str, Any]:
    if "step" in ask:
        return {"messages": environment.step(ask["step"])}
    if "score" in ask:
        score = environment.score()
        return {"score": None if score is None else float(score)}
    return {
        "messages": environment.reset(ask["reset"]),
        "tools": getattr(environment, "tools", None),
        "scores": hasattr(environment, "score"),
    }


def _received(source: int) -> dict[str, Any] | None:
    """What is asked next; None once there is nothing more."""
    size = _exactly(source, 4)
    if not size:
        return None
    found: dict[str, Any] = json.loads(_exactly(source, int.from_bytes(size, "big")))
    return found


def _exactly(source: int, size: int) -> bytes:
    parts = []
    while size and (part := os.read(source, min(size, 1 << 20))):
        parts.append(part)
        size -= len(part)
    return b"" if size else b"".join(parts)
