"""One rank that trains several small runs one after the other: `memory_child.py CASES.json`.

CASES.json holds a list of lists of overrides; each becomes a run, through the loop that trains any
run. The imports of a rank, which take longer than two steps of a small model, are paid for once.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from launcher import fingerprint
from launcher.config import create
from launcher.config.compose import compose
from launcher.core import runtime
from launcher.core.rundir import RunDir
from launcher.distributed import collectives, rendezvous
from launcher.health.heartbeat import Heartbeat
from launcher.train.loop import train
from launcher.train.signals import StopFlag

CPU = torch.device("cpu")


def made(words: list[str], world_size: int) -> RunDir:
    """A new run with its data."""
    run = create.create(words, world_size=world_size)
    if not fingerprint.is_prepared(run, compose.load(run.config)):
        subprocess.run([sys.executable, "-m", "launcher.data.prepare", str(run)], check=True)
    return run


def main() -> None:
    """Train each case."""
    cases = json.loads(Path(sys.argv[1]).read_text())
    runtime.limit_heap_fragmentation()
    ranks = runtime.export_ranks()
    torch.set_num_threads(1)
    store = rendezvous.open_store(ranks, 60)
    rendezvous.join(store, ranks, ranks.world_size, CPU, 300)
    for words in cases:
        mine = str(made(words, ranks.world_size)) if ranks.is_main else ""
        run = RunDir(collectives.gather_objects(mine)[0])
        config = compose.load(run.config)
        heart = Heartbeat(run, ranks, 1, config.watchdog)
        train(run, config, ranks, CPU, StopFlag(), heart, told=True)
        gc.unfreeze()
        gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
