"""A probe of a run: a few real steps with the longest batch, an evaluation and a save, measured.

What is known is written to probe.json after each part, so that a probe that is cut short or runs
out of memory has told what it got to. docs/train.md defines the numbers.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from launcher.core.errors import ExitCode
from launcher.core.files import read_json, write_json
from launcher.core.rundir import State
from launcher.data.pack.loader import Row
from launcher.distributed import collectives, devices
from launcher.train.loop import Training

#: Steps of a probe: one that warms up, one whose memory is measured (on a CPU counted operation by
#: operation, which takes time), one whose time is.
STEPS = 3
#: Optimizer steps of the data that are searched for the longest batch.
_SEARCHED = 200


def probe(training: Training) -> None:
    """Measure a run that is ready to train; all ranks together. Nothing of it is kept."""
    run, ranks = training.run, training.ranks
    found: dict[str, Any] = {"limit": _limit(training)}

    def note(**values: Any) -> None:
        found.update(values)
        if ranks.is_main:
            write_json(run.probe, found)

    step, tokens = longest(training)
    note(tokens=tokens, batch=step)
    training.rows = _Fixed(training.data.rows, step)
    training.verify()
    training.engine.train()
    for _ in range(STEPS):
        collectives.barrier()
        began = time.perf_counter()
        training.step()
        note(step_s=time.perf_counter() - began, steps=training.progress.step)
        if ranks.is_main and (memory := read_json(run.memory)):
            note(ranks=memory["ranks"])
    if training.evaluator is not None:
        began = time.perf_counter()
        training.engine.eval()
        training.evaluator.quick(training.engine)
        note(evaluation_s=time.perf_counter() - began)
    began = time.perf_counter()
    training.save(waits=True)
    note(save_s=time.perf_counter() - began)
    if ranks.is_main:
        size = sum(file.stat().st_size for file in run.checkpoints.rglob("*") if file.is_file())
        note(checkpoint_bytes=size, is_whole=True)
        training.trackers.finish(int(ExitCode.ok))
        run.set_status(State.succeeded, exit_code=int(ExitCode.ok), step=training.progress.step)
    collectives.barrier()


def longest(training: Training) -> tuple[int, int]:
    """The optimizer step, of an epoch or the first 200, whose largest micro-batch has the most
    tokens, and its tokens over all ranks."""
    per_epoch = -(-training.data.order.num_packs // training.plan.global_sequences)
    best = (0, 0, 0)
    for step in range(min(per_epoch, _SEARCHED)):
        sizes = [len(row.input_ids) for row in training.data.rows.step(step)]
        best = max(best, (max(sizes), sum(sizes), -step))
    per_rank = collectives.gather_objects(best)
    _, _, step = max(per_rank)
    mine = sum(len(row.input_ids) for row in training.data.rows.step(-step))
    return -step, int(collectives.sum_over_ranks([float(mine)])[0])


class _Fixed:
    """The rows of one step, whichever is asked for."""

    def __init__(self, rows: Any, step: int) -> None:
        self._rows, self._step = rows, step

    def step(self, step: int) -> list[Row]:
        rows: list[Row] = self._rows.step(self._step)
        return rows


def _limit(training: Training) -> int:
    """Bytes that a rank of this host may take: of its GPU, or its share of the free memory."""
    if training.device.type == "cuda":
        return int(torch.cuda.mem_get_info(training.device)[1])
    mine = devices.free_memory(training.ranks, training.device)
    return int(min(collectives.gather_objects(mine)))
