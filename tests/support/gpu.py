"""What tests of the GPU share: who skips, what a child may see, how memory is measured."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import pytest
import torch

#: Put `pytestmark = gpu.ONLY` into a module whose tests need a GPU.
ONLY = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="needs a CUDA device: run `make gpu` on a machine that has one",
    ),
]

#: For `run_ranks`, whose children see no GPU otherwise. Some images switch TF32 on unasked.
VISIBLE = {
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"),
    "NVIDIA_TF32_OVERRIDE": "0",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "0",
}


def peak_bytes(work: Callable[[], object]) -> int:
    """Most memory that `work` held on the GPU beyond what was held before."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
