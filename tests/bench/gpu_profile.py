"""Where the time of training steps goes, kernel by kernel, with torch's profiler."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

#: Kinds of kernels by words of their names, the first that fits; names of operators on a CPU.
KINDS = (
    ("attention", r"flash|fmha|attention|attn"),
    ("communication", r"nccl|AllReduce|ReduceScatter|AllGather"),
    ("optimizer", r"multi_tensor|[Aa]dam"),
    ("gemm", r"gemm|nvjet|cutlass|xmma|cublas|splitK|matmul|(^|::)(addmm|mm|bmm|addbmm)(_|$)"),
    ("memcpy", r"[Mm]em(cpy|set)|copy|CatArray|(^|::)(cat|zero_|fill_)|FillFunctor"),
    ("reduction", r"reduce|softmax|norm|(^|::)(sum|mean|max)|logsumexp"),
    ("elementwise", r"elementwise|^triton|index|gather|scatter|embedding|^aten::"),
)
TOP = 20
#: A larger trace is not kept, in bytes.
LARGEST_TRACE = 12 << 20


def kind_of(name: str) -> str:
    """The kind of work that a kernel does."""
    return next((kind for kind, words in KINDS if re.search(words, name)), "other")


def record(step: Callable[[], None], count: int, device: str, trace: Path | None) -> dict[str, Any]:
    """Profile `count` calls of `step`: seconds of the wall and of kernels, by kind and by name."""
    on_gpu = device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        began = time.perf_counter()
        for _ in range(count):
            step()
        if on_gpu:
            torch.cuda.synchronize()
        wall = time.perf_counter() - began
    kernels = _kernels(found, on_gpu)
    total = sum(seconds for _, seconds, _ in kernels)
    kinds: Counter[str] = Counter()
    for name, seconds, _ in kernels:
        kinds[kind_of(name)] += seconds
    if trace is not None:
        found.export_chrome_trace(str(trace))
        if trace.stat().st_size > LARGEST_TRACE:
            trace.unlink()
    return {
        "steps": count,
        "wall_s": wall,
        "kernels_s": total,
        "launches": sum(calls for _, _, calls in kernels),
        "kinds": {kind: seconds / total for kind, seconds in kinds.most_common()},
        "top": [
            {"name": name, "kind": kind_of(name), "share": seconds / total, "calls": calls}
            for name, seconds, calls in kernels[:TOP]
        ],
    }


def _kernels(found: profile, on_gpu: bool) -> list[tuple[str, float, int]]:
    """(name, seconds, calls) of what ran on the device, longest first; operators on a CPU."""
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    kernels = []
    for event in found.key_averages():
        if event.device_type != wanted or getattr(event, "is_user_annotation", False):
            continue
        micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if micros > 0 and not event.key.startswith("ProfilerStep"):
            kernels.append((event.key, micros / 1e6, event.count))
    return sorted(kernels, key=lambda kernel: -kernel[1])
