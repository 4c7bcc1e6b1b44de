"""What a rank does that computes several cases, one after the other: `WORKER CASES.json OUT.json`,
started by `support.ranks.run_ranks`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from launcher.core import runtime
from launcher.core.runtime import Ranks
from launcher.distributed import collectives, rendezvous
from launcher.train.zero import connect

CPU = torch.device("cpu")


def agree(mine: bool) -> bool:
    """Whether something is so on all ranks."""
    return collectives.sum_over_ranks([float(not mine)])[0] == 0


def compute(run: Callable[[dict[str, Any], dict[str, Any], Ranks], dict[str, Any]]) -> None:
    """Join the other ranks, and write what `run` sees of each of the "cases"; it is given the case
    and all of CASES.json."""
    cases = json.loads(Path(sys.argv[1]).read_text())
    ranks = runtime.ranks()
    store = rendezvous.open_store(ranks, 60)
    rendezvous.join(store, ranks, ranks.world_size, CPU, 60)
    torch.set_num_threads(1)
    connect("cpu")
    results = [run(case, cases, ranks) for case in cases["cases"]]
    if ranks.is_main:
        Path(sys.argv[2]).write_text(json.dumps(results))
    dist.destroy_process_group()
