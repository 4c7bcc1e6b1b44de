"""What a rank imports until its first step is logged."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from launcher import entry
from launcher.config import create
from support.project import Project
from support.ranks import environment

_RANK = Path(__file__).with_name("watched_rank.py")


@dataclass(frozen=True)
class Imported:
    """Modules in the order in which they were complete, with CPU seconds of their own code; and
    those of the whole process until the end of its first step."""

    seconds: dict[str, float]
    process_s: float

    @property
    def total_s(self) -> float:
        """CPU seconds of all imports."""
        return sum(self.seconds.values())

    def by_package(self) -> list[tuple[str, int, float]]:
        """(package, number of its modules, CPU seconds), the slowest first."""
        count = Counter(name.partition(".")[0] for name in self.seconds)
        seconds = dict.fromkeys(count, 0.0)
        for name, own in self.seconds.items():
            seconds[name.partition(".")[0]] += own
        return [
            (name, count[name], seconds[name])
            for name in sorted(count, key=seconds.__getitem__, reverse=True)
        ]


def of_rank(project: Project, name: str, *words: str) -> Imported:
    """Train a new run for two steps on one rank, started as a supervisor starts it."""
    run = create.create(
        [
            *project.words(name, "train.steps=2", "batch.sequences=2", *words),
            f"run.root={project.folder / 'runs'}",
            f"data.train={project.folder / 'data.jsonl'}",
            f"data.cache={project.folder / 'cache'}",
        ],
        world_size=1,
    )
    # A real start: a fork of a process that has imported tells nothing.
    environ = environment(LAUNCHER_TESTS_ZYGOTE="")
    found = project.folder / f"{name}.json"
    for command in (
        entry.command("launcher.data.prepare", str(run)),
        [sys.executable, str(_RANK), str(found), str(run), "--attempt", "1"],
    ):
        done = subprocess.run(
            command, cwd=project.folder, env=environ, capture_output=True, text=True, timeout=280
        )
        assert done.returncode == 0, done.stdout + done.stderr
    seconds, process_s = json.loads(found.read_text())
    return Imported(seconds, process_s)
