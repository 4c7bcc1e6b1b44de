"""What those who want servers and the keepers of these tell each other, by files of a folder.

    order.json       what every server is started with; by who wants them
    server-0.json    where a server is, and how it is; by its keeper
    server-0.log     what it says
    server-0.left    the session of its processes, for the next keeper where this one is killed

Standard library only.
"""

from __future__ import annotations

import hmac
import json
import os
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir

#: Folder of the files in an attempt's, and of weights in it where servers are on other hosts.
FOLDER, WEIGHTS = "rollout", "weights"


class ServerState(Enum):
    """How a server is."""

    starting = "starting"
    ready = "ready"
    failed = "failed"
    """It is started no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOrder:
    """What the servers of a folder are started with."""

    command: tuple[str, ...]
    """Command of each, but for where it listens."""
    environment: dict[str, str]
    """Variables beside those of the keeper."""
    token: str
    """What the token of each start is made of."""
    scratch: str
    """Folder that is removed at the end, such as that of weights."""
    gpus: tuple[str, ...]
    """GPUs of each server of a host; none: all that are seen."""
    is_reached_from_afar: bool
    """Whether other hosts ask."""
    start_s: float
    max_restarts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRecord:
    """A server as its keeper sees it."""

    state: ServerState
    start: str
    """Which start this is: with each the server forgets what weights it was given."""
    is_first: bool
    """Whether it is the first of its keeper."""
    url: str
    pid: int
    found: str = ""
    """Why it has failed."""
    beat: int = 0
    """Grows as long as the keeper lives."""


def folder_of(run: RunDir, attempt: int) -> Path:
    """Folder of the files of a run's attempt."""
    return run.attempt(attempt) / FOLDER


def log_of(folder: Path, number: int) -> Path:
    """What server `number` says."""
    return folder / f"server-{number}.log"


def give_order(folder: Path, order: ServerOrder) -> None:
    """Tell the keepers, and nobody else: the token is in it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "order.json"
    path.unlink(missing_ok=True)
    temporary = folder / f".order.{os.getpid()}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(handle, "w", encoding="utf-8") as file:
        json.dump(asdict(order), file)
    temporary.replace(path)


def read_order(folder: Path) -> ServerOrder | None:
    """What is wanted; None before it is."""
    raw: Any = read_json(folder / "order.json")
    if not isinstance(raw, dict):
        return None
    return ServerOrder(**{**raw, "command": tuple(raw["command"]), "gpus": tuple(raw["gpus"])})


def token_of(order_token: str, start: str) -> str:
    """Who knows it may ask the server of this start, and no other."""
    return hmac.digest(order_token.encode(), start.encode(), "sha256").hex()


def withdraw_order(folder: Path) -> None:
    """No server is wanted any more; the token is gone with it."""
    (folder / "order.json").unlink(missing_ok=True)


def is_withdrawn(folder: Path) -> bool:
    """Whether the order is gone, which a file system that stutters does not say."""
    try:
        (folder / "order.json").stat()
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def note(folder: Path, number: int, record: ServerRecord) -> None:
    """Write the record of a server."""
    values = {**asdict(record), "state": record.state.value}
    write_json(folder / f"server-{number}.json", values, durable=False)


def read(folder: Path, number: int) -> ServerRecord | None:
    """What its keeper has written last; None before its first word."""
    raw: Any = read_json(folder / f"server-{number}.json")
    if not isinstance(raw, dict):
        return None
    return ServerRecord(**{**raw, "state": ServerState(raw["state"])})


def ask_for_restart(folder: Path, number: int, start: str) -> None:
    """Have a server of this start, which answers no more, ended."""
    write_json(folder / f"server-{number}.stuck", start, durable=False)


def is_stuck(folder: Path, number: int, start: str) -> bool:
    """Whether that is wanted."""
    return bool(read_json(folder / f"server-{number}.stuck", "") == start)
