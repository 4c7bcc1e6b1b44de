"""One rank that saves a checkpoint, or restores it and tells what that took.

usage: restore_child.py save|restore TASK.json      (started by `saves.py restore`)
"""

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist

from launcher.config.derive import deepspeed, plan
from launcher.config.schema import CheckpointConfig, WatchdogConfig
from launcher.core import runtime
from launcher.core.rundir import RunDir
from launcher.distributed import collectives, rendezvous
from launcher.health.heartbeat import Heartbeat
from launcher.model.load import load_model
from launcher.train import restoring
from launcher.train.saving import Saver
from launcher.train.setup import make_engine
from launcher.train.zero import connect
from support.configs import make_config

#: Seconds between two looks at what memory the process holds.
_LOOK_S = 0.005


def memory():
    """Resident bytes of this process: (all, those that are no pages of files)."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "RssAnon"))


class Phases:
    """What each part of a start took: seconds, and peaks of memory beyond that before it."""

    def __init__(self):
        self.found = {}

    @contextlib.contextmanager
    def phase(self, name):
        collectives.barrier()
        before, peak, over = memory(), [0, 0], threading.Event()

        def look():
            while not over.wait(_LOOK_S):
                peak[:] = map(max, peak, memory())

        watcher = threading.Thread(target=look)
        watcher.start()
        began = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            seconds, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
            over.set()
            watcher.join()
            peak[:] = map(max, peak, memory())
            rise = [high - low for high, low in zip(peak, before, strict=True)]
            times = {"seconds": seconds, "cpu": cpu}
            self.found[name] = {**times, "resident": rise[0], "own": rise[1]}


def forget(folder):
    """Take the files of `folder` out of the page cache."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def save(run, engine, ranks):
    state = engine.base_optimizer.state
    for flat in engine.flat_parameters():  # moments as after a step
        state[flat] = {
            "step": torch.tensor(1.0),
            "exp_avg": torch.full_like(flat, 1e-3),
            "exp_avg_sq": torch.full_like(flat, 1e-6),
        }
    options = CheckpointConfig(background=False)
    heart = Heartbeat(run, ranks, 1, WatchdogConfig())
    Saver(run, engine, ranks, options, heart).save({}, 1, waits=True)


def main():
    task = json.loads(Path(sys.argv[2]).read_text())
    ranks, run = runtime.ranks(), RunDir(task["run"])
    store = rendezvous.open_store(ranks, 60)
    rendezvous.join(store, ranks, ranks.world_size, torch.device("cpu"), 60)
    torch.set_num_threads(1)
    runtime.limit_heap_fragmentation()
    connect("cpu")
    config = make_config(**task["config"])
    made = plan.make(config, world_size=ranks.world_size, has_gpu=False, train_packs=64)
    settings = deepspeed.build(config, made) if made.zero == 3 else None
    restores, phases, start = sys.argv[1] == "restore", Phases(), None
    with phases.phase("base"):
        model = load_model(config.model, made, 0, settings)
    if restores:
        if ranks.is_main:
            forget(run.checkpoints / "step-00000001")
        with phases.phase("verify"):
            start = restoring.newest_valid(run, ranks, print)
        with phases.phase("weights"):
            restoring.load_weights(start, model)
    engine = make_engine(model, config, made)
    if start is None:
        save(run, engine, ranks)
    else:
        with phases.phase("optimizer"):
            restoring.load_optimizer(start, engine)
        size = sum(entry["bytes"] for entry in start.manifest["files"].values())
        found = collectives.gather_objects(phases.found)
        if ranks.is_main:
            print("RESULT", json.dumps({"bytes": size, "ranks": found}), flush=True)
    dist.destroy_process_group()


main()
