"""`python -m launcher.rollouts.vllm.keeper RUN ATTEMPT NUMBER [PLACE]`: keeps a server of a run's
attempt; see `launcher.vllm.keeper`."""

from __future__ import annotations

import sys

from launcher.core.rundir import RunDir
from launcher.vllm import places
from launcher.vllm.keeper import Keeper


def main(argv: list[str]) -> int:
    """The exit code of `Keeper.serve`."""
    run, attempt, number = RunDir(argv[0]), int(argv[1]), int(argv[2])
    place = int(argv[3]) if len(argv) > 3 else number
    folder = places.folder_of(run, attempt)
    folder.mkdir(parents=True, exist_ok=True)
    return Keeper(folder, number, place).serve()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
