"""Ranks that agree on a micro-batch although one of them runs out of memory: OUT.json of rank 0."""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from launcher.core.errors import OutOfMemoryError
from launcher.distributed import collectives
from launcher.train import microbatch

SIZES = [1, 2, 4, 8]


def seen(rank, fails_at, seconds):
    """What `rank` makes of measuring when rank 1 runs out of memory at a size."""
    asked = []

    def measure(size):
        asked.append(size)
        if rank == 1 and size == fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return seconds[rank][size]

    try:
        trials = microbatch.fastest(SIZES, measure)
    except OutOfMemoryError as error:
        return {"asked": asked, "error": str(error)}
    return {"asked": asked, "best": microbatch.best(trials), "why": trials[-1].why}


def main():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    faster = {size: 1 / size for size in SIZES}
    # Rank 1 gains nothing from the second size on.
    uneven = [faster, {1: 1.0, 2: 0.9, 4: 0.9, 8: 0.9}]
    found = {
        "at 4": seen(rank, 4, [faster, faster]),
        "at 1": seen(rank, 1, [faster, faster]),
        "uneven": seen(rank, None, uneven),
    }
    every = collectives.gather_objects(found)
    if rank == 0:
        Path(sys.argv[1]).write_text(json.dumps(every))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
