"""One measurement of `tests/gpu/evidence.py` in a process of its own.

usage: gpu_child.py JOB      (JSON; see `evidence.job_of`)

It imports, waits for a line on stdin, measures, and writes what it found to the file
`job["result"]`: so the next process can import while this one measures.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.core import imports, runtime

# As a rank does, and before torch is there.
runtime.let_cuda_memory_grow()
runtime.limit_heap_fragmentation()
imports.lighten()

import gpu_models  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from launcher.config.derive import cards  # noqa: E402
from launcher.track import meters  # noqa: E402

#: Steps at the start that are not measured: kernels are chosen, memory is allocated.
WARM_UP = 3
#: Steps that are recorded by the profiler, where one is asked for.
PROFILED = 2
#: Share of a document that is learned.
TARGET_SHARE = 0.5


@dataclass
class Clock:
    """When steps ended, and the work that was done by then."""

    device: str
    ends: list[float] = field(default_factory=list)
    work: list[meters.Work] = field(default_factory=list)

    def tick(self, total: meters.Work) -> None:
        """A step has ended, after `total` work since the start: wait for the device."""
        synchronise(self.device)
        self.ends.append(time.time())
        self.work.append(total)

    @property
    def skipped(self) -> int:
        """How many steps at the start are not measured."""
        return max(1, min(WARM_UP, len(self.ends) - 1))

    def measured(self, job: dict[str, Any], flops: meters.ModelFlops) -> dict[str, Any]:
        """Rates over the measured steps; memory is that of the whole process so far."""
        first = self.skipped - 1
        before, after = self.work[first], self.work[-1]
        work = meters.Work(
            after.tokens - before.tokens,
            after.target_tokens - before.target_tokens,
            after.squared_lengths - before.squared_lengths,
        )
        ends = self.ends[first:]
        seconds = ends[-1] - ends[0]
        steps = [end - start for start, end in zip(ends[:-1], ends[1:], strict=True)]
        return {
            "tokens_per_s": work.tokens / seconds,
            "target_tokens_per_s": work.target_tokens / seconds,
            "flops_per_s": flops.of(work) / seconds,
            "step_s": statistics.median(steps),
            "spread": (max(steps) - min(steps)) / 2 / statistics.median(steps),
            "memory_gib": meters.peak_memory_bytes(job["device"]) / 2**30,
            "reserved_gib": reserved_bytes(job["device"]) / 2**30,
            "first_step_s": self.ends[0] - job["started"],
        }


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def reserved_bytes(device: str) -> int:
    """Most memory that torch's allocator has taken from the GPU; on CPU the peak of the process."""
    if device == "cuda":
        return torch.cuda.max_memory_reserved()
    return meters.peak_memory_bytes(device)


# ---- the machine


def probe(job: dict[str, Any]) -> dict[str, Any]:
    """What the device is, and what its matrix units and its memory reach."""
    device = job["device"]
    facts: dict[str, Any] = {"device_name": "CPU", "torch": torch.__version__}
    if device == "cuda":
        found = torch.cuda.get_device_properties(0)
        facts |= {
            "device_name": found.name,
            "capability": f"{found.major}.{found.minor}",
            "processors": found.multi_processor_count,
            "memory_gib": found.total_memory / 2**30,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        }
    return {
        **facts,
        "matmul_flops": matmul_flops(device),
        "bandwidth": bandwidth(device),
        "data_sheet_flops": cards.peak_flops(facts["device_name"], "bf16"),
    }


def matmul_flops(device: str) -> float:
    """FLOP/s of a large square matrix product in bf16 (8192) or, on CPU, of a small one in fp32."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _seconds(lambda: torch.mm(a, b, out=out), device)


def bandwidth(device: str) -> float:
    """Bytes per second, read and written, of a copy within the device's memory."""
    size = 2**32 if device == "cuda" else 2**24
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _seconds(lambda: target.copy_(source), device)


def _seconds(work: Callable[[], object], device: str) -> float:
    """Median time of 20 calls of `work`, after 10 that are not counted."""
    for _ in range(10):
        work()
    found = []
    for _ in range(20):
        if device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / 1000)
        else:
            began = time.perf_counter()
            work()
            found.append(time.perf_counter() - began)
    return statistics.median(found)


# ---- the data


def make_records(job: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, targets) of random documents: log-normal lengths, the second half is learned."""
    rng = np.random.default_rng(0)
    vocab = gpu_models.MODELS[job["model"]]["vocab_size"]
    needed = (job["steps"] + PROFILED) * job["sequences"] * job["length"]
    records, total = [], 0
    while total < needed:
        length = int(np.clip(rng.lognormal(math.log(job["documents"]), 0.8), 16, job["length"]))
        flags = (np.arange(length) >= length * (1 - TARGET_SHARE)).astype(np.uint8)
        records.append((rng.integers(3, vocab, length), flags))
        total += length
    return records


def write_cache(job: dict[str, Any]) -> Any:
    """The documents as prepared data of the launcher."""
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from support import caches

    folder = Path(job["scratch"]) / "cache"
    return caches.write(folder, make_records(job), max_length=job["length"])


# ---- the tools


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """The launcher's own loop, on a model whose weights are drawn once it is loaded."""
    import launcher.train.loop
    from launcher.config.check import checks
    from launcher.config.compose import compose
    from launcher.core.errors import ConfigError
    from launcher.core.files import write_json
    from launcher.core.rundir import RunDir
    from launcher.distributed import devices, rendezvous
    from launcher.health.watchdog import Watchdog
    from launcher.train import setup
    from launcher.train.signals import StopFlag
    from launcher.train.zero import import_deepspeed

    import_deepspeed(job["device"])
    await_start(job)
    scratch = Path(job["scratch"])
    config = compose.compose(
        [
            f"model.name={job['folder']}",
            f"peft={job['method']}",
            f"data.train={job['folder']}/config.json",  # never read: the cache below is
            f"data.max_length={job['length']}",
            f"batch.sequences={job['sequences']}",
            f"batch.micro={job['micro']}",
            f"train.steps={job['steps'] + 1000}",  # the last one would save
            "train.log_every_steps=1000",
            "optim.lr=1e-5",
            "eval=none",
            "track=none",
            *job["words"],
        ]
    )
    if problems := checks.check(config, world_size=1, has_gpu=job["device"] == "cuda"):
        raise ConfigError(problems)
    ranks = runtime.export_ranks()
    device = devices.choose(ranks)
    assert device.type == job["device"], f"torch computes on {device.type}"
    run = RunDir(scratch / "run")
    run.path.mkdir()
    write_cache(job)
    write_json(run.data, {"train": str(scratch / "cache"), "validation": None})
    load, setup.load_model = setup.load_model, _drawn(setup.load_model, device)
    rendezvous.join(rendezvous.open_store(ranks, 60), ranks, 1, device, 60)
    with Watchdog(run, ranks, 1, config.watchdog) as heart:
        made = (run, config, ranks, device, StopFlag(), heart)
        training = launcher.train.loop.Training(*made, told=False)
        setup.load_model = load
        flops = meters.model_flops(training.model)
        training.verify()
        training.begin()
        clock = Clock(job["device"])
        for _ in range(job["steps"]):
            training.step()
            clock.tick(training.progress.work)
        loss = training.progress.window_loss / training.progress.window_weight
        assert math.isfinite(loss), f"the loss is {loss}"
        found = clock.measured(job, flops)
        if job["profile"]:
            found |= _profiled(job, training.step)
    rendezvous.leave()
    plan = training.plan
    return {
        **found,
        "attention": plan.attention,
        "micro": plan.micro_batch,
        "zero": plan.zero,
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF"),
        "loss": loss,
    }


def _drawn(load: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`load`, and then random weights, on the device: zeros compute faster than numbers do."""

    def loaded(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        is_sharded = any(hasattr(p, "ds_tensor") for p in model.parameters())
        if not (is_sharded or getattr(model, "is_loaded_in_4bit", False)):  # those are there
            model.to(device)
        gpu_models.randomise(model)
        return model

    return loaded


def _profiled(job: dict[str, Any], step: Callable[[], None]) -> dict[str, Any]:
    import gpu_profile

    trace = Path(job["trace"]) if job["trace"] else None
    return {"profile": gpu_profile.record(step, PROFILED, job["device"], trace)}


def plain(job: dict[str, Any]) -> dict[str, Any]:
    """A hand-written loop over the same packs."""
    import gpu_plain

    from launcher.data.pack.loader import Loader
    from launcher.data.pack.packing import PackedOrder

    await_start(job)
    cache = write_cache(job)
    sequences, micro = job["sequences"], job["micro"]
    loader = Loader(
        cache,
        PackedOrder(cache.lengths, job["length"], seed=0),
        global_sequences=sequences,
        micro_batch=micro,
        accumulation=sequences // micro,
        rank=0,
        world_size=1,
    )
    loop = gpu_plain.Loop(job)
    flops = meters.model_flops(loop.model)
    clock, total = Clock(job["device"]), meters.Work()
    for number in range(job["steps"]):
        rows = loader.step(number)
        loop.step(rows)
        total += meters.work_of(rows)
        clock.tick(total)
    return {**clock.measured(job, flops), "attention": gpu_plain.attention(job["device"])}


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """TRL's SFTTrainer under DeepSpeed on the same documents, packed by TRL."""
    import gpu_trl

    if job["device"] == "cpu":  # without an op that it would compile for minutes
        from launcher.train.zero import import_deepspeed

        import_deepspeed("cpu")
    await_start(job)
    records = make_records(job)
    lengths = [len(ids) for ids, _ in records]
    # TRL packs the same documents into other sequences: shares are those of all documents.
    targets = sum(int(flags[1:].sum()) for _, flags in records) / sum(lengths)
    squares = sum(length**2 for length in lengths) / sum(lengths)
    clock = Clock(job["device"])

    def tick(tokens: int) -> None:
        clock.tick(meters.Work(tokens, round(tokens * targets), round(tokens * squares)))

    trainer = gpu_trl.make(job, records, tick)
    flops = meters.model_flops(trainer.model)
    trainer.train()
    return {**clock.measured(job, flops), "attention": gpu_trl.attention(job), "zero": 2}


def await_start(job: dict[str, Any]) -> None:
    """All is imported: wait for a line on stdin; whoever should send it may be gone. What was
    waited does not count as time to the first step."""
    began = time.time()
    if not sys.stdin.readline():
        sys.exit("nobody waits for this measurement")
    job["started"] += time.time() - began


TOOLS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "launcher": ours,
    "plain": plain,
    "trl": trl,
    "trl-liger": trl,
}


def main() -> None:
    """Run the job of the command line."""
    job = json.loads(sys.argv[1])
    out = Path(job["result"])
    try:
        if job["tool"] == "probe":
            await_start(job)
            found = probe(job)
        else:
            gpu_models.write_weights(Path(job["folder"]))
            found = TOOLS[job["tool"]](job)
    except RuntimeError as error:
        # cuBLAS says ALLOC_FAILED where no memory is left for its workspace.
        if not any(words in str(error) for words in ("out of memory", "ALLOC_FAILED")):
            raise
        traceback.print_exc()
        found = {"error": "out of memory"}
    out.with_suffix(".part").write_text(json.dumps(found))
    out.with_suffix(".part").rename(out)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a process group that was not left, after a failure, could wait for ever
