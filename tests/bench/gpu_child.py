"""One measurement of `gpu.py` in a process of its own.

usage: gpu_child.py JOB      (JSON; see `gpu.main`)      Prints a line "RESULT {...}".
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import gpu_models
import numpy as np
import torch

from launcher.track import meters

#: Steps at the start that are not measured: kernels are chosen, memory is allocated.
WARM_UP = 3
#: Share of a document that is learned.
TARGET_SHARE = 0.5


def synchronise(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


# ---- the machine


def probe(job: dict[str, Any]) -> dict[str, Any]:
    """Name, versions and matmul peaks of the device."""
    name = torch.cuda.get_device_name() if job["device"] == "cuda" else "CPU"
    return {
        "device_name": name,
        "versions": f"torch {torch.__version__}, CUDA {torch.version.cuda}",
        "matmul_flops": matmul_flops(job["device"]),
        "data_sheet_flops": meters.peak_flops(name, "bf16"),
    }


def matmul_flops(device: str) -> float:
    """FLOP/s of a large square matrix product in bf16 (8192) or, on CPU, of a small one in fp32."""
    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    for _ in range(10):
        torch.mm(a, b, out=out)
    seconds = [_seconds_of_matmul(a, b, out) for _ in range(20)]
    return 2 * size**3 / statistics.median(seconds)


def _seconds_of_matmul(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> float:
    if a.device.type == "cpu":
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        return time.perf_counter() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    torch.mm(a, b, out=out)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000


# ---- the data


def make_records(job: dict[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, targets) of random documents: log-normal lengths, the second half is learned."""
    rng = np.random.default_rng(0)
    vocab = gpu_models.MODELS[job["model"]]["vocab_size"]
    needed = job["steps"] * job["sequences"] * job["length"]
    records, total = [], 0
    while total < needed:
        length = int(np.clip(rng.lognormal(math.log(job["documents"]), 0.8), 16, job["length"]))
        flags = (np.arange(length) >= length * (1 - TARGET_SHARE)).astype(np.uint8)
        records.append((rng.integers(3, vocab, length), flags))
        total += length
    return records


def result(
    job: dict[str, Any], work: meters.Work, flops: meters.ModelFlops, ends: list[float]
) -> dict[str, Any]:
    """Rates over the measured steps, that end at `ends[skipped:]` and did `work` together."""
    seconds = ends[-1] - ends[skipped(ends) - 1]
    return {
        "tokens_per_s": work.tokens / seconds,
        "target_tokens_per_s": work.target_tokens / seconds,
        "flops_per_s": flops.of(work) / seconds,
        "step_s": seconds / (len(ends) - skipped(ends)),
        "memory_gib": meters.peak_memory_bytes(job["device"]) / 2**30,
        "first_step_s": ends[0] - job["started"],
    }


def skipped(steps: list[Any]) -> int:
    """How many steps at the start are not measured."""
    return max(1, min(WARM_UP, len(steps) - 1))


# ---- the tools


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """The launcher's own parts, put together as its loop does."""
    from launcher.config.compose import compose
    from launcher.config.derive import plan
    from launcher.config.schema import variants
    from launcher.config.schema.variants import PEFT_METHODS
    from launcher.core import runtime
    from launcher.data.pack.loader import Loader
    from launcher.data.pack.packing import PackedOrder
    from launcher.distributed import rendezvous
    from launcher.model.load import load_model
    from launcher.train.setup import make_engine
    from launcher.train.zero import connect

    sys.path.append(str(Path(__file__).resolve().parents[1]))
    from support import caches

    config = compose.compose(
        [
            f"model.name={job['folder']}",
            f"model.gradient_checkpointing={str(job['checkpointing'] == 'on').lower()}",
            f"peft={job['method']}",
            f"engine=zero{job['zero']}",
            f"data.max_length={job['length']}",
            f"batch.sequences={job['sequences']}",
            f"batch.micro={job['micro']}",
            f"train.steps={job['steps']}",
            "optim.lr=1e-5",
            "eval=none",
        ]
    )
    device = torch.device(job["device"])
    if device.type == "cuda":
        device = torch.device("cuda", 0)
        torch.cuda.set_device(device)
    ranks = runtime.ranks()
    rendezvous.join(rendezvous.open_store(ranks, 60), ranks, 1, device, 60)
    connect(device.type)
    documents = [(tokens, flags) for tokens, flags in make_records(job)]
    data = caches.write(Path(job["folder"]) / "cache", documents, max_length=job["length"])
    order = PackedOrder(data.lengths, job["length"], seed=0)
    made = plan.make(
        config, world_size=1, has_gpu=device.type == "cuda", train_packs=order.num_packs
    )
    loader = Loader(
        data,
        order,
        global_sequences=made.global_sequences,
        micro_batch=made.micro_batch,
        accumulation=made.accumulation,
        rank=0,
        world_size=1,
    )
    gpu_models.write_weights(Path(job["folder"]))
    model: Any = load_model(config.model, made, 0)
    gpu_models.randomise(model.to(device))
    if config.peft.name != "none":
        model = PEFT_METHODS.load(config.peft.name)(model, config.peft)
    objective = variants.objective(config.objective)
    head = objective.head(model)
    flops = meters.model_flops(model)
    engine = make_engine(model, config, made)
    engine.train()
    ends, work = [], []
    for step in range(job["steps"]):
        rows = loader.step(step)
        work.append(meters.work_of(rows))
        weight = sum(map(objective.weight, rows))
        total = torch.zeros((), device=device)
        for index, row in enumerate(rows):
            loss = objective.loss(head, engine, row.to(device)).total
            engine.backward(loss * (1 / weight))
            total += loss.detach()
            if index < len(rows) - 1:
                engine.micro_step()
        assert math.isfinite(float(total)), f"loss of step {step + 1} is not finite"
        engine.step(1.0)
        synchronise(device.type)
        ends.append(time.time())
    assert head.head is not None, "the loss was not computed inside the head"
    measured = sum(work[skipped(ends) :], meters.Work())
    rendezvous.leave()
    return {**result(job, measured, flops, ends), "attention": made.attention}


def trl(job: dict[str, Any]) -> dict[str, Any]:
    """TRL's SFTTrainer under DeepSpeed on the same documents, packed by TRL."""
    import gpu_trl

    records = make_records(job)
    gpu_models.write_weights(Path(job["folder"]))
    trainer, clock = gpu_trl.make(job, records)
    flops = meters.model_flops(trainer.model)
    trainer.train()
    tokens = clock.tokens[-1] - clock.tokens[skipped(clock.ends) - 1]
    # TRL packs the same documents into other sequences: shares are those of all documents.
    lengths = [len(ids) for ids, _ in records]
    share = tokens / sum(lengths)
    work = meters.Work(
        tokens,
        round(share * sum(int(flags[1:].sum()) for _, flags in records)),
        round(share * sum(length**2 for length in lengths)),
    )
    return {**result(job, work, flops, clock.ends), "attention": gpu_trl.attention(job)}


def main() -> int:
    """Run the job of the command line."""
    job = json.loads(sys.argv[1])
    try:
        found = {"probe": probe, "launcher": ours, "trl": trl}[job["tool"]](job)
    except torch.OutOfMemoryError:
        found = {"error": "out of memory"}
    print(f"RESULT {json.dumps(found)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
